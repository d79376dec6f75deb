"""From a scene spec, or one per chunk, to an episode. Start with `simulate`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.world.episode import Array, Episode, Event
from onereel.world.physics import SUBSTEPS, Body, step, step_pair
from onereel.world.placement import (
    Stage,
    make_body,
    place_mover,
    place_resting,
    place_target,
    start_motion,
)
from onereel.world.spec import COLOURS, PALETTE, SHAPES, SceneSpec

CHUNK_FRAMES = 24
PAN_SPEED = 0.25  # canvas widths per second
ZOOM_RATE = 0.12  # e-folds per second
_ZOOM_RANGE = (0.5, 2.0)
_FADE_FRAMES = 6
_TURN_DELAY = 4  # frames from a chunk's start to its change of colour or cast
_PATH_FRAMES = 120
_TILT = 0.2  # largest tilt of objects in the air, radians


def simulate(
    spec: SceneSpec,
    seed: int,
    *,
    num_frames: int,
    height: int = 64,
    width: int = 64,
    fps: int = 24,
) -> Episode:
    """Simulate one scene.

    Args:
        spec: the scene.
        seed: draws what the spec leaves open: positions, restitution, tilt.
        num_frames: at least 1; a longer episode starts exactly like a shorter one.
        height: of the canvas in pixels, at least 32.
        width: of the canvas in pixels, at least 32.
        fps: frames per second.

    Returns:
        The episode. Movers rebound from the canvas' edges, so long videos stay populated: an
        object that "moves to the right" comes back after its first pass.

    Raises:
        ConfigError: a size is too small.
    """
    count = math.ceil(num_frames / CHUNK_FRAMES)
    return simulate_chunks(
        (spec,) * count, seed, num_frames=num_frames, height=height, width=width, fps=fps
    )


def simulate_chunks(
    specs: Sequence[SceneSpec],
    seed: int,
    *,
    num_frames: int,
    height: int = 64,
    width: int = 64,
    fps: int = 24,
) -> Episode:
    """Simulate a scene whose spec may change at chunk boundaries.

    Args:
        specs: one per chunk of 24 frames; objects keep their order, and may be added at the end.
        seed: see `simulate`.
        num_frames: at most 24 per spec.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.

    Returns:
        The episode; positions are continuous across changes.

    Raises:
        ConfigError: sizes or counts do not fit.
    """
    _check_sizes(len(specs), num_frames=num_frames, height=height, width=width)
    first, cast = specs[0], max((s.objects for s in specs), key=len)
    rng = np.random.default_rng((seed, 0))
    stage = Stage(width=width, height=height, floor=first.floor)
    angles = [0.0 if first.floor else float(rng.uniform(-_TILT, _TILT)) for _ in cast]
    bodies = [make_body(o, stage, angle=a) for o, a in zip(cast, angles, strict=True)]
    onset = int(rng.integers(9, 15)) if first.motion == "appear" else int(rng.integers(10, 18))
    slab = _slab(first, bodies[0], stage=stage, rng=rng)
    motion, events = _run(specs, bodies, num_frames=num_frames, stage=stage, rng=rng, fps=fps)
    opacity = _opacity(specs, len(cast), num_frames=num_frames, onset=onset)
    rgb, colours = _colours(specs, len(cast), num_frames=num_frames)
    camera = _camera(first, num_frames=num_frames, width=width, fps=fps)
    state = np.zeros((num_frames, len(cast), 9), np.float32)
    state[..., :4] = motion
    state[..., 4] = [b.radius for b in bodies]
    state[..., 5] = angles
    state[..., 6] = [SHAPES.index(o.shape) for o in cast]
    state[..., 7] = colours
    period = 2.0 * width if first.motion == "zoom" else 1.5 * width
    episode = Episode(
        state=state,
        camera=camera,
        opacity=opacity,
        rgb=rgb,
        events=tuple(events + _changes(opacity)),
        height=height,
        width=width,
        fps=fps,
        background=first.background,
        floor_y=stage.ground if first.floor else None,
        slab=slab,
        period=period,
    )
    state[..., 8] = opacity * _uncovered(episode)
    return episode


def _check_sizes(chunks: int, *, num_frames: int, height: int, width: int) -> None:
    if min(height, width) < 32:
        raise ConfigError("canvas", expected="at least 32x32 pixels", got=f"{height}x{width}")
    if not 1 <= num_frames <= CHUNK_FRAMES * chunks:
        raise ConfigError("num_frames", expected=f"1 to {CHUNK_FRAMES * chunks}", got=num_frames)


def _slab(
    spec: SceneSpec, body: Body, *, stage: Stage, rng: np.random.Generator
) -> tuple[float, float] | None:
    if spec.motion != "occlude":
        return None
    half = max(0.12 * stage.width, 1.1 * max(body.low[0], stage.width - body.high[0]))
    centre = stage.width * rng.uniform(0.46, 0.54)
    return (float(centre - half), float(centre + half))


def _run(
    specs: Sequence[SceneSpec],
    bodies: list[Body],
    *,
    num_frames: int,
    stage: Stage,
    rng: np.random.Generator,
    fps: int,
) -> tuple[npt.NDArray[np.float64], list[Event]]:
    """Move the mover (and its target) through all frames, then place the rest beside the path."""
    first, mover = specs[0], bodies[0]
    place_mover(mover, first, stage=stage, rng=rng)
    pair = first.motion == "collide"
    if pair:
        place_target(mover, bodies[1], spec=first, stage=stage, rng=rng)
    moving = bodies[: 2 if pair else 1]
    start_motion(mover, first, stage=stage, rng=rng)
    start = Body(x=mover.x, y=mover.y, radius=mover.radius, low=mover.low, high=mover.high)
    # its own stream, so that a longer episode places the others alike
    rest_rng = np.random.default_rng(int(rng.integers(2**62)))
    # the path that resting objects keep clear of is the same for short and long episodes
    frames = max(num_frames, _PATH_FRAMES) if len(bodies) > len(moving) else num_frames
    motion = np.zeros((frames, len(bodies), 4))
    events: list[Event] = []
    dt = 1.0 / (fps * SUBSTEPS)
    for frame in range(frames):
        chunk = min(frame // CHUNK_FRAMES, len(specs) - 1)
        if chunk and frame == chunk * CHUNK_FRAMES and _restarts(specs[chunk - 1], specs[chunk]):
            start_motion(mover, specs[chunk], stage=stage, rng=rng)
        for i, body in enumerate(moving):
            motion[frame, i] = (body.x, body.y, body.vx, body.vy)
        for _ in range(SUBSTEPS):
            if pair:
                found = step_pair(mover, bodies[1], dt=dt)
            else:
                what = step(mover, dt)
                found = [(what, 0)] if what else []
            for kind, i in found:
                events.append((frame, kind, i, 1 if kind == "collide" else -1))
    _rest(specs, bodies, motion=motion, start=start, stage=stage, rng=rest_rng)
    return motion[:num_frames], [e for e in events if e[0] < num_frames]


def _restarts(before: SceneSpec, after: SceneSpec) -> bool:
    """Tell whether the mover's motion changes; a change of colour or cast leaves it alone."""
    old = (before.motion, before.direction, before.speed)
    return old != (after.motion, after.direction, after.speed)


