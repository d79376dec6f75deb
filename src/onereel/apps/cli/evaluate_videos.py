"""Those commands of `onereel evaluate` that judge folders of videos by published benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from onereel.apps.cli.counting import Counter
from onereel.apps.cli.results import Html, Json, Quiet, present
from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from onereel.evaluation.measure import Measurement
    from onereel.evaluation.report.result import Result
    from onereel.evaluation.vbench.evaluate import VBenchResult
    from onereel.evaluation.vbench.suite import SampleSet

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_Folder = Annotated[Path, typer.Argument(metavar="VIDEOS", help="Folder of the videos to judge.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
_Dims = Annotated[
    str | None, typer.Option(metavar="A,B", help="Dimensions, parted by commas [all].")
]
_Network = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        metavar="NAME=SOURCE",
        help="A network: a file, folder or hub name, or package.module:function of yours.",
    ),
]
_Log = Annotated[
    Path | None, typer.Option("--out", help="Folder for the official result files and the log.")
]
_Images = Annotated[Path | None, typer.Option(help="Folder of the reference pictures.")]
_Info = Annotated[
    Path | None, typer.Option("--full-info", help="Official list of prompts [every video].")
]
_Samples = Annotated[int, typer.Option(min=1, help="Videos per prompt of the list.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One run of VBench: which benchmark, which videos, and where to keep scores."""

    kind: str
    videos: Path
    dimensions: list[str]
    chosen: SampleSet
    full_info: Path | None = None
    out: Path | None = None


