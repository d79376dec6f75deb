"""What a video of Magic 1-For-1 takes, from headers and shapes alone: memory and model calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from diffusers import HunyuanVideoTransformer3DModel

from onereel.core.errors import OutOfMemory
from onereel.runtime.machine import available_bytes
from onereel.runtime.magic_source import NETWORKS, MagicFiles
from onereel.runtime.quantize import GROUP
from onereel.runtime.shards import TensorFolder

# Bytes of a rounded number; of 4 bits, the scale of a group beside it.
_ROUNDED: Final = {"int8": 1.0, "int8-dynamic": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / GROUP}
# A single block holds queries, keys, values, the MLP's and their products: widths per token.
_WIDTHS_PER_TOKEN: Final = 14
_TEXT_TOKENS: Final = 402
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
        flops: of all of them.
        step_bytes: intermediates of a call.
        vae_bytes: intermediates of decoding a tile, its pixels included.
        resident_bytes: peak when all networks stay on the device.
        in_turn_bytes: peak when each is there only while it works.
        available: free bytes on the device, or None where unknown.
    """

    device: str
    dtype: str
    weights: Mapping[str, int]
    tokens: int
    num_calls: int
    flops: int
    step_bytes: int
    vae_bytes: int
    resident_bytes: int
    in_turn_bytes: int
    available: int | None

    def needed_bytes(self, turns: str) -> int:
        """Say what must be free on the device.

        Args:
            turns: `stay`, or how networks take turns; on a CPU `move` moves nothing away.

        Returns:
            Bytes.
        """
        together = turns == "stay" or (turns == "move" and self.device == "cpu")
        return self.resident_bytes if together else self.in_turn_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def estimate_magic(
    files: MagicFiles,
    *,
    size: tuple[int, int],
    segments: Sequence[int],
    calls_per_segment: int,
    place: tuple[torch.device, torch.dtype, str | None],
) -> MagicEstimate:
    """Estimate a video.

    Args:
        files: the checkpoint.
        size: height and width in pixels.
        segments: latent frames of every pass.
        calls_per_segment: calls of the transformer, guidance counted twice.
        place: device, dtype and level of rounding.

    Returns:
        The estimate.
    """
    device, dtype, level = place
    weights = {
        part: _weight_bytes(
            files.tensors(part), files, part, dtype,
            level if part in ("transformer", "text_encoder") else None,
        )
        for part in NETWORKS
    }  # fmt: skip
    config = _transformer_config(files)
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    patch = int(config["patch_size"])
    image_tokens = [t * (size[0] // 8 // patch) * (size[1] // 8 // patch) for t in segments]
    calls = [_call_flops(config, width, n) for n in image_tokens]
    tokens = max(image_tokens) + _TEXT_TOKENS
    step_bytes = tokens * width * _WIDTHS_PER_TOKEN * dtype.itemsize
    vae_bytes = _vae_bytes(files, size, dtype)
    texts = weights["text_encoder"] + weights["text_encoder_2"]
    return MagicEstimate(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        weights=weights,
        tokens=tokens,
        num_calls=calls_per_segment * len(segments),
        flops=calls_per_segment * sum(calls),
        step_bytes=step_bytes,
        vae_bytes=vae_bytes,
        resident_bytes=sum(weights.values()) + max(step_bytes, vae_bytes),
        in_turn_bytes=max(texts, weights["transformer"] + step_bytes, weights["vae"] + vae_bytes),
        available=available_bytes(device) if device.type in ("cpu", "cuda", "mps") else None,
    )


def _weight_bytes(
    found: TensorFolder | None,
    files: MagicFiles,
    part: str,
    dtype: torch.dtype,
    level: str | None,
) -> int:
    if found is None:  # a PyTorch file: about as large as what it holds
        place = files.places[part]
        return sum(
            file.stat().st_size
            for file in ([place] if place.is_file() else place.iterdir())
            if file.is_file()
        )
    total = 0.0
    for info in found.infos.values():
        numbers = info.num_bytes // info.dtype.itemsize
        is_matrix = len(info.shape) == 2
        rounded = level is not None and is_matrix
        total += numbers * (_ROUNDED[str(level)] if rounded else dtype.itemsize)
    return int(total)


def _transformer_config(files: MagicFiles) -> Mapping[str, Any]:
    """Read the config; a PyTorch file's is that of the released 13B model."""
    from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS

    stored = files.config("transformer") or MAGIC_DIT_PRESETS["magic141"]
    usual = HunyuanVideoTransformer3DModel.__init__.__kwdefaults__ or {}
    return {"patch_size": 2, "mlp_ratio": 4.0, **usual, **stored}


def _call_flops(config: Mapping[str, Any], width: int, image_tokens: int) -> int:
    """Count the operations of one call: products with weights, and attention."""
    tokens = image_tokens + _TEXT_TOKENS
    double, single = int(config["num_layers"]), int(config["num_single_layers"])
    mlp = float(config["mlp_ratio"])
    per_token = (double + single) * (4 + 2 * mlp) * width**2  # each stream has its own weights
    return int(2 * per_token * tokens + (double + single) * 4 * tokens**2 * width)


def _vae_bytes(files: MagicFiles, size: tuple[int, int], dtype: torch.dtype) -> int:
    channels = (files.config("vae") or {}).get("block_out_channels", [128])
    frames, height, width = _TILE
    tile = frames * min(height, size[0]) * min(width, size[1])
    shown = frames * size[0] * size[1] * 3 * 4 * _SHOWN_COPIES
    return int(tile * channels[0] * dtype.itemsize * _TILE_COPIES + shown)


def check_magic_fits(found: MagicEstimate, *, turns: str) -> None:
    """Refuse what would run out of memory, before anything is loaded.

    Args:
        found: the estimate.
        turns: `stay`, or how networks take turns.

    Raises:
        OutOfMemory: the device has too little memory; the hint says what would help.
    """
    needed = found.needed_bytes(turns)
    if found.available is None or needed <= found.available:
        return
    ways = []
    if turns != "reload" and found.in_turn_bytes <= found.available:
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
