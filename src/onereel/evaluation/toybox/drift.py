"""What changes over a long video: every second of it against the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.evaluation.quality import PSNR_CEILING
from onereel.evaluation.toybox.compensate import background_pixels, seen_by
from onereel.evaluation.toybox.lab import delta_e76
from onereel.evaluation.toybox.shape_fit import template_iou
from onereel.evaluation.toybox.tracks import Track, Tracking

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

MIN_PSNR = 20.0
MAX_DELTA_E = 20.0
_MIN_SHARED = 0.05  # share of the picture in which two backgrounds can be compared
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SHAPE_FRAMES = 3  # per object and second, for the fit of its outline
_PLATE_STEP = 2  # frames between those of which the background's median is taken
_PRESENT = 4  # an object is part of a second when it is seen for a quarter of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Every second of a video against its first second; S seconds, NaN where nothing compares.

    Args:
        bg_psnr: of the background, decibels, [S].
        delta_e: CIE76 distance of the objects' mean colours, mean over objects, [S].
        area: |log2| of the ratio of the objects' areas, mean over objects, [S].
        sharp: log of the ratio of the variance of the frame's Laplacian, [S].
        sat: ratio of the frame's mean saturation, [S].
        shape: overlap with the outline of the object's own shape that was lost, [S].
        count_right: 1 where the number of objects is the expected one, [S].
        length_s: of the video.
    """

    bg_psnr: Floats
    delta_e: Floats
    area: Floats
    sharp: Floats
    sat: Floats
    shape: Floats
    count_right: Floats
    length_s: float

    def curves(self) -> dict[str, list[float]]:
        """Give all series by the names of the results.

        Returns:
            One value per second; NaN where nothing compares.
        """
        series = {
            "drift_bg_psnr": self.bg_psnr,
            "drift_deltaE": self.delta_e,
            "drift_area": self.area,
            "drift_sharp": self.sharp,
            "drift_sat": self.sat,
            "drift_shape": self.shape,
            "count_right": self.count_right,
        }
        return {name: [float(v) for v in values] for name, values in series.items()}

    @property
    def usable_seconds(self) -> float:
        """Find the first second in which the scene is no longer the one it was.

        Returns:
            Seconds until the background's PSNR falls below 20 dB, the count is wrong, or the mean
            colour distance exceeds 20; the video's length when none of it happens.
        """
        with np.errstate(invalid="ignore"):
            bad = (self.bg_psnr < MIN_PSNR) | (self.count_right < 0.5)
            bad |= self.delta_e > MAX_DELTA_E
        return float(np.argmax(bad)) if bad.any() else self.length_s

    def values(self) -> dict[str, float]:
        """Sum up.

        Returns:
            For every series its last value (`_end`) and its slope per minute (`_slope`), and
            `usable_seconds`.

        Source:
            spec/evaluation.md 9.6.
        """
        found = {}
        for name, series in self.curves().items():
            found[f"{name}_end"] = series[-1]
            found[f"{name}_slope"] = theil_sen(np.array(series), step_s=1.0)
        return {**found, "usable_seconds": self.usable_seconds}


