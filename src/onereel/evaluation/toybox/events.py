"""Did what the prompt tells of happen? One test per motion, on the objects' paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onereel.evaluation.toybox.chains import Chain, contact_px
from onereel.evaluation.toybox.paths import (
    bottom,
    find_contact,
    first_leg,
    flights,
    on_ground,
    turn_px,
    turns_up,
    wall_distance,
)
from onereel.evaluation.toybox.tracks import Bools, Floats, Tracking
from onereel.world import DIRECTIONS, GRAVITY, PAN_SPEED, SPEEDS, ZOOM_RATE, SceneSpec
from onereel.world.placement import FLOOR_SHARE

# motion -> seconds within which the simulator has surely done it; a shorter clip is not judged.
# slide_stop may take longer: it is judged by where it is going to stop.
EVENT_SECONDS = {
    "bounce": 1.5,
    "collide": 1.2,
    "gravity": 0.8,
    "occlude": 1.9,
    "slide_stop": 1.0,
    "appear": 1.0,
    "vanish": 1.0,
    "pan": 0.25,
    "zoom": 0.25,
    "static": 0.25,
}
STILL_PX = 0.1  # px per frame
_ZOOM_END = 0.95 * math.log(2.0)  # the simulator stops at twice or half the size
_STEADY = 3  # frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What an event is looked for in.

    Args:
        spec: the scene asked for.
        cast: the object found for each object asked for, None when there is none.
        camera: (cx, cy, zoom) per frame, [F, 3].
        slack: distance that still counts as touching, px.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.
    """

    spec: SceneSpec
    cast: tuple[Chain | None, ...]
    camera: Floats
    slack: float
    height: int
    width: int
    fps: int

    @property
    def ground(self) -> float:
        """Locate what things fall onto: the floor, or the canvas' bottom edge.

        Returns:
            World y in pixels.
        """
        return self.height * (1.0 - FLOOR_SHARE if self.spec.floor else 1.0)

    @property
    def gravity(self) -> float:
        """Give the world's gravity.

        Returns:
            Pixels per frame squared.
        """
        return GRAVITY * self.height / self.fps**2

    def touching(self, chain: Chain) -> Bools:
        """Tell where an object touches the ground.

        Args:
            chain: the object.

        Returns:
            Booleans, [F].
        """
        tilted = not self.spec.floor
        return on_ground(chain, ground=self.ground, tilted=tilted, slack=self.slack)


def stage_of(tracking: Tracking, spec: SceneSpec, *, cast: tuple[Chain | None, ...]) -> Stage:
    """Gather what events are looked for in.

    Args:
        tracking: of the video.
        spec: the scene asked for.
        cast: the object found for each object asked for.

    Returns:
        The stage.
    """
    return Stage(
        spec=spec,
        cast=cast,
        camera=tracking.camera,
        slack=contact_px(tracking),
        height=tracking.height,
        width=tracking.width,
        fps=tracking.fps,
    )


def happened(stage: Stage, *, late: int = 0) -> float:
    """Judge the event of the scene's motion.

    Args:
        stage: the scene, the objects found and the camera.
        late: frames at the start in which an earlier motion may still come to rest.

    Returns:
        1 or 0; NaN when the motion has no event or the clip is too short for it.

    Source:
        spec/evaluation.md 9.3, `event_acc`; slide_stop, appear and vanish after what the simulator
        does.
    """
    motion = stage.spec.motion
    if motion not in EVENT_SECONDS:
        return float("nan")
    if len(stage.camera) - late < EVENT_SECONDS[motion] * stage.fps:
        return float("nan")
    if stage.cast[0] is None and motion not in ("pan", "zoom"):
        return 0.0
    if motion == "static":
        return float(_rested(stage, late))
    return float(_TESTS[motion](stage))


def _mover(stage: Stage) -> Chain:
    chain = stage.cast[0]
    if chain is None:
        raise AssertionError("asked only when the mover was found")
    return chain


def _bounced(stage: Stage) -> bool:
    mover = _mover(stage)
    turns = turns_up(mover.world[:, 1], turn_px(mover.radius))
    lowest = bottom(mover, stage.spec.objects[0].shape)
    around = (turns[:, None] + np.arange(-2, 3)).clip(0, len(lowest) - 1)
    return bool(np.any(np.abs(lowest[around] - stage.ground) <= stage.slack))


def _collided(stage: Stage) -> bool:
    target = stage.cast[1]
    if target is None:
        return False
    contact = find_contact(_mover(stage), target, slack=stage.slack)
    slowest = 0.5 * SPEEDS["slow"] * stage.width / stage.fps
    if contact is None or contact.approach < slowest:
        return False
    enough = contact.change >= 0.3 * contact.approach
    # a target beside the canvas' edge hands the push on to it within a frame or two
    leans = wall_distance(target, width=stage.width)[contact.frame] <= 2 * stage.slack
    return bool(enough[0] and (enough[1] or leans))


def _fell(stage: Stage) -> bool:
    mover = _mover(stage)
    for flight in flights(mover.world, stage.touching(mover), radius=mover.radius):
        drop = np.nanmax(mover.world[flight.frames, 1]) - np.nanmin(mover.world[flight.frames, 1])
        falls = flight.end_speed > abs(flight.start_speed)
        # a rebound from above bends a path downwards too, but not into a parabola
        smooth = flight.residual <= 0.3 + 0.03 * drop
        strong = flight.acceleration >= 0.5 * stage.gravity
        if falls and smooth and strong and drop >= mover.radius:
            return True
    return False


