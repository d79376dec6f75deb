"""A second recording of a simulated scene: the same set-up, started a hair differently.

The world's simulator is run again from a shifted start. It keeps no record of how elastic a ball
is, so that is found by running the unshifted scene: only the right value gives it back.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.world import GRAVITY, SUBSTEPS, Episode, SceneSpec
from onereel.world.physics import Body, rest_speed, step, step_pair
from onereel.world.placement import Stage, make_body

PLACE_PX = 0.3  # standard deviation of start positions
SPEED_SHARE = 0.02  # of start velocities
MOTIONS = ("linear", "gravity", "bounce", "collide", "slide_stop", "occlude")
_RESTITUTIONS = (0.0, 0.6, 0.8, 1.0)  # 0 is a falling object's
_SAME_PX = 0.05  # rounding of the stored state, grown over seconds

Motion = npt.NDArray[np.float64]


def retake(episode: Episode, spec: SceneSpec, *, take: int, seed: int) -> Episode:
    """Simulate a scene again from a slightly different start.

    Args:
        episode: the scene, one spec throughout.
        spec: of the scene, with a still camera and a motion in `MOTIONS`.
        take: number of the recording; 1 is the scene itself.
        seed: of the scene; with the take it draws the differences: 0.3 px in the position of every
            object, 2 % in the speed of those that move.

    Returns:
        The other recording; its events and shares of visibility are those of the first.

    Raises:
        ConfigError: the scene is of another kind.

    Source:
        spec/evaluation.md 9.5.
    """
    if spec.motion not in MOTIONS or spec.camera != "still":
        got = f"motion {spec.motion}, camera {spec.camera}"
        raise ConfigError("spec", expected=f"a still camera on {', '.join(MOTIONS)}", got=got)
    if take == 1:
        return episode
    bodies = _bodies(episode, spec)
    rng = np.random.default_rng(derive_seed(seed, "take", take))
    for body in bodies:
        dx, dy = rng.normal(0.0, PLACE_PX, 2)
        faster = 1.0 + rng.normal(0.0, SPEED_SHARE)
        on_floor = body.y >= body.high[1] - 1e-3
        body.x = float(np.clip(body.x + dx, body.low[0], body.high[0]))
        if not on_floor:
            body.y = float(np.clip(body.y + dy, body.low[1], body.high[1]))
        body.vx, body.vy = body.vx * faster, body.vy * faster
    state = episode.state.copy()
    state[..., :4] = _run(bodies, episode, pair=spec.motion == "collide")
    return dataclasses.replace(episode, state=state)


def _bodies(episode: Episode, spec: SceneSpec) -> list[Body]:
    """Rebuild the bodies at frame 0 such that they move as they did."""
    stage = Stage(width=episode.width, height=episode.height, floor=spec.floor)
    bodies = []
    for i, thing in enumerate(spec.objects):
        body = make_body(thing, stage, angle=float(episode.state[0, i, 5]))
        body.x, body.y, body.vx, body.vy = (float(v) for v in episode.state[0, i, :4])
        bodies.append(body)
    mover = bodies[0]
    if spec.motion == "slide_stop" and episode.num_frames > 1:
        mover.ax = float(episode.state[1, 0, 2] - episode.state[0, 0, 2]) * episode.fps
        mover.friction = True
    if spec.motion not in ("gravity", "bounce"):
        return bodies
    mover.ay = GRAVITY * episode.height
    mover.rest_speed = rest_speed(episode.height)
    for value in _RESTITUTIONS:
        mover.restitution = value
        again = _run(copy.deepcopy(bodies), episode, pair=False)
        if np.abs(again[..., :2] - episode.state[..., :2]).max() < _SAME_PX:
            return bodies
    raise ConfigError("episode", expected=f"a run of one {spec.motion} scene", got="another path")


def _run(bodies: list[Body], episode: Episode, *, pair: bool) -> Motion:
    """Move the first body (or the colliding pair) through all frames, [T, N, 4]."""
    motion = np.zeros((episode.num_frames, len(bodies), 4))
    dt = 1.0 / (episode.fps * SUBSTEPS)
    for frame in range(episode.num_frames):
        motion[frame] = [(body.x, body.y, body.vx, body.vy) for body in bodies]
        for _ in range(SUBSTEPS):
            if pair:
                step_pair(bodies[0], bodies[1], dt=dt)
            else:
                step(bodies[0], dt)
    return motion