def measure_drift(
    video: Video, tracking: Tracking, *, expected: int | Sequence[int] | None = None
) -> Drift:
    """Compare every second of a video with its first.

    Args:
        video: uint8 [F, H, W, 3], at least two seconds; a last part of a second is left out.
        tracking: of the video.
        expected: number of objects, of the whole video or per second (`objects_per_second` of the
            truth); None takes that of the first second.

    Returns:
        The series. Laplacian and saturation are of whole frames: what comes into sight or leaves
        it changes them too.

    Raises:
        ConfigError: the video is shorter than two seconds, or `expected` does not fit.

    Source:
        spec/evaluation.md 9.6.
    """
    counts = objects_per_second(tracking)
    if len(counts) < 2:
        got = f"{len(video)} frames"
        raise ConfigError("video", expected="at least two seconds", got=got)
    wanted = _wanted(counts, expected)
    sharp, sat = _frame_series(video, len(counts), tracking.fps)
    delta_e, area, shape = _object_series(video, tracking, len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        return Drift(
            bg_psnr=_background_series(video, tracking, len(counts)),
            delta_e=delta_e,
            area=area,
            sharp=np.log(sharp / sharp[0]),
            sat=sat / sat[0],
            shape=shape,
            count_right=(counts == wanted).astype(float),
            length_s=len(video) / tracking.fps,
        )


def objects_per_second(tracking: Tracking) -> npt.NDArray[np.int64]:
    """Count the objects of every full second: the median over its frames.

    Args:
        tracking: of a video.

    Returns:
        [S].
    """
    seen = np.zeros(tracking.num_frames, dtype=np.int64)
    for track in tracking.tracks:
        seen[track.frames] += 1
    seconds = len(seen) // tracking.fps
    ordered = np.sort(seen[: seconds * tracking.fps].reshape(seconds, tracking.fps), axis=1)
    return np.asarray(ordered[:, tracking.fps // 2])


def theil_sen(values: Floats, *, step_s: float) -> float:
    """Estimate a slope that single bad values do not change: the median of all pairs' slopes.

    Args:
        values: at equal distances in time; NaN is left out.
        step_s: distance in seconds.

    Returns:
        Change per minute; NaN with fewer than two values.

    Source:
        Sen, Estimates of the Regression Coefficient Based on Kendall's Tau (1968).
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return math.nan
    i, j = np.triu_indices(len(known), 1)
    rise = values[known[j]] - values[known[i]]
    return float(np.median(rise / ((known[j] - known[i]) * step_s)) * 60)


def _wanted(
    counts: npt.NDArray[np.int64], expected: int | Sequence[int] | None
) -> npt.NDArray[np.int64]:
    if expected is None or isinstance(expected, int):
        return np.full(len(counts), counts[0] if expected is None else expected)
    if len(expected) != len(counts):
        raise ConfigError("expected", expected=f"{len(counts)} numbers", got=len(expected))
    return np.asarray(expected)


def _frame_series(video: Video, seconds: int, fps: int) -> tuple[Floats, Floats]:
    """Mean variance of the Laplacian and mean saturation of every second."""
    sharp, sat = np.zeros(seconds), np.zeros(seconds)
    for i in range(seconds):
        part = video[i * fps : (i + 1) * fps]
        grey = part.astype(np.float32) @ _LUMA
        around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        sharp[i] = (around - 4 * grey[:, 1:-1, 1:-1]).var(axis=(1, 2)).mean()
        red, green, blue = (part[..., k] for k in range(3))
        highest = np.maximum(np.maximum(red, green), blue)
        sat[i] = (highest - np.minimum(np.minimum(red, green), blue)).mean()
    return sharp, sat


def _background_series(video: Video, tracking: Tracking, seconds: int) -> Floats:
    """PSNR of every second's background, as the first frame's camera sees it."""
    bare = background_pixels(tracking)
    plates = [_plate(video, bare, tracking=tracking, second=i) for i in range(seconds)]
    first, psnr = plates[0], np.full(seconds, np.nan)
    for i, now in enumerate(plates):
        both = np.isfinite(first).all(axis=-1) & np.isfinite(now).all(axis=-1)
        if both.mean() >= _MIN_SHARED:
            error = float(np.square((now - first)[both] / 255).mean())
            psnr[i] = -10 * math.log10(error) if error >= 1e-10 else PSNR_CEILING
    return psnr


def _plate(video: Video, bare: Bools, *, tracking: Tracking, second: int) -> Floats:
    """Median of the bare background over one second, [H, W, 3]; NaN where there is none."""
    part = slice(second * tracking.fps, (second + 1) * tracking.fps, _PLATE_STEP)
    camera = tracking.camera[part]
    layers = np.concatenate([video[part].astype(np.float32), ~bare[part][..., None]], axis=-1)
    viewers = np.broadcast_to(tracking.camera[:1], camera.shape)
    seen, inside = seen_by(layers, camera, viewers=viewers)
    shown = inside & (seen[..., 3] == 0)
    num = shown.sum(axis=0)[..., None, None]
    # hidden samples go to the end, so that the middle of the shown ones is the median
    samples = np.where(shown[..., None], seen[..., :3], np.inf)
    ordered = np.sort(samples.transpose(1, 2, 3, 0), axis=-1)
    low, high = np.maximum(num - 1, 0) // 2, np.minimum(num // 2, ordered.shape[-1] - 1)
    middle = np.take_along_axis(ordered, low, axis=-1) + np.take_along_axis(ordered, high, axis=-1)
    return np.where(num > 0, middle / 2, np.nan)[..., 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """An object within one second: track, its number, its whole rows, colour, radius."""

    track: Track
    number: int
    rows: npt.NDArray[np.intp]
    rgb: Floats
    r: float


def _looks(tracking: Tracking, second: int) -> list[_Look]:
    """List the objects of one second."""
    found = []
    for number, track in enumerate(tracking.tracks):
        rows = np.flatnonzero(track.frames // tracking.fps == second)
        if len(rows) * _PRESENT < tracking.fps:
            continue
        colours = track.rgb[rows]
        colours = colours[np.isfinite(colours).all(axis=1)]
        # the median over frames: those in which it fades in do not count
        rgb = np.median(colours, axis=0) if len(colours) else np.full(3, np.nan)
        whole = rows[~track.cut[rows]]
        radii = track.r[whole] / tracking.camera[track.frames[whole], 2]
        r = float(np.median(radii)) if len(whole) else math.nan
        found.append(_Look(track=track, number=number, rows=whole, rgb=rgb, r=r))
    return found


def _matched(first: list[_Look], now: list[_Look]) -> list[tuple[_Look, _Look]]:
    """Pair the objects of two seconds: the same track, else the same colour, else the likest."""
    from scipy.optimize import linear_sum_assignment

    if not first or not now:
        return []
    cost = np.zeros((len(first), len(now)))
    for i, one in enumerate(first):
        for j, other in enumerate(now):
            strange = 0 if one.number == other.number else 1
            strange += one.track.colour != other.track.colour and one.number != other.number
            apart = float(delta_e76(one.rgb, other.rgb))
            cost[i, j] = 1000.0 * strange + (apart if math.isfinite(apart) else 0.0)
    return [(first[i], now[j]) for i, j in zip(*linear_sum_assignment(cost), strict=True)]


def _object_series(video: Video, tracking: Tracking, seconds: int) -> tuple[Floats, Floats, Floats]:
    """Colour distance, |log2| of the area's ratio and lost overlap, means over the objects."""
    first = _looks(tracking, 0)
    before = {look.number: _fit(video, look, look.track.shape) for look in first}
    series = np.full((3, seconds), np.nan)
    for second in range(seconds):
        rows = []
        for one, now in _matched(first, _looks(tracking, second)):
            loss = before[one.number] - _fit(video, now, one.track.shape)
            area = abs(2 * math.log2(now.r / one.r))
            rows.append((float(delta_e76(one.rgb, now.rgb)), area, loss))
        for k, values in enumerate(zip(*rows, strict=True)):
            known = [v for v in values if math.isfinite(v)]
            series[k, second] = np.mean(known) if known else np.nan
    return series[0], series[1], series[2]


def _fit(video: Video, look: _Look, shape: str | None) -> float:
    """Mean overlap with the outline of a shape over a few frames; NaN when never seen whole."""
    if shape is None or not len(look.rows):
        return math.nan
    picked = look.rows[np.linspace(0, len(look.rows) - 1, _SHAPE_FRAMES).astype(int)]
    fits = [template_iou(video, look.track, row=int(row), shape=shape) for row in picked]
    return float(np.mean(fits))
