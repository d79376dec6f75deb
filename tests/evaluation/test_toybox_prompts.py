"""Prompt scores: the simulator's own videos are all correct, and every kind of mistake shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from onereel.evaluation.toybox.chains import cut_out
from onereel.evaluation.toybox.prompts import PROMPT_SCORES, prompt_scores
from onereel.evaluation.toybox.tracker import track
from onereel.evaluation.toybox.tracks import Track, Tracking, truth
from onereel.world import (
    MOTIONS,
    Episode,
    SceneSpec,
    fixed_prompts,
    render,
    sample_spec,
    simulate,
)

ASKED = ("count_acc", "binding_f1", "size_acc", "direction_acc", "speed_acc", "relation_acc")
# A fall is part of a bounce; behind the slab at the end looks like gone for good; and what is hit
# head-on may slow down in between as a sliding object does.
LOOKS_LIKE = {("bounce", "gravity"), ("occlude", "vanish"), ("collide", "slide_stop")}


def draw(motion: str, seed: int = 0, **kwargs: int) -> SceneSpec:
    return sample_spec(np.random.default_rng((seed, 77)), motions=[motion], **kwargs)


def wrong(scores: dict[str, float]) -> dict[str, float]:
    return {
        k: scores[k] for k in (*ASKED, "event_acc") if scores[k] != 1 and scores[k] == scores[k]
    }


def find(motion: str, seed: int = 0, **fields: object) -> SceneSpec:
    """A drawn spec with some of its fields fixed."""
    return dataclasses.replace(draw(motion, seed, num_objects=1), **fields)


def change(tracking: Tracking, edit: Callable[[Track], Track | None]) -> Tracking:
    edited = (edit(one) for one in tracking.tracks)
    return dataclasses.replace(tracking, tracks=tuple(one for one in edited if one is not None))


def keep(one: Track, rows: np.ndarray) -> Track:
    names = ("frames", "x", "y", "r", "cut", "rgb")
    return dataclasses.replace(one, **{name: getattr(one, name)[rows] for name in names})


def tremble(tracking: Tracking, sigma: float, seed: int) -> Tracking:
    rng = np.random.default_rng(seed)

    def edit(one: Track) -> Track:
        moved = {n: getattr(one, n) + rng.normal(0, sigma, len(one.x)) for n in ("x", "y")}
        return dataclasses.replace(one, **moved)

    return change(tracking, edit)


def test_the_simulator_follows_its_own_prompts() -> None:
    rng = np.random.default_rng(5)
    failures = []
    for seed in range(240):
        spec = sample_spec(rng, held_out=seed % 5 == 0)
        tracking = truth(simulate(spec, seed, num_frames=96))
        for num_frames in (48, 96):
            part = cut_out(tracking, 0, stop=num_frames)
            scores = prompt_scores(part, spec, unsaid=True)
            if scores["all_correct"] != 1.0 or scores["count_frames"] != 1.0:
                failures.append((seed, num_frames, spec.motion, wrong(scores)))
    assert not failures


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (128, 128)])
def test_the_simulator_follows_its_prompts_on_other_canvases(size: tuple[int, int]) -> None:
    failures = []
    for seed in range(33):
        spec = draw(MOTIONS[seed % len(MOTIONS)], seed)
        episode = simulate(spec, seed, num_frames=48, height=size[0], width=size[1])
        scores = prompt_scores(truth(episode), spec, unsaid=True)
        if scores["all_correct"] != 1.0:
            failures.append((seed, spec.motion, wrong(scores)))
    assert not failures


def test_the_fixed_prompts_are_followed_for_a_second_and_for_a_minute() -> None:
    for text, spec in fixed_prompts():
        for num_frames in (24, 480):
            scores = prompt_scores(truth(simulate(spec, 3, num_frames=num_frames)), spec)
            assert scores["all_correct"] == 1.0, (text, num_frames, wrong(scores))


@pytest.mark.parametrize("motion", MOTIONS)
def test_rendered_videos_are_all_correct(motion: str) -> None:
    spec = draw(motion, 1)
    if spec.camera.startswith("pan"):  # clouds show a camera's way best
        spec = dataclasses.replace(spec, background=3)
    scores = prompt_scores(track(render(simulate(spec, 1, num_frames=48))), spec, unsaid=True)
    assert scores["all_correct"] == 1.0, wrong(scores)


def test_a_motion_is_not_taken_for_another() -> None:
    mistaken = set()
    for i, shown in enumerate(MOTIONS):
        for seed in range(3):
            there = draw(shown, seed + 10 * i)
            tracking = truth(simulate(there, seed, num_frames=96))
            for asked in MOTIONS:
                spec = draw(asked, seed)
                if asked in ("collide", shown):
                    continue
                spec = dataclasses.replace(spec, objects=there.objects, relation=None)
                if prompt_scores(tracking, spec)["all_correct"] == 1.0:
                    mistaken.add((shown, asked))
    assert mistaken <= LOOKS_LIKE


def linear(direction: str = "right", **fields: object) -> tuple[SceneSpec, Tracking]:
    spec = find("linear", direction=direction, speed="medium", **fields)
    return spec, truth(simulate(spec, 0, num_frames=48))


def test_scores_have_fixed_names_and_do_not_apply_where_nothing_is_asked() -> None:
    spec, tracking = linear()
    spec = dataclasses.replace(spec, objects=(dataclasses.replace(spec.objects[0], size="medium"),))
    scores = prompt_scores(tracking, spec)
    assert tuple(scores) == PROMPT_SCORES
    for name in ("size_acc", "speed_acc", "relation_acc", "event_acc", "event_bounce"):
        assert math.isnan(scores[name]), name
    bounce = find("bounce", direction=None, speed=None)
    scores = prompt_scores(truth(simulate(bounce, 0, num_frames=48)), bounce)
    assert math.isnan(scores["direction_acc"])
    assert scores["event_bounce"] == scores["event_acc"] == 1.0


def test_an_object_too_many_breaks_the_count_and_a_flicker_does_not() -> None:
    spec, tracking = linear()
    one = tracking.tracks[0]
    colour = "blue" if one.colour != "blue" else "red"
    other = dataclasses.replace(one, colour=colour, y=one.y - 20)
    for length, count, binding in ((48, 0.0, 2 / 3), (5, 1.0, 1.0)):
        extra = dataclasses.replace(
            tracking, tracks=(one, keep(other, np.arange(len(one.frames)) < length))
        )
        scores = prompt_scores(extra, spec)
        assert scores["count_acc"] == count
        assert scores["binding_f1"] == pytest.approx(binding)
        assert scores["count_frames"] == pytest.approx(1 - length / 48)
        assert scores["all_correct"] == count


def test_wrong_colour_shape_and_size_are_told_apart() -> None:
    spec, tracking = linear(objects=draw("linear", 2, num_objects=1).objects)
    thing = dataclasses.replace(spec.objects[0], size="large", shape="disc", colour="red")
    spec = dataclasses.replace(spec, objects=(thing,))
    tracking = truth(simulate(spec, 0, num_frames=48))
    blue = change(tracking, lambda one: dataclasses.replace(one, colour="blue"))
    square = change(tracking, lambda one: dataclasses.replace(one, shape="square"))
    small = change(tracking, lambda one: dataclasses.replace(one, r=one.r * 0.8))
    found = [prompt_scores(t, spec) for t in (tracking, blue, square, small)]
    names = ("binding_f1", "colour_f1", "shape_f1", "size_acc", "all_correct")
    assert [[s[n] for n in names] for s in found] == [
        [1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [1, 1, 1, 0, 0],
    ]


@pytest.mark.parametrize(
    ("asked", "right", "error"),
    [("right", 1, 0), ("up_right", 0, 45), ("up", 0, 90), ("left", 0, 180)],
)
def test_direction_is_one_of_eight(asked: str, right: int, error: float) -> None:
    spec, tracking = linear("right")
    scores = prompt_scores(tracking, dataclasses.replace(spec, direction=asked))
    assert scores["direction_acc"] == right
    assert scores["angle_error"] == pytest.approx(error, abs=0.01)


def test_a_still_object_has_no_direction() -> None:
    spec, tracking = linear()
    still = change(tracking, lambda one: dataclasses.replace(one, x=one.x[:1] + 0 * one.x))
    assert prompt_scores(still, spec)["direction_acc"] == 0.0


def test_speed_is_measured_and_named() -> None:
    spec, tracking = linear()
    for asked, ratio in (("slow", 0.35 / 0.15), ("fast", 0.5)):
        scores = prompt_scores(tracking, dataclasses.replace(spec, speed=asked))
        assert scores["speed_ratio"] == pytest.approx(ratio, rel=0.01)
        assert scores["speed_error"] == pytest.approx(abs(math.log2(ratio)), abs=0.02)
        assert scores["speed_acc"] == 0.0
    slide = find("slide_stop", direction="right", speed="fast")
    scores = prompt_scores(truth(simulate(slide, 0, num_frames=96)), slide)
    assert scores["speed_ratio"] == pytest.approx(1.0, rel=0.04)  # it slows from the first frame


def test_a_relation_needs_the_right_side_and_the_right_objects() -> None:
    text, spec = fixed_prompts()[2]
    assert "left of" in text
    tracking = truth(simulate(spec, 0, num_frames=48))
    mirrored = change(tracking, lambda one: dataclasses.replace(one, x=64 - one.x))
    names = {
        one.colour: other.colour
        for one, other in zip(tracking.tracks, tracking.tracks[::-1], strict=True)
    }
    swapped = change(tracking, lambda one: dataclasses.replace(one, colour=names[one.colour]))
    assert prompt_scores(tracking, spec)["relation_acc"] == 1.0
    assert prompt_scores(mirrored, spec)["relation_acc"] == 0.0
    assert prompt_scores(swapped, spec)["relation_acc"] == 0.0


def test_a_collision_needs_both_to_change_their_speed() -> None:
    spec = fixed_prompts()[5][1]
    tracking = truth(simulate(spec, 0, num_frames=48))
    assert prompt_scores(tracking, spec)["event_collide"] == 1.0
    target = spec.objects[1].colour

    def stays(one: Track) -> Track:
        return dataclasses.replace(one, x=one.x[:1] + 0 * one.x) if one.colour == target else one

    assert prompt_scores(change(tracking, stays), spec)["event_collide"] == 0.0


def test_cameras_are_judged_by_their_motion() -> None:
    spec = fixed_prompts()[4][1]
    episode: Episode = simulate(spec, 0, num_frames=48)
    tracking = truth(episode)
    assert prompt_scores(tracking, spec)["event_pan"] == 1.0
    other_way = dataclasses.replace(spec, camera="pan_left", direction="left")
    assert prompt_scores(tracking, other_way)["event_pan"] == 0.0
    still = dataclasses.replace(tracking, camera=tracking.camera * [0.0, 0.0, 1.0])
    assert prompt_scores(still, spec)["event_pan"] == 0.0


@pytest.mark.parametrize("number", [4, 11])
def test_a_camera_that_goes_on_is_judged_in_every_part(number: int) -> None:
    spec = fixed_prompts()[number][1]
    part = cut_out(truth(simulate(spec, 0, num_frames=192)), 72, stop=192)
    assert prompt_scores(part, spec, before=spec)["event_acc"] == 1.0
    halted = dataclasses.replace(part, camera=part.camera[:1] + 0 * part.camera)
    assert prompt_scores(halted, spec, before=spec)["event_acc"] == 0.0


def test_trembling_and_missed_frames_do_not_change_the_verdict() -> None:
    rng = np.random.default_rng(9)
    verdicts = []
    for seed in range(80):
        spec = sample_spec(rng)
        tracking = tremble(truth(simulate(spec, seed, num_frames=72)), 0.4, seed)
        missed = change(tracking, lambda one: keep(one, rng.random(len(one.frames)) > 0.05))
        verdicts.append(prompt_scores(missed, spec)["all_correct"])
    assert np.mean(verdicts) >= 0.95


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_empty_video_has_nothing_of_what_was_asked(motion: str) -> None:
    spec = draw(motion)
    tracking = truth(simulate(spec, 0, num_frames=48))
    scores = prompt_scores(dataclasses.replace(tracking, tracks=()), spec)
    for name in ("count_acc", "count_frames", "binding_f1", "all_correct"):
        assert scores[name] == 0.0
    assert scores["direction_acc"] in (0.0, pytest.approx(math.nan, nan_ok=True))
