"""Where the camera looked: least squares on the background, phase correlation for large steps.

A camera at (cx, cy, zoom) shows world place X at the screen place (X - cx) * zoom, both counted
from the middle of the screen. Between a frame t and an earlier frame s the place u on t's screen
is thus m * u + d on s's screen with m = zoom_s / zoom_t and d = (c_t - c_s) * zoom_s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer[Any]]

_FAR = 32.0  # pixels from the middle at which a change of zoom is counted as motion
_KEY_STEP = 12  # frames between the frames that the others are aligned with
_DAMPING = 30.0  # added to the curvature, so that a plain background gives no wild steps
_RELATIVE_DAMPING = 0.003
_MIN_OVERLAP = 0.3  # share of the screen on which two frames must show the same place
_MIN_MOTION = 0.1  # pixels; a camera that never moved further rests
_SIGNIFICANT = 100.0  # gain in log likelihood that a motion must bring over a resting camera
_LEVELS = 2.0  # squared levels that rounding and interpolation leave
_MUCH_BETTER = 0.85  # what the simpler motion's difference is multiplied by for both to win
_TRIED = (0.4, 0.6, 1.0)  # distances from the key, of the largest
_SHARED = 0.5  # share of the screen that a camera may leave behind between key frames
_POOR = 1e4  # squared levels; what a pair that cannot be compared counts as
_CALM = 9  # frames over which unrest within the noise is smoothed
_LEAST_SPREAD = np.array([1.0, 1.0, 1.0 / _FAR]) * 0.02  # pixels, what interpolation leaves
_CORRELATED = 7.0  # by how much smoothing makes noise look smaller than it counts
_NOISE_SLOPE = 0.1  # squared slope that noise gives, per squared difference that it leaves
_LEAST_SLOPE = 0.4  # mean squared slope (levels per pixel) of a texture, on 64 rows
_BATCH = 32  # pairs of frames held in the cache at once


_KINDS = (  # which of (shift x, shift y, scale) a pan, a zoom, and both have
    np.array([True, True, False]),
    np.array([False, False, True]),
    np.array([True, True, True]),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Normal:
    """Normal equations of P pairs: [P, 3, 3], [P, 3], squared differences and pixels [P]."""

    curve: Floats
    slope: Floats
    squares: Floats
    count: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """Steps [P, 3], mean squared difference before them [P], curvature [P, 3, 3], pixels [P]."""

    step: Floats
    left: Floats
    curve: Floats
    count: Floats


def hat_matrix(places: Floats, length: int) -> Floats:
    """Make the matrix that interpolates linearly at places along one axis.

    Args:
        places: in pixel indices, [F, P]; outside [0, length - 1] the weights fall to zero.
        length: of the axis.

    Returns:
        float32 [F, P, length].
    """
    away = np.abs(places.astype(np.float32)[..., None] - np.arange(length, dtype=np.float32))
    return np.asarray(np.maximum(np.float32(1.0) - away, np.float32(0.0)))


def estimate_camera(video: Bytes, covered: Bools) -> Floats:
    """Follow the camera through a video.

    Args:
        video: [F, H, W, 3].
        covered: pixels near objects, which tell nothing about the camera, [F, H, W].

    Returns:
        (cx, cy, zoom) per frame, frame 0 at (0, 0, 1), float64 [F, 3]. A background without
        texture gives a camera at rest.

    Source:
        spec/evaluation.md 9.2, step 4; the least-squares fit of a shift and a scale is
        Lucas and Kanade, An iterative image registration technique, 1981.
    """
    rest = np.tile([0.0, 0.0, 1.0], (len(video), 1))
    if len(video) < 2:
        return rest
    luma, shown = _smooth_luma(video), ~covered
    frames = np.arange(1, len(video))
    if _rests(luma, shown, earlier=(frames - 1) // _KEY_STEP * _KEY_STEP):
        return rest
    steps = _neighbour_steps(luma, shown)
    span = _key_step(steps, size=video.shape[1:3])
    keys = (frames - 1) // span * span
    start = steps_between(_chain(steps, np.arange(len(steps))), keys, later=frames)
    kind = _choose_kind(luma, shown, earlier=keys, start=start)
    step = _align(
        luma, shown, pairs=(frames, keys), start=_restrict(start, kind), rounds=1, kind=kind
    )
    fit = _fit(luma, shown, pairs=(frames, keys), step=step, kind=kind)
    kind = kind & _visible(fit.curve, fit.left, count=fit.count, height=video.shape[1])
    camera = _calm(_chain(_restrict(fit.step, kind), keys), fit, kind)
    travel = np.abs(camera - rest) * (1.0, 1.0, _FAR)
    return rest if travel.max() < _MIN_MOTION else camera


def _key_step(steps: Floats, *, size: tuple[int, ...]) -> int:
    """Space the key frames so that a fast camera still shows the same places on both."""
    fast = np.quantile(np.abs(steps[:, :2]), 0.95, axis=0) + 1e-6
    room = float(np.min(_SHARED * np.array([size[1], size[0]]) / fast))
    return int(np.clip(room, 1, _KEY_STEP))


def _restrict(step: Floats, kind: Bools) -> Floats:
    """Reset the parts of steps that a kind of motion does not have."""
    return np.where(kind, step, (0.0, 0.0, 1.0))


def _choose_kind(luma: Floats, shown: Bools, *, earlier: Ints, start: Floats) -> Bools:
    """Choose the simplest motion that explains some of the frames far from their keys.

    A shift and a scale look alike on a slow texture, so that noise would feed one with the other.
    Several distances are looked at, because a pattern may repeat after one of them.
    """
    away = np.arange(1, len(earlier) + 1) - earlier
    tried = np.ceil(np.array(_TRIED) * away.max())
    some = np.flatnonzero(np.isin(away, tried) | (np.arange(len(away)) == len(away) - 1))
    pairs = (some + 1, earlier[some])
    left = []
    for kind in _KINDS:
        first = _restrict(start[some], kind)
        step = _align(luma, shown, pairs=pairs, start=first, rounds=3, kind=kind)
        fit = _fit(luma, shown, pairs=pairs, step=step, kind=kind)
        left.append(float(np.mean(np.minimum(fit.left, _POOR))) + 0.1 * _LEVELS)
    if left[2] < _MUCH_BETTER * min(left[:2]):
        return _KINDS[2]
    return _KINDS[int(left[1] < left[0])]


def _visible(curve: Floats, left: Floats, *, count: Floats, height: int) -> Bools:
    """Tell which parts of a motion the background shows: its slopes are texture, not noise."""
    noise = _NOISE_SLOPE * np.median(np.minimum(left, _POOR) * count)
    least = _LEAST_SLOPE * (64 / height) ** 2 * np.median(count)
    slopes = np.median(np.diagonal(curve, axis1=1, axis2=2), axis=0)
    return np.asarray(slopes > max(3.0 * noise, least))


def _calm(camera: Floats, fit: _Fit, kind: Bools) -> Floats:
    """Smooth a camera over nine frames, where its unrest is within what noise explains."""
    if len(camera) < _CALM:
        return camera
    values = camera.copy()
    values[:, 2] = np.log(values[:, 2])
    half = _CALM // 2
    powers = np.vander(np.arange(-half, half + 1), 3)
    weights = powers @ np.linalg.pinv(powers)  # row i: the parabola's value at place i
    windows = np.lib.stride_tricks.sliding_window_view(values, _CALM, axis=0)
    middle = windows @ weights[half]
    smooth = np.concatenate(
        [weights[:half] @ values[:_CALM], middle, weights[half + 1 :] @ values[-_CALM:]]
    )
    curve = fit.curve * np.outer(kind, kind) + np.eye(3)
    variance = np.diagonal(np.linalg.inv(curve), axis1=1, axis2=2)
    spread = np.sqrt(_CORRELATED * np.minimum(fit.left, _POOR)[:, None] * variance) / (1, 1, _FAR)
    unrest = np.abs(values - smooth) > 3 * np.maximum(np.median(spread, axis=0), _LEAST_SPREAD)
    for part in np.flatnonzero(kind):
        calm = ~np.convolve(unrest[:, part], np.ones(_CALM), "same").astype(bool)
        values[calm, part] = smooth[calm, part]
    values -= values[0]
    values[:, 2] = np.exp(values[:, 2])
    return values


def _smooth_luma(video: Bytes) -> Floats:
    """Take the mean of the channels and smooth it lightly, which makes its slopes reliable."""
    luma = video.sum(axis=3, dtype=np.uint16).astype(np.float32)
    for axis in (1, 2):
        ends = [(1, 1) if k == axis else (0, 0) for k in range(3)]
        wide = np.pad(luma, ends, mode="edge")
        low, mid, high = (
            wide[:, k : k + luma.shape[1]] if axis == 1 else wide[:, :, k : k + luma.shape[2]]
            for k in range(3)
        )
        luma = 0.25 * low + 0.5 * mid + 0.25 * high
    luma *= np.float32(1 / 3)
    return luma


def _slopes(luma: Floats) -> tuple[Floats, Floats]:
    """Differentiate along columns and rows by central differences, zero at the rims."""
    right, down = np.zeros_like(luma), np.zeros_like(luma)
    right[:, :, 1:-1] = 0.5 * (luma[:, :, 2:] - luma[:, :, :-2])
    down[:, 1:-1] = 0.5 * (luma[:, 2:] - luma[:, :-2])
    return right, down


def _gram(image: Floats, moved: Floats, *, shown: Bools) -> Floats:
    """Multiply slopes, scaled slopes, difference, one and curvature with each other: [P, 6, 6]."""
    pairs, height, width = image.shape
    middle = 0.5 * (image + moved)
    right, down = _slopes(middle)
    u = ((np.arange(width) + 0.5 - width / 2) / _FAR).astype(np.float32)
    v = ((np.arange(height) + 0.5 - height / 2) / _FAR).astype(np.float32)[:, None]
    rows = np.zeros((pairs, 6, height, width), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2] = right, down, right * u + down * v
    rows[:, 3], rows[:, 4] = image - moved, 1.0
    around = middle[:, 1:-1, 2:] + middle[:, 1:-1, :-2] + middle[:, 2:, 1:-1] + middle[:, :-2, 1:-1]
    rows[:, 5, 1:-1, 1:-1] = around - 4.0 * middle[:, 1:-1, 1:-1]
    inner = np.zeros_like(shown)
    inner[:, 1:-1, 1:-1] = shown[:, 1:-1, 1:-1]
    rows *= inner[:, None]
    flat = rows.reshape(pairs, 6, -1)
    return (flat @ flat.swapaxes(1, 2)).astype(np.float64)


def _compare(luma: Floats, shown: Bools, *, pairs: tuple[Ints, Ints], step: Floats) -> _Normal:
    """Set up the normal equations for better steps [P, 3] between later and earlier frames.

    A difference in brightness and one in sharpness are taken out: interpolation softens, and a
    softer picture would pass for a moved one.
    """
    later, earlier = pairs
    grams = []
    for begin in range(0, len(later), _BATCH):
        part = slice(begin, begin + _BATCH)
        moved, both = luma[earlier[part]], shown[later[part]] & shown[earlier[part]]
        if np.any(step[part] != (0.0, 0.0, 1.0)):
            moved, seen = _warp(moved, shown[earlier[part]], step=step[part])
            both = shown[later[part]] & seen
        grams.append(_gram(luma[later[part]], moved, shown=both))
    gram = np.concatenate(grams)
    other = np.linalg.solve(gram[:, 4:, 4:] + np.eye(2), gram[:, 4:, :4])
    main = gram[:, :4, :4] - gram[:, :4, 4:] @ other
    return _Normal(
        curve=main[:, :3, :3], slope=main[:, :3, 3], squares=main[:, 3, 3], count=gram[:, 4, 4]
    )


def _rests(luma: Floats, shown: Bools, *, earlier: Ints) -> bool:
    """Tell whether hardly any pair of frames is explained better by a motion than by rest."""
    step = np.tile([0.0, 0.0, 1.0], (len(earlier), 1))
    normal = _compare(luma, shown, pairs=(np.arange(1, len(luma)), earlier), step=step)
    count = np.maximum(normal.count, 1.0)
    kind = _visible(normal.curve, np.zeros(1), count=count, height=luma.shape[1])
    curve = normal.curve * np.outer(kind, kind) + _DAMPING * np.eye(3)
    slope = normal.slope * kind
    change = np.linalg.solve(curve, slope[..., None])[..., 0]
    gain = (slope * change).sum(axis=1)
    left = np.maximum(normal.squares - gain, 0.0) / count + 0.1 * _LEVELS
    size = np.abs(change).max(axis=1)
    if np.any((gain / left > 10 * _SIGNIFICANT) & (size > 5 * _MIN_MOTION)):
        return False  # a single step
    moving = (gain / left > _SIGNIFICANT) & (size > _MIN_MOTION)
    # a jump by half a period of a pattern has no slope, but leaves a large difference
    mean = normal.squares / count
    moving |= mean > 10 * (np.median(mean) + _LEVELS)
    moving |= (mean > 2 * _LEVELS) & (mean > 0.5 * luma[1:].var(axis=(1, 2)))
    return int(moving.sum()) < max(min(3, len(moving)), 0.05 * len(moving))


def _warp(luma: Floats, shown: Bools, *, step: Floats) -> tuple[Floats, Bools]:
    """Draw pictures as seen after steps [P, 3]; and where they show background.

    Masks move to the nearest pixel, which they can bear because they were dilated.
    """
    pairs, height, width = luma.shape
    x = (np.arange(width) + 0.5 - width / 2) * step[:, 2:] + step[:, :1] + width / 2 - 0.5
    y = (np.arange(height) + 0.5 - height / 2) * step[:, 2:] + step[:, 1:2] + height / 2 - 0.5
    moved = hat_matrix(y, height) @ luma @ hat_matrix(x, width).swapaxes(1, 2)
    cols = np.clip(np.rint(x), 0, width - 1).astype(np.intp)[:, None, :]
    rows = np.clip(np.rint(y), 0, height - 1).astype(np.intp)[:, :, None]
    seen = shown[np.arange(pairs)[:, None, None], rows, cols]
    seen &= ((x >= 1) & (x <= width - 2))[:, None, :]  # with its neighbours, for the slopes
    seen &= ((y >= 1) & (y <= height - 2))[:, :, None]
    return moved, seen


def _fit(
    luma: Floats, shown: Bools, *, pairs: tuple[Ints, Ints], step: Floats, kind: Bools
) -> _Fit:
    """Improve steps once."""
    normal = _compare(luma, shown, pairs=pairs, step=step)
    damping = _DAMPING + _RELATIVE_DAMPING * np.trace(normal.curve, axis1=1, axis2=2)
    curve = normal.curve * np.outer(kind, kind) + damping[:, None, None] * np.eye(3)
    change = np.linalg.solve(curve, (normal.slope * kind)[..., None])[..., 0]
    fits = normal.count > _MIN_OVERLAP * luma[0].size
    change = np.clip(change, -2.0, 2.0) * fits[:, None] / (1.0, 1.0, _FAR)
    left = np.where(fits, normal.squares / np.maximum(normal.count, 1.0), np.inf)
    return _Fit(step=step + change, left=left, curve=normal.curve, count=normal.count)


def _align(
    luma: Floats,
    shown: Bools,
    *,
    pairs: tuple[Ints, Ints],
    start: Floats,
    rounds: int,
    kind: Bools,
) -> Floats:
    """Align later with earlier frames, from a start [P, 3]."""
    step = start
    for _ in range(rounds):
        step = _fit(luma, shown, pairs=pairs, step=step, kind=kind).step
    return step


def _neighbour_steps(luma: Floats, shown: Bools) -> Floats:
    """Find the step between all neighbours: from rest, and from a phase peak where that fails."""
    kind = _KINDS[2]
    pairs = (np.arange(1, len(luma)), np.arange(len(luma) - 1))
    start = np.tile([0.0, 0.0, 1.0], (len(luma) - 1, 1))
    step = _align(luma, shown, pairs=pairs, start=start, rounds=2, kind=kind)
    fit = _fit(luma, shown, pairs=pairs, step=step, kind=kind)
    bad = np.flatnonzero(fit.left > 3 * _LEVELS)
    if not len(bad):
        return fit.step
    some = (pairs[0][bad], pairs[1][bad])
    start = _phase_steps(luma, shown, pairs=some)
    step = _align(luma, shown, pairs=some, start=start, rounds=2, kind=kind)
    other = _fit(luma, shown, pairs=some, step=step, kind=kind)
    wins = other.left + _LEVELS < 0.5 * (fit.left[bad] + _LEVELS)
    fit.step[bad[wins]] = other.step[wins]
    return fit.step


def _phase_steps(luma: Floats, shown: Bools, *, pairs: tuple[Ints, Ints]) -> Floats:
    """Find shifts by phase correlation, with a parabola through the peak."""
    later, earlier = pairs
    height, width = luma.shape[1:]
    # fading to the rims keeps the frame itself, which never moves, out of the peak
    weight = (shown[later] & shown[earlier]) * np.outer(np.hanning(height), np.hanning(width))
    total = np.maximum(weight.sum(axis=(1, 2), keepdims=True), 1e-6)
    spectra = []
    for which in (later, earlier):
        mean = (luma[which] * weight).sum(axis=(1, 2), keepdims=True) / total
        spectra.append(np.fft.rfft2((luma[which] - mean) * weight))
    cross = spectra[0].conj() * spectra[1]
    cross /= np.abs(cross) + 1e-3 * np.abs(cross).max(axis=(1, 2), keepdims=True) + 1e-9
    peaks = np.fft.irfft2(cross, s=(height, width))
    best = peaks.reshape(len(peaks), -1).argmax(axis=1)
    row, col = np.divmod(best, width)
    which = np.arange(len(peaks))

    def sharpen(before: Floats, top: Floats, after: Floats) -> Floats:
        bend = before - 2 * top + after
        shift = 0.5 * (before - after) / np.where(np.abs(bend) < 1e-9, -1.0, bend)
        return np.asarray(np.clip(shift, -0.5, 0.5))

    top = peaks[which, row, col]
    dx = col + sharpen(peaks[which, row, col - 1], top, peaks[which, row, (col + 1) % width])
    dy = row + sharpen(peaks[which, row - 1, col], top, peaks[which, (row + 1) % height, col])
    dx, dy = (dx + width / 2) % width - width / 2, (dy + height / 2) % height - height / 2
    return np.stack([dx, dy, np.ones(len(dx))], axis=1)


def _chain(steps: Floats, earlier: Ints) -> Floats:
    """Add up steps [F - 1, 3] of frames 1.. from earlier frames into a camera [F, 3]."""
    camera = np.zeros((len(steps) + 1, 3))
    camera[0, 2] = 1.0
    for i, (step, key) in enumerate(zip(steps, earlier, strict=True), start=1):
        zoom = camera[key, 2]
        camera[i, :2] = camera[key, :2] + step[:2] / zoom
        camera[i, 2] = zoom / step[2]
    return camera


def steps_between(camera: Floats, earlier: Ints, *, later: Ints) -> Floats:
    """Give the steps of a camera between pairs of frames.

    Args:
        camera: (cx, cy, zoom) per frame, [F, 3].
        earlier: frame numbers, [P].
        later: frame numbers, [P].

    Returns:
        (dx, dy, m) per pair, [P, 3]: the place u on the later screen, counted from its middle, is
        m * u + (dx, dy) on the earlier one.
    """
    zoom = camera[earlier, 2:]
    shift = (camera[later, :2] - camera[earlier, :2]) * zoom
    return np.concatenate([shift, zoom / camera[later, 2:]], axis=1)
