"""Sinusoidal features of a scalar time, and of places on a token grid."""

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


def place_features(
    grid: tuple[int, int, int], *, num_chunks: int, octaves: int, device: torch.device | None = None
) -> torch.Tensor:
    """Describe every token's frame within its chunk, height and width, each scaled to [-1, 1].

    Args:
        grid: (T, H, W) tokens; T is a multiple of num_chunks.
        num_chunks: chunks along T; all have the same features.
        octaves: sines and cosines per axis, of angles pi * u, 2 pi * u, 4 pi * u, ...
        device: of the result.

    Returns:
        float32 [T * H * W, 3 * (1 + 2 * octaves)]: per axis the coordinate, sines, cosines.
    """
    frames = grid[0] // num_chunks
    # Centres of cells: the same place of the canvas has the same features at any resolution.
    axes = [
        (2 * torch.arange(size, dtype=torch.float32, device=device) + 1) / size - 1
        for size in (frames, grid[1], grid[2])
    ]
    axes[0] = axes[0].repeat(num_chunks)
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)[..., None]
    angles = places * (math.pi * 2.0 ** torch.arange(octaves, device=device))
    return torch.cat((places, angles.sin(), angles.cos()), dim=-1).flatten(1)