@app.command()
def pair(
    videos: _Folder,
    references: Annotated[Path, typer.Argument(help="Folder of what they should be.")],
    metrics: Annotated[str, typer.Option(help="Some of psnr,psnr_global,ssim,lpips.")] = (
        "psnr,ssim"
    ),
    backbone: Annotated[
        Path | None, typer.Option(help="LPIPS: torchvision's AlexNet or VGG16 file.")
    ] = None,
    heads: Annotated[Path | None, typer.Option(help="LPIPS: the authors' file of heads.")] = None,
    net: Annotated[str, typer.Option(help="LPIPS: alex or vgg.")] = "alex",
    frames: Annotated[int | None, typer.Option(help="Only the first N frames.")] = None,
    device: _Device = "cpu",
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Compare videos with references of the same names: PSNR, SSIM, LPIPS."""
    if (backbone is None) != (heads is None):
        raise ConfigError("--backbone and --heads", expected="both or none", got="one of them")
    from onereel.core.device import pick_device
    from onereel.evaluation.networks.lpips import load_lpips
    from onereel.evaluation.pairs import evaluate_pair
    from onereel.evaluation.report.convert import pair_report

    if net not in ("alex", "vgg"):
        raise ConfigError("--net", expected="alex or vgg", got=net)
    network = None
    if backbone is not None and heads is not None:
        kind = cast("Literal['alex', 'vgg']", net)
        network = load_lpips(backbone, heads, net=kind, device=pick_device(device))
    with Counter("pairs", quiet=quiet) as counter:
        found = evaluate_pair(
            videos,
            references,
            metrics=_names(metrics),
            lpips=network,
            num_frames=frames,
            progress=counter.show,
        )
    report = pair_report(found, videos=videos, references=references)
    raise typer.Exit(present(report, json_=json_, html=html))


@app.command()
def distance(
    real: Annotated[Path, typer.Argument(help="Folder of the real videos.")],
    fake: Annotated[Path, typer.Argument(help="Folder of the generated videos.")],
    network: Annotated[
        str,
        typer.Option(
            help="TorchScript file: i3d_torchscript.pt, or inception-2015-12-05.pt for fid and "
            "kid, for which 'torchmetrics' does as well."
        ),
    ],
    kind: Annotated[str, typer.Option(help="fvd, kvd, fid or kid.")] = "fvd",
    convention: Annotated[
        str | None, typer.Option(help="styleganv, videogpt, magic141; fid: plain, magic141.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames per video [16; fid: all].")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Every how many-th frame.")] = 1,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Let sizes and frame counts differ.")
    ] = False,
    device: _Device = "cpu",
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Take the distance between two folders of videos by the features of a network."""
    if kind not in ("fvd", "kvd", "fid", "kid"):
        raise ConfigError("--kind", expected="fvd, kvd, fid or kid", got=kind)
    from onereel.evaluation.report.convert import distance_report

    options: dict[str, Any] = {"stride": stride, "mixed": mixed, "device": device}
    options |= {} if convention is None else {"convention": convention}
    options |= {} if frames is None else {"num_frames": frames}
    options["mmd"] = "subsets" if kind in ("kvd", "kid") else None
    with Counter("videos", quiet=quiet) as counter:
        if kind in ("fvd", "kvd"):
            from onereel.evaluation.fvd import FvdConfig, evaluate_fvd

            found = evaluate_fvd(real, fake, network=network, config=FvdConfig(**options),
                                 progress=counter.show)  # fmt: skip
        else:
            from onereel.evaluation.fid import FidConfig, evaluate_fid

            found = evaluate_fid(real, fake, network=network, config=FidConfig(**options),
                                 progress=counter.show)  # fmt: skip
    report = distance_report(found, real=real, fake=fake, kinds=list(found))
    raise typer.Exit(present(report, json_=json_, html=html))


@app.command()
def vbench(
    videos: _Folder,
    dims: _Dims = None,
    full_info: _Info = None,
    samples: _Samples = 5,
    network: _Network = None,
    long: Annotated[
        bool, typer.Option("--long", help="Cut videos of 5 s and more into clips.")
    ] = False,
    out: _Log = None,
    device: _Device = "cpu",
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Score videos on VBench's dimensions; those that lack a network say which.

    Without --full-info every video of the folder counts, with its name as the prompt. With --out,
    finished scores are kept and taken again when neither video nor networks have changed.
    """
    from onereel.evaluation.vbench.suite import NOT_CUSTOM
    from onereel.evaluation.vbench.totals import T2V_DIMENSIONS, t2v_totals

    known = T2V_DIMENSIONS if full_info else [d for d in T2V_DIMENSIONS if d not in NOT_CUSTOM]
    wanted = _names(dims) if dims else list(known)
    chosen = _choose(videos, wanted, full_info=full_info, samples=samples)
    job = _Job(kind="vbench", videos=videos, dimensions=wanted, chosen=chosen,
               full_info=full_info, out=out)  # fmt: skip
    found = _score(job, network, device=device, quiet=quiet, long=long)
    report = _report(job, found, t2v_totals(found.overall()))
    raise typer.Exit(present(report, json_=json_, html=html))


@app.command("vbench-i2v")
def vbench_i2v(
    videos: _Folder,
    images: _Images = None,
    dims: _Dims = None,
    full_info: _Info = None,
    samples: _Samples = 5,
    network: _Network = None,
    out: _Log = None,
    device: _Device = "cpu",
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Score videos made from pictures on VBench-I2V's dimensions."""
    from onereel.evaluation.vbench.totals import I2V_DIMENSIONS, i2v_totals

    wanted = _names(dims) if dims else list(I2V_DIMENSIONS)
    if not dims and full_info is None:
        wanted.remove("camera_motion")  # only the official list says which movement was asked for
    chosen = _choose(videos, wanted, full_info=full_info, samples=samples, images=images)
    job = _Job(kind="vbench-i2v", videos=videos, dimensions=wanted, chosen=chosen,
               full_info=full_info, out=out)  # fmt: skip
    found = _score(job, network, device=device, quiet=quiet)
    report = _report(job, found, i2v_totals(found.overall()))
    raise typer.Exit(present(report, json_=json_, html=html))


@app.command()
def magic141(
    videos: _Folder,
    images: _Images = None,
    network: _Network = None,
    out: _Log = None,
    device: _Device = "cpu",
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Fill the seven columns of Magic 1-For-1's table, and their average."""
    from onereel.evaluation.vbench.totals import (
        AVERAGE,
        MAGIC141_COLUMNS,
        magic141_row,
        magic141_table,
    )

    wanted = list(MAGIC141_COLUMNS)
    chosen = _choose(videos, wanted, full_info=None, samples=1, images=images)
    job = _Job(kind="magic141", videos=videos, dimensions=wanted, chosen=chosen, out=out)
    found = _score(job, network, device=device, quiet=quiet)
    row = magic141_row(found.dimensions)
    print(magic141_table({videos.resolve().name: row}))
    report = _report(job, found, {AVERAGE: row[AVERAGE]})
    raise typer.Exit(present(report, json_=json_, html=html))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _choose(
    videos: Path,
    dimensions: list[str],
    *,
    full_info: Path | None,
    samples: int,
    images: Path | None = None,
) -> SampleSet:
    """Find the videos: those of the official list, or all of the folder."""
    from onereel.evaluation.vbench.evaluate import check_dimensions
    from onereel.evaluation.vbench.suite import (
        custom_samples,
        read_suite,
        refuse_not_custom,
        suite_samples,
    )

    check_dimensions(dimensions)
    if full_info is None:
        refuse_not_custom(dimensions)
        return custom_samples(videos, images=images)
    entries = read_suite(full_info)
    return suite_samples(videos, entries, dimensions=dimensions, num_samples=samples,
                         images=images)  # fmt: skip


def _score(
    job: _Job, network: list[str] | None, *, device: str, quiet: bool, long: bool = False
) -> VBenchResult:
    """Load the networks and score, going on with what the log holds."""
    from onereel.core.device import pick_device
    from onereel.evaluation.vbench.adapters import load_networks
    from onereel.evaluation.vbench.evaluate import evaluate_folder
    from onereel.evaluation.vbench.long import evaluate_long
    from onereel.evaluation.vbench_scores import ScoreLog

    sources = dict(_source(text) for text in network or ())
    networks = load_networks(sources, device=pick_device(device))
    options: dict[str, Any] = {}
    if job.out is not None:
        name = "long-scores.jsonl" if long else "scores.jsonl"
        log = ScoreLog(job.out / name, networks=dict(networks.descriptions()))
        known = log.known(sample.path for sample in job.chosen.samples)
        options = {"known": known, "on_score": log.add}
    evaluate = evaluate_long if long else evaluate_folder
    with Counter("scores", quiet=quiet) as counter:
        return evaluate(
            job.chosen,
            dimensions=job.dimensions,
            networks=networks,
            progress=lambda done, total, name: counter.show(done, total),
            **options,
        )


def _source(text: str) -> tuple[str, str]:
    name, sign, source = text.partition("=")
    if not sign:
        raise ConfigError("--network", expected="NAME=SOURCE", got=text)
    return name.strip(), source.strip()


def _report(job: _Job, found: VBenchResult, totals: dict[str, Measurement]) -> Result:
    """Write the official files, and bring the result into our form."""
    from onereel.evaluation.report.convert import vbench_report
    from onereel.evaluation.vbench.files import write_official
    from onereel.evaluation.videos import hash_input

    if job.out is not None:
        name = job.videos.resolve().name
        for path in write_official(found, job.out, name=name, samples=job.chosen.samples):
            print(path)
    config = {
        "videos": str(job.videos),
        "full_info": None if job.full_info is None else str(job.full_info),
        "sha256": {str(sample.path): hash_input(sample.path) for sample in job.chosen.samples},
    }
    return vbench_report(
        found,
        kind=job.kind,
        folder=job.videos,
        suite="custom" if job.full_info is None else job.full_info.stem,
        totals=totals,
        config=config,
    )


@app.command("physics-iq")
def physics_iq(
    dataset: Annotated[Path, typer.Argument(help="The folder physics-IQ-benchmark.")],
    videos: Annotated[Path, typer.Argument(metavar="VIDEOS", help="Folder of the model's videos.")],
    generate: Annotated[
        bool, typer.Option("--generate", help="First make the videos that are not there yet.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --generate: shipped name or folder.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="With --generate: i2v or v2v (three seconds given).")
    ] = "i2v",
    fps: Annotated[int, typer.Option(help="With --generate: frames per second.")] = 24,
    steps: Annotated[int | None, typer.Option(help="With --generate: updates per chunk.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="With --generate: strength towards the text.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --generate: of the noise.")] = 0,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this scenario; not the official score.")
    ] = None,
    descriptions: Annotated[Path | None, typer.Option(help="The official table.")] = None,
    mask_codec: Annotated[
        str, typer.Option(help="none, or mp4v for the official tool's lossy masks.")
    ] = "none",
    real_masks: Annotated[
        str, typer.Option(help="computed, or files for the published ones.")
    ] = "computed",
    out: Annotated[Path | None, typer.Option(help="Folder for the official CSV and masks.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that score.")] = 1,
    device: Annotated[str | None, typer.Option(help="With --generate: where.")] = None,
    json_: Json = None,
    html: Html = None,
    quiet: Quiet = False,
) -> None:
    """Score videos by Physics-IQ, beside a frozen picture; with --generate make them first.

    Nothing that is in VIDEOS is ever renamed or replaced.
    """
    if generate != (model is not None):
        raise ConfigError("--generate and --model", expected="both or none", got="one of them")
    from onereel.evaluation.physics_iq.dataset import read_dataset
    from onereel.evaluation.physics_iq.evaluate import evaluate_folder
    from onereel.evaluation.physics_iq.generate import generate_videos
    from onereel.evaluation.report.convert import physics_iq_report

    benchmark = read_dataset(dataset, descriptions)
    benchmark = benchmark.only(scenario) if scenario else benchmark
    config: dict[str, Any] = {}
    if model is not None:
        from onereel.evaluation.generate import ModelChoice
        from onereel.evaluation.physics_videos import PhysicsIqMaker

        choice = ModelChoice(model=model, steps=steps, guidance=guidance, fps=fps, device=device)
        maker = PhysicsIqMaker(choice, seed=seed)
        config = {"generation": {**maker.settings, "protocol": protocol}}
        with Counter("videos", quiet=quiet) as counter:
            generate_videos(
                benchmark,
                protocol=cast("Literal['i2v', 'v2v']", protocol),
                fps=fps,
                generate=maker,
                out=videos,
                settings=maker.settings,
                progress=lambda done, total, name: counter.show(done, total),
            )
    with Counter("views", quiet=quiet) as counter:
        found = evaluate_folder(
            benchmark,
            videos,
            output=out,
            cache=None if out is None else out / "masks",
            mask_codec=cast("Literal['none', 'mp4v']", mask_codec),
            real_masks=cast("Literal['computed', 'files']", real_masks),
            workers=workers,
            progress=lambda done, total, name: counter.show(done, total),
        )
    report = physics_iq_report(found, config=config)
    raise typer.Exit(present(report, json_=json_, html=html))