def _hidden(stage: Stage) -> bool:
    """Gone in mid-picture, and seen again further on in the direction of the motion."""
    mover = _mover(stage)
    frames = np.flatnonzero(mover.seen)
    along = DIRECTIONS[stage.spec.direction or "right"][0]
    for i in np.flatnonzero(np.diff(frames) > _STEADY):
        before, after = frames[i], frames[i + 1]
        way = along * (mover.world[after, 0] - mover.world[before, 0])
        back = mover.seen[after : after + 2 * _STEADY].sum() >= _STEADY
        if way >= 0.12 * stage.width and not mover.leaving[before] and back:
            return mover.shape == stage.spec.objects[0].shape
    return False


def _slid_and_stopped(stage: Stage) -> bool:
    """Slows down, and rests at the end or is about to, before the canvas' edge."""
    mover = _mover(stage)
    frames = first_leg(mover.world, radius=mover.radius)
    if len(frames) < stage.fps // 2:
        return False
    x = mover.world[frames, 0] * DIRECTIONS[stage.spec.direction or "right"][0]
    part = max(len(x) // 4, 4)
    fast, slow = _rate(x[:part]), _rate(x[-part:])
    if fast <= STILL_PX or x[-1] - x[0] < mover.radius or not _slows(x):
        return False
    if slow <= max(0.1 * fast, STILL_PX):
        return True
    moving = x - x[0] < 0.98 * (x[-1] - x[0])
    time = frames[moving].astype(np.float64) - frames[0]
    curve, speed, _ = np.polyfit(time, x[moving], 2)
    if curve >= 0 or speed <= 0:
        return False
    room = stage.width - x[0] if x[0] > 0 else -x[0]
    return bool(-speed * speed / (4 * curve) <= room)


def _slows(x: Floats) -> bool:
    """Tell whether the second half of the way takes longer; what runs into something does not."""
    way = (x - x[0]) / (x[-1] - x[0])
    middle, end = np.argmax(way >= 0.5), np.argmax(way >= 0.98)
    return bool(end - middle > 1.05 * middle)


def _rate(values: Floats) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def vanish_frame(chain: Chain) -> int | None:
    """Find when an object goes out of sight for good in mid-picture.

    Args:
        chain: the object.

    Returns:
        The first frame without it; None when it stays to the end or leaves through the edge.
    """
    frames = np.flatnonzero(chain.seen)
    last = int(frames[-1]) if len(frames) else 0
    gone = len(frames) > 0 and last < len(chain.seen) - _STEADY and not chain.leaving[last]
    return last + 1 if gone else None


def appear_frame(chain: Chain) -> int | None:
    """Find when an object comes into sight in mid-picture.

    Args:
        chain: the object.

    Returns:
        Its first frame; None when it is there from the start or came in through the edge.
    """
    frames = np.flatnonzero(chain.seen)
    first = int(frames[0]) if len(frames) else 0
    return first if first >= _STEADY and not chain.leaving[first] else None


def _appeared(stage: Stage) -> bool:
    mover = _mover(stage)
    first = appear_frame(mover)
    return first is not None and bool(mover.seen[first:].mean() >= 0.8)


def _vanished(stage: Stage) -> bool:
    mover = _mover(stage)
    gone = vanish_frame(mover)
    return gone is not None and bool(mover.seen[:gone].mean() >= 0.8)


def _panned(stage: Stage) -> bool:
    sign = 1.0 if stage.spec.camera == "pan_right" else -1.0
    asked = PAN_SPEED * stage.width / stage.fps
    return bool(sign * np.median(np.diff(stage.camera[:, 0])) >= 0.5 * asked)


def _zoomed(stage: Stage) -> bool:
    sign = 1.0 if stage.spec.camera == "zoom_in" else -1.0
    level = sign * np.log(stage.camera[:, 2])
    under_way = level[:-1] < _ZOOM_END
    if under_way.sum() < 2 * _STEADY:  # it has arrived where the simulator's zoom ends
        return bool(level[-1] > 0)
    return bool(np.median(np.diff(level)[under_way]) >= 0.5 * ZOOM_RATE / stage.fps)


def rests(chain: Chain, start: int = 0) -> bool:
    """Tell whether an object stays where it is.

    Args:
        chain: the object.
        start: first frame that is looked at.

    Returns:
        True when it drifts by less than 0.1 px per frame and never strays by three
        quarters of its radius.
    """
    path = chain.world[start:][chain.seen[start:]]
    if len(path) < _STEADY:
        return False
    drift = np.hypot(*(path[-_STEADY:].mean(axis=0) - path[:_STEADY].mean(axis=0)))
    stray = np.hypot(*(path - np.median(path, axis=0)).T).max()
    return bool(drift < STILL_PX * len(path) and stray < 0.75 * chain.radius)


def _rested(stage: Stage, late: int) -> bool:
    pace = np.abs(np.median(np.diff(stage.camera, axis=0), axis=0))
    pace[2] *= stage.width / 2  # at the frame's edge
    if pace.max() >= STILL_PX:
        return False
    return all(
        chain is not None
        and chain.seen[late:].mean() >= 0.8
        and (late > 0 or appear_frame(chain) is None)
        and rests(chain, late)
        for chain in stage.cast
    )


_TESTS: dict[str, Callable[[Stage], bool]] = {
    "bounce": _bounced,
    "collide": _collided,
    "gravity": _fell,
    "occlude": _hidden,
    "slide_stop": _slid_and_stopped,
    "appear": _appeared,
    "vanish": _vanished,
    "pan": _panned,
    "zoom": _zoomed,
}
