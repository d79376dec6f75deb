"""What a video takes, from shapes alone: memory per part, model calls, operations and time.

Nothing is loaded: weights are counted on the meta device, the cache and the guidance passes by
walking through the sampler's plan.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import T5Config

from onereel.core.device import parse_dtype
from onereel.core.errors import ConfigError, OutOfMemory
from onereel.models.magi_vae.tiling import TileConfig
from onereel.runtime.block_groups import BLOCKS_AT_ONCE, has_own_memory
from onereel.runtime.cost import Step, TransformerCost, VaeCost, plan_steps
from onereel.runtime.layout import sample_config
from onereel.runtime.machine import available_bytes, measure_tflops, rough_seconds
from onereel.runtime.shapes import (
    ModelShapes,
    Shaped,
    block_bytes,
    largest_matrix,
    meta_vae,
    read_shapes,
    weight_bytes,
)
from onereel.samplers.plan import ChunkSampleConfig

_FP32 = torch.float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The video to estimate; None takes the checkpoint's setting.

    Args:
        height: pixels.
        width: pixels.
        num_frames: frames, given ones included.
        num_steps: updates per chunk.
        window_size: chunks in flight.
        prefix_frames: given frames.
        text_tokens: visible tokens of the prompt.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_steps: int | None = None
    window_size: int | None = None
    prefix_frames: int = 0
    text_tokens: int = 128


Turns = Literal["stay", "move", "block"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a video takes. Sizes are bytes, operations count a multiply-add as two.

    Args:
        height: pixels.
        width: pixels.
        num_frames: frames.
        dtype: of the transformer and the VAE.
        device: where they run.
        text_device: where the text encoder runs.
        weights: bytes per component.
        num_chunks: chunks, given ones included.
        tokens_per_chunk: transformer tokens.
        kv_chunks: clean chunks in the cache at most.
        kv_bytes: of the cache at most.
        step_bytes: intermediates of the largest step.
        vae_bytes: intermediates of decoding a chunk, its pixels included.
        text_bytes: intermediates of the text encoder.
        resident_bytes: peak on the device when all components stay there.
        in_turn_bytes: peak when each component is there only while it works.
        by_block_bytes: peak when, beside that, the transformer's blocks take turns. Neither makes a
            difference on a CPU, where networks have nowhere else to be.
        num_steps: steps of the whole video.
        num_calls: model calls.
        num_passes: guidance passes made; a batch of two counts as two.
        num_plain_passes: guidance passes without leaving out those that change nothing.
        num_tiles: VAE tiles per chunk.
        flops: of all steps.
        vae_flops: of decoding all chunks.
        numbers: tokens times width, summed over all layers of all steps.
        num_layers: of the transformer.
        model_width: of the transformer.
        given_tflops: speed of matrix products, or None to measure it when the time is asked for.
        available: free bytes on the device, or None where unknown.
    """

    height: int
    width: int
    num_frames: int
    dtype: str
    device: str
    text_device: str
    weights: Mapping[str, int]
    num_chunks: int
    tokens_per_chunk: int
    kv_chunks: int
    kv_bytes: int
    step_bytes: int
    vae_bytes: int
    text_bytes: int
    resident_bytes: int
    in_turn_bytes: int
    by_block_bytes: int
    num_steps: int
    num_calls: int
    num_passes: int
    num_plain_passes: int
    num_tiles: int
    flops: int
    vae_flops: int
    numbers: int
    num_layers: int
    model_width: int
    given_tflops: float | None
    available: int | None

    @property
    def fits(self) -> bool | None:
        """Whether all components fit at once; None where the free memory is unknown."""
        return None if self.available is None else self.resident_bytes <= self.available

    def fits_with(self, turns: Turns) -> bool | None:
        """Say whether memory suffices where networks take turns.

        Args:
            turns: as in `needed_bytes`.

        Returns:
            None where the free memory is unknown, and where they have nowhere else to be.
        """
        apart = has_own_memory(torch.device(self.device))
        if self.available is None or not apart:
            return None
        return self.needed_bytes(turns) <= self.available

    def needed_bytes(self, turns: Turns) -> int:
        """Say what must be free on the device.

        Args:
            turns: whether components stay there, move there one after the other, or the
                transformer even block by block.

        Returns:
            Bytes.
        """
        if turns == "stay" or not has_own_memory(torch.device(self.device)):
            return self.resident_bytes
        return self.in_turn_bytes if turns == "move" else self.by_block_bytes

    @property
    def tflops(self) -> float:
        """Speed of matrix products, 10^12 per second; measured for 0.1 s where it was not given."""
        if self.given_tflops is not None:
            return self.given_tflops
        device, dtype = torch.device(self.device), parse_dtype(self.dtype)
        return measure_tflops(device, dtype, width=self.model_width)

    @property
    def seconds(self) -> float:
        """Rough time on this device, within a factor of two."""
        return rough_seconds(
            self.flops + self.vae_flops,
            numbers=self.numbers,
            layer_calls=self.num_calls * self.num_layers,
            width=self.model_width,
            place=(torch.device(self.device), parse_dtype(self.dtype)),
            tflops=self.given_tflops,
        )

    @property
    def flops_per_step(self) -> float:
        """Operations of an average step."""
        return self.flops / max(1, self.num_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "tflops": self.tflops,
            "seconds": self.seconds,
            "flops_per_step": self.flops_per_step,
            "fits": self.fits,
            "fits_in_turn": self.fits_with("move"),
            "fits_by_block": self.fits_with("block"),
        }


