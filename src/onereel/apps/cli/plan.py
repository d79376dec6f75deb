"""`onereel plan`: memory, passes, steps and time of a video, before anything is loaded."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

from onereel.apps.cli.plan_magic import RELEASED, plan_magic
from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from onereel.runtime.estimate import Estimate
    from onereel.runtime.source import ModelSource

_SIZE = re.compile(r"(\d+)\s*[xX]\s*(\d+)")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def plan(
    model: Annotated[
        str | None,
        typer.Option(help="Shipped name, folder, official JSON, or a size: 4.5B_base, magic141."),
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the video.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Length in frames instead.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates per chunk.")] = None,
    window: Annotated[int | None, typer.Option(help="Chunks in flight at once.")] = None,
    prefix_frames: Annotated[int, typer.Option(help="Given frames (--video).")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    quantize: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="int8, int4, fp8 or int8-dynamic weights.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Speed of matrix products [measured for 0.1 s].")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a video takes: memory per part, guidance passes, steps and time."""
    # Imported late: `--help` must not wait for torch.
    from onereel.core.device import parse_dtype, pick_device
    from onereel.runtime.estimate import Job, check_fits, estimate_job
    from onereel.runtime.quantize import check_level
    from onereel.runtime.shapes import read_shapes
    from onereel.runtime.source import MAGIC141

    if seconds is not None and num_frames is not None:
        raise ConfigError("--seconds and --num-frames", expected="one of them")
    height, width = parse_size(size) if size else (None, None)
    found_model = find_model(model)
    if found_model == RELEASED or getattr(found_model, "family", None) == MAGIC141:
        from onereel.pipelines.wishes import RunWishes

        wishes = RunWishes(
            prompt="-", model=model, seconds=seconds, num_frames=num_frames, height=height,
            width=width, steps=steps, quantize=quantize, device=device, dtype=dtype,
        )  # fmt: skip
        foreign = {"--window": window, "--prefix-frames": prefix_frames}
        plan_magic(wishes, foreign=foreign, tflops=tflops, as_json=json_)
        return
    shapes = read_shapes(found_model)
    frames = num_frames
    if seconds is not None:
        frames = frames_of(seconds, fps=int(shapes.sampling.get("fps", 24)))
    job = Job(
        height=height,
        width=width,
        num_frames=frames,
        num_steps=steps,
        window_size=window,
        prefix_frames=prefix_frames,
    )
    if quantize is not None:
        check_level(quantize)
    found = estimate_job(
        shapes,
        job,
        dtype=parse_dtype(dtype),
        device=pick_device(device),
        tflops=tflops,
        level=quantize,
    )
    print(json.dumps(found.to_dict(), indent=2) if json_ else "\n".join(describe(found)))
    check_fits(found, turns="block")


def find_model(name: str | None) -> ModelSource | str:
    """Find a checkpoint, or the preset of a released model that is not on this machine.

    Args:
        name: what the user wrote; None means the shipped default.

    Returns:
        The checkpoint, or the preset's name.

    Raises:
        ConfigError: neither is known.
        CheckpointError: a JSON file is missing or damaged.
    """
    from onereel.models.magi_dit.presets import DIT_PRESETS
    from onereel.runtime.source import resolve_model

    return name if name in DIT_PRESETS or name == RELEASED else resolve_model(name)


def parse_size(text: str) -> tuple[int, int]:
    """Read `WxH`.

    Args:
        text: such as `1280x720`.

    Returns:
        Height and width in pixels.

    Raises:
        ConfigError: it is something else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError("--size", expected="WIDTHxHEIGHT, such as 1280x720", got=text)
    return int(match[2]), int(match[1])


def frames_of(seconds: float, *, fps: int) -> int:
    """Turn a length into frames.

    Args:
        seconds: more than 0.
        fps: frames per second.

    Returns:
        Frames, at least 1.

    Raises:
        ConfigError: the length is not a positive number.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigError("--seconds", expected="more than 0", got=seconds)
    return max(1, round(seconds * fps))


def describe(found: Estimate) -> list[str]:
    """Write an estimate as a table.

    Args:
        found: the estimate.

    Returns:
        Lines of text.
    """
    rows: list[tuple[str, str]] = [
        ("video", f"{found.width}x{found.height}, {found.num_frames} frames, "
                  f"{found.num_chunks} chunks of {found.tokens_per_chunk} tokens"),
        ("runs on", f"{found.device} in {found.dtype}, text encoder on {found.text_device}"),
    ]  # fmt: skip
    rows += [(name.replace("_", " "), size_text(size)) for name, size in found.weights.items()]
    rows += [
        ("key/value cache", f"{size_text(found.kv_bytes)} ({found.kv_chunks} chunks)"),
        ("largest step", size_text(found.step_bytes)),
        ("decoding a chunk", f"{size_text(found.vae_bytes)} ({found.num_tiles} tiles)"),
        ("all at once", f"{size_text(found.resident_bytes)}{verdict(found.fits)}"),
        ("moved in turn", f"{size_text(found.in_turn_bytes)}{verdict(found.fits_with('move'))} "
                          "(--offload on a GPU)"),
        ("block by block", f"{size_text(found.by_block_bytes)}{verdict(found.fits_with('block'))} "
                           "(--low-memory on a GPU)"),
        ("steps", f"{found.num_steps}"),
        ("guidance passes", f"{found.num_passes} ({found.num_plain_passes} without skipping), "
                            f"in {found.num_calls} model calls"),
        ("work", f"{found.flops / 1e12:,.4g} TFLOP, {found.flops_per_step / 1e12:,.3g} a step"),
        ("time", f"about {time_text(found.seconds)} at {found.tflops:.3g} TFLOP/s"),
    ]  # fmt: skip
    if found.available is not None:
        rows.append(("free memory", size_text(found.available)))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def verdict(fits: bool | None) -> str:
    """Say whether something fits.

    Args:
        fits: None where the free memory is unknown.

    Returns:
        What to add to a size.
    """
    return "" if fits is None else ", fits" if fits else ", does not fit"


def size_text(num_bytes: float) -> str:
    """Write a number of bytes.

    Args:
        num_bytes: bytes.

    Returns:
        Such as `1.69 GB`.
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def time_text(seconds: float) -> str:
    """Write a duration.

    Args:
        seconds: duration.

    Returns:
        Such as `12 s`, `3.5 min` or `2 h`.
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
