"""What an object looks like in each frame, as a vector of unit length.

It stands in for a network's embedding in the consistency scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.toybox.compensate import sampled_at
from onereel.evaluation.toybox.tracks import Track
from onereel.world import PALETTE

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

_SIDE = 16
_REACH = 1.3  # half the crop's side in radii
_BINS = 8
_FAINT = 0.2  # a background's own colour stays below this share of an object's
_MAX_RESIDUAL = 60.0
_WHOLE = 0.92  # of its usual area, of which less is seen when it is hidden or fades
_NEAR = 24  # frames to either side that tell the usual area


def paint_share(pixels: Floats, rgb: Floats) -> Floats:
    """Estimate how much of each pixel is covered by a colour, whatever is behind it.

    Backgrounds are nearly grey, so what differs between the channels is the object's. Light and
    shade change all channels alike and do not disturb it.

    Args:
        pixels: [..., 3] in 0..255.
        rgb: the colour, broadcastable to the pixels.

    Returns:
        [...] in 0..1; 0 where another colour is.
    """
    centred = pixels - pixels.mean(axis=-1, keepdims=True)
    hue = rgb - rgb.mean(axis=-1, keepdims=True)
    strength = np.maximum((hue * hue).sum(axis=-1), 1.0)
    share = (centred * hue).sum(axis=-1) / strength
    residual = np.sqrt(np.square(centred - share[..., None] * hue).sum(axis=-1))
    kept = (share >= _FAINT) & (residual <= _MAX_RESIDUAL)
    return np.where(kept, np.clip(share, 0.0, 1.0), 0.0)


def track_colours(track: Track) -> Floats:
    """Give the colour of an object in every frame of its track.

    Args:
        track: K frames.

    Returns:
        [K, 3]; the palette's colour where none was measured.
    """
    palette = np.asarray(PALETTE[track.colour], dtype=np.float64)
    return np.where(np.isfinite(track.rgb), track.rgb, palette)


def descriptors(video: Video, track: Track) -> Floats:
    """Describe an object in all frames in which it is whole: neither cut nor hidden nor fading.

    Half of the vector is a crop of 16 x 16 pixels that grows with the object, without what is
    around it; the other half is a histogram of its colours with 8 bins per channel, in which a
    value is shared between the two nearest bins.

    Args:
        video: uint8 [F, H, W, 3].
        track: of the object.

    Returns:
        [K', 792], K' whole frames, each of length 1 (or 0 where the colour is not found).

    Source:
        spec/evaluation.md 9.6.
    """
    uncut = np.flatnonzero(~track.cut)
    if not len(uncut):
        return np.zeros((0, 3 * _SIDE**2 + 3 * _BINS))
    offsets = ((np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1) * _REACH
    reach = track.r[uncut, None, None]
    x = track.x[uncut, None, None] + reach * offsets
    y = track.y[uncut, None, None] + reach * offsets[:, None]
    crops = sampled_at(video[track.frames[uncut]], x, y=y)
    share = paint_share(crops, track_colours(track)[uncut, None, None])
    height, width = video.shape[1:3]
    share *= (x > 0) & (x < width) & (y > 0) & (y < height)  # beyond the edge only the edge goes on
    # what a frame shows of the object in pixels; a camera that zooms changes it slowly
    area = share.mean(axis=(1, 2)) * track.r[uncut] ** 2
    whole = area >= _WHOLE * _running_median(area)
    crops, share = crops[whole], share[whole]
    picture = (crops * share[..., None]).reshape(len(crops), -1)
    picture -= picture.mean(axis=1, keepdims=True)
    parts = [_unit(picture), _unit(_histograms(crops, share >= 0.5))]
    return np.sqrt(0.5) * np.concatenate(parts, axis=1)


def _running_median(values: Floats) -> Floats:
    """Median over the neighbourhood of each value, [K]."""
    starts = np.maximum(np.arange(len(values)) - _NEAR, 0)
    return np.array([np.median(values[k : i + _NEAR + 1]) for i, k in enumerate(starts)])


def _histograms(crops: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    """Colours of the pixels inside, [n, 24]."""
    place = np.clip(crops / (256 / _BINS) - 0.5, 0.0, _BINS - 1.0)  # [n, h, w, 3]
    weight = np.maximum(0.0, 1.0 - np.abs(place[..., None] - np.arange(_BINS)))
    counts = (weight * inside[..., None, None]).sum(axis=(1, 2))  # [n, 3, bins]
    return np.asarray(counts.reshape(len(crops), -1))


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))
