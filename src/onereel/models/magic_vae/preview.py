"""Colours straight from this VAE's latents: the linear map of `magi_vae/preview.py`, fitted once.

It lies in the VAE's config under private names, which diffusers keeps and passes over in silence.

Legend: B batch, F frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.models.magi_vae.preview import LatentColours, fit_latent_rgb
from onereel.models.magic_vae.model import encode_latent

FACTORS, BIAS = "_latent_rgb_factors", "_latent_rgb_bias"


@torch.no_grad()
def fit_colours(vae: AutoencoderKLHunyuanVideo, videos: torch.Tensor) -> dict[str, Any]:
    """Fit the map.

    Args:
        vae: the VAE.
        videos: what to fit it on, [B, 3, F, H, W] in [-1, 1], F = 4 n + 1, on the VAE's device.

    Returns:
        Entries of its config.
    """
    latent = torch.cat([encode_latent(vae, part) for part in videos.split(16)])
    # The first latent frame stands for one picture, the others for four.
    even = torch.cat((videos[:, :, :1].repeat(1, 1, 3, 1, 1), videos), dim=2)
    factors, bias = fit_latent_rgb(latent, even)
    return {
        FACTORS: [[round(number, 5) for number in row] for row in factors],
        BIAS: [round(number, 5) for number in bias],
    }


def keep_colours(vae: AutoencoderKLHunyuanVideo, config: Mapping[str, Any]) -> None:
    """Put the map of a stored config into a VAE's own.

    Args:
        vae: changed in place.
        config: with or without a map.
    """
    vae.register_to_config(**{key: config[key] for key in (FACTORS, BIAS) if key in config})


def colours_of(vae: Any) -> LatentColours | None:
    """Take the map that is stored with a VAE.

    Args:
        vae: the VAE.

    Returns:
        The map, or None where none was fitted.
    """
    factors, bias = vae.config.get(FACTORS), vae.config.get(BIAS)
    return None if factors is None or bias is None else LatentColours(factors, bias)
