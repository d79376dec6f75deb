"""What a path of positions says: legs, slopes, flights, contacts. A path is [F, 2], NaN unseen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onereel.evaluation.toybox.chains import Chain
from onereel.evaluation.toybox.tracks import Bools, Floats, Ints
from onereel.world import reach

_LEG_GAP = 6  # frames
_BRIDGE = 3  # frames
_TILT_SHARE = 0.3  # of the radius: how far an object's unknown tilt moves its lowest point
MIN_FLIGHT = 8  # frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """Two objects that meet.

    Args:
        frame: of the smallest distance.
        normal: unit vector from the first to the second object.
        before: velocities in px per frame just before, [2, 2].
        after: the same just after, [2, 2].
        change: largest change of each object's speed along the normal soon after, [2].
        approach: speed at which they came together, px per frame.
    """

    frame: int
    normal: Floats
    before: Floats
    after: Floats
    change: Floats
    approach: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """A part of a path without contact, and the parabola fitted to it.

    Args:
        frames: its frames, [K]; short times out of sight are filled.
        acceleration: downward, px per frame squared.
        start_speed: downward speed at its start, px per frame.
        end_speed: downward speed at its end, px per frame.
        residual: RMS of the fit in px.
    """

    frames: Ints
    acceleration: float
    start_speed: float
    end_speed: float
    residual: float


def slope(path: Floats, frames: Ints) -> Floats:
    """Fit a line through some frames of a path.

    Args:
        path: positions, [F, 2].
        frames: the frames to use, [K]; unseen ones are left out.

    Returns:
        Velocity in px per frame, [2]; NaN when fewer than two are seen.
    """
    frames = frames[(frames >= 0) & (frames < len(path))]
    frames = frames[~np.isnan(path[frames, 0])]
    if len(frames) < 2:
        return np.full(2, np.nan)
    time = frames - frames.mean()
    return np.asarray(time @ path[frames] / (time @ time))


def steady(values: Floats, width: int) -> Floats:
    """Take running medians, so that a tremble does not count as a turn.

    Args:
        values: any numbers, [K].
        width: odd number of values.

    Returns:
        Medians, [K]; the ends are repeated.
    """
    if not len(values):
        return values
    padded = np.pad(values, width // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def bridge(path: Floats) -> Floats:
    """Fill short times out of sight with straight lines.

    Args:
        path: positions, [F, 2].

    Returns:
        The path; gaps of more than 3 frames stay NaN.
    """
    filled = path.copy()
    frames = np.flatnonzero(~np.isnan(path[:, 0]))
    for before, after in zip(frames[:-1], frames[1:], strict=True):
        if 1 < after - before <= _BRIDGE + 1:
            share = np.linspace(0.0, 1.0, after - before + 1)[:, None]
            filled[before : after + 1] = path[before] + share * (path[after] - path[before])
    return filled


def turn_px(radius: float) -> float:
    """Give the way back that counts as a turn and not as a tremble.

    Args:
        radius: of the object in px.

    Returns:
        A quarter of the radius, at least 1.5 px.
    """
    return max(1.5, 0.25 * radius)


def first_leg(path: Floats, *, radius: float, stop: int | None = None, gap: int = _LEG_GAP) -> Ints:
    """Find the frames before anything turns the object round or hides it.

    Args:
        path: positions, [F, 2].
        radius: of the object in px.
        stop: frame of a known event, such as a collision.
        gap: longest time out of sight in frames; a longer one ends the leg.

    Returns:
        Ascending frame numbers; the leg ends at the turning point of either coordinate, before too
        long a time out of sight, or before `stop`.
    """
    frames = np.flatnonzero(~np.isnan(path[:, 0]))
    frames = frames[frames < (len(path) if stop is None else stop)]
    gaps = np.flatnonzero(np.diff(frames) > gap)
    if len(gaps):
        frames = frames[: gaps[0] + 1]
    end, slack = len(frames), turn_px(radius)
    for axis in (0, 1):
        for sign in (1.0, -1.0):
            values = sign * steady(path[frames, axis], 5)
            top = np.maximum.accumulate(values) if len(values) else values
            turned = np.flatnonzero((top - values > slack) & (top - values[:1] > slack))
            if len(turned):
                # the last steps before the turning point go partly back already
                end = min(end, max(int(np.argmax(values[: turned[0] + 1])) - 1, 1))
    return np.asarray(frames[:end])


def bottom(chain: Chain, shape: str | None = None) -> Floats:
    """Locate an object's lowest point.

    Args:
        chain: the object.
        shape: its shape where the chain does not know it.

    Returns:
        World y in pixels, [F]; of an upright object.
    """
    down = reach(chain.shape or shape or "disc", 0.0)[3]
    return np.asarray(chain.world[:, 1] + down * chain.radius)


def on_ground(chain: Chain, *, ground: float, tilted: bool, slack: float) -> Bools:
    """Tell where an object touches the ground.

    Args:
        chain: the object.
        ground: world y in pixels.
        tilted: objects may be tilted, so that the lowest point is less certain.
        slack: distance that still counts as touching, px.

    Returns:
        Booleans, [F].
    """
    slack += _TILT_SHARE * chain.radius if tilted else 0.0
    with np.errstate(invalid="ignore"):
        return np.asarray(bottom(chain) >= ground - slack)


def wall_distance(chain: Chain, *, width: int, ground: float | None = None) -> Floats:
    """Measure how far an object's rim is from the canvas' edges.

    Args:
        chain: the object, upright.
        width: of the canvas in pixels.
        ground: y of the ground in pixels; None looks at the left and right edge only.

    Returns:
        Pixels to the nearest edge, [F].
    """
    left, right, up, down = (chain.radius * d for d in reach(chain.shape or "disc", 0.0))
    x, y = chain.world.T
    near = np.minimum(x - left, width - x - right)
    if ground is not None:
        near = np.minimum(near, np.minimum(y - up, ground - y - down))
    return np.asarray(near)


def turns_up(height: Floats, rise: float) -> Ints:
    """Find the frames where a coordinate y (down) turns from falling to rising.

    Args:
        height: y in px, [F].
        rise: how far it must have come down before and go up after, px.

    Returns:
        Frame numbers, one per turn.
    """
    found: list[int] = []
    frames = np.flatnonzero(~np.isnan(height))
    height = height.copy()
    height[frames] = steady(height[frames], 3)
    low = high = None  # the highest place since the last turn, the lowest since then
    for frame in frames:
        y = height[frame]
        if low is None or (high is None and y < height[low]):
            low = frame
        if high is None and y - height[low] >= rise:
            high = frame
        if high is not None and y > height[high]:
            high = frame
        if high is not None and height[high] - y >= rise:
            found.append(int(high))
            low, high = frame, None
    return np.array(found, dtype=int)


def flights(path: Floats, touching: Bools, *, radius: float) -> list[Flight]:
    """Fit parabolas to the parts of a path in which nothing is touched.

    Args:
        path: positions, [F, 2].
        touching: frames of contact with the ground, [F].
        radius: of the object in px.

    Returns:
        One per part of at least 8 frames; places where the path turns upwards end a part too.
    """
    path, stops = bridge(path), touching.copy()
    stops[turns_up(path[:, 1], turn_px(radius))] = True
    free = ~np.isnan(path[:, 0]) & ~stops
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(int), [0]])))
    found = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        # a contact between two frames bends the path in the frames beside it
        begin = begin + 1 if begin else begin
        end = end - 1 if end < len(path) else end
        if end - begin < MIN_FLIGHT:
            continue
        frames = np.arange(begin, end)
        time, values = frames - frames.mean(), path[frames, 1]
        curve, speed, place = np.polyfit(time, values, 2)
        miss = values - np.polyval([curve, speed, place], time)
        found.append(
            Flight(
                frames=frames,
                acceleration=float(2 * curve),
                start_speed=float(speed + 2 * curve * time[0]),
                end_speed=float(speed + 2 * curve * time[-1]),
                residual=float(np.sqrt(np.mean(miss**2))),
            )
        )
    return found


def find_contact(first: Chain, second: Chain, *, slack: float) -> Contact | None:
    """Find where two objects first come together.

    Args:
        first: an object.
        second: the other.
        slack: distance between their rims that still counts as touching, px.

    Returns:
        The contact, or None when they never approach each other to that distance.
    """
    offset = second.world - first.world
    with np.errstate(invalid="ignore"):
        distance = np.hypot(offset[:, 0], offset[:, 1])
        near = distance <= first.radius + second.radius + slack
    for begin in np.flatnonzero(near):
        run = int(begin)
        while run + 1 < len(near) and near[run + 1] and distance[run + 1] < distance[run]:
            run += 1
        normal = offset[run] / max(distance[run], 1e-6)
        paths = (first.world, second.world)
        before = np.stack([slope(p, np.arange(run - 6, run)) for p in paths])
        after = np.stack([slope(p, np.arange(run + 1, run + 5)) for p in paths])
        approach = float((before[0] - before[1]) @ normal)
        if not approach > 0:
            continue
        later = [[slope(p, np.arange(t, t + 3)) for t in range(run + 1, run + 5)] for p in paths]
        along = np.abs((np.array(later) - before[:, None]) @ normal)
        change = np.array([np.nanmax(a) if not np.isnan(a).all() else np.nan for a in along])
        return Contact(
            frame=run, normal=normal, before=before, after=after, change=change, approach=approach
        )
    return None