def estimate(
    source: Shaped,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_steps: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    tflops: float | None = None,
) -> Estimate:
    """Estimate a video from text.

    Args:
        source: a checkpoint, an official config, the name of a released or tiny preset, or shapes.
        height: pixels; None takes the checkpoint's.
        width: pixels; None takes the checkpoint's.
        num_frames: frames; None takes the checkpoint's.
        num_steps: updates per chunk; None takes the checkpoint's.
        dtype: of the transformer and the VAE; None means bfloat16.
        device: where they would run.
        tflops: speed of matrix products, 10^12 per second; None measures it when it is needed.

    Returns:
        The estimate.

    Raises:
        ConfigError: the settings do not fit together.
        CheckpointError: a config is missing or damaged.
    """
    job = Job(height=height, width=width, num_frames=num_frames, num_steps=num_steps)
    return estimate_job(source, job, dtype=dtype, device=device, tflops=tflops)


def estimate_job(
    source: Shaped,
    job: Job,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    tflops: float | None = None,
    level: str | None = None,
) -> Estimate:
    """Estimate any video; see `estimate`, also for what is raised.

    Args:
        source: a checkpoint, an official config, the name of a preset, or shapes.
        job: the video.
        dtype: of the transformer and the VAE; None means bfloat16.
        device: where they would run.
        tflops: speed of matrix products, 10^12 per second; None measures it when it is needed.
        level: of `quantize.py`, to which transformer and text encoder are rounded.

    Returns:
        The estimate.
    """
    shapes, device = read_shapes(source), torch.device(device)
    dtype = dtype or torch.bfloat16
    job, config = _fill(job, shapes)
    assert job.height and job.width and job.num_frames
    on_cpu = device.type == "cpu" or shapes.text_on_cpu
    text_dtype = _FP32 if on_cpu else dtype
    weights = weight_bytes(shapes, dtype=dtype, text_dtype=text_dtype, level=level)
    transformer, vae = _costs(shapes, job, config, dtype, rounded=bool(level))
    num_chunks, num_given = _chunks(shapes, job, config)
    steps = list(
        plan_steps(config, num_chunks=num_chunks, num_prefix_chunks=num_given, text=job.text_tokens)
    )
    grids = _tile_grids(shapes, job, config)
    numbers: dict[str, Any] = {
        **_step_numbers(steps, transformer, device=device, distilled=config.distilled),
        "num_tiles": len(grids),
        "vae_bytes": max(vae.activation_bytes(grid) for grid in grids) + _pixels(job, config, vae),
        "vae_flops": sum(vae.flops(grid) for grid in grids) * (num_chunks - num_given),
        "text_bytes": _text_activation(shapes.text_encoder, job, 4 if on_cpu else dtype.itemsize),
    }
    elsewhere, blocks = on_cpu and device.type != "cpu", _blocks(shapes, dtype, level)
    return Estimate(
        height=job.height,
        width=job.width,
        num_frames=job.num_frames,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        text_device="cpu" if on_cpu else str(device),
        weights=weights,
        num_chunks=num_chunks,
        tokens_per_chunk=transformer.tokens,
        **_peaks(weights, numbers, text_elsewhere=elsewhere, blocks=blocks),
        num_layers=transformer.layers,
        model_width=transformer.width,
        given_tflops=tflops,
        available=_available(device),
        **numbers,
    )