def _rest(
    specs: Sequence[SceneSpec],
    bodies: list[Body],
    *,
    motion: npt.NDArray[np.float64],
    start: Body,
    stage: Stage,
    rng: np.random.Generator,
) -> None:
    """Place the objects that never move, clear of the mover's path."""
    first = 2 if specs[0].motion == "collide" else 1
    for i in range(first, len(bodies)):
        spec = next(s for s in specs if len(s.objects) > i)
        path = motion[:_PATH_FRAMES, 0, :2]
        place_resting(bodies[i], [start, *bodies[1:i]], path=path, spec=spec, stage=stage, rng=rng)
        motion[:, i, :2] = (bodies[i].x, bodies[i].y)


def _ramp(num_frames: int, onset: int) -> Array:
    ramp = (np.arange(num_frames) - onset + 1) / _FADE_FRAMES
    return np.clip(ramp, 0.0, 1.0).astype(np.float32)


def _opacity(specs: Sequence[SceneSpec], count: int, *, num_frames: int, onset: int) -> Array:
    opacity = np.ones((num_frames, count), np.float32)
    if specs[0].motion == "appear":
        opacity[:, 0] = _ramp(num_frames, onset)
    for chunk, spec in enumerate(specs):
        begin = chunk * CHUNK_FRAMES
        if spec.motion == "vanish" and (chunk == 0 or specs[chunk - 1].motion != "vanish"):
            opacity[:, 0] *= 1.0 - _ramp(num_frames, begin + (onset if chunk == 0 else _TURN_DELAY))
        before = 0 if chunk == 0 else len(specs[chunk - 1].objects)
        if chunk and len(spec.objects) > before:
            opacity[:, before:] = _ramp(num_frames, begin + _TURN_DELAY)[:, None]
    return opacity


