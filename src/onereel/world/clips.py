"""Training clips: a video with one caption and one spec per chunk, all from one seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onereel.world.captions import caption, change_caption
from onereel.world.episode import Episode
from onereel.world.render import Video, render
from onereel.world.simulate import CHUNK_FRAMES, simulate_chunks
from onereel.world.spec import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SPEEDS,
    ObjectSpec,
    SceneSpec,
    sample_spec,
)

_CHANGEABLE = ("linear", "static", "bounce")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A video uint8 [F, H, W, 3] with a caption and a spec for every chunk of 24 frames."""

    video: Video
    captions: tuple[str, ...]
    specs: tuple[SceneSpec, ...]
    episode: Episode


def sample_clip(
    seed: int,
    *,
    num_frames: int = 96,
    height: int = 64,
    width: int = 64,
    held_out: bool = False,
    timeline_share: float = 0.0,
    several_share: float | None = None,
    motions: Sequence[str] | None = None,
) -> Clip:
    """Draw a clip; the same arguments give the same clip on every machine.

    Args:
        seed: non-negative; all randomness comes from it.
        num_frames: at least 1; the last chunk may be short.
        height: in pixels.
        width: in pixels.
        held_out: draw from the combinations that training never sees.
        timeline_share: share of clips, 0 to 1, whose prompt changes at a chunk boundary.
        several_share: share of clips with two or three objects, 0 to 1; None for 40 %.
        motions: the motions to choose from; None means all.

    Returns:
        The clip.
    """
    rng = np.random.default_rng((seed, 1))
    chunks = math.ceil(num_frames / CHUNK_FRAMES)
    change = chunks > 1 and rng.random() < timeline_share
    pool = list(motions) if motions else None
    if change:
        pool = [m for m in _CHANGEABLE if motions is None or m in motions] or pool
    first = sample_spec(rng, held_out=held_out, motions=pool, several_share=several_share)
    specs: list[SceneSpec] = [first] * chunks
    texts = [caption(first, rng)] * chunks
    after = _changed(first, rng, held_out=held_out) if change else None
    if after is not None:
        at = int(rng.integers(1, chunks))
        after = _settled(after)
        later = caption(after, rng)
        # some users name what changes, others describe the scene as it is from now on
        now = change_caption(first, after, rng=rng) if rng.random() < 0.7 else later
        specs[at:] = [after] * (chunks - at)
        texts[at:] = [now] + [later] * (chunks - at - 1)
    episode = simulate_chunks(specs, seed, num_frames=num_frames, height=height, width=width)
    return Clip(video=render(episode), captions=tuple(texts), specs=tuple(specs), episode=episode)


def _settled(spec: SceneSpec) -> SceneSpec:
    """Drop what holds at frame 0 only: the relation of a mover to the others."""
    return dataclasses.replace(spec, relation=None) if spec.motion != "static" else spec


def _changed(spec: SceneSpec, rng: np.random.Generator, *, held_out: bool) -> SceneSpec | None:
    """Draw a later spec of the same scene, or None when there is no lawful one."""
    kinds = ["colour", "motion", "motion", "vanish"]
    if len(spec.objects) == 1:
        kinds += ["add", "add"]
    for _ in range(16):
        after = _change(spec, kinds[int(rng.integers(len(kinds)))], rng)
        if after is not None and (held_out or not after.is_held_out()):
            return after
    return None


def _change(spec: SceneSpec, kind: str, rng: np.random.Generator) -> SceneSpec | None:
    used = {o.colour for o in spec.objects}
    free = [c for c in COLOURS if c not in used]
    colour = free[int(rng.integers(len(free)))]
    if kind == "colour":
        painted = dataclasses.replace(spec.objects[0], colour=colour)
        return dataclasses.replace(spec, objects=(painted, *spec.objects[1:]))
    if kind == "add":
        extra = ObjectSpec(
            shape=SHAPES[int(rng.integers(4))],
            colour=colour,
            size=("small", "medium")[int(rng.integers(2))],
        )
        return dataclasses.replace(spec, objects=(*spec.objects, extra))
    if kind == "vanish":
        return dataclasses.replace(spec, motion="vanish", direction=None, speed=None)
    if spec.motion == "bounce":
        return None
    options = ["linear", "linear", "gravity", "static"]
    motion = options[int(rng.integers(len(options)))]
    if motion != "linear":
        if motion == spec.motion:
            return None
        return dataclasses.replace(spec, motion=motion, direction=None, speed=None)
    ways = [d for d in list(DIRECTIONS)[:4] if d != spec.direction]
    return dataclasses.replace(
        spec,
        motion="linear",
        direction=ways[int(rng.integers(len(ways)))],
        speed=tuple(SPEEDS)[int(rng.integers(3))],
    )
