"""Decoding that does not give up when memory runs out: smaller tiles, and a word about it."""

from __future__ import annotations

import gc
import warnings

import torch

from onereel.core.device import is_out_of_memory
from onereel.core.errors import OutOfMemory
from onereel.models.magi_vae.model import AutoencoderKLMagi1

SMALLEST_TILE = 64  # pixels; smaller ones cost more time than they save memory


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
    while True:
        try:
            return vae.decode_chunk(latent, official_compat=official_compat, fps=fps)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "no more memory"
        # Outside of the handler, which holds the frames of the failed call.
        gc.collect()
        if latent.is_cuda:
            torch.cuda.empty_cache()
        size = None if official_compat else shrink_tiles(vae, latent)
        if size is None:
            raise OutOfMemory(
                "decoding ran out of memory "
                f"{'with official' if official_compat else 'with the smallest'} tiles ({reason})",
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
