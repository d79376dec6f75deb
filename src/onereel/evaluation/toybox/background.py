"""The background behind the objects: a median over the frames that show it, on a world canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.toybox.camera import hat_matrix

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer[Any]]

_SAMPLES = 32  # frames that the median is taken of
_HIDDEN = np.int16(32767)  # larger than any pixel, so that sorting puts hidden samples last
_LATTICE = 4  # brightness is measured on every fourth pixel
_STEADY = 2.0  # levels; smaller changes of brightness do not disturb the median
_FILL_SIGMAS = (1.5, 4.0, 12.0, 40.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The background of one stretch of video, on a canvas of world pixels.

    Args:
        pixels: without holes, float32 [h, w, 3].
        seen: which of them some frame shows, [h, w].
        top: world row of the canvas' upper edge, where 0 is the middle of frame 0's screen.
        left: world column of its left edge.
        screen: (height, width) of a frame.
        brightness: what to add in each frame, [F, 3].
    """

    pixels: Floats
    seen: Bools
    top: float
    left: float
    screen: tuple[int, int]
    brightness: Floats


def estimate_scene(
    video: Bytes, covered: Bools, *, camera: Floats, known: Floats | None = None
) -> Scene:
    """Estimate the background of a stretch of video.

    Args:
        video: [F, H, W, 3].
        covered: pixels that may not be background, [F, H, W].
        camera: (cx, cy, zoom) per frame, [F, 3].
        known: the background as a camera at (0, 0, 1) sees it, [H, W, 3], NaN where unknown.

    Returns:
        The scene; what no frame shows is filled from its surroundings.

    Source:
        spec/evaluation.md 9.2, step 1.
    """
    chosen = np.unique(np.linspace(0, len(video) - 1, _SAMPLES).round().astype(np.intp))
    empty = _canvas(camera, (video.shape[1], video.shape[2]))
    samples = _collect(video[chosen], covered[chosen], camera=camera[chosen], scene=empty)
    scene = _settle(empty, samples, known=known)
    brightness = _brightness(video, covered, camera=camera, scene=scene)
    if np.abs(brightness).max() >= _STEADY:
        shift = np.rint(brightness[chosen]).astype(np.int16)[:, None, None]
        scene = _settle(empty, np.where(samples == _HIDDEN, _HIDDEN, samples - shift), known=known)
        brightness = _brightness(video, covered, camera=camera, scene=scene)
    return replace(scene, brightness=brightness)


def look_up(scene: Scene, camera: Floats, *, frames: Ints, rows: Ints, cols: Ints) -> Floats:
    """Read the background at screen pixels.

    Args:
        scene: the background of the stretch.
        camera: (cx, cy, zoom) of its frames, [F, 3].
        frames: frame numbers within the stretch, [N].
        rows: pixel rows on the screen, [N].
        cols: pixel columns, [N].

    Returns:
        float32 [N, 3], interpolated linearly, with the frame's brightness.
    """
    if _fits_screen(scene):
        return np.asarray(scene.pixels[rows, cols] + scene.brightness[frames])
    down, right, (y, x) = _cells(scene, camera[frames], rows=rows, cols=cols)
    pixels = scene.pixels
    above = pixels[y, x] * (1 - right) + pixels[y, x + 1] * right
    below = pixels[y + 1, x] * (1 - right) + pixels[y + 1, x + 1] * right
    return np.asarray(above * (1 - down) + below * down + scene.brightness[frames])


def show_first(scene: Scene, camera: Floats) -> Floats:
    """Draw the background as a camera sees it.

    Args:
        scene: the background.
        camera: one (cx, cy, zoom), [3].

    Returns:
        float64 [H, W, 3] without a frame's brightness, NaN where it never came into sight.
    """
    rows, cols = (a.ravel() for a in np.indices(scene.screen))
    still = replace(scene, brightness=np.zeros((1, 3), np.float32))
    frames = np.zeros(len(rows), np.intp)
    image = look_up(still, camera[None], frames=frames, rows=rows, cols=cols).astype(np.float64)
    if not _fits_screen(scene):
        _, _, (y, x) = _cells(scene, np.broadcast_to(camera, (len(rows), 3)), rows=rows, cols=cols)
        seen = scene.seen[y, x] & scene.seen[y + 1, x] & scene.seen[y, x + 1]
        image[~(seen & scene.seen[y + 1, x + 1])] = np.nan
    else:
        image[~scene.seen.ravel()] = np.nan
    return image.reshape(*scene.screen, 3)


def _fits_screen(scene: Scene) -> bool:
    """Tell whether canvas and screen are the same pixels, which saves all interpolation."""
    return scene.seen.shape == scene.screen


def _canvas(camera: Floats, screen: tuple[int, int]) -> Scene:
    """Make an empty canvas that holds all that the camera sees, with a pixel to spare."""
    spare = int(np.any(camera != np.array([0.0, 0.0, 1.0])))
    half = np.array(screen) / 2.0
    reach = half / camera[:, 2:]  # [F, 2]
    low = np.floor((camera[:, 1::-1] - reach + half).min(axis=0)) - half - spare
    high = np.ceil((camera[:, 1::-1] + reach - half).max(axis=0)) + half + spare
    height, width = (round(float(n)) for n in high - low)
    return Scene(
        pixels=np.zeros((height, width, 3), np.float32),
        seen=np.zeros((height, width), bool),
        top=float(low[0]),
        left=float(low[1]),
        screen=screen,
        brightness=np.zeros((len(camera), 3), np.float32),
    )


