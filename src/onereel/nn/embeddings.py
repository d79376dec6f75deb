"""Sinusoidal features of a scalar time."""

from __future__ import annotations

import math

import torch


def time_features(t: torch.Tensor, *, dim: int = 256, scale: float = 1000.0) -> torch.Tensor:
    """Embed scalars as cosines and sines of geometric frequencies.

    Args:
        t: any shape, float.
        dim: number of features, even.
        scale: factor on the angle; MAGI feeds flow time in [0, 1] times 1000.

    Returns:
        float32 [..., dim]: dim / 2 cosines, then dim / 2 sines.
    """
    index = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    frequency = torch.exp(-math.log(10000.0) * index / (dim // 2))
    angle = t.float()[..., None] * frequency * scale
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
