"""Clips: determinism, timelines, captions that say what is there."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from onereel.world import (
    DIRECTIONS,
    all_words,
    caption,
    object_words,
    sample_captions,
    sample_clip,
    sample_spec,
)

SYNONYMS = {
    "disc": {"disc", "disk", "circle", "ball"},
    "square": {"square", "box"},
    "triangle": {"triangle"},
    "diamond": {"diamond", "rhombus"},
}


def words(text: str) -> set[str]:
    """The words of a caption without punctuation."""
    return {w.strip(",:") for w in text.split()}


def test_clips_depend_on_their_seed_alone() -> None:
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    first = sample_clip(11, num_frames=48, timeline_share=0.5)
    np.random.seed(1)  # noqa: NPY002
    again = sample_clip(11, num_frames=48, timeline_share=0.5)
    other = sample_clip(12, num_frames=48, timeline_share=0.5)
    np.testing.assert_array_equal(first.video, again.video)
    assert first.captions == again.captions
    assert first.specs == again.specs
    assert not np.array_equal(first.video, other.video)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).video, first.video)


def test_one_caption_and_spec_per_chunk() -> None:
    clip = sample_clip(0, num_frames=60, height=64, width=96)
    assert clip.video.shape == (60, 64, 96, 3)
    assert len(clip.captions) == len(clip.specs) == 3
    assert len(set(clip.captions)) == 1


def test_changed_prompts_continue_the_same_scene() -> None:
    changed = 0
    for seed in range(60):
        clip = sample_clip(seed, num_frames=96, height=48, width=48, timeline_share=1.0)
        if len(set(clip.specs)) == 1:
            continue
        changed += 1
        state, shown = clip.episode.state, clip.episode.opacity > 0
        steps = np.linalg.norm(np.diff(state[..., :2], axis=0), axis=-1)
        speed = np.linalg.norm(state[..., 2:4], axis=-1).max()
        assert steps.max() <= speed / 24 * 1.1 + 0.1
        at = next(k for k in range(1, 4) if clip.specs[k] != clip.specs[0])
        assert len(set(clip.specs[at:])) == 1
        assert clip.captions[0] != clip.captions[at]
        before, after = clip.specs[0], clip.specs[at]
        if len(after.objects) > len(before.objects):
            assert not shown[at * 24, len(before.objects)]
            assert shown[-1, len(before.objects)]
        if after.motion == "vanish":
            assert not shown[-1, 0]
        if after.objects[0].colour != before.objects[0].colour:
            assert state[0, 0, 7] != state[-1, 0, 7]
            assert after.objects[0].colour in clip.captions[at].replace("violet", "purple")
        if after.motion == "linear" and after.direction != before.direction:
            want = np.array(DIRECTIONS[after.direction or ""])
            assert state[at * 24, 0, 2:4] @ want > 0
    assert changed >= 50


@pytest.mark.parametrize("paraphrase", [False, True])
def test_captions_say_what_the_spec_says(paraphrase: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        spec = sample_spec(rng)
        text = caption(spec, rng if paraphrase else None)
        said = words(text)
        for thing in spec.objects:
            assert SYNONYMS[thing.shape] & said
            assert {thing.colour, "violet" if thing.colour == "purple" else thing.colour} & said
        if spec.motion == "linear":
            for part in (spec.direction or "").split("_"):
                if part == "down":
                    assert {"down", "downwards", "downward", "bottom", "lower"} & said
                elif part == "up":
                    assert {"up", "upwards", "upward", "top", "upper"} & said
                else:
                    assert {part, f"{part}wards"} & said
        if not paraphrase and spec.speed in ("slow", "fast") and spec.motion != "collide":
            assert {"slow": "slowly", "fast": "quickly"}[spec.speed] in said
        if not paraphrase and spec.objects[0].size != "medium":
            assert spec.objects[0].size in said
        assert "  " not in text
        assert text == text.strip().lower()


def test_objects_are_found_in_captions() -> None:
    rng = np.random.default_rng(2)
    for _ in range(400):
        spec = sample_spec(rng)
        text = caption(spec, rng)
        for thing, (colour, shape) in zip(spec.objects, object_words(text, spec), strict=True):
            said = text[colour:].split()[0]
            assert said == thing.colour or (thing.colour, said) == ("purple", "violet")
            assert text[shape:].split()[0].rstrip(",") in SYNONYMS[thing.shape]
            assert colour < shape


def test_several_objects_as_often_as_asked() -> None:
    counts = [
        len(
            sample_clip(seed, num_frames=1, height=32, width=32, several_share=0.8).specs[0].objects
        )
        for seed in range(100)
    ]
    assert 65 <= sum(count > 1 for count in counts) <= 92
    assert 2 in counts
    assert 3 in counts
    assert all(
        len(sample_clip(seed, num_frames=1, several_share=0.0).specs[0].objects) == 1
        for seed in range(20)
    )


def test_canonical_captions_differ_only_by_what_they_describe() -> None:
    rng = np.random.default_rng(1)
    spec = sample_spec(rng, motions=("bounce",), num_objects=1)
    assert caption(spec) == caption(spec)
    assert len({caption(spec, rng) for _ in range(40)}) > 15


def test_the_vocabulary_is_small_and_complete() -> None:
    known = set(all_words())
    assert 120 <= len(known) <= 200
    seen = set().union(*(words(t) for t in sample_captions(2500, seed=3)))
    assert seen <= known
    assert len(known - seen) <= 2
    for seed in range(20):
        clip = sample_clip(seed, num_frames=48, height=32, width=32, timeline_share=1.0)
        assert set().union(*(words(t) for t in clip.captions)) <= known