def _available(device: torch.device) -> int | None:
    present = device.type != "cuda" or torch.cuda.is_available()
    return available_bytes(device) if present else None


def _blocks(shapes: ModelShapes, dtype: torch.dtype, level: str | None) -> tuple[int, int]:
    """Count the bytes of all blocks, and of those that are there at once."""
    one, layers = block_bytes(shapes, dtype=dtype, level=level), shapes.transformer["num_layers"]
    return layers * one, min(BLOCKS_AT_ONCE, layers) * one


def _peaks(
    weights: Mapping[str, int],
    numbers: Mapping[str, int],
    *,
    text_elsewhere: bool,
    blocks: tuple[int, int],
) -> dict[str, int]:
    """Add up what is on the device at once; the text encoder is gone when the others come."""
    kv, step, vae = numbers["kv_bytes"], numbers["step_bytes"], numbers["vae_bytes"]
    text = (0, 0) if text_elsewhere else (weights["text_encoder"], numbers["text_bytes"])
    networks = weights["transformer"] + weights["vae"]
    turns = (sum(text), weights["transformer"] + kv + step, weights["vae"] + kv + vae)
    together = networks + kv + max(step, vae)
    return {
        "resident_bytes": max(sum(text), together),
        "in_turn_bytes": max(turns),
        "by_block_bytes": max(sum(text), together - blocks[0] + blocks[1]),  # the VAE stays
    }


def _step_numbers(
    steps: list[Step], cost: TransformerCost, *, device: torch.device, distilled: bool
) -> dict[str, int]:
    """Count what the sampler's steps do, and what the cache and the largest step hold."""
    kv_chunks = max((step.cached for step in steps), default=0)
    return {
        "num_steps": len(steps),
        "num_passes": sum(step.passes for step in steps),
        "num_plain_passes": len(steps) * (1 if distilled else 3),
        "num_calls": sum(len(step.forwards) for step in steps),
        "kv_chunks": kv_chunks,
        "kv_bytes": kv_chunks * cost.kv_bytes,
        "step_bytes": _step_bytes(steps, cost, device) + cost.restored * cost.itemsize,
        "flops": sum(cost.flops(call) for step in steps for call in step.forwards),
        "numbers": sum(cost.numbers(call) for step in steps for call in step.forwards),
    }


def _step_bytes(steps: list[Step], cost: TransformerCost, device: torch.device) -> int:
    # With grouped heads and a mask, CUDA has no fused kernel.
    fused = device.type == "cpu"
    kinds = {call for step in steps for call in step.forwards}
    largest = max(cost.activation_bytes(call, fused_attention=fused) for call in kinds)
    # Appending to the cache makes a new one while the old one is there.
    appended = max(step.cached for step in steps) * cost.kv_bytes
    return max(largest, appended)


def _pixels(job: Job, config: ChunkSampleConfig, vae: VaeCost) -> int:
    """Bytes of a chunk's pixels: the tiles, the blended result and its float32 copy."""
    assert job.height and job.width
    frames = config.chunk_width * vae.config["patch_size"][0]
    return 3 * 4 * vae.config["in_channels"] * frames * job.height * job.width


def _text_activation(config: T5Config, job: Job, itemsize: int) -> int:
    """Bytes of the text encoder's intermediates: gated MLP, or the attention's scores."""
    words = job.text_tokens
    return int(words * max(3 * config.d_ff, 3 * config.num_heads * words) * itemsize)


