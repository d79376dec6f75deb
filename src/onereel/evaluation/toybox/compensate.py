"""Undo the camera: see a frame as another frame's camera would, and where nothing is known.

A still camera costs nothing: arrays come back as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from onereel.evaluation.toybox.coverage import grow
from onereel.evaluation.toybox.tracks import Tracking

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Shadows and the ramps of edges reach this far beyond what is saturated (spec 9.6).
OBJECT_MARGIN = 3


def seen_by(images: Floats, cameras: Floats, *, viewers: Floats) -> tuple[Floats, Bools]:
    """Resample frames from their own camera to another one.

    Args:
        images: [n, H, W, C].
        cameras: (cx, cy, zoom) with which each was taken, [n, 3].
        viewers: the cameras that are to see them, [n, 3].

    Returns:
        The images float32 [n, H, W, C], and the pixels whose sources lie inside, [n, H, W].
    """
    height, width = images.shape[1:3]
    if np.array_equal(cameras, viewers):
        return images.astype(np.float32, copy=False), np.ones(images.shape[:3], dtype=bool)
    cols = _places(width, cameras, viewers=viewers, axis=0)
    rows = _places(height, cameras, viewers=viewers, axis=1)
    margin = 0.5 - 1e-6
    inside_x = (cols >= margin) & (cols <= width - margin)
    inside_y = (rows >= margin) & (rows <= height - margin)
    seen = sampled_at(images, cols[:, None], y=rows[:, :, None])
    return seen, inside_y[:, :, None] & inside_x[:, None]


def sampled_at(images: Floats | Bytes, x: Floats, *, y: Floats) -> Floats:
    """Interpolate images linearly at free places; beyond the edge the edge goes on.

    Args:
        images: [n, H, W, C].
        x: columns in pixels, the first pixel's centre is 0.5; broadcasts with y to [n, h, w].
        y: rows.

    Returns:
        float32 [n, h, w, C].
    """
    height, width = images.shape[1:3]
    places = np.broadcast_arrays(x * (2 / width) - 1, y * (2 / height) - 1)
    grid = np.stack(places, axis=-1).astype(np.float32)
    sampled = functional.grid_sample(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)),
        torch.from_numpy(grid),
        padding_mode="border",
        align_corners=False,
    )
    return sampled.permute(0, 2, 3, 1).numpy()


def _places(size: int, cameras: Floats, *, viewers: Floats, axis: int) -> Floats:
    """Where each viewer's pixel centres lie in the camera's frame along one axis, [n, size]."""
    half = size / 2
    world = (np.arange(size) + 0.5 - half) / viewers[:, 2:] + viewers[:, axis, None]
    return np.asarray((world - cameras[:, axis, None]) * cameras[:, 2:] + half)


def background_pixels(tracking: Tracking) -> Bools:
    """Tell in which pixels the bare background is seen.

    Args:
        tracking: of the video.

    Returns:
        [F, H, W], True outside of all objects and their surroundings.
    """
    return ~grow(tracking.covered, OBJECT_MARGIN)
