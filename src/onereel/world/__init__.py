"""Room `world`: Toybox, the procedural world: scene specs, captions, physics and renderer.

Read `spec.py` first, then `simulate.py`, `render.py` and `clips.py`.
"""

from onereel.world.captions import (
    all_words,
    background_phrase,
    caption,
    change_caption,
    noun_phrase,
    object_words,
    sample_captions,
)
from onereel.world.clips import Clip, sample_clip
from onereel.world.episode import STATE_FIELDS, Episode
from onereel.world.physics import GRAVITY, SUBSTEPS
from onereel.world.prompts import fixed_prompts
from onereel.world.render import render, texture
from onereel.world.shapes import coverage, outline, reach, support
from onereel.world.simulate import (
    CHUNK_FRAMES,
    PAN_SPEED,
    ZOOM_RATE,
    screen_positions,
    simulate,
    simulate_chunks,
)
from onereel.world.spec import (
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    NUM_BACKGROUNDS,
    PALETTE,
    RELATIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    ObjectSpec,
    SceneSpec,
    combination_held_out,
    sample_spec,
)

__all__ = [
    "CAMERAS",
    "CHUNK_FRAMES",
    "COLOURS",
    "DIRECTIONS",
    "GRAVITY",
    "MOTIONS",
    "NUM_BACKGROUNDS",
    "PALETTE",
    "PAN_SPEED",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPEEDS",
    "STATE_FIELDS",
    "SUBSTEPS",
    "ZOOM_RATE",
    "Clip",
    "Episode",
    "ObjectSpec",
    "SceneSpec",
    "all_words",
    "background_phrase",
    "caption",
    "change_caption",
    "combination_held_out",
    "coverage",
    "fixed_prompts",
    "noun_phrase",
    "object_words",
    "outline",
    "reach",
    "render",
    "sample_captions",
    "sample_clip",
    "sample_spec",
    "screen_positions",
    "simulate",
    "simulate_chunks",
    "support",
    "texture",
]
