"""Number ranges at both ends of the VAE: bytes of pixels, statistics of latents."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


def from_uint8(video: torch.Tensor) -> torch.Tensor:
    """Turn bytes into the network's range.

    Args:
        video: uint8, any shape.

    Returns:
        Float32 in [-1, 1].
    """
    return video.float() / 127.5 - 1


def to_uint8(video: torch.Tensor, *, official_compat: bool = False) -> torch.Tensor:
    """Turn pixels into bytes, in float32.

    Args:
        video: floats, [-1, 1] and beyond, any shape.
        official_compat: truncate as the official code does, which darkens by half a level.

    Returns:
        uint8, rounded to nearest unless `official_compat`.
    """
    levels = (video.float() * 127.5 + 127.5).clamp(0, 255)
    return (levels if official_compat else levels.round()).to(torch.uint8)


@functools.cache
def foreign_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give Wan 2.1's latent means and deviations, which a converter left in MAGI-1 configs."""
    parameters = inspect.signature(AutoencoderKLWan.__init__).parameters
    return tuple(parameters["latents_mean"].default), tuple(parameters["latents_std"].default)


def latent_statistics(
    config: Mapping[str, Any], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give every latent channel's mean and deviation.

    Args:
        config: the VAE's config.
        like: gives device and dtype.

    Returns:
        Two tensors [1, z_dim, 1, 1, 1]; zeros and ones when the config has no numbers of its own.
    """
    mean, std = config["latents_mean"], config["latents_std"]
    if mean and std and (tuple(mean), tuple(std)) == foreign_statistics():
        mean = std = None  # numbers of another VAE; the released one has none
    values = (mean or [0.0] * config["z_dim"], std or [1.0] * config["z_dim"])
    first, second = (like.new_tensor(v).view(1, -1, 1, 1, 1) for v in values)
    return first, second
