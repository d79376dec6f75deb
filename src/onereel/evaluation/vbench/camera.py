"""Camera movement, read off points that are tracked from the first frame to the last.

Source:
    spec/evaluation.md 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError, ShapeError

Points = npt.NDArray[np.number[Any]]

GRID = 10
EDGE_POINTS = 1
_STILL = 0.005  # of the frame's short side, per edge
_NOTHING = "None"

MOVES = ("pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out", "static")
_PHRASES = {
    "camera pans left": "pan_left",
    "camera pans right": "pan_right",
    "camera tilts up": "tilt_up",
    "camera tilts down": "tilt_down",
    "camera zooms in": "zoom_in",
    "camera zooms out": "zoom_out",
    "camera static": "static",
}
# What the picture does at both edges, and what the camera did then.
_SHARED = {
    ("left", "left"): "pan_right",
    ("right", "right"): "pan_left",
    ("down", "down"): "tilt_up",
    ("up", "up"): "tilt_down",
    ("static", "static"): "static",
}
_VERTICAL = {**_SHARED, ("up", "down"): "zoom_in", ("down", "up"): "zoom_out"}
_HORIZONTAL = {**_SHARED, ("left", "right"): "zoom_in", ("right", "left"): "zoom_out"}


def camera_moves(
    first: Points, last: Points, *, size: tuple[int, int], edge_points: int = EDGE_POINTS
) -> set[str]:
    """Name the camera's movements.

    Args:
        first: (x, y) of a grid of points in the first frame, [rows, columns, 2], in pixels.
        last: where they are in the last frame.
        size: (height, width) of the frames.
        edge_points: how many points in the middle of each edge count.

    Returns:
        Names of `MOVES`, "static" only alone; {"None"} when nothing was recognised.

    Raises:
        ShapeError: the grids do not fit.
    """
    if first.shape != last.shape or first.ndim != 3 or first.shape[2] != 2:
        got = f"{list(first.shape)} and {list(last.shape)}"
        raise ShapeError("points", expected="two grids of shape [rows, columns, 2]", got=got)
    step = np.asarray(last, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    rows, columns = (_edge_slice(length, edge_points) for length in first.shape[:2])
    limit = _STILL * min(size)
    top, bottom = (_directions(step[row, columns], limit) for row in (0, -1))
    left, right = (_directions(step[rows, column], limit) for column in (0, -1))
    moves = _combine(top, bottom, _VERTICAL) | _combine(left, right, _HORIZONTAL)
    # Two still edges beside two that disagree make "None", so "static" goes first.
    for weak in ("static", _NOTHING):
        moves = moves - {weak} or moves
    return moves


def wanted_move(prompt: str) -> str:
    """Read the camera movement out of a prompt of VBench-I2V.

    Args:
        prompt: ends with, for example, ", camera pans left".

    Returns:
        One of `MOVES`.

    Raises:
        ConfigError: the prompt ends with no known movement.
    """
    for phrase, move in _PHRASES.items():
        if prompt.strip().rstrip(".").lower().endswith(phrase):
            return move
    raise ConfigError("prompt", expected=f"one that ends with one of {list(_PHRASES)}", got=prompt)


def _edge_slice(length: int, count: int) -> slice:
    """The middle of an edge; what does not fit in the middle lies one further."""
    return slice(math.ceil((length - count) / 2), math.ceil((length + count) / 2))


def _directions(steps: npt.NDArray[np.float64], limit: float) -> list[str]:
    x, y = steps.mean(axis=0)
    found = []
    if abs(x) > limit:
        found.append("right" if x > 0 else "left")
    if abs(y) > limit:
        found.append("down" if y > 0 else "up")
    return found or ["static"]


def _combine(first: list[str], second: list[str], table: dict[tuple[str, str], str]) -> set[str]:
    found = {table[a, b] for a in first for b in second if (a, b) in table}
    return found or {_NOTHING}
