"""The renderer: backgrounds, objects with analytic edges, soft shadows, the slab."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.world.episode import Array, Episode
from onereel.world.shapes import half_plane_distances, soften
from onereel.world.simulate import screen_positions
from onereel.world.spec import PATTERNS, SHAPES, TONES

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_TONE_RGB = {
    "light": (176.0, 175.0, 172.0),
    "dark": (82.0, 83.0, 88.0),
    "warm": (141.0, 131.0, 119.0),
    "cool": (108.0, 119.0, 130.0),
}
_FLOOR_SHADE = {"light": -26.0, "dark": 20.0, "warm": -24.0, "cool": -24.0}
_SLAB_RGB = (104.0, 104.0, 106.0)
_SHADOW = 0.12
_DROP = 0.006  # how far the shadow falls, in canvas heights
_SHADE = 14.0  # brightness levels: + half of it in the middle, - half of it at radius r


def render(episode: Episode, *, start: int = 0, stop: int | None = None) -> Video:
    """Draw an episode's frames.

    Args:
        episode: the simulated scene.
        start: first frame.
        stop: one past the last frame; None means all.

    Returns:
        uint8 [F, H, W, 3].
    """
    frames = np.arange(episode.num_frames)[start:stop]
    video = _backdrop(episode, frames)
    x, y, r = (a[frames].astype(np.float32) for a in screen_positions(episode))
    # the mover is drawn last, so that it passes in front
    for i in reversed(range(x.shape[1])):
        seen = np.flatnonzero(episode.opacity[frames, i] > 0)
        if len(seen):
            _draw(
                video,
                seen,
                shape=SHAPES[int(episode.state[0, i, 6])],
                xyr=np.stack([x[seen, i], y[seen, i], r[seen, i]]),
                angle=episode.state[frames[seen], i, 5],
                opacity=episode.opacity[frames[seen], i],
                rgb=episode.rgb[frames[seen], i],
            )
    if episode.slab is not None:
        _draw_slab(video, episode.slab)
    return video


@lru_cache(maxsize=64)
def texture(
    background: int, size: tuple[int, int], *, unit: int, floor_y: float | None = None
) -> Array:
    """Draw a background that repeats at its right edge (and at the bottom, without floor).

    Args:
        background: 0 to 15: tone times pattern.
        size: (height, width) in pixels.
        unit: the canvas height in pixels, which sets the pattern's scale.
        floor_y: where the floor begins in pixels, or None.

    Returns:
        float32 [H, W, 3], luminance 60 to 190, at most 24 levels between channels.
    """
    tone, pattern = TONES[background // len(PATTERNS)], PATTERNS[background % len(PATTERNS)]
    height, width = size
    rows = ((np.arange(height) + 0.5) / height)[:, None]
    cols = ((np.arange(width) + 0.5) / width)[None, :]
    shade = _pattern(pattern, rows, cols, repeats=(height / unit, width / unit))
    image = np.array(_TONE_RGB[tone]) + shade[..., None]
    if floor_y is not None:
        below = np.arange(height) + 1.0 - floor_y
        depth = np.clip(below, 0.0, 1.0)
        line = np.clip(1.0 - np.abs(below - 1.0), 0.0, 1.0)
        level = depth * _FLOOR_SHADE[tone] + line * np.sign(_FLOOR_SHADE[tone]) * 8.0
        flat = np.array(_TONE_RGB[tone]) + level[:, None, None]
        image = image * (1 - depth[:, None, None]) + flat * depth[:, None, None]
    return np.clip(image, 60.0, 190.0).astype(np.float32)


def _pattern(pattern: str, rows: Floats, cols: Floats, *, repeats: tuple[float, float]) -> Floats:
    """Brightness in levels, [H, W]; whole numbers of waves keep it periodic both ways."""

    def wave(per_row: float, per_col: float, phase: float = 0.0) -> Floats:
        turns = round(per_row * repeats[0]) * rows + round(per_col * repeats[1]) * cols
        return np.asarray(np.sin(2 * np.pi * turns + phase))

    if pattern == "striped":
        return np.asarray(9.0 * np.tanh(2.0 * wave(0, 8)))
    if pattern == "checkered":
        return np.asarray(9.0 * np.tanh(4.0 * wave(0, 4) * wave(3, 0)))
    if pattern == "cloudy":
        parts = 5.5 * wave(1, 2.7, 0.7) + 5.5 * wave(2, -1.4, 2.1) + 2.0 * wave(3, 2)
        return np.asarray(parts)
    return np.asarray(4.0 * wave(1, 0, np.pi / 2))


def _backdrop(episode: Episode, frames: npt.NDArray[np.int64]) -> Video:
    """Background of every frame as the camera sees it: [F, H, W, 3]."""
    height, width = episode.height, episode.width
    camera = episode.camera[frames]
    zooming = bool(np.any(camera[:, 2] != 1.0))
    tall = 2 * height if zooming else height
    wide = round(episode.period)
    floor_y = None if zooming else episode.floor_y
    tile = texture(episode.background, (tall, wide), unit=height, floor_y=floor_y)
    top, left = (tall - height) // 2, (wide - width) // 2
    if not np.any(camera[:, :2]) and not zooming:
        still = np.rint(tile[:height, left : left + width]).astype(np.uint8)
        return np.repeat(still[None], len(frames), axis=0)
    cols = (np.arange(width) + 0.5 - width / 2) / camera[:, 2:] + width / 2 + camera[:, :1] + left
    seen = _blend(tile, cols - 0.5, axis=1)  # [F, tall, W, 3]
    if not zooming:
        return np.rint(seen).astype(np.uint8)
    rows = (np.arange(height) + 0.5 - height / 2) / camera[:, 2:] + height / 2 + top
    return np.rint(_blend(seen, rows - 0.5, axis=1)).astype(np.uint8)


def _blend(tile: Array, places: Floats, axis: int) -> Array:
    """Sample periodically with linear interpolation along one axis, places [F, P] per frame."""
    base = np.floor(places).astype(np.int64)
    share = (places - base).astype(np.float32)
    size = tile.shape[axis]
    if tile.ndim == 3:  # one still picture: [tall, wide, 3] -> [F, tall, P, 3]
        share = share[:, None, :, None]
        low = tile[:, base % size].transpose(1, 0, 2, 3)
        high = tile[:, (base + 1) % size].transpose(1, 0, 2, 3)
    else:  # one picture per frame: [F, tall, W, 3] -> [F, P, W, 3]
        share = share[:, :, None, None]
        index = np.arange(len(tile))[:, None]
        low, high = tile[index, base % size], tile[index, (base + 1) % size]
    return low + (high - low) * share


def _draw(
    video: Video,
    seen: npt.NDArray[np.int64],
    *,
    shape: str,
    xyr: Array,
    angle: Array,
    opacity: Array,
    rgb: Array,
) -> None:
    """Blend one object and its shadow into a patch that follows it through the frames."""
    height, width = video.shape[1:3]
    x, y, r = (a[:, None, None] for a in xyr)
    side = int(np.ceil(2 * 1.72 * float(r.max()) + 6))
    tall, wide = min(side, height), min(side, width)
    top = np.clip(np.floor(y - tall / 2).astype(np.int64), 0, height - tall)
    left = np.clip(np.floor(x - wide / 2).astype(np.int64), 0, width - wide)
    rows, cols = top + np.arange(tall)[:, None], left + np.arange(wide)[None, :]
    index = (seen[:, None, None], rows, cols)
    dx = (cols + np.float32(0.5)).astype(np.float32) - x  # [F, 1, wide]
    dy = (rows + np.float32(0.5)).astype(np.float32) - y  # [F, tall, 1]
    turn = angle[:, None, None]
    drop = np.float32(_DROP * height)
    far = half_plane_distances(shape, dx - 0.6 * drop, dy=dy - drop, radius=r, angle=turn)
    fade = opacity[:, None, None]
    shadow = soften(far, 2.5) * (_SHADOW * fade)
    alpha = soften(half_plane_distances(shape, dx, dy=dy, radius=r, angle=turn)) * fade
    # a dome of light: symmetric about the centroid, so that it does not shift what is measured
    light = np.clip(0.5 - (dx * dx + dy * dy) / (r * r), -0.6, 0.5) * np.float32(_SHADE)
    patch = video[index].astype(np.float32)
    patch *= (1.0 - shadow)[..., None]
    paint = np.clip(rgb[:, None, None, :] + light[..., None], 0.0, 255.0)
    patch += (paint - patch) * alpha[..., None]
    patch += np.float32(0.5)
    video[index] = patch.astype(np.uint8)


def _draw_slab(video: Video, slab: tuple[float, float]) -> None:
    """Paint the grey slab over everything, from top to bottom, with lit and shaded rims."""
    cols = np.arange(video.shape[2], dtype=np.float32)
    alpha = np.clip(cols + 1 - slab[0], 0, 1) * np.clip(slab[1] - cols, 0, 1)
    place = (cols + 0.5 - slab[0]) / (slab[1] - slab[0])
    shade = 12.0 * np.clip(1 - place / 0.1, 0, 1) - 12.0 * np.clip(1 - (1 - place) / 0.1, 0, 1)
    paint = np.array(_SLAB_RGB, np.float32) + shade[:, None].astype(np.float32)
    inside = np.flatnonzero(alpha > 0)
    band = slice(int(inside[0]), int(inside[-1]) + 1)
    old = video[:, :, band].astype(np.float32)
    mixed = old + (paint[band] - old) * alpha[band, None]
    video[:, :, band] = np.rint(mixed).astype(np.uint8)
