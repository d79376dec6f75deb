"""Specs: the held-out rule, the palette's distances, what `sample_spec` may draw."""

from __future__ import annotations

import itertools
import json
import math
import zlib

import numpy as np
import pytest

from onereel.core.errors import ConfigError
from onereel.world import (
    COLOURS,
    MOTIONS,
    PALETTE,
    SHAPES,
    ObjectSpec,
    SceneSpec,
    combination_held_out,
    fixed_prompts,
    sample_clip,
    sample_spec,
)


def test_palette_is_far_apart_and_saturated() -> None:
    distances = [math.dist(a, b) for a, b in itertools.combinations(PALETTE.values(), 2)]
    assert min(distances) >= 122
    assert min(max(c) - min(c) for c in PALETTE.values()) >= 130


def test_held_out_rule_is_the_crc_of_colour_shape_motion() -> None:
    text = json.dumps(
        {"colour": "blue", "shape": "disc", "motion": "linear"},
        sort_keys=True,
        separators=(",", ":"),
    )
    assert zlib.crc32(text.encode()) % 10 == 0
    first = ObjectSpec(shape="disc", colour="blue", size="large")
    for background in (0, 7):
        assert SceneSpec(objects=(first,), motion="linear", background=background).is_held_out()
    combos = list(itertools.product(COLOURS, SHAPES, MOTIONS))
    share = np.mean(
        [combination_held_out(colour, shape, motion=motion) for colour, shape, motion in combos]
    )
    assert 0.07 < share < 0.14


def test_training_samples_never_show_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    assert not any(sample_spec(rng).is_held_out() for _ in range(1500))
    assert all(sample_spec(rng, held_out=True).is_held_out() for _ in range(300))


def test_changed_prompts_never_show_a_held_out_combination() -> None:
    for seed in range(80):
        clip = sample_clip(seed, num_frames=49, height=32, width=32, timeline_share=1.0)
        assert not any(spec.is_held_out() for spec in clip.specs)


def test_sampled_scenes_cover_everything_in_the_right_shares() -> None:
    rng = np.random.default_rng(1)
    specs = [sample_spec(rng) for _ in range(2000)]
    assert {s.motion for s in specs} == set(MOTIONS)
    assert {s.objects[0].colour for s in specs} == set(COLOURS)
    assert {o.shape for s in specs for o in s.objects} == set(SHAPES)
    counts = np.bincount([len(s.objects) for s in specs], minlength=4)[1:] / len(specs)
    np.testing.assert_allclose(counts, (0.6, 0.3, 0.1), atol=0.04)
    for spec in specs:
        colours = [o.colour for o in spec.objects]
        assert len(set(colours)) == len(colours)
        assert (spec.relation is None) == (len(colours) == 1)


def test_motions_and_counts_can_be_chosen() -> None:
    rng = np.random.default_rng(2)
    spec = sample_spec(rng, motions=("bounce",), num_objects=3)
    assert spec.motion == "bounce"
    assert len(spec.objects) == 3
    with pytest.raises(ConfigError, match="num_objects"):
        sample_spec(rng, motions=("collide",), num_objects=1)
    with pytest.raises(ConfigError, match="motions"):
        sample_spec(rng, motions=("jump",))


def test_json_round_trip_and_refusal() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        spec = sample_spec(rng)
        assert SceneSpec.from_json(spec.canonical_json()) == spec
    bad = json.loads(spec.canonical_json()) | {"colour": "red"}
    with pytest.raises(ConfigError, match="colour"):
        SceneSpec.from_json(json.dumps(bad))
    with pytest.raises(ConfigError, match="shape"):
        ObjectSpec(shape="star", colour="red")


def test_fixed_prompts_cover_the_world() -> None:
    prompts = fixed_prompts()
    assert len({text for text, _ in prompts}) == 16
    specs = [spec for _, spec in prompts]
    things = [o for spec in specs for o in spec.objects]
    assert {o.colour for o in things} == set(COLOURS)
    assert {o.shape for o in things} == set(SHAPES)
    assert {o.size for o in things} == {"small", "medium", "large"}
    assert {spec.motion for spec in specs} == set(MOTIONS)
    assert sum(len(spec.objects) == 2 for spec in specs) == 2
    assert [spec.is_held_out() for spec in specs] == [False] * 12 + [True] * 4
