"""Where objects start: the mover so that its motion fits the canvas, the rest out of its way."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from onereel.world.physics import GRAVITY, Body, rest_speed
from onereel.world.shapes import reach
from onereel.world.spec import DIRECTIONS, SIZES, SPEEDS, ObjectSpec, SceneSpec

FLOOR_SHARE = 0.13  # height of the floor strip in canvas heights


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The canvas in pixels and where its ground is."""

    width: int
    height: int
    floor: bool

    @property
    def ground(self) -> float:
        """Locate what objects rest on: the floor, or the bottom edge.

        Returns:
            y in pixels.
        """
        return self.height * (1.0 - FLOOR_SHARE) if self.floor else float(self.height)


def make_body(thing: ObjectSpec, stage: Stage, *, angle: float) -> Body:
    """Create a body at rest, not yet placed.

    Args:
        thing: its size and shape.
        stage: the canvas it stays in.
        angle: its rotation in radians.

    Returns:
        A body whose box keeps the whole outline on the canvas and above the ground.
    """
    radius = SIZES[thing.size] * stage.height
    left, right, up, down = (radius * d for d in reach(thing.shape, angle))
    return Body(
        x=0.0,
        y=0.0,
        radius=radius,
        low=(left, up),
        high=(stage.width - right, stage.ground - down),
    )


def start_motion(body: Body, spec: SceneSpec, *, stage: Stage, rng: np.random.Generator) -> None:
    """Give the mover the velocity and forces of its motion.

    Args:
        body: changed in place.
        spec: whose motion it is.
        stage: the canvas.
        rng: draws the restitution and the stopping distance.
    """
    body.halt()
    body.restitution, body.rest_speed = 1.0, 0.0
    speed = SPEEDS[spec.speed or "medium"] * stage.width
    along = DIRECTIONS[spec.direction or "right"]
    if spec.motion in ("linear", "occlude", "collide", "slide_stop"):
        body.vx, body.vy = speed * along[0], speed * along[1]
    if spec.motion == "slide_stop":
        room = body.high[0] - body.x if along[0] > 0 else body.x - body.low[0]
        body.ax = -along[0] * speed**2 / (2 * room * rng.uniform(0.6, 0.95))
        body.friction = True
    if spec.motion in ("gravity", "bounce"):
        body.ay = GRAVITY * stage.height
        body.rest_speed = rest_speed(stage.height)
        body.restitution = 0.0
    if spec.motion == "bounce":
        body.restitution = float(rng.choice((0.6, 0.8, 1.0), p=(0.2, 0.45, 0.35)))
        if spec.direction is not None:
            body.vx = SPEEDS["slow"] * stage.width * along[0]


def _from_behind(
    low: float, high: float, *, sign: float, need: float, rng: np.random.Generator
) -> float:
    """Start on the side the body comes from, with at least `need` pixels of way ahead."""
    span = high - low
    slack = min(0.35 * span, max(0.0, span - need))
    back = slack * rng.random() ** 1.5
    return float(low + back if sign > 0 else high - back)


def _coordinate(body: Body, axis: int, *, spec: SceneSpec, rng: np.random.Generator) -> float:
    """Draw one free coordinate of the mover, honouring the relation."""
    low, high = body.low[axis], body.high[axis]
    span = high - low
    first, last = (("left_of", "right_of"), ("above", "below"))[axis]
    if spec.relation == first:
        return low + span * rng.uniform(0.02, 0.28)
    if spec.relation == last:
        return high - span * rng.uniform(0.02, 0.28)
    if spec.motion == "zoom":
        return low + span * rng.uniform(0.38, 0.62)
    return low + span * rng.uniform(0.08, 0.92)


