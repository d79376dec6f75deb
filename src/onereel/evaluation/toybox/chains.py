"""Tracks joined into objects and put into world coordinates: what the scores look at.

A track ends where its object is hidden; the object goes on. A `Chain` is one object through the
whole clip: the tracks of one colour that never overlap in time. Arrays have one row per frame,
NaN where the object is not seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from onereel.evaluation.toybox.tracks import Bools, Floats, Ints, Track, Tracking
from onereel.world import SHAPES

MIN_FRAMES = 3  # shorter tracks are flicker, not objects
_EDGE_SHARE = 0.6  # of the radius; no shape in full sight has its centroid so near the frame's edge
_CONTACT_SHARE = 1.5 / 64  # of the canvas: 1.5 px at 64 px, and in scale on larger ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """One object through a clip; F frames.

    Args:
        colour: palette name.
        shape: of most frames, None when it was never seen whole.
        seen: whether it is detected, [F].
        cut: whether part of it is out of sight, [F].
        leaving: whether most of it is beyond the frame's edge, [F].
        screen: centroid on the screen in pixels, [F, 2].
        world: centroid in world coordinates in pixels, [F, 2].
        r: radius in world pixels, [F].
        track: number of the track it comes from, -1 where not seen, [F].
    """

    colour: str
    shape: str | None
    seen: Bools
    cut: Bools
    leaving: Bools
    screen: Floats
    world: Floats
    r: Floats
    track: Ints

    @property
    def num_seen(self) -> int:
        """Count the frames in which it is seen.

        Returns:
            0 to F.
        """
        return int(self.seen.sum())

    @property
    def radius(self) -> float:
        """Take the median radius of the frames in which all of it is in sight.

        Returns:
            World pixels; of all frames when every one is cut, NaN when there is none.
        """
        whole = self.seen & ~self.cut
        values = self.r[whole if whole.any() else self.seen]
        return float(np.median(values)) if len(values) else float("nan")

    def whole(self, share: float = 0.92) -> Bools:
        """Tell where it is seen uncut and unhidden.

        Args:
            share: of the median radius that a frame's radius must reach.

        Returns:
            Booleans, [F].
        """
        with np.errstate(invalid="ignore"):
            return np.asarray(self.seen & ~self.cut & (self.r >= share * self.radius))


def cut_out(tracking: Tracking, start: int, *, stop: int) -> Tracking:
    """Keep the frames from `start` to before `stop`.

    Args:
        tracking: of the whole video.
        start: first frame kept; it becomes frame 0.
        stop: one past the last frame kept.

    Returns:
        The shorter tracking. The camera keeps its values, so that world coordinates stay the same.
    """
    tracks = []
    for track in tracking.tracks:
        kept = (track.frames >= start) & (track.frames < stop)
        if kept.any():
            rows = {name: getattr(track, name)[kept] for name in ("x", "y", "r", "cut", "rgb")}
            tracks.append(replace(track, frames=track.frames[kept] - start, **rows))
    return replace(
        tracking,
        tracks=tuple(sorted(tracks, key=lambda track: -len(track.frames))),
        camera=tracking.camera[start:stop],
        covered=tracking.covered[start:stop],
    )


def contact_px(tracking: Tracking) -> float:
    """Give the distance that still counts as touching.

    Args:
        tracking: whose canvas it is.

    Returns:
        1.5 px on a canvas of 64 px, more on a larger one: objects move further between frames.

    Source:
        spec/evaluation.md 9.3, there for 64 px.
    """
    return _CONTACT_SHARE * max(tracking.height, tracking.width)


def build_chains(tracking: Tracking) -> tuple[Chain, ...]:
    """Join the tracks of one colour that do not overlap in time, the nearest ends first.

    Args:
        tracking: of a video.

    Returns:
        The objects, longest seen first. Tracks of fewer than 3 frames are left out.
    """
    groups: list[list[int]] = []
    tracks = tracking.tracks
    order = sorted(range(len(tracks)), key=lambda i: -len(tracks[i].frames))
    for i in order:
        if len(tracks[i].frames) < min(MIN_FRAMES, tracking.num_frames):
            continue
        free = [g for g in groups if all(_can_follow(tracks[i], tracks[j]) for j in g)]
        if free:
            min(free, key=lambda g: min(_distance(tracks[i], tracks[j]) for j in g)).append(i)
        else:
            groups.append([i])
    chains = [_join(tracking, group) for group in groups]
    return tuple(sorted(chains, key=lambda chain: -chain.num_seen))


def _can_follow(one: Track, other: Track) -> bool:
    if one.colour != other.colour:
        return False
    return len(np.intersect1d(one.frames, other.frames, assume_unique=True)) == 0


def _distance(one: Track, other: Track) -> float:
    """Distance between the ends that meet in time."""
    first, second = (one, other) if one.frames[0] < other.frames[0] else (other, one)
    return float(np.hypot(first.x[-1] - second.x[0], first.y[-1] - second.y[0]))


def _join(tracking: Tracking, group: list[int]) -> Chain:
    num = tracking.num_frames
    screen, r = np.full((num, 2), np.nan), np.full(num, np.nan)
    cut, number = np.zeros(num, dtype=bool), np.full(num, -1)
    votes: dict[str, int] = {}
    for i in group:
        track = tracking.tracks[i]
        screen[track.frames, 0], screen[track.frames, 1] = track.x, track.y
        r[track.frames], cut[track.frames], number[track.frames] = track.r, track.cut, i
        if track.shape is not None:
            votes[track.shape] = votes.get(track.shape, 0) + len(track.frames)
    zoom = tracking.camera[:, 2]
    chain = Chain(
        colour=tracking.tracks[group[0]].colour,
        shape=max(SHAPES, key=lambda s: votes.get(s, 0)) if votes else None,
        seen=number >= 0,
        cut=cut,
        leaving=np.zeros(num, dtype=bool),
        screen=screen,
        world=_to_world(screen, tracking),
        r=r / zoom,
        track=number,
    )
    far = np.array([tracking.width, tracking.height]) - screen
    with np.errstate(invalid="ignore"):
        near = np.minimum(screen, far).min(axis=1) <= _EDGE_SHARE * chain.radius * zoom
    return replace(chain, leaving=near)


def _to_world(screen: Floats, tracking: Tracking) -> Floats:
    half = np.array([tracking.width / 2, tracking.height / 2])
    camera = tracking.camera
    return np.asarray((screen - half) / camera[:, 2:] + half + camera[:, :2])


def in_existence(chain: Chain, *, moving_camera: bool, hidden: int = 0) -> Bools:
    """Tell where an object exists although it need not be in sight.

    Args:
        chain: the object.
        moving_camera: objects that left through the frame's edge are still there.
        hidden: longest time out of sight in mid-picture that is lawful, in frames.

    Returns:
        Booleans, [F]: seen, or lawfully out of sight.
    """
    there = chain.seen.copy()
    frames = np.flatnonzero(chain.seen)
    if not len(frames):
        return there
    if moving_camera and chain.leaving[frames[:2]].any():
        there[: frames[0]] = True
    if moving_camera and chain.leaving[frames[-2:]].any():
        there[frames[-1] :] = True
    elif hidden:
        there[frames[-1] : frames[-1] + hidden + 1] = True
    for before, after in zip(frames[:-1], frames[1:], strict=True):
        at_edge = moving_camera and bool(chain.leaving[max(before - 1, 0) : before + 1].any())
        if at_edge or after - before <= hidden + 1:
            there[before:after] = True
    return there


def assign(cost: Floats) -> tuple[int | None, ...]:
    """Give every row a column of its own at the smallest total cost.

    Args:
        cost: for a handful of rows, [rows, columns]; infinite where a pair is out of the question.

    Returns:
        One column per row, None for rows that get none; as many rows as possible get one.
    """
    rows = len(cost)
    # a row never needs more than its `rows` cheapest columns: the others can take only the rest
    choices: list[list[int | None]] = []
    for row in cost:
        cheapest = [int(k) for k in np.argsort(row)[:rows] if np.isfinite(row[k])]
        choices.append([*cheapest, None])
    best: tuple[int | None, ...] = (None,) * rows
    best_rank = (rows + 1, 0.0)
    for pick in itertools.product(*choices):
        used = [k for k in pick if k is not None]
        if len(set(used)) == len(used):
            total = sum(float(cost[i, k]) for i, k in enumerate(pick) if k is not None)
            if (rows - len(used), total) < best_rank:
                best, best_rank = pick, (rows - len(used), total)
    return best
