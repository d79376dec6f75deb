"""`onereel models`: list, inspect, verify, convert and download checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onereel.apps.cli.plan import size_text
from onereel.core.config import nearest_name
from onereel.core.errors import BackendUnavailable, CheckpointError, ConfigError

if TYPE_CHECKING:
    from onereel.runtime.verify import VerifyReport

OFFICIAL_REPO = "sand-ai/MAGI-1"
VARIANTS = tuple(
    f"{size}_{kind}" for size in ("4.5B", "24B") for kind in ("base", "distill", "distill_quant")
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

ModelArgument = Annotated[
    str | None, typer.Argument(help="Shipped name, folder or official JSON [toybox-magi].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_models(json_: JsonOption = False) -> None:
    """List the checkpoints inside the package, and what can be downloaded."""
    from onereel.runtime.source import DEFAULT_MODEL, shipped_models

    shipped = {name: _sizes(folder) for name, folder in shipped_models().items()}
    if json_:
        print(json.dumps({"default": DEFAULT_MODEL, "shipped": shipped, "download": VARIANTS}))
        return
    for name, sizes in shipped.items():
        mark = " (default)" if name == DEFAULT_MODEL else ""
        print(f"{name}{mark}  {size_text(sizes['num_bytes'])}  {sizes['path']}")
    if not shipped:
        print("no checkpoint is shipped with this installation", file=sys.stderr)
    print(f"`onereel models download NAME` gets {', '.join(VARIANTS)}", file=sys.stderr)


def _sizes(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"path": str(folder), "num_bytes": sum(path.stat().st_size for path in files)}


@app.command()
def info(model: ModelArgument = None, json_: JsonOption = False) -> None:
    """Say what a checkpoint holds; only headers are read."""
    from onereel.runtime.source import MAGIC141, resolve_model
    from onereel.runtime.verify import preflight

    source = resolve_model(model)
    if source.family != MAGIC141:
        _show(preflight(source), json_=json_)
        return
    from onereel.runtime.magic_verify import verify_magic

    _finish(verify_magic(source, hashed=False), json_=json_)


@app.command()
def verify(
    model: ModelArgument = None,
    deep: Annotated[bool, typer.Option("--deep", help="Look for NaN and infinity, too.")] = False,
    json_: JsonOption = False,
) -> None:
    """Account for every tensor of a checkpoint and hash its weights; exit 3 if anything is off."""
    from onereel.runtime.source import MAGIC141, resolve_model
    from onereel.runtime.verify import verify as check

    source = resolve_model(model)
    if source.family != MAGIC141:
        _finish(check(source, deep=deep), json_=json_)
        return
    from onereel.runtime.magic_verify import verify_magic

    _finish(verify_magic(source, deep=deep), json_=json_)


def _finish(report: VerifyReport, *, json_: bool) -> None:
    """Show a report, and refuse what has problems."""
    _show(report, json_=json_)
    if not report.ok:
        raise CheckpointError(
            f"{report.path}: {len(report.problems)} problem(s), see above",
            hint="download or convert it again",
        )


def _show(report: VerifyReport, *, json_: bool) -> None:
    print(json.dumps(report.to_dict(), indent=2) if json_ else "\n".join(describe(report)))


def describe(report: VerifyReport) -> list[str]:
    """Write a report as text.

    Args:
        report: what was found.

    Returns:
        Lines of text.
    """
    lines = [f"{report.name} ({report.kind}): {report.path}"]
    for name, part in report.parts.items():
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in part.dtypes.items())
        numbers = f"{part.num_parameters / 1e6:,.1f} M numbers, " if part.num_parameters else ""
        tensors = f" ({dtypes})" if dtypes else ""
        files = f"{part.num_files} file{'s' if part.num_files > 1 else ''}"
        lines.append(f"  {name:13} {numbers}{size_text(part.num_bytes)} in {files}{tensors}")
    lines += [f"  {key:22} {_short(value)}" for key, value in sorted(report.sampling.items())]
    if report.special_tokens:
        lines.append(f"  special tokens         {report.special_tokens}")
    if report.model_hash:
        lines.append(f"  sha256                 {report.model_hash}")
    lines += [f"  PROBLEM: {problem}" for problem in report.problems]
    return lines if report.problems else [*lines, "  all tensors accounted for"]


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Shipped name, folder or official JSON.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    to: Annotated[str, typer.Option(help="folder (diffusers style) or official.")] = "folder",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32 [as stored].")] = None,
    max_shard_gb: Annotated[float, typer.Option(help="Size of a weight file.")] = 5.0,
    quantize: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="int8, int4 or fp8: the transformer.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write a checkpoint in the other layout, bit for bit, or with weights in fewer bits."""
    from onereel.core.device import parse_dtype
    from onereel.runtime.convert import convert as write
    from onereel.runtime.source import resolve_model

    if to not in ("folder", "official"):
        raise ConfigError("--to", expected="folder or official", got=to)
    written = write(
        resolve_model(model),
        out,
        to="official" if to == "official" else "folder",
        dtype=None if dtype is None else parse_dtype(dtype),
        max_shard_gb=max_shard_gb,
        level=quantize,
    )
    print(json.dumps({"model": str(written)}) if json_ else written)


