"""`onereel plan` for Magic 1-For-1 checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from onereel.pipelines.magic_prepare import MagicVideo
    from onereel.pipelines.wishes import RunWishes
    from onereel.runtime.magic_estimate import MagicEstimate

RELEASED = "magic141"  # the 13B model, of which there are no weights


def plan_magic(
    wishes: RunWishes, *, foreign: Mapping[str, Any], tflops: float | None, as_json: bool
) -> None:
    """Print what a video takes.

    Args:
        wishes: model, size, length, steps, device, dtype and level.
        foreign: options of the command that mean nothing here, by name.
        tflops: speed of matrix products, or None to measure it.
        as_json: print one JSON object.

    Raises:
        ConfigError: a setting is wrong, or means nothing here.
        CheckpointError: the checkpoint is damaged.
        OutOfMemory: memory does not suffice, even in turn.
    """
    # Imported late: `--help` must not wait for torch.
    from onereel.core.config import from_mapping
    from onereel.core.device import parse_dtype, pick_device
    from onereel.pipelines.magic_parts import Place
    from onereel.pipelines.magic_prepare import estimate_video, plan_video
    from onereel.pipelines.magic_sampling import MagicSampleConfig
    from onereel.runtime.magic_estimate import check_magic_fits, magic_seconds
    from onereel.runtime.magic_shapes import read_magic_shapes, released_shapes
    from onereel.runtime.magic_source import magic_files
    from onereel.runtime.quantize import check_level
    from onereel.runtime.source import resolve_model

    for name, value in foreign.items():
        if value:
            raise ConfigError(
                f"{name} of a Magic 1-For-1 checkpoint", expected="nothing", got=value,
                hint="it is of MAGI-1; leave it out",
            )  # fmt: skip
    if wishes.quantize is not None:
        check_level(wishes.quantize)
    if wishes.model == RELEASED:
        shapes = released_shapes()
    else:
        shapes = read_magic_shapes(magic_files(resolve_model(wishes.model)))
    sampling = from_mapping(MagicSampleConfig, shapes.sampling, where=f"{shapes.name}: sampling")
    video = plan_video(wishes, sampling)
    place = Place(
        device=pick_device(wishes.device),
        dtype=parse_dtype(wishes.dtype or "bf16"),
        level=wishes.quantize,
    )
    found = estimate_video(video, shapes, place=place)
    size = (video.config.num_frames, video.height, video.width)
    seconds = magic_seconds(found, shapes, video=size, tflops=tflops)
    if as_json:
        values = {"width": video.width, "height": video.height, "num_frames": video.num_frames}
        segments = len(video.config.segments())
        more = {**found.to_dict(), "num_segments": segments, "seconds": seconds}
        print(json.dumps({"model": shapes.name, **values, **more}, indent=2))
    else:
        print("\n".join(describe(found, video=video, seconds=seconds)))
    check_magic_fits(found, turns="reload")


def describe(found: MagicEstimate, *, video: MagicVideo, seconds: float) -> list[str]:
    """Write an estimate as a table.

    Args:
        found: the estimate.
        video: the video.
        seconds: how long it takes.

    Returns:
        Lines of text.
    """
    from onereel.apps.cli.plan import size_text, time_text, verdict

    # On a CPU networks are loaded in turn; on a GPU they move, and --low-memory goes by blocks.
    on_cpu = found.device == "cpu"
    in_turn = verdict(found.fits("reload" if on_cpu else "move"))
    by_block = "" if on_cpu else verdict(found.fits("reload"))
    rows = [
        ("video", f"{video.width}x{video.height}, {video.num_frames} frames, "
                  f"{len(video.config.segments())} segments of up to {found.tokens} tokens"),
        ("runs on", f"{found.device} in {found.dtype}"),
    ]  # fmt: skip
    rows += [(name.replace("_", " "), size_text(size)) for name, size in found.weights.items()]
    rows += [
        ("a call", size_text(found.step_bytes)),
        ("decoding a tile", size_text(found.vae_bytes)),
        ("all at once", f"{size_text(found.resident_bytes)}{verdict(found.fits('stay'))}"),
        (
            "in turn",
            f"{size_text(found.in_turn_bytes)}{in_turn} "
            f"({'--low-memory' if on_cpu else '--offload'})",
        ),
        ("block by block", f"{size_text(found.by_block_bytes)}{by_block} (--low-memory on a GPU)"),
        ("calls", f"{found.num_calls}"),
        ("work", f"{found.flops / 1e12:,.4g} TFLOP, the VAE left out"),
        ("time", f"about {time_text(seconds)}"),
    ]
    if found.available is not None:
        rows.append(("free memory", size_text(found.available)))
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]
