"""Are made videos distributed like the world's own? Two distances that need no downloads.

`ftd` sees where objects are and how they move, `wvd` whole pictures through a small classifier
trained on the world. Neither is FVD, and numbers compare only with the same number of videos, of
the same length, from the same mix of scenes.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ShapeError
from onereel.evaluation.distances import frechet_distance
from onereel.evaluation.measure import Measurement
from onereel.evaluation.toybox.tracks import Track, Tracking
from onereel.evaluation.toybox.world_features import classifier_sha256
from onereel.world import COLOURS, SHAPES

Floats = npt.NDArray[np.floating[Any]]

ENOUGH_VIDEOS = 512
_TRACKS = 3
_TIMES = 8
# Spreads among the world's own clips, so that each kind of feature has a say.
_PLACE = 0.25  # canvas heights
_SPEED = 0.35  # canvas heights per second
_MAX_SPEED = 3.0  # canvas heights per second, four times the world's own: what is faster is a jump
_RADIUS = 0.03  # canvas heights
_AREA = 0.1  # relative
_SHARE = 0.3  # of the objects that have one colour or shape
_TOUCH_SHARE = 1.5 / 64  # of the canvas: distance at which objects touch
_SLOW = 0.05  # canvas heights per second; what turns slower than this jitters


def trajectory_features(tracking: Tracking) -> Floats:
    """Describe where a video's objects are, how they move, and what happens to them.

    Args:
        tracking: of the video.

    Returns:
        [121]: for each of up to three tracks, sorted by colour, presence, positions and velocities
        at eight times, radius and the variation of its area (zeros for a missing one); then the
        shares of colours and shapes, and the logarithms of the counts of turns, contacts, late
        starts and early ends.

    Source:
        spec/evaluation.md 9.7.
    """
    kept = sorted(tracking.tracks[:_TRACKS], key=lambda track: COLOURS.index(track.colour))
    rows = [_track_features(track, tracking) for track in kept]
    empty = [np.zeros(3 + 4 * _TIMES)] * (_TRACKS - len(rows))
    looks = [np.zeros(len(COLOURS)), np.zeros(len(SHAPES))]
    for track in kept:
        looks[0][COLOURS.index(track.colour)] += 1 / len(kept)
        if track.shape is not None:
            looks[1][SHAPES.index(track.shape)] += 1 / len(kept)
    shares = np.concatenate(looks) / _SHARE
    return np.concatenate([*rows, *empty, shares, np.log1p(_event_counts(tracking))])


def ftd(generated: Floats, real: Floats) -> Measurement:
    """Take the Fréchet trajectory distance.

    Args:
        generated: `trajectory_features` of made videos, [n, 121].
        real: of the world's own, [m, 121].

    Returns:
        The distance; its note says how many videos it is of.

    Raises:
        ShapeError: a set is too small, or the features do not fit.

    Source:
        spec/evaluation.md 9.7 and 6.1.
    """
    return _measured(generated, real, note="")


def wvd(generated: Floats, real: Floats) -> Measurement:
    """Take the world video distance, which depends on the classifier's weights.

    Args:
        generated: `world_features` of made videos, [n, 64].
        real: of the world's own, [m, 64].

    Returns:
        The distance; its note says how many videos it is of, and the hash of the weights.

    Raises:
        ShapeError: a set is too small, or the features do not fit.

    Source:
        spec/evaluation.md 9.7 and 6.1.
    """
    return _measured(generated, real, note=f", classifier {classifier_sha256()}")


def _measured(generated: Floats, real: Floats, *, note: str) -> Measurement:
    if min(len(generated), len(real)) < 2:
        got = f"{len(generated)} and {len(real)}"
        raise ShapeError("features", expected="at least 2 videos in each set", got=got)
    few = min(len(generated), len(real)) < ENOUGH_VIDEOS
    text = f"{len(generated)} videos against {len(real)}, {generated.shape[1]} features"
    text += f", too large for fewer than {ENOUGH_VIDEOS} videos" if few else ""
    return Measurement(mean=frechet_distance(generated, real), num=len(generated), note=text + note)


def _path(track: Track, num_frames: int) -> Floats:
    """Positions in all frames [F, 2]: straight across gaps, at rest before and after."""
    frames = np.arange(num_frames)
    return np.stack([np.interp(frames, track.frames, a) for a in (track.x, track.y)], axis=1)


def _velocity(path: Floats, fps: int) -> Floats:
    """Central differences in pixels per second, [F, 2]."""
    if len(path) < 2:
        return np.zeros_like(path)
    return np.asarray(np.gradient(path, axis=0) * fps)


def _track_features(track: Track, tracking: Tracking) -> Floats:
    unit = tracking.height
    path = _path(track, tracking.num_frames)
    middle = np.array([tracking.width, tracking.height]) / 2
    velocity = np.clip(_velocity(path, tracking.fps) / unit, -_MAX_SPEED, _MAX_SPEED)
    times = np.linspace(0, tracking.num_frames - 1, _TIMES).round().astype(int)
    radii = track.r[~track.cut] if not track.cut.all() else track.r
    areas = np.square(radii / np.median(radii))
    return np.concatenate(
        [
            [1.0],
            ((path[times] - middle) / (unit * _PLACE)).ravel(),
            (velocity[times] / _SPEED).ravel(),
            [np.median(radii) / (unit * _RADIUS), areas.std() / _AREA],
        ]
    )


def _event_counts(tracking: Tracking) -> Floats:
    """Count turns, contacts, late starts and early ends."""
    paths = [_path(track, tracking.num_frames) for track in tracking.tracks]
    turns = 0
    for path in paths:
        speed = _velocity(path, tracking.fps) / tracking.height
        for axis in (0, 1):
            moving = speed[np.abs(speed[:, axis]) > _SLOW, axis]
            turns += int((np.sign(moving[1:]) != np.sign(moving[:-1])).sum())
    contacts = 0
    for (a, p), (b, q) in itertools.combinations(zip(tracking.tracks, paths, strict=True), 2):
        reach = float(np.median(a.r) + np.median(b.r)) + _TOUCH_SHARE * tracking.height
        near = np.linalg.norm(p - q, axis=1) <= reach
        contacts += int(near[0]) + int((near[1:] & ~near[:-1]).sum())
    late = sum(int(track.frames[0] > 0) for track in tracking.tracks)
    early = sum(int(track.frames[-1] < tracking.num_frames - 1) for track in tracking.tracks)
    return np.array([turns, contacts, late, early], dtype=np.float64)
