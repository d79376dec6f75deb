"""`onereel evaluate`: measure a model, or videos, and write the result as JSON and as a page."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onereel.apps.cli import evaluate_videos
from onereel.apps.cli.counting import Counter
from onereel.apps.cli.reading import parse_lora
from onereel.apps.cli.results import Html, Json, Quiet, present, table_of
from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from onereel.evaluation.report.result import Result

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
app.add_typer(evaluate_videos.app)


@app.command()
def toybox(
    model: Annotated[
        str, typer.Option(help="Shipped name or folder; 'simulator' is the world itself.")
    ],
    suite: Annotated[
        str,
        typer.Option(help="quick, standard, long, v2v, i2v, timeline, physics-v2v, physics-i2v."),
    ] = "quick",
    steps: Annotated[int | None, typer.Option(help="Updates per chunk [checkpoint's].")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Strength towards the text [checkpoint's].")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="Adapter; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; the prompts are fixed.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N prompts or scenarios.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Videos per prompt [suite's].")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames per video [suite's].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder that keeps videos and records.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Make the videos of a suite, track every object, and score them against the simulator.

    Without --out the videos are thrown away at the end. Exit code 1 when a video had a problem.
    """
    if resume and out is None:
        raise ConfigError("--resume", hint="say which run with --out FOLDER")
    evaluate = _suite(
        model,
        suite,
        counts={"limit": limit, "samples": samples, "frames": frames},
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
        loras=tuple(parse_lora(text) for text in lora or ()),
    )
    with _folder(out) as folder:
        with Counter(evaluate.what, quiet=quiet) as counter:
            result = evaluate.call(
                out=folder,
                workers=workers,
                resume=resume,
                progress=lambda done, total, record: counter.show(done, total),
            )
        code = present(result, json_=json_, html=html, kept=out is not None)
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One suite, ready to be run: the function, and the name of what it counts."""

    call: Callable[..., Result]
    what: str


def _suite(
    model: str,
    suite: str,
    *,
    counts: dict[str, int | None],
    seed: int,
    **options: Any,
) -> _Evaluation:
    """Choose what runs a suite."""
    # Imported late: `--help` must not wait for torch.
    from onereel.evaluation.generate import ModelChoice
    from onereel.evaluation.toybox.evaluate import ToyboxRun, evaluate_toybox
    from onereel.evaluation.toybox.physics_run import SCENARIOS, PhysicsRun, evaluate_physics
    from onereel.evaluation.toybox.suites import PHYSICS_SUITES

    choice = ModelChoice(model=model, **options)
    if suite not in PHYSICS_SUITES:
        run = ToyboxRun(
            choice=choice,
            suite=suite,
            seed=seed,
            limit=counts["limit"],
            samples=counts["samples"],
            num_frames=counts["frames"],
        )
        return _Evaluation(functools.partial(evaluate_toybox, run), "videos")
    for name in ("samples", "frames"):
        if counts[name] is not None:
            raise ConfigError(f"--{name}", hint=f"leave it out: suite {suite} has its own")
    number = SCENARIOS if counts["limit"] is None else counts["limit"]
    physics = PhysicsRun(choice=choice, suite=suite, seed=seed, num_scenarios=number)
    return _Evaluation(functools.partial(evaluate_physics, physics), "scenarios")


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Give the folder of a run; one of our own is removed unless it holds unfinished work."""
    if out is not None:
        yield out
        return
    folder = Path(tempfile.mkdtemp(prefix="onereel-"))
    try:
        yield folder
    except BaseException:
        if any(folder.glob("videos/*.json")):
            print(f"finished videos are in {folder}; go on with --out {folder} --resume",
                  file=sys.stderr)  # fmt: skip
        else:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


@app.command()
def floor(
    vae: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Add the round trip through its VAE.")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Random scenes per row.")] = 150,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 64,
    frames: Annotated[int, typer.Option(min=1, help="Frames per scene.")] = 24,
    device: Annotated[str | None, typer.Option(help="With --vae: where.")] = None,
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Measure the tracker itself on known scenes: what no number of a model can be finer than."""
    from onereel.evaluation.generate import open_round_trip
    from onereel.evaluation.report.convert import floor_report
    from onereel.evaluation.toybox.floor import ROWS, measure_floor

    trip = None if vae is None else open_round_trip(vae, device=device)
    names = [name for name, row in ROWS.items() if trip is not None or not row.coded]
    with Counter("scenes", quiet=quiet) as counter:
        counter.show(0, len(names) * scenes)
        found = measure_floor(
            scenes=scenes,
            size=size,
            num_frames=frames,
            rows=names,
            round_trip=trip,
            report=lambda row, done: counter.show(
                names.index(row) * scenes + done, len(names) * scenes
            ),
        )
    result = floor_report(
        found,
        scenes=scenes,
        model="" if trip is None else trip.name,
        model_hash="" if trip is None else trip.model_hash,
        config={"scenes": scenes, "size": size, "num_frames": frames, "rows": names},
    )
    raise typer.Exit(present(result, json_=json_, html=html))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Result files or folders of runs.")
    ],
    html: Html = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Frames of the first run's worst ten.")
    ] = None,
) -> None:
    """Show results, side by side when there are several, on the screen and as a page."""
    from onereel.evaluation.report.result import read_result

    results = [read_result(path) for path in runs]
    print(table_of(results))
    if html is not None:
        from onereel.evaluation.report.page import write_page

        print(write_page(results, html, sheet=sheet))
    elif sheet is not None:
        from onereel.evaluation.report.compare import worst_rows
        from onereel.evaluation.report.sheets import video_sheet

        rows = [row for row in worst_rows(results[0]) if row.files]
        print(video_sheet(results[0], rows, path=sheet))
