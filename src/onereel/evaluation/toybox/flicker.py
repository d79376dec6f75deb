"""Changes that no motion explains: flicker of background and objects, and seams between chunks.

Differences are in grey levels, 0 to 255.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.evaluation.toybox.compensate import background_pixels, sampled_at, seen_by
from onereel.evaluation.toybox.coverage import grow
from onereel.evaluation.toybox.descriptor import paint_share, track_colours
from onereel.evaluation.toybox.tracks import Track, Tracking

Video = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]

_INNER = 0.77  # radius of the disc that fits into every shape, in radii
_EDGE = 1.0  # pixels of soft edge inside it
_SPOTS = 11  # per diameter of that disc
_REACH = 1.72  # outermost corner of any shape, in radii
_RING = 2  # pixels around an object whose soft edge and shadow belong to neither side
_THIRDS = np.full(3, 1 / 3, dtype=np.float32)
# Below this, frames of 8 bits do not differ: without it, still videos would divide 0 by 0.
_QUANTUM = 0.1


def flicker_bg(video: Video, tracking: Tracking) -> float:
    """Measure how much the background changes between neighbouring frames.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video; its camera motion is undone.

    Returns:
        Mean absolute difference in grey levels; NaN where no background is seen twice.

    Source:
        spec/evaluation.md 9.6.
    """
    bare = background_pixels(tracking)
    before, use = _seen_next(video, ~bare, tracking=tracking, viewers=tracking.camera[1:])
    use &= bare[1:]
    if not use.any():
        return math.nan
    return float(_apart(video[1:], before)[use].mean(dtype=np.float64))


def flicker_excess(
    video: Video, tracking: Tracking, *, true_video: Video, true_tracking: Tracking
) -> float:
    """Measure how much more the background flickers than in the simulator's video of the scene.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video.
        true_video: uint8 [F', H, W, 3] of the same background and camera.
        true_tracking: of it.

    Returns:
        Grey levels; 0 without noise.
    """
    return flicker_bg(video, tracking) - flicker_bg(true_video, true_tracking)


def flicker_fg(video: Video, tracking: Tracking) -> float:
    """Measure how much the inside of objects changes after their motion is undone.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video.

    Returns:
        Mean absolute difference in grey levels, over all objects and pairs of frames; NaN where
        no object is whole in two neighbouring frames.

    Source:
        spec/evaluation.md 9.6.
    """
    total, count = 0.0, 0
    for track in tracking.tracks:
        inner = _inner_pixels(video, track)
        pairs = np.diff(track.frames) == 1
        pairs &= ~track.cut[1:] & ~track.cut[:-1]
        shown = paint_share(inner, track_colours(track)[:, None]) >= 0.5  # not behind something
        use = shown[1:] & shown[:-1] & pairs[:, None]
        total += float(_apart(inner[1:], inner[:-1])[use].sum())
        count += int(use.sum())
    return total / count if count else math.nan


def _apart(first: Floats | Video, second: Floats) -> Floats:
    """Mean absolute difference over the channels, [...] of [..., 3]."""
    return np.asarray(np.abs(first - second) @ _THIRDS)


def _inner_pixels(video: Video, track: Track) -> Floats:
    """Sample the same places inside an object in all its frames, [K, P, 3]."""
    offsets = (np.arange(_SPOTS) + 0.5) / _SPOTS * 2 - 1
    dx, dy = (a.ravel() for a in np.meshgrid(offsets, offsets))
    inside = dx * dx + dy * dy <= 1.0
    radius = np.maximum(_INNER * track.r - _EDGE, 0.5)[:, None]
    x, y = track.x[:, None] + radius * dx[inside], track.y[:, None] + radius * dy[inside]
    return sampled_at(video[track.frames], x[:, None], y=y[:, None])[:, 0]


def motion_residual(video: Video, tracking: Tracking) -> Floats:
    """Compare every frame with the one before it, moved on as it has moved so far.

    The camera and every object go on with their last velocity, so a jump shows even where the
    tracker has followed it. Pixels that were hidden in the frame before are left out.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video.

    Returns:
        Mean absolute difference in grey levels of frames 1 and on, [F - 1].

    Source:
        spec/evaluation.md 9.6: motion-compensated difference.
    """
    viewers = tracking.camera[1:].copy()
    viewers[1:] = 2 * tracking.camera[1:-1] - tracking.camera[:-2]
    hidden = grow(tracking.covered, _RING)
    before, use = _seen_next(video, hidden, tracking=tracking, viewers=viewers)
    total, count = np.zeros(len(use)), np.zeros(len(use))
    for track in tracking.tracks:
        _add_object(track, video=video, tracking=tracking, use=use, sums=(total, count))
    apart = _apart(video[1:], before)
    total += (apart * use).sum(axis=(1, 2))
    count += use.sum(axis=(1, 2))
    return total / np.maximum(count, 1)


def seam_ratio(residual: Floats, *, chunk_frames: int) -> float:
    """Compare the differences at chunk boundaries with those elsewhere.

    Args:
        residual: what `motion_residual` gave, [F - 1].
        chunk_frames: frames per chunk; the video begins with a whole one.

    Returns:
        1 where seams are invisible; NaN where there is no boundary, or nothing else.

    Raises:
        ConfigError: the chunks are shorter than two frames.
    """
    if chunk_frames < 2:
        raise ConfigError("chunk_frames", expected="at least 2", got=chunk_frames)
    seam = np.arange(1, len(residual) + 1) % chunk_frames == 0
    if not seam.any() or seam.all():
        return math.nan
    return float((residual[seam].mean() + _QUANTUM) / (residual[~seam].mean() + _QUANTUM))


def _seen_next(
    video: Video, hidden: Bools, *, tracking: Tracking, viewers: Floats
) -> tuple[Floats, Bools]:
    """See all frames but the last with other cameras; second, where what is seen was not hidden."""
    layers = np.concatenate([video[:-1].astype(np.float32), hidden[:-1, ..., None]], axis=-1)
    seen, inside = seen_by(layers, tracking.camera[:-1], viewers=viewers)
    return seen[..., :3], inside & (seen[..., 3] == 0)


def _add_object(
    track: Track,
    *,
    video: Video,
    tracking: Tracking,
    use: Bools,
    sums: tuple[Floats, Floats],
) -> None:
    """Add the differences of one object's pixels; takes its edge out of the background's `use`."""
    last = np.flatnonzero(track.frames < len(video) - 1)
    if not len(last):
        return
    now = track.frames[last]  # the frame it is moved on from
    step = _steps(track, tracking)[last]
    rows, cols, inside = _patches(track, step, last=last, size=video.shape[1:3])
    frame = now[:, None, None]
    source_x, source_y = cols + 0.5 - step[:, 0, None, None], rows + 0.5 - step[:, 1, None, None]
    source = sampled_at(video[now], source_x, y=source_y)
    share = paint_share(source, track_colours(track)[last][:, None, None])
    near = (
        np.hypot(source_x - track.x[last][:, None, None], source_y - track.y[last][:, None, None])
        <= (_REACH * track.r[last] + 1)[:, None, None]
    )
    own = (share > 0) & near & inside
    height, width = video.shape[1:3]
    place = (frame, rows.clip(0, height - 1), cols.clip(0, width - 1))
    ring = grow(own, _RING) & inside
    apart = _apart(video[frame + 1, place[1], place[2]], source)
    np.add.at(sums[0], now, (apart * own).sum(axis=(1, 2)))
    np.add.at(sums[1], now, own.sum(axis=(1, 2)))
    touched = tuple(np.broadcast_to(a, ring.shape)[ring] for a in place)
    use[touched] = False


def _steps(track: Track, tracking: Tracking) -> Floats:
    """How far the object went on the screen before each of its frames, [K, 2] pixels."""
    place = np.stack([track.x, track.y], axis=1)
    known = np.flatnonzero(np.diff(track.frames) == 1) + 1
    # where it was not seen before, it rests in the world
    here = tracking.camera[track.frames]
    after = tracking.camera[np.minimum(track.frames + 1, tracking.num_frames - 1)]
    middle = np.array([tracking.width, tracking.height]) / 2
    world = (place - middle) / here[:, 2:] + here[:, :2]
    steps = (world - after[:, :2]) * after[:, 2:] + middle - place
    steps[known] = place[known] - place[known - 1]
    return np.asarray(steps)


def _patches(
    track: Track, step: Floats, *, last: Ints, size: tuple[int, int]
) -> tuple[Ints, Ints, Bools]:
    """Rows [K, P, 1] and columns [K, 1, P] of squares around where the object should be."""
    half = int(np.ceil(_REACH * float(track.r[last].max()))) + _RING + 2
    span = np.arange(-half, half + 1)
    left = np.floor(track.x[last] + step[:, 0]).astype(np.int64)[:, None, None]
    top = np.floor(track.y[last] + step[:, 1]).astype(np.int64)[:, None, None]
    rows, cols = top + span[:, None], left + span[None, :]
    inside = (rows >= 0) & (rows < size[0]) & (cols >= 0) & (cols < size[1])
    return rows, cols, inside