def place_mover(body: Body, spec: SceneSpec, *, stage: Stage, rng: np.random.Generator) -> None:
    """Set the start position of the first object.

    Args:
        body: changed in place.
        spec: the scene.
        stage: the canvas.
        rng: the source of randomness.
    """
    body.x = _coordinate(body, 0, spec=spec, rng=rng)
    body.y = _coordinate(body, 1, spec=spec, rng=rng)
    span = body.high[1] - body.low[1]
    if spec.motion == "gravity":
        body.y = body.low[1] + span * rng.uniform(0.0, 0.15)
    elif spec.motion == "bounce":
        body.y = body.low[1] + span * rng.uniform(0.0, 0.4)
    elif spec.floor:
        body.y = body.high[1]
    along = DIRECTIONS[spec.direction or "right"]
    speed = SPEEDS[spec.speed or "medium"] * stage.width
    if spec.motion == "linear":
        for axis, name in enumerate(("x", "y")):
            if along[axis]:
                need = min(0.9, 0.7 if spec.speed == "fast" else 0.6) * stage.width
                need = max(need, 1.1 * speed * abs(along[axis]))
                low, high = body.low[axis], body.high[axis]
                value = _from_behind(low, high, sign=along[axis], need=need, rng=rng)
                setattr(body, name, value)
    elif spec.motion in ("slide_stop", "occlude", "bounce") and spec.direction:
        value = _from_behind(body.low[0], body.high[0], sign=along[0], need=stage.width, rng=rng)
        body.x = value if spec.motion != "bounce" else value + along[0] * 0.1 * stage.width
    elif spec.motion == "pan" and len(spec.objects) == 1:
        side = 1.0 if spec.camera == "pan_right" else -1.0  # what the camera moves towards
        body.x = stage.width * (0.5 + side * rng.uniform(0.0, 0.32))


def place_target(
    mover: Body, target: Body, *, spec: SceneSpec, stage: Stage, rng: np.random.Generator
) -> None:
    """Place the pair of `collide` so that they meet within the first second.

    Args:
        mover: changed in place.
        target: changed in place; it rests until it is hit.
        spec: the scene.
        stage: the canvas.
        rng: the source of randomness.
    """
    sign = DIRECTIONS[spec.direction or "right"][0]
    speed = SPEEDS[spec.speed or "medium"] * stage.width
    touch = mover.radius + target.radius
    room = stage.width - 2.2 * touch
    gap = min(speed * rng.uniform(0.45, 0.85), max(2.0, room))
    span = touch + gap
    low = mover.low[0] if sign > 0 else target.low[0]
    high = target.high[0] if sign > 0 else mover.high[0]
    start = low + max(0.0, high - low - span) * rng.uniform(0.1, 0.9)
    mover.x, target.x = (start, start + span) if sign > 0 else (start + span, start)
    bottom = min(mover.high[1], target.high[1])
    top = max(mover.low[1], target.low[1])
    mover.y = target.y = top + (bottom - top) * rng.uniform(0.15, 0.85)
    target.y += rng.uniform(-0.3, 0.3) * min(mover.radius, target.radius)
    target.y = min(max(target.y, target.low[1]), target.high[1])


def _candidates(
    body: Body, rng: np.random.Generator, *, on_floor: bool, central: bool
) -> npt.NDArray[np.float64]:
    spots = rng.random((96, 2))
    if central:
        spots = 0.2 + 0.6 * spots
    low, high = np.array(body.low), np.array(body.high)
    spots = low + spots * (high - low)
    if on_floor:
        spots[:, 1] = body.high[1]
    return np.asarray(spots)


def _honours(
    spots: npt.NDArray[np.float64], mover: Body, touch: float, relation: str | None
) -> npt.NDArray[np.bool_]:
    dx, dy = spots[:, 0] - mover.x, spots[:, 1] - mover.y
    if relation is None:
        return np.ones(len(spots), bool)
    along, sign = (dx, 1.0) if relation in ("left_of", "right_of") else (dy, 1.0)
    if relation in ("right_of", "below"):
        sign = -1.0
    return np.asarray(sign * along > 0.8 * touch)


def place_resting(
    body: Body,
    others: list[Body],
    *,
    path: npt.NDArray[np.float64],
    spec: SceneSpec,
    stage: Stage,
    rng: np.random.Generator,
) -> None:
    """Place a resting object beside the mover's path and the objects already there.

    Args:
        body: changed in place.
        others: the mover (where it starts) and the resting objects placed before.
        path: [T, 2] positions of the mover.
        spec: the scene; its relation is kept.
        stage: the canvas.
        rng: the source of randomness.
    """
    mover = others[0]
    on_floor = stage.floor and spec.motion != "linear"
    spots = _candidates(body, rng, on_floor=on_floor, central=spec.motion == "zoom")
    clearance = np.full(len(spots), math.inf)
    for other in others:
        way = path if other is mover else np.array([[other.x, other.y]])
        near = np.linalg.norm(spots[:, None] - way[None], axis=-1).min(axis=1)
        clearance = np.minimum(clearance, near - 1.25 * (body.radius + other.radius))
    kept = _honours(spots, mover, body.radius + mover.radius, spec.relation)
    score = np.minimum(clearance, 0.03 * stage.height) + np.where(kept, 0.0, -1e3)
    best = int(np.argmax(score))  # the first of the good ones, else the least bad
    body.x, body.y = float(spots[best, 0]), float(spots[best, 1])
