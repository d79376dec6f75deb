"""Rotary positions over (T, H, W) with learnable bands.

Legend: T H W the token grid, P rotated pairs, E head dim.
"""

from __future__ import annotations

import torch
from torch import nn


def _rescale(coordinate: torch.Tensor, size: int, reference: float) -> torch.Tensor:
    """Stretch an axis of `size` points onto `reference` points."""
    return coordinate / (size - 1) * (reference - 1) if size > 1 else coordinate


class RotaryBands(nn.Module):
    """Make rotary tables from learnable frequency bands.

    The time axis counts latent frames from the video's start; height and width are centred and
    rescaled to a canvas of 256 tokens, so that the angles do not depend on the resolution.

    Args:
        num_bands: frequencies per axis, head dim / 8.

    Source: SandAI-org/MAGI-1 @6ff822e, inference/model/dit/dit_module.py.
    """

    def __init__(self, num_bands: int) -> None:
        super().__init__()
        exponent = torch.arange(num_bands, dtype=torch.float32) / num_bands
        self.bands = nn.Parameter(10000.0**-exponent)

    def forward(
        self, grid: tuple[int, int, int], *, first_frame: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the table of a run of latent frames.

        Args:
            grid: (T, H, W) tokens of this call.
            first_frame: index in the video of the call's first latent frame.

        Returns:
            (sin, cos), each float32 [T*H*W, 3 * num_bands].
        """
        frames, height, width = grid
        total = first_frame + frames
        device = self.bands.device
        ratio = (height * width / 256.0) ** 0.5
        t = torch.arange(total, dtype=torch.float32, device=device)
        y = torch.arange(height, dtype=torch.float32, device=device) - (height - 1) / 2
        x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
        axes = (
            _rescale(t, total, total)[first_frame:],
            _rescale(y, height, height / ratio),
            _rescale(x, width, width / ratio),
        )
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # [T, H, W, 3]
        angles = coordinates[..., None] * self.bands.float()  # [T, H, W, 3, bands]
        angles = angles.reshape(frames * height * width, -1)
        return angles.sin(), angles.cos()


def rotate(x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the first 2P dims of every head, halves paired; the rest passes through.

    Args:
        x: [B, N, L, E].
        table: (sin, cos), each [L, P] with 2P <= E.

    Returns:
        [B, N, L, E] in x's dtype.
    """
    sin, cos = table
    pairs = sin.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)
