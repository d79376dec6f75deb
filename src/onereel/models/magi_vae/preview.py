"""Colours straight from latents: a linear map that was fitted once per VAE.

Source: the linear approximation of latents by Keturn, discuss.huggingface.co/t/decoding-latents-to-
rgb-without-upscaling/23204.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, reduce

from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.pixels import to_uint8


def fit_latent_rgb(
    latent: torch.Tensor, video: torch.Tensor
) -> tuple[list[list[float]], list[float]]:
    """Find the linear map from latents to mean colours with the least squared error.

    Args:
        latent: normalised latents [B, C, T, h, w].
        video: what they were encoded from, [B, 3, F, H, W] in [-1, 1].

    Returns:
        Factors [C][3] and bias [3], as the VAE's config holds them.
    """
    q, p = video.shape[2] // latent.shape[2], video.shape[3] // latent.shape[3]
    colours = reduce(video.double(), "b c (t q) (h p) (w r) -> (b t h w) c", "mean", q=q, p=p, r=p)
    rows = rearrange(latent.double(), "b c t h w -> (b t h w) c")
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    found = torch.linalg.lstsq(rows, colours).solution.tolist()
    return found[:-1], found[-1]


class LatentColours:
    """Turns latents into small pictures.

    Args:
        factors: [C][3].
        bias: [3].
    """

    def __init__(self, factors: Sequence[Sequence[float]], bias: Sequence[float]) -> None:
        self.factors, self.bias = torch.tensor(factors), torch.tensor(bias)

    @classmethod
    def of(cls, vae: AutoencoderKLMagi1) -> LatentColours | None:
        """Take the map that is stored with a VAE.

        Args:
            vae: the VAE.

        Returns:
            The map, or None where none was fitted.
        """
        factors, bias = vae.config.latent_rgb_factors, vae.config.latent_rgb_bias
        return None if factors is None or bias is None else cls(factors, bias)

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        """Show latents.

        Args:
            latent: normalised latents [1, C, T, h, w].

        Returns:
            uint8 [T, h, w, 3], on the CPU.
        """
        colours = rearrange(latent[0].float().cpu(), "c t h w -> t h w c") @ self.factors
        return to_uint8(colours + self.bias)
