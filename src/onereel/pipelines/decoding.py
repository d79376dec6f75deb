"""Decoding that does not give up when memory runs out: smaller tiles, and a word about it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.device import is_out_of_memory
from onereel.core.errors import OutOfMemory
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magic_vae.model import VaeTiles, set_tiles

SMALLEST_TILE = 64  # pixels; smaller ones cost more time than they save memory
TILE_UNIT = 32  # pixels: three quarters of it, a stride, are whole latents


def wake(model: torch.nn.Module) -> None:
    """Run the hook that brings an offloaded model to the device; it only hangs on `forward`.

    Args:
        model: the network.
    """
    hook = getattr(model, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model)


def decode_patiently(
    vae: AutoencoderKLMagi1, latent: torch.Tensor, *, official_compat: bool = False, fps: int = 24
) -> torch.Tensor:
    """Decode latents; when memory runs out, with tiles of half the size, and so on.

    The smaller tiles stay with the VAE, and a warning says so: frames then differ by rounding and
    by the blending of tiles.

    Args:
        vae: the VAE, on its device.
        latent: normalised latents [B, z_dim, T, h, w].
        official_compat: use the official pipeline's tiles, and no others.
        fps: frame rate, of which only official tiles depend.

    Returns:
        Video [B, C, F, H, W] in float32, not clamped.

    Raises:
        OutOfMemory: the smallest tiles need too much, or the official ones.
    """
    return _patiently(
        lambda: vae.decode_chunk(latent, official_compat=official_compat, fps=fps),
        lambda: None if official_compat else shrink_tiles(vae, latent),
        kind="official" if official_compat else "the smallest",
    )


def decode_tile_patiently(
    vae: AutoencoderKLHunyuanVideo, latent: torch.Tensor, *, official_compat: bool = False
) -> torch.Tensor:
    """Decode latents with the VAE of Magic 1-For-1, likewise; tiles of time stay.

    Args:
        vae: the VAE, on its device.
        latent: [B, C, T, h, w], as the VAE takes them.
        official_compat: use the official tiles, and no others.

    Returns:
        Video [B, 3, F, H, W].

    Raises:
        OutOfMemory: the smallest tiles need too much, or the official ones.
    """

    def shrink() -> int | None:
        now = max(latent.shape[3:]) * int(vae.spatial_compression_ratio)
        if vae.use_tiling:
            now = min(now, max(vae.tile_sample_min_height, vae.tile_sample_min_width))
        size = now // 2 // TILE_UNIT * TILE_UNIT
        if official_compat or size < SMALLEST_TILE:
            return None
        tile_pictures(vae, size)
        return size

    kind = "official" if official_compat else "the smallest"
    return _patiently(lambda: vae.decode(latent).sample, shrink, kind=kind)


def tile_pictures(vae: AutoencoderKLHunyuanVideo, size: int) -> None:
    """Set the size of the tiles that pictures are cut into; those of time stay.

    Args:
        vae: changed in place.
        size: rows and columns in pixels, a multiple of `TILE_UNIT`.
    """
    frames, stride = vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames
    set_tiles(vae, VaeTiles(size=size, num_frames=frames, temporal=vae.use_framewise_decoding))
    vae.tile_sample_stride_num_frames = stride


def _patiently(
    attempt: Callable[[], torch.Tensor], shrink: Callable[[], int | None], *, kind: str
) -> torch.Tensor:
    """Try again with smaller tiles while memory runs out."""
    while True:
        try:
            return attempt()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "no more memory"
        # Outside of the handler, which holds the frames of the failed call.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = shrink()
        if size is None:
            raise OutOfMemory(
                f"decoding ran out of memory with {kind} tiles ({reason})",
                hint="latents that were kept are safe: free some memory, or take the run's folder "
                "to another machine, and `onereel decode` it",
            )
        warnings.warn(
            f"decoding ran out of memory; trying again in tiles of {size} pixels", stacklevel=2
        )


def shrink_tiles(vae: AutoencoderKLMagi1, latent: torch.Tensor) -> int | None:
    """Halve the VAE's tiles.

    Args:
        vae: the VAE.
        latent: what shall be decoded, [B, z_dim, T, h, w].

    Returns:
        Rows and columns of the new tiles in pixels; None when they cannot be smaller.
    """
    p = vae.spatial_factor
    shown = max(latent.shape[3:]) * p
    now = min(shown, max(getattr(vae.tiling, "height", shown), getattr(vae.tiling, "width", shown)))
    size = now // 2 // p * p
    if size < max(p, SMALLEST_TILE):
        return None
    vae.enable_tiling(size, size)
    return size