def _fill(job: Job, shapes: ModelShapes) -> tuple[Job, ChunkSampleConfig]:
    """Take what the job leaves open from the checkpoint, and check sizes."""
    sampling = shapes.sampling
    fallback = {"height": 720, "width": 720, "num_frames": 96}
    names = ("height", "width", "num_frames")
    filled = dataclasses.replace(
        job,
        **{name: getattr(job, name) or sampling.get(name, fallback[name]) for name in names},
    )
    changes = {name: getattr(job, name) for name in ("num_steps", "window_size")}
    config = sample_config(sampling, **{k: v for k, v in changes.items() if v is not None})
    factor = shapes.vae["patch_size"][1] * shapes.transformer["patch_size"][1]
    for name in ("height", "width"):
        size = getattr(filled, name)
        if size < factor or size % factor:
            near = max(factor, round(size / factor) * factor)
            raise ConfigError(
                name, expected=f"a multiple of {factor}", got=size, hint=f"use {near}"
            )
    if filled.num_frames is None or filled.num_frames < 1:
        raise ConfigError("num_frames", expected="at least 1", got=filled.num_frames)
    return filled, config


def _chunks(shapes: ModelShapes, job: Job, config: ChunkSampleConfig) -> tuple[int, int]:
    """Count all chunks, and those given whole."""
    assert job.num_frames is not None
    frames = config.chunk_width * shapes.vae["patch_size"][0]
    total, given = math.ceil(job.num_frames / frames), job.prefix_frames // frames
    if total <= given:
        raise ConfigError(
            "num_frames", expected=f"more than the {job.prefix_frames} given ones",
            got=job.num_frames,
        )  # fmt: skip
    return total, given


def _costs(
    shapes: ModelShapes, job: Job, config: ChunkSampleConfig, dtype: torch.dtype, *, rounded: bool
) -> tuple[TransformerCost, VaeCost]:
    assert job.height and job.width
    factor = shapes.vae["patch_size"][1]
    transformer = TransformerCost(
        shapes.transformer,
        chunk_frames=config.chunk_width,
        latent_size=(job.height // factor, job.width // factor),
        itemsize=dtype.itemsize,
        restored=largest_matrix(shapes) if rounded or shapes.quantization else 0,
    )
    return transformer, VaeCost(shapes.vae, itemsize=dtype.itemsize)


def _tile_grids(
    shapes: ModelShapes, job: Job, config: ChunkSampleConfig
) -> list[tuple[int, int, int]]:
    """List the latent sizes of the tiles of one chunk."""
    assert job.height and job.width
    vae = meta_vae(shapes)
    q, p, _ = vae.factors
    latent = torch.empty(1, 1, config.chunk_width, job.height // p, job.width // p, device="meta")
    tiles = vae.tiling
    assert isinstance(tiles, TileConfig)
    if not tiles.exceeded_by((config.chunk_width * q, job.height, job.width)):
        return [(config.chunk_width, job.height // p, job.width // p)]
    spans = tiles.decode_plan(vae.factors).spans(latent)
    sizes = [[end - start for start, end in axis] for axis in spans]
    return [(t, h, w) for t in sizes[0] for h in sizes[1] for w in sizes[2]]


def check_fits(found: Estimate, *, turns: Turns = "stay") -> None:
    """Refuse what would run out of memory, before anything is loaded.

    Args:
        found: the estimate.
        turns: as in `Estimate.needed_bytes`.

    Raises:
        OutOfMemory: the device has too little memory; the hint says what would help.
    """
    needed = found.needed_bytes(turns)
    if found.available is None or needed <= found.available:
        return
    ways = []
    if turns == "stay" and found.fits_with("move"):
        ways.append("move components in turn (--offload)")
    elif turns != "block" and found.fits_with("block"):
        ways.append("move the transformer block by block (--low-memory)")
    if found.dtype == "float32":
        ways.append("use bfloat16 (--dtype bf16)")
    if found.step_bytes + found.kv_bytes + found.vae_bytes > 0.1 * needed:
        side = math.sqrt(0.5)
        small = [max(16, int(size * side) // 16 * 16) for size in (found.width, found.height)]
        ways.append(f"make it smaller (--size {small[0]}x{small[1]})")
    if max(found.weights.values()) > found.available:
        ways.append(
            "store weights in fewer bits (--quantize int8, or int4), or use a smaller model"
        )
    raise OutOfMemory(
        f"memory of {found.device}",
        expected=f"{needed / 1e9:.1f} GB free",
        got=f"{found.available / 1e9:.1f} GB",
        hint=", or ".join(ways) or "close other programs",
    )
