"""The sixteen fixed prompts of the README sheet and of quick evaluations."""

from __future__ import annotations

from onereel.world.captions import caption
from onereel.world.spec import ObjectSpec, SceneSpec


def _things(text: str) -> tuple[ObjectSpec, ...]:
    """Read "large red disc, small blue square"."""
    rows = [part.split() for part in text.split(",")]
    return tuple(ObjectSpec(size=size, colour=colour, shape=shape) for size, colour, shape in rows)


_SCENES = (
    SceneSpec(objects=_things("large red disc"), motion="bounce", floor=True, background=0),
    SceneSpec(
        objects=_things("small blue square"),
        motion="linear",
        direction="left",
        speed="slow",
        background=8,
    ),
    SceneSpec(
        objects=_things("medium green triangle, medium yellow disc"),
        motion="static",
        relation="left_of",
        background=12,
    ),
    SceneSpec(objects=_things("medium purple diamond"), motion="gravity", background=1),
    SceneSpec(
        objects=_things("medium cyan disc"),
        motion="pan",
        direction="right",
        camera="pan_right",
        background=11,
    ),
    SceneSpec(
        objects=_things("large orange square, medium blue disc"),
        motion="collide",
        direction="right",
        speed="medium",
        relation="left_of",
        background=4,
    ),
    SceneSpec(
        objects=_things("medium pink disc"),
        motion="linear",
        direction="up_right",
        speed="medium",
        background=5,
    ),
    SceneSpec(
        objects=_things("large yellow square"),
        motion="slide_stop",
        direction="right",
        speed="medium",
        floor=True,
        background=13,
    ),
    SceneSpec(
        objects=_things("medium orange disc"),
        motion="occlude",
        direction="right",
        speed="medium",
        background=3,
    ),
    SceneSpec(objects=_things("large blue triangle"), motion="appear", background=2),
    SceneSpec(objects=_things("medium green square"), motion="vanish", background=9),
    SceneSpec(objects=_things("large pink diamond"), motion="zoom", camera="zoom_in", background=6),
    # from here on: held-out combinations, which no training clip shows
    SceneSpec(objects=_things("large orange triangle"), motion="bounce", floor=True, background=12),
    SceneSpec(
        objects=_things("large blue disc"),
        motion="linear",
        direction="right",
        speed="medium",
        background=10,
    ),
    SceneSpec(
        objects=_things("medium yellow triangle"), motion="gravity", floor=True, background=7
    ),
    SceneSpec(
        objects=_things("medium red triangle"),
        motion="pan",
        direction="left",
        camera="pan_left",
        background=15,
    ),
)


def fixed_prompts() -> tuple[tuple[str, SceneSpec], ...]:
    """Give the fixed prompts with what they ask for.

    Returns:
        16 pairs of canonical caption and spec: every colour, shape, size and motion occurs, two
        scenes have two objects, and the last four combinations are held out of training.
    """
    return tuple((caption(spec), spec) for spec in _SCENES)
