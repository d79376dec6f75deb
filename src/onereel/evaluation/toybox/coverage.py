"""How much of each pixel an object covers: saturated pixels, labels, and the mixing share.

The backgrounds are grey, and shadow, shading and texture only change brightness. The mixing share
is therefore measured on colour differences without their brightness: a background that is known
badly, because a resting object never uncovers it, then hardly moves a centroid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.toybox.background import Scene, look_up
from onereel.world import COLOURS, PALETTE, SIZES

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

SATURATION = 40  # max - min of a pixel's channels; backgrounds reach 24, half an object 65
GROW = 2  # pixels by which the saturated ones are dilated
NOTHING = len(COLOURS)  # label of a pixel that no object covers

_HALF = 0.5  # least mixing share of a labelled pixel
_BRIGHTNESS = 0.1  # weight of brightness where two colours mix with the background
_OPPOSITE = 0.95  # cosine between hues that cannot be told apart, or that cancel, in a mixture
_LEAST_AREA = 0.3  # of the smallest disc
_RESIDUAL = 60.0  # largest distance from the line between background and colour, in levels
_PALETTE = np.array([PALETTE[name] for name in COLOURS], dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cover:
    """What the pixels of a stretch of video are made of.

    Args:
        labels: index of the palette colour per pixel or `NOTHING`, uint8 [F, H, W].
        places: flat indices into `labels` of the N pixels that may belong to an object, [N].
        share: how much of each palette colour they hold, unclipped, float32 [N, 8].
        open: whether they may count to an object of that colour, [N, 8].
    """

    labels: Bytes
    places: npt.NDArray[np.intp]
    share: Floats
    open: Bools


def grow(mask: Bools, steps: int) -> Bools:
    """Dilate masks by a square, each picture for itself.

    Args:
        mask: [..., H, W].
        steps: by how many pixels, at least 0.

    Returns:
        The dilated masks.
    """
    for _ in range(steps):
        tall = mask.copy()
        tall[..., 1:, :] |= mask[..., :-1, :]
        tall[..., :-1, :] |= mask[..., 1:, :]
        mask = tall.copy()
        mask[..., 1:] |= tall[..., :-1]
        mask[..., :-1] |= tall[..., 1:]
    return mask


def find_saturated(video: Bytes) -> Bools:
    """Find the pixels that are too colourful for a background, and those around them.

    Args:
        video: [F, H, W, 3].

    Returns:
        [F, H, W].
    """
    red, green, blue = (video[..., k] for k in range(3))
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    return grow((high - low) > SATURATION, GROW)


def measure_cover(video: Bytes, covered: Bools, *, scene: Scene, camera: Floats) -> Cover:
    """Unmix the covered pixels into background and palette colours.

    Args:
        video: a stretch of frames, [F, H, W, 3].
        covered: what `find_saturated` gave, [F, H, W].
        scene: the background of the stretch.
        camera: (cx, cy, zoom) per frame, [F, 3].

    Returns:
        Labels and shares.

    Source:
        spec/evaluation.md 9.2, step 1; the share leaves brightness out, the residual does not.
    """
    frames, rows, cols = np.nonzero(covered)
    behind = look_up(scene, camera, frames=frames, rows=rows, cols=cols).astype(np.float32)
    change = video[frames, rows, cols] - behind
    along, span = _products(change, behind, palette=_PALETTE)
    whole = np.clip(along / span, 0.0, 1.0)
    square = (change * change).sum(axis=1, keepdims=True)
    residual = square - 2.0 * whole * along + whole * whole * span
    along, span = _products(_grey_free(change), _grey_free(behind), palette=_grey_free(_PALETTE))
    share = along / span
    best = residual.argmin(axis=1)
    which = np.arange(len(best))
    good = (residual[which, best] <= _RESIDUAL**2) & (share[which, best] >= _HALF)
    best = np.where(good, best, NOTHING)
    labels = np.full(covered.shape, NOTHING, np.uint8)
    labels[frames, rows, cols] = best
    mine = (best[:, None] == np.arange(NOTHING)) | ~good[:, None]
    height, width = covered.shape[1:]
    cover = Cover(
        labels=labels,
        places=(frames * height + rows) * width + cols,
        share=share,
        open=mine & (residual <= _RESIDUAL**2),
    )
    smallest = smallest_area(height, camera[:, 2])
    objects = [_large(labels == k, smallest) for k in range(NOTHING)]
    for pair in itertools.combinations([k for k in range(NOTHING) if objects[k].any()], 2):
        alike = _alike(pair)
        if abs(alike) <= _OPPOSITE:
            close = grow(objects[pair[0]], GROW) & grow(objects[pair[1]], GROW)
            _unmix(cover, change, behind=behind, pair=pair, close=close)
        elif alike < 0:
            close = grow(objects[pair[0]], 1) & grow(objects[pair[1]], 1)
            _divide(cover, change + behind, residual=residual[:, pair], pair=pair, close=close)
    return cover


def smallest_area(height: int, zoom: Floats) -> Floats:
    """Give the area below which labelled pixels are no object.

    Args:
        height: of the frames in pixels.
        zoom: of the camera per frame, [F]; far away, small objects are smaller.

    Returns:
        Pixels per frame, [F].
    """
    return _LEAST_AREA * np.pi * (min(SIZES.values()) * height * np.minimum(zoom, 1.0)) ** 2


def _large(mask: Bools, smallest: Floats) -> Bools:
    """Empty the masks of frames in which they are too small for an object."""
    enough = mask.sum(axis=(1, 2)) >= smallest
    return np.asarray(mask & enough[:, None, None])


def _unmix(
    cover: Cover, change: Floats, *, behind: Floats, pair: tuple[int, int], close: Bools
) -> None:
    """Share pixels close to two objects between both and the background, in place."""
    rows = np.flatnonzero(close.ravel()[cover.places])
    target = _weigh(change[rows])
    one, two = (_weigh(_PALETTE[k] - behind[rows]) for k in pair)
    aa, ab, bb = (one * one).sum(1), (one * two).sum(1), (two * two).sum(1)
    at, bt = (one * target).sum(1), (two * target).sum(1)
    ground = aa * bb - ab * ab
    cover.share[rows, pair[0]] = (bb * at - ab * bt) / ground
    cover.share[rows, pair[1]] = (aa * bt - ab * at) / ground
    cover.open[rows[:, None], pair] = True


def _divide(
    cover: Cover, pixels: Floats, *, residual: Floats, pair: tuple[int, int], close: Bools
) -> None:
    """Divide pixels between two objects whose hues cancel, where that explains them best, in place.

    A third unknown, the background, cannot be told from such a mixture by its hue.
    """
    rows = np.flatnonzero(close.ravel()[cover.places])
    one, two = _PALETTE[list(pair)]
    span = float((one - two) @ (one - two))
    first = np.clip((pixels[rows] - two) @ (one - two) / span, 0.0, 1.0)
    off = pixels[rows] - two - first[:, None] * (one - two)
    better = (off * off).sum(axis=1) < residual[rows].min(axis=1)
    rows, first = rows[better], first[better]
    cover.share[rows, pair[0]], cover.share[rows, pair[1]] = first, 1.0 - first
    cover.open[rows[:, None], pair] = True


def _alike(pair: tuple[int, int]) -> float:
    """Give the cosine between the hues of two colours."""
    one, two = _grey_free(_PALETTE[list(pair)])
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


def _weigh(colours: Floats) -> Floats:
    """Weaken the brightness of colours [N, 3], which shading changes, against their hue."""
    grey = colours.mean(axis=1, keepdims=True)
    return np.asarray(colours - np.float32(1.0 - _BRIGHTNESS) * grey)


def _products(change: Floats, behind: Floats, *, palette: Floats) -> tuple[Floats, Floats]:
    """Project changes onto the lines from background to colours; and those lines' squares."""
    along = change @ palette.T - (change * behind).sum(axis=1, keepdims=True)
    span = (palette * palette).sum(axis=1) - 2.0 * (behind @ palette.T)
    span += (behind * behind).sum(axis=1, keepdims=True)
    return along, span


def _grey_free(colours: Floats) -> Floats:
    """Take the mean of the channels out of colours [N, 3]."""
    return np.asarray(colours - colours.mean(axis=1, keepdims=True))
