"""Geometry of the four shapes: outlines of equal area, support distances, pixel coverage."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from onereel.world.spec import SHAPES

Array = npt.NDArray[np.float32]

_DIAMOND_RATIO = 1.7


@cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Give the corners of a shape of radius 1 (area pi), y down, upright.

    Args:
        shape: a shape name; a disc has no corners.

    Returns:
        Corners (x, y) relative to the centroid, in order; empty for a disc.

    Source:
        spec/evaluation.md 9.1: equal areas, equilateral triangle, rhombus with diagonals 1 : 1.7.
    """
    if shape == "square":
        h = math.sqrt(math.pi) / 2
        return ((h, h), (-h, h), (-h, -h), (h, -h))
    if shape == "triangle":
        side = math.sqrt(4 * math.pi / math.sqrt(3))
        inner = side / (2 * math.sqrt(3))
        return ((side / 2, inner), (-side / 2, inner), (0.0, -2 * inner))
    if shape == "diamond":
        half = math.sqrt(2 * math.pi / _DIAMOND_RATIO) / 2
        return ((half, 0.0), (0.0, half * _DIAMOND_RATIO), (-half, 0.0), (0.0, -half * 1.7))
    return ()


@cache
def _edges(shape: str) -> tuple[tuple[float, float, float], ...]:
    """Edges as (normal angle's cos, sin, distance from the centroid), radius 1."""
    corners = outline(shape)
    found = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = (y1 - y0) / length, -(x1 - x0) / length
        offset = nx * x0 + ny * y0
        sign = 1.0 if offset > 0 else -1.0
        found.append((sign * nx, sign * ny, sign * offset))
    return tuple(found)


def support(shape: str, angle: float, *, direction: tuple[float, float]) -> float:
    """Measure how far a shape of radius 1 reaches in a direction.

    Args:
        shape: a shape name.
        angle: rotation in radians.
        direction: unit vector (x, y), y down.

    Returns:
        Distance from the centroid to the farthest point, in radii.
    """
    corners = outline(shape)
    if not corners:
        return 1.0
    c, s = math.cos(angle), math.sin(angle)
    # rotating the direction back is the same as rotating the corners
    dx, dy = c * direction[0] + s * direction[1], c * direction[1] - s * direction[0]
    return max(dx * x + dy * y for x, y in corners)


def reach(shape: str, angle: float) -> tuple[float, float, float, float]:
    """Measure how far a shape of radius 1 reaches left, right, up and down.

    Args:
        shape: a shape name.
        angle: rotation in radians.

    Returns:
        Four distances in radii.
    """
    sides = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
    left, right, up, down = (support(shape, angle, direction=side) for side in sides)
    return left, right, up, down


def half_plane_distances(
    shape: str, dx: Array, *, dy: Array, radius: Array, angle: Array
) -> list[Array]:
    """Measure signed distances to each edge's line, negative inside.

    Args:
        shape: a shape name.
        dx: pixel centre minus object centre, any shape that broadcasts.
        dy: the same for y.
        radius: in pixels, broadcastable.
        angle: in radians, broadcastable.

    Returns:
        One array per edge; a disc has one, the distance to its rim.
    """
    if shape == "disc":
        return [np.sqrt(dx * dx + dy * dy) - radius]
    c, s = np.cos(angle), np.sin(angle)
    return [
        (nx * c - ny * s) * dx + (nx * s + ny * c) * dy - offset * radius
        for nx, ny, offset in _edges(shape)
    ]


def soften(distances: list[Array], width: float = 1.0) -> Array:
    """Turn edge distances into coverage with an edge `width` pixels wide.

    Args:
        distances: what `half_plane_distances` gave.
        width: of the ramp from 0 to 1, in pixels.

    Returns:
        Coverage in [0, 1]. The product over edges is right at right-angled corners too.
    """
    total: Array | None = None
    for distance in distances:
        ramp = distance * np.float32(-1.0 / width)
        ramp += np.float32(0.5)
        np.clip(ramp, 0.0, 1.0, out=ramp)
        total = ramp if total is None else np.multiply(total, ramp, out=total)
    if total is None:
        raise AssertionError("a shape has at least one edge")
    return total


def coverage(
    shape: str, *, centre: tuple[float, float], radius: float, angle: float, size: tuple[int, int]
) -> Array:
    """Compute the share of every pixel that a shape covers.

    Args:
        shape: one of the four names.
        centre: (x, y) in pixels; the first pixel's centre is (0.5, 0.5).
        radius: in pixels; the area is pi * radius**2 for every shape.
        angle: in radians, clockwise as seen, 0 upright.
        size: (height, width) of the canvas.

    Returns:
        float32 [H, W] in [0, 1].
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape}")
    rows = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])
    cols = np.arange(size[1], dtype=np.float32)[None, :] + np.float32(0.5 - centre[0])
    size_1, turn_1 = np.array([radius], np.float32), np.array([angle], np.float32)
    return soften(half_plane_distances(shape, cols, dy=rows, radius=size_1, angle=turn_1))
