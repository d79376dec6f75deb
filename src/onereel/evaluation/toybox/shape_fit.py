"""How well an object in a frame matches the outline that it should have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.toybox.descriptor import paint_share, track_colours
from onereel.evaluation.toybox.tracks import Track
from onereel.world.shapes import half_plane_distances, soften

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_STEP = 7.5  # degrees
_PERIOD = {"disc": _STEP, "square": 90.0, "triangle": 120.0, "diamond": 180.0}
_REACH = 1.72  # outermost corner of any shape, in radii


def template_iou(video: Video, track: Track, *, row: int, shape: str) -> float:
    """Overlap an object with the outline of a shape at its place and area, best rotation.

    Args:
        video: uint8 [F, H, W, 3].
        track: of the object.
        row: which of the track's frames.
        shape: name of the outline.

    Returns:
        Soft intersection over union, 0 to 1.

    Source:
        spec/evaluation.md 9.2, step 3.
    """
    frame = video[track.frames[row]]
    x, y, r = (float(a[row]) for a in (track.x, track.y, track.r))
    half = math.ceil(_REACH * r) + 2
    top, left = max(0, math.floor(y) - half), max(0, math.floor(x) - half)
    crop = frame[top : math.floor(y) + half + 1, left : math.floor(x) + half + 1]
    share = paint_share(crop.astype(np.float32), track_colours(track)[row])
    rows = np.arange(top, top + crop.shape[0], dtype=np.float32)[:, None] + np.float32(0.5 - y)
    cols = np.arange(left, left + crop.shape[1], dtype=np.float32)[None, :] + np.float32(0.5 - x)
    angles = np.radians(np.arange(0.0, _PERIOD[shape], _STEP), dtype=np.float32)[:, None, None]
    outline = soften(
        half_plane_distances(
            shape, cols[None], dy=rows[None], radius=np.array([r], np.float32), angle=angles
        )
    )
    inside = np.minimum(share, outline).sum(axis=(1, 2))
    return float((inside / np.maximum(share, outline).sum(axis=(1, 2))).max())
