"""What a video of Magic 1-For-1 takes, from headers and shapes alone: memory and model calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from onereel.core.device import parse_dtype
from onereel.core.errors import OutOfMemory
from onereel.runtime.block_groups import BLOCKS_AT_ONCE, has_own_memory
from onereel.runtime.machine import available_bytes, rough_seconds
from onereel.runtime.magic_rounded import ROUNDED_PARTS
from onereel.runtime.magic_shapes import MagicShapes, NetworkSize, decoding_flops
from onereel.runtime.quantize import GROUP

# Bytes of a rounded number; of 4 bits, the scale of a group beside it.
_ROUNDED: Final = {"int8": 1.0, "int8-dynamic": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / GROUP}
# A single block holds queries, keys, values, the MLP's and their products: widths per token.
_WIDTHS_PER_TOKEN: Final = 14
_TEXT_TOKENS: Final = 402  # where the checkpoint does not limit them
_TILE: Final = (65, 256, 256)  # frames, height, width of a VAE tile
_TILE_COPIES: Final = 4  # of the widest feature map at full size
_SHOWN_COPIES: Final = 4  # of a decoded tile's pixels in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicEstimate:
    """What a video takes. Sizes are bytes, operations count a multiply-add as two.

    Args:
        device: where networks run.
        dtype: of their weights.
        weights: bytes per network.
        tokens: of the longest segment, text included.
        num_calls: calls of the transformer.
        num_layers: of the transformer.
        model_width: of the transformer.
        flops: of all calls.
        numbers: tokens times width, summed over all layers of all calls.
        step_bytes: intermediates of a call.
        vae_bytes: intermediates of decoding a tile, its pixels included.
        resident_bytes: peak when all networks stay on the device.
        in_turn_bytes: peak when each is there only while it works.
        by_block_bytes: peak when, beside that, the transformer's blocks take turns, which needs a
            device with a memory of its own.
        available: free bytes on the device, or None where unknown.
    """

    device: str
    dtype: str
    weights: Mapping[str, int]
    tokens: int
    num_calls: int
    num_layers: int
    model_width: int
    flops: int
    numbers: int
    step_bytes: int
    vae_bytes: int
    resident_bytes: int
    in_turn_bytes: int
    by_block_bytes: int
    available: int | None

    def needed_bytes(self, turns: str) -> int:
        """Say what must be free on the device.

        Args:
            turns: `stay`, or how networks take turns; on a CPU `move` moves nothing away, and
                `reload` leaves the transformer whole.

        Returns:
            Bytes.
        """
        apart = has_own_memory(torch.device(self.device))
        if turns == "stay" or (turns == "move" and not apart):
            return self.resident_bytes
        return self.by_block_bytes if turns == "reload" and apart else self.in_turn_bytes

    def fits(self, turns: str) -> bool | None:
        """Say whether memory suffices.

        Args:
            turns: as in `needed_bytes`.

        Returns:
            None where the free memory is unknown.
        """
        return None if self.available is None else self.needed_bytes(turns) <= self.available

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def estimate_magic(
    shapes: MagicShapes,
    *,
    size: tuple[int, int],
    segments: Sequence[int],
    calls_per_segment: int,
    place: tuple[torch.device, torch.dtype, str | None],
) -> MagicEstimate:
    """Estimate a video.

    Args:
        shapes: the checkpoint's networks.
        size: height and width in pixels.
        segments: latent frames of every pass.
        calls_per_segment: calls of the transformer, guidance counted twice.
        place: device, dtype and level of rounding.

    Returns:
        The estimate.
    """
    device, dtype, level = place
    rounded = dict.fromkeys(ROUNDED_PARTS, level)
    weights = {
        part: _weight_bytes(numbers, dtype, rounded.get(part))
        for part, numbers in shapes.sizes.items()
    }
    config = shapes.transformer
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    patch = int(config["patch_size"])
    text = int(shapes.sampling.get("prompt_tokens") or _TEXT_TOKENS)
    tokens = [text + t * (size[0] // 8 // patch) * (size[1] // 8 // patch) for t in segments]
    layers = int(config["num_layers"]) + int(config["num_single_layers"])
    step_bytes = max(tokens) * width * _WIDTHS_PER_TOKEN * dtype.itemsize
    vae_bytes = _vae_bytes(shapes.vae, size, dtype)
    texts = weights["text_encoder"] + weights["text_encoder_2"]
    decoding = weights["vae"] + vae_bytes
    whole = weights["transformer"] + step_bytes
    by_block = int(weights["transformer"] * _share_by_block(config, shapes.sizes["transformer"]))
    return MagicEstimate(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        weights=weights,
        tokens=max(tokens),
        num_calls=calls_per_segment * len(segments),
        num_layers=layers,
        model_width=width,
        flops=calls_per_segment * sum(_call_flops(config, width, n) for n in tokens),
        numbers=calls_per_segment * sum(tokens) * width * layers,
        step_bytes=step_bytes,
        vae_bytes=vae_bytes,
        resident_bytes=sum(weights.values()) + max(step_bytes, vae_bytes),
        in_turn_bytes=max(texts, whole, decoding),
        by_block_bytes=max(texts, by_block + step_bytes, decoding),
        available=available_bytes(device) if device.type in ("cpu", "cuda", "mps") else None,
    )


def _weight_bytes(size: NetworkSize, dtype: torch.dtype, level: str | None) -> int:
    each = dtype.itemsize if level is None else _ROUNDED[level]
    return int(size.matrices * each + size.rest * dtype.itemsize) + size.rounded_bytes


def _share_by_block(config: Mapping[str, Any], size: NetworkSize) -> float:
    """Give the share of the transformer that is there when blocks take turns: the rest, and two."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    mlp = float(config["mlp_ratio"])
    # Two streams with matrices of their own and six modulations each; then one with three.
    double, single = (2 * (4 + 2 * mlp + 6) * width**2, (4 + 2 * mlp + 3) * width**2)
    blocks = int(config["num_layers"]) * double + int(config["num_single_layers"]) * single
    total = max(blocks, size.matrices + size.rest)
    return min(1.0, (total - blocks + BLOCKS_AT_ONCE * double) / total)


