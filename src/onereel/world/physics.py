"""Dynamics of one or two bodies: exact events inside eighth-of-a-frame steps."""

from __future__ import annotations

import dataclasses
import math

SUBSTEPS = 8
GRAVITY = 0.9  # canvas heights per second squared
_REST_SPEED = 0.05  # canvas heights per second; a slower rebound counts as rest


@dataclasses.dataclass(kw_only=True, slots=True)
class Body:
    """A moving body and the box its centre stays in (pixels, seconds, y down)."""

    x: float
    y: float
    radius: float
    low: tuple[float, float]
    high: tuple[float, float]
    vx: float = 0.0
    vy: float = 0.0
    ax: float = 0.0
    ay: float = 0.0
    restitution: float = 1.0
    rest_speed: float = 0.0
    friction: bool = False

    def halt(self) -> None:
        """Stop and forget all forces."""
        self.vx = self.vy = self.ax = self.ay = 0.0
        self.friction = False


def _flight(p: float, v: float, a: float, dt: float) -> tuple[float, float]:
    """One step under constant acceleration.

    Semi-implicit Euler with the velocity staggered by half a step, which is exact for constant
    acceleration: without the half step an elastic ball would lose height at every bounce.
    """
    return p + (v + 0.5 * a * dt) * dt, v + a * dt


def _rebound(
    p: float, v: float, a: float, *, dt: float, wall: float, restitution: float, rest: float
) -> tuple[float, float, bool]:
    """Finish a step that crosses a wall; returns position, velocity, whether it came to rest."""
    sign = 1.0 if wall >= p else -1.0
    impact = sign * math.sqrt(max(0.0, v * v + 2 * a * (wall - p)))
    if impact == 0.0:
        return wall, 0.0, True
    used = 2 * (wall - p) / (v + impact) if v + impact else 0.0
    left = min(dt, max(0.0, dt - used))
    v = -restitution * impact
    if abs(v) <= rest:
        return wall, 0.0, True
    p, v = _flight(wall, v, a, left)
    return (min(p, wall) if sign > 0 else max(p, wall)), v, False


def _stays(place: float, speed: float, low: float, *, high: float) -> bool:
    """Tell whether a body meets no wall: it is inside, or outside and on its way in."""
    if place < low:
        return speed > 0
    return place <= high or speed < 0


def _step_x(body: Body, dt: float) -> str | None:
    if body.vx == 0.0:
        return None
    if body.friction and abs(body.vx) <= abs(body.ax) * dt:
        body.x -= 0.5 * body.vx * body.vx / body.ax
        body.halt()
        return "stop"
    x, vx = _flight(body.x, body.vx, body.ax, dt)
    if _stays(x, vx, body.low[0], high=body.high[0]):
        body.x, body.vx = x, vx
        return None
    wall = body.high[0] if body.vx > 0 else body.low[0]
    body.x, body.vx, _ = _rebound(
        body.x, body.vx, body.ax, dt=dt, wall=wall, restitution=1.0, rest=0.0
    )
    return "wall"


def _step_y(body: Body, dt: float) -> str | None:
    if body.vy == 0.0 and body.ay == 0.0:
        return None
    y, vy = _flight(body.y, body.vy, body.ay, dt)
    if _stays(y, vy, body.low[1], high=body.high[1]):
        body.y, body.vy = y, vy
        return None
    down = y > body.high[1]
    body.y, body.vy, rested = _rebound(
        body.y,
        body.vy,
        body.ay,
        dt=dt,
        wall=body.high[1] if down else body.low[1],
        restitution=body.restitution if down else 1.0,
        rest=body.rest_speed if down else 0.0,
    )
    if rested:
        body.halt()
        return "land"
    return "bounce" if down and body.ay else "wall"


def step(body: Body, dt: float) -> str | None:
    """Move one body.

    Args:
        body: changed in place.
        dt: in seconds.

    Returns:
        What happened: None, `wall`, `bounce`, `land` or `stop`.
    """
    along = _step_x(body, dt)
    return _step_y(body, dt) or along


def step_pair(first: Body, second: Body, *, dt: float) -> list[tuple[str, int]]:
    """Move two bodies of equal mass that collide elastically.

    Args:
        first: changed in place.
        second: changed in place.
        dt: in seconds.

    Returns:
        What happened, each with the index of the body; `collide` has index 0.
    """
    before = (second.x - first.x, second.y - first.y)
    rel = (second.vx - first.vx, second.vy - first.vy)
    events = [(e, i) for i, e in enumerate((step(first, dt), step(second, dt))) if e]
    gap = first.radius + second.radius
    if events or math.hypot(second.x - first.x, second.y - first.y) >= gap:
        # a wall was touched in this very step: the pair is looked at again in the next one
        return events
    a = rel[0] ** 2 + rel[1] ** 2
    b = before[0] * rel[0] + before[1] * rel[1]
    c = before[0] ** 2 + before[1] ** 2 - gap * gap
    if b >= 0 or a == 0.0:
        return events
    touch = min(dt, max(0.0, (-b - math.sqrt(max(0.0, b * b - a * c))) / a)) if c > 0 else 0.0
    for body in (first, second):
        body.x -= body.vx * (dt - touch)
        body.y -= body.vy * (dt - touch)
    _exchange(first, second)
    after = (step(first, dt - touch), step(second, dt - touch))
    return [("collide", 0), *((e, i) for i, e in enumerate(after) if e)]


def _exchange(first: Body, second: Body) -> None:
    """Swap the velocities' components along the line of centres (equal masses, elastic)."""
    nx, ny = second.x - first.x, second.y - first.y
    length = math.hypot(nx, ny) or 1.0
    nx, ny = nx / length, ny / length
    along = (second.vx - first.vx) * nx + (second.vy - first.vy) * ny
    first.vx += along * nx
    first.vy += along * ny
    second.vx -= along * nx
    second.vy -= along * ny


def rest_speed(height: int) -> float:
    """Give the rebound speed below which a bouncing body rests.

    Args:
        height: of the canvas in pixels.

    Returns:
        Pixels per second.
    """
    return _REST_SPEED * height