def _colours(
    specs: Sequence[SceneSpec], count: int, *, num_frames: int
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Colours as RGB (with a short fade at changes) and as palette indices."""
    rgb = np.zeros((num_frames, count, 3), np.float32)
    index = np.zeros((num_frames, count), np.int64)
    for i in range(count):
        names = [s.objects[i].colour if len(s.objects) > i else None for s in specs]
        known = next(n for n in names if n)
        now = np.array(PALETTE[known], np.float32)
        rgb[:, i], index[:, i] = now, COLOURS.index(known)
        for chunk, name in enumerate(names):
            if chunk and name and name != known:
                begin = chunk * CHUNK_FRAMES + _TURN_DELAY
                share = _ramp(num_frames, begin)[:, None]
                rgb[:, i] = rgb[:, i] * (1 - share) + np.array(PALETTE[name], np.float32) * share
                index[share[:, 0] >= 0.5, i] = COLOURS.index(name)
                known = name
    return rgb, index


def _changes(opacity: Array) -> list[Event]:
    """Events for every object that comes into or goes out of sight by fading."""
    events: list[Event] = []
    shown = opacity >= 0.5
    for i in range(opacity.shape[1]):
        for frame in np.flatnonzero(shown[1:, i] != shown[:-1, i]) + 1:
            events.append((int(frame), "appear" if shown[frame, i] else "vanish", i, -1))
    return events


def _camera(spec: SceneSpec, *, num_frames: int, width: int, fps: int) -> Array:
    camera = np.zeros((num_frames, 3), np.float32)
    camera[:, 2] = 1.0
    seconds = np.arange(num_frames) / fps
    if spec.camera.startswith("pan"):
        sign = 1.0 if spec.camera == "pan_right" else -1.0
        camera[:, 0] = sign * PAN_SPEED * width * seconds
    elif spec.camera.startswith("zoom"):
        sign = 1.0 if spec.camera == "zoom_in" else -1.0
        camera[:, 2] = np.clip(np.exp(sign * ZOOM_RATE * seconds), *_ZOOM_RANGE)
    return camera


def screen_positions(episode: Episode) -> tuple[Array, Array, Array]:
    """Project the objects' centres onto the canvas.

    Args:
        episode: the simulated scene.

    Returns:
        x, y and radius on the screen in pixels, each [T, N].
    """
    cx, cy, zoom = (episode.camera[:, None, k] for k in range(3))
    half_w, half_h = episode.width / 2, episode.height / 2
    # the world is a cylinder: bring every object to the copy nearest the camera's centre
    offset = episode.state[..., 0] - cx - half_w
    offset = (offset + episode.period / 2) % episode.period - episode.period / 2
    x = offset * zoom + half_w
    y = (episode.state[..., 1] - cy - half_h) * zoom + half_h
    return x, y, episode.state[..., 4] * zoom


def _uncovered(episode: Episode) -> Array:
    """Share of each object inside the canvas and not behind the slab (as a disc of its area)."""
    x, _, r = screen_positions(episode)

    def left_share(edge: float) -> Array:
        u = np.clip((edge - x) / r, -1.0, 1.0)
        share: Array = (0.5 + (np.arcsin(u) + u * np.sqrt(1 - u * u)) / np.pi).astype(np.float32)
        return share

    share = left_share(float(episode.width)) - left_share(0.0)
    if episode.slab is not None:
        share = share - (left_share(episode.slab[1]) - left_share(episode.slab[0]))
    return np.asarray(np.clip(share, 0.0, 1.0), np.float32)