def _call_flops(config: Mapping[str, Any], width: int, tokens: int) -> int:
    """Count the operations of one call: products with weights, and attention."""
    double, single = int(config["num_layers"]), int(config["num_single_layers"])
    mlp = float(config["mlp_ratio"])
    per_token = (double + single) * (4 + 2 * mlp) * width**2  # each stream has its own weights
    return int(2 * per_token * tokens + (double + single) * 4 * tokens**2 * width)


def _vae_bytes(config: Mapping[str, Any], size: tuple[int, int], dtype: torch.dtype) -> int:
    channels = config.get("block_out_channels", [128])
    frames, height, width = _TILE
    tile = frames * min(height, size[0]) * min(width, size[1])
    shown = frames * size[0] * size[1] * 3 * 4 * _SHOWN_COPIES
    return int(tile * channels[0] * dtype.itemsize * _TILE_COPIES + shown)


def magic_seconds(
    found: MagicEstimate,
    shapes: MagicShapes,
    *,
    video: tuple[int, int, int],
    tflops: float | None = None,
) -> float:
    """Say how long a video takes, within a factor of two; texts and the first picture left out.

    Args:
        found: its estimate.
        shapes: the checkpoint's networks.
        video: frames, height and width.
        tflops: speed of matrix products, 10^12 per second; None measures it.

    Returns:
        Seconds.
    """
    # Tiles overlap by a quarter: in time, and in pictures that are larger than a tile.
    doubled = 1.0
    for length, tile in zip(video, _TILE, strict=True):
        doubled /= 0.75 if length > tile else 1.0
    return rough_seconds(
        found.flops + decoding_flops(shapes) * math.prod(video) * doubled,
        numbers=found.numbers,
        layer_calls=found.num_calls * found.num_layers,
        width=found.model_width,
        place=(torch.device(found.device), parse_dtype(found.dtype)),
        tflops=tflops,
    )


def check_magic_fits(found: MagicEstimate, *, turns: str) -> None:
    """Refuse what would run out of memory, before anything is loaded.

    Args:
        found: the estimate.
        turns: `stay`, or how networks take turns.

    Raises:
        OutOfMemory: the device has too little memory; the hint says what would help.
    """
    if found.available is None or found.fits(turns):
        return
    needed = found.needed_bytes(turns)
    ways = []
    if turns != "reload" and found.fits("reload"):
        ways.append("load networks in turn (--low-memory)")
    if found.dtype == "float32":
        ways.append("use bfloat16 (--dtype bf16)")
    if max(found.weights.values()) > found.available / 2:
        ways.append("store weights in fewer bits (--quantize int8, or int4)")
    ways.append("make it smaller (--size)")
    raise OutOfMemory(
        f"memory of {found.device}", expected=f"{needed / 1e9:.1f} GB free",
        got=f"{found.available / 1e9:.1f} GB", hint=", or ".join(ways),
    )  # fmt: skip