@app.command()
def previews(
    model: Annotated[str, typer.Argument(help="Shipped name or folder; its VAE's config changes.")],
    video: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Fit on this video; repeatable.")
    ] = None,
) -> None:
    """Fit the colours in which a render shows its latents before they are decoded.

    Without --video they are fitted on Toybox clips of the checkpoint's own size.
    """
    from onereel.runtime.layout import read_sampling
    from onereel.runtime.magic_source import magic_files
    from onereel.runtime.previews import fit_magic_previews, fit_previews
    from onereel.runtime.source import MAGIC141, resolve_model

    source = resolve_model(model)
    is_magic = source.family == MAGIC141
    sampling = magic_files(source).sampling if is_magic else read_sampling(source)
    size = (int(sampling.get("height") or 256), int(sampling.get("width") or 256))
    clips = list(_preview_clips(video, size, num_frames=25 if is_magic else 24))
    print(fit_magic_previews(source, clips) if is_magic else fit_previews(source, clips))


def _preview_clips(
    paths: list[Path] | None, size: tuple[int, int], *, num_frames: int
) -> Iterator[Any]:
    """Read or render clips, about a chunk long."""
    from onereel.media import read_video
    from onereel.world import sample_clip

    height, width = size
    for path in paths or ():
        yield read_video(path, height=height, width=width, num_frames=num_frames)
    if not paths:
        for seed in range(64):
            yield sample_clip(seed, num_frames=num_frames, height=height, width=width).video


@app.command()
def download(
    variant: Annotated[str | None, typer.Argument(help=f"One of {', '.join(VARIANTS)}.")] = None,
    repo: Annotated[str, typer.Option(help="Repository on the Hugging Face hub.")] = OFFICIAL_REPO,
    to: Annotated[Path, typer.Option(help="Folder to write.")] = Path("downloads"),
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    json_: JsonOption = False,
) -> None:
    """Get a checkpoint from the hub; the only command that uses the network."""
    patterns = None
    if repo == OFFICIAL_REPO:
        _check_variant(variant)
        patterns = [f"ckpt/magi/{variant}/*", "ckpt/vae/*", "ckpt/t5/*"]
    elif variant is not None:
        raise ConfigError("variant", expected=f"none with --repo {repo}", got=variant)
    folder = fetch(repo, to, patterns=patterns, revision=revision)
    settings: Mapping[str, str] = {}
    if patterns is not None:
        settings = {
            "load": str(folder / "ckpt" / "magi" / str(variant)),
            "vae_pretrained": str(folder / "ckpt" / "vae"),
            "t5_pretrained": str(folder / "ckpt" / "t5"),
        }
        print("now set these in runtime_config of the official JSON config:", file=sys.stderr)
        for key, value in settings.items():
            print(f'  "{key}": "{value}"', file=sys.stderr)
    print(json.dumps({"folder": str(folder), "runtime_config": settings}) if json_ else folder)


def _check_variant(variant: str | None) -> None:
    if variant is None or variant not in VARIANTS:
        near = nearest_name(variant or "", VARIANTS)
        raise ConfigError(
            "variant", expected=f"one of {', '.join(VARIANTS)}", got=variant,
            hint=f"did you mean '{near}'?" if near else None,
        )  # fmt: skip


def fetch(
    repo: str, folder: Path, *, patterns: list[str] | None, revision: str | None = None
) -> Path:
    """Download files of a repository.

    Args:
        repo: its id.
        folder: where to write.
        patterns: files wanted; None means all.
        revision: branch, tag or commit.

    Returns:
        The folder.

    Raises:
        BackendUnavailable: the hub cannot be reached.
        ConfigError: there is no such repository, or it may not be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        snapshot_download(repo, allow_patterns=patterns, local_dir=folder, revision=revision)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"repository '{repo}'", expected="one that exists and that you may read",
            hint="check the name, or log in with: hf auth login",
        ) from error  # fmt: skip
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendUnavailable(
            f"cannot download {repo}: {reason}",
            hint="check the network and HF_HUB_OFFLINE, then run it again: "
            "what is there already is kept",
        ) from error
    return folder