def _cells(
    scene: Scene, camera: Floats, *, rows: Ints, cols: Ints
) -> tuple[Floats, Floats, tuple[Ints, Ints]]:
    """Find the canvas cell of screen pixels: fractions [N, 1] down and right, and its corner."""
    half = (scene.screen[0] / 2, scene.screen[1] / 2)
    y = (rows + 0.5 - half[0]) / camera[:, 2] + camera[:, 1] - scene.top - 0.5
    x = (cols + 0.5 - half[1]) / camera[:, 2] + camera[:, 0] - scene.left - 0.5
    height, width = scene.seen.shape
    top = np.clip(np.floor(y), 0, height - 2).astype(np.intp)
    left = np.clip(np.floor(x), 0, width - 2).astype(np.intp)
    down = np.clip(y - top, 0.0, 1.0).astype(np.float32)[:, None]
    right = np.clip(x - left, 0.0, 1.0).astype(np.float32)[:, None]
    return down, right, (top, left)


def _collect(
    video: Bytes, covered: Bools, *, camera: Floats, scene: Scene
) -> npt.NDArray[np.int16]:
    """Bring frames onto the canvas: int16 [S, h, w, 3], `_HIDDEN` where they show nothing."""
    if _fits_screen(scene):
        samples = video.astype(np.int16)
        samples[covered] = _HIDDEN
        return samples
    height, width = scene.seen.shape
    half = (scene.screen[0] / 2, scene.screen[1] / 2)
    zoom = camera[:, 2:]
    y = (np.arange(height) + 0.5 + scene.top - camera[:, 1:2]) * zoom + half[0] - 0.5
    x = (np.arange(width) + 0.5 + scene.left - camera[:, :1]) * zoom + half[1] - 0.5
    down, right = hat_matrix(y, scene.screen[0]), hat_matrix(x, scene.screen[1])
    shown = down @ (~covered).astype(np.float32) @ right.swapaxes(1, 2)
    planes = np.moveaxis(video, 3, 1).astype(np.float32)  # [S, 3, H, W]
    moved = down[:, None] @ planes @ right[:, None].swapaxes(2, 3)
    samples = np.rint(np.moveaxis(moved, 1, 3)).astype(np.int16)
    samples[shown < 0.999] = _HIDDEN
    return samples


def _settle(scene: Scene, samples: npt.NDArray[np.int16], *, known: Floats | None) -> Scene:
    """Take the median of the samples that show a place, and fill the places without any."""
    ordered = np.sort(samples, axis=0)
    counts = (samples[..., 0] != _HIDDEN).sum(axis=0)
    middle = np.stack([np.maximum(counts - 1, 0) // 2, counts // 2])[..., None]
    pair = np.take_along_axis(ordered, np.minimum(middle, len(samples) - 1), axis=0)
    pixels, seen = pair.mean(axis=0, dtype=np.float32), counts > 0
    if known is not None:
        _put_known(scene, pixels, seen=seen, known=known)
    return replace(scene, pixels=_fill(pixels, seen), seen=seen)


def _put_known(scene: Scene, pixels: Floats, *, seen: Bools, known: Floats) -> None:
    """Write a given background over what was measured, in place, where the canvas holds it."""
    given = ~np.isnan(known).any(axis=2)
    rows, cols = np.nonzero(given)
    down = rows - round(scene.screen[0] / 2 + scene.top)
    right = cols - round(scene.screen[1] / 2 + scene.left)
    held = (down >= 0) & (down < seen.shape[0]) & (right >= 0) & (right < seen.shape[1])
    pixels[down[held], right[held]] = known[rows[held], cols[held]]
    seen[down[held], right[held]] = True


def _fill(pixels: Floats, seen: Bools) -> Floats:
    """Fill holes with a blurred version of what surrounds them, as narrow a blur as reaches."""
    from scipy.ndimage import gaussian_filter

    filled = np.where(seen[..., None], pixels, 0.0).astype(np.float32)
    if seen.all():
        return filled
    if not seen.any():
        return np.full_like(filled, 128.0)
    open_places = ~seen
    filled[open_places] = filled[seen].mean(axis=0)
    for sigma in reversed(_FILL_SIGMAS):
        weight = gaussian_filter(seen.astype(np.float32), sigma)
        reached = open_places & (weight > 0.02)
        for k in range(3):
            total = gaussian_filter(np.where(seen, pixels[..., k], 0.0), sigma)
            filled[reached, k] = total[reached] / weight[reached]
    return filled


def _brightness(video: Bytes, covered: Bools, *, camera: Floats, scene: Scene) -> Floats:
    """Measure by how much each frame is brighter than the scene where it shows it: [F, 3]."""
    near = slice(_LATTICE // 2, None, _LATTICE)
    shown = ~covered[:, near, near]
    frames, rows, cols = np.nonzero(shown)
    step, start = _LATTICE, _LATTICE // 2
    at = {"frames": frames, "rows": rows * step + start, "cols": cols * step + start}
    still = replace(scene, brightness=np.zeros((len(video), 3), np.float32))
    excess = video[at["frames"], at["rows"], at["cols"]] - look_up(still, camera, **at)
    counts = np.maximum(np.bincount(frames, minlength=len(video)), 8)[:, None]
    sums = [np.bincount(frames, weights=excess[:, k], minlength=len(video)) for k in range(3)]
    return np.asarray(np.stack(sums, axis=1) / counts, np.float32)
