"""`onereel resume` and `onereel runs`: renders that are kept on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onereel.apps.cli.keys import steering_keys
from onereel.apps.cli.plan import size_text
from onereel.apps.cli.progress import make_listener
from onereel.core.errors import ConfigError, OneReelError

if TYPE_CHECKING:
    from onereel.runs.folder import RunFolder

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, such as OUT.run.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def resume(
    folder: _Folder,
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.mp4", help="Another file to write.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr.")] = False,
    json_: _Json = False,
) -> None:
    """Go on with a render that was broken off: by Ctrl-C, a kill, a full disk or lack of memory.

    What is kept in DIR is decoded again, the rest is computed; the video is that of an unbroken
    run. A finished run is decoded into its file once more.
    """
    from onereel.apps.cli.generate import report, stoppable, warnings_told

    listener = make_listener(quiet=quiet)
    with warnings_told(listener), stoppable(listener):
        from onereel.runs.run import Run

        with steering_keys(folder, listener):
            result = Run(folder, listener=listener).finish(output=output)
        report(result, listener, as_json=json_)


def decode(
    folder: _Folder,
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.mp4", help="Another file to write.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Tiles of the VAE; smaller take less.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr.")] = False,
    json_: _Json = False,
) -> None:
    """Make the video from the latents that a run keeps, on this or another machine.

    Only the VAE is loaded. When memory runs out it goes on in smaller tiles; the latents stay.
    """
    from onereel.apps.cli.generate import report, stoppable, warnings_told

    listener = make_listener(quiet=quiet)
    with warnings_told(listener), stoppable(listener):
        from onereel.runs.run import Run

        run = Run(folder, listener=listener)
        report(run.decode(output=output, tile=tile, device=device), listener, as_json=json_)


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, with all folders below.")] = Path(),
    json_: _Json = False,
) -> None:
    """List the runs below a folder."""
    from onereel.runs.folder import MANIFEST, RunFolder

    found = []
    for manifest in sorted(folder.rglob(MANIFEST)):
        try:
            found.append(describe(RunFolder(manifest.parent)))
        except OneReelError as error:
            found.append({"path": str(manifest.parent), "state": "damaged", "problem": str(error)})
    if json_:
        print(json.dumps({"runs": found}, ensure_ascii=False))
        return
    for run in found:
        print("  ".join(_line(run)))
    if not found:
        typer.echo(f"no runs below {folder}", err=True)


def describe(folder: RunFolder) -> dict[str, Any]:
    """Say what a run makes and how far it is.

    Args:
        folder: the run.

    Returns:
        JSON values.
    """
    manifest, record, chunks = folder.manifest, folder.manifest.record, folder.chunks
    return {
        "path": str(folder.path),
        "state": folder.state,
        "output": str(folder.output),
        "chunks": len(chunks),
        "num_chunks": folder.num_chunks - manifest.num_given_chunks,
        "num_frames": folder.num_frames,
        "fps": record["fps"],
        "seed": record["seed"],
        "prompt": record["prompt"] or "; ".join(record["timeline"]),
        "model": record["model"],
        "num_bytes": folder.num_bytes(),
        "damaged_bytes": folder.journal.lost_bytes,
    }


def _line(run: dict[str, Any]) -> list[str]:
    if run["state"] == "damaged":
        return [run["path"], "damaged", run["problem"]]
    return [
        run["path"],
        run["state"],
        f"{run['chunks']}/{run['num_chunks']} chunks",
        f"{run['num_frames'] / run['fps']:.2f} s",
        size_text(run["num_bytes"]),
        run["prompt"],
    ]


@app.command()
def show(folder: _Folder, json_: _Json = False) -> None:
    """Say what a run makes, how far it is, and what happened to it."""
    from onereel.runs.folder import RunFolder

    run = RunFolder(folder)
    values = {**describe(run), "events": run.journal.events, "record": run.manifest.record}
    if json_:
        print(json.dumps(values, ensure_ascii=False))
        return
    print("  ".join(_line(values)))
    print(f"video {values['output']}, model {values['model']}, seed {values['seed']}")
    print(run.manifest.record["command"])
    for event in run.journal.events:
        details = [f"{k} {v}" for k, v in event.items() if k not in ("kind", "sha256", "versions")]
        print(f"{event['kind']}: {', '.join(details)}")


@app.command()
def verify(folder: _Folder, json_: _Json = False) -> None:
    """Check every byte of a run; exit code 1 when something is wrong."""
    from onereel.runs.folder import RunFolder

    run = RunFolder(folder)
    problems = run.problems()
    if json_:
        print(json.dumps({"path": str(folder), "chunks": len(run.chunks), "problems": problems}))
    else:
        for problem in problems:
            print(problem)
        print(f"{folder}: {len(run.chunks)} chunks, {len(problems)} problems")
    if problems:
        typer.echo("hint: `onereel resume` computes again what is damaged", err=True)
        raise typer.Exit(1)


@app.command()
def clean(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    force: Annotated[
        bool, typer.Option("--force", help="Unfinished runs, too: they cannot be resumed then.")
    ] = False,
) -> None:
    """Remove the folders of finished runs; their videos stay."""
    from onereel.runs.folder import RunFolder

    runs = [RunFolder(folder) for folder in folders]
    for run in runs:
        if not (run.is_finished or force):
            raise ConfigError(
                f"{run.path} is not finished",
                hint=f"`onereel resume {run.path}`, or --force to give it up",
            )
    for run in runs:
        size = run.num_bytes()
        with run.locked():
            shutil.rmtree(run.path)
        print(f"{run.path}  {size_text(size)} freed")
