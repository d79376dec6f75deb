"""What each corruption of a true video must move in the scores, and what it must leave alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from onereel.evaluation.toybox.laws import law_scores
from onereel.evaluation.toybox.motion import motion_scores
from onereel.evaluation.toybox.prompts import prompt_scores
from onereel.evaluation.toybox.tracks import Track, Tracking, truth
from onereel.world import (
    CHUNK_FRAMES,
    Episode,
    ObjectSpec,
    SceneSpec,
    fixed_prompts,
    sample_spec,
    simulate,
)

START = 24
ROWS = ("frames", "x", "y", "r", "cut", "rgb")


def edit(tracking: Tracking, change: Callable[[Track], Track]) -> Tracking:
    """Change every track; what has no frame left is gone."""
    changed = (change(one) for one in tracking.tracks)
    return dataclasses.replace(tracking, tracks=tuple(one for one in changed if len(one.frames)))


def jitter(tracking: Tracking, sigma: float, *, seed: int = 0) -> Tracking:
    """Move every position by noise."""
    rng = np.random.default_rng(seed)

    def change(one: Track) -> Track:
        noise = rng.normal(0.0, sigma, (2, len(one.x)))
        return dataclasses.replace(one, x=one.x + noise[0], y=one.y + noise[1])

    return edit(tracking, change)


def freeze(tracking: Tracking, start: int) -> Tracking:
    """Repeat the frame before `start` from there on."""
    last, num = start - 1, tracking.num_frames

    def change(one: Track) -> Track:
        rows = np.flatnonzero(one.frames < start)
        if last in one.frames:
            again = np.full(num - start, int(np.flatnonzero(one.frames == last)[0]))
            rows = np.concatenate([rows, again])
        frozen = {name: getattr(one, name)[rows] for name in ROWS[1:]}
        frames = np.arange(num - len(rows), num) if last in one.frames else one.frames[rows]
        return dataclasses.replace(one, frames=frames, **frozen)

    camera = tracking.camera.copy()
    camera[start:] = camera[last]
    return dataclasses.replace(edit(tracking, change), camera=camera)


def reverse(tracking: Tracking) -> Tracking:
    """Play it backwards."""
    last = tracking.num_frames - 1

    def change(one: Track) -> Track:
        back = {name: getattr(one, name)[::-1] for name in ROWS[1:]}
        return dataclasses.replace(one, frames=last - one.frames[::-1], **back)

    camera = tracking.camera[::-1].copy()
    camera[:, :2] -= camera[0, :2]
    return dataclasses.replace(edit(tracking, change), camera=camera)


def swap_colours(tracking: Tracking) -> Tracking:
    """Paint each of two objects like the other."""
    one, other = (track.colour for track in tracking.tracks)
    names = {one: other, other: one}
    return edit(tracking, lambda track: dataclasses.replace(track, colour=names[track.colour]))


def delete(tracking: Tracking, colour: str, *, start: int) -> Tracking:
    """Take an object away for good."""

    def change(one: Track) -> Track:
        kept = (one.frames < start) | (one.colour != colour)
        return dataclasses.replace(one, **{name: getattr(one, name)[kept] for name in ROWS})

    return edit(tracking, change)


def jump(tracking: Tracking, distance: float) -> Tracking:
    """Shift every second chunk to the right."""

    def change(one: Track) -> Track:
        return dataclasses.replace(one, x=one.x + distance * (one.frames // CHUNK_FRAMES % 2))

    return edit(tracking, change)


def scenes(count: int, *, num_frames: int, **kwargs: object) -> list[tuple[SceneSpec, Episode]]:
    rng = np.random.default_rng(8)
    specs = [sample_spec(rng, **kwargs) for _ in range(count)]
    return [(spec, simulate(spec, i, num_frames=num_frames)) for i, spec in enumerate(specs)]


def mean(values: Sequence[float]) -> float:
    return float(np.nanmean(values))


COLOURS_AND_COUNT = ("colour_f1", "shape_f1", "binding_f1", "count_acc", "count_frames")


def looks(tracking: Tracking, spec: SceneSpec) -> list[float]:
    scores = prompt_scores(tracking, spec)
    return [scores[name] for name in COLOURS_AND_COUNT]


def test_jitter_is_the_error_and_changes_no_look() -> None:
    errors = []
    for i, (spec, episode) in enumerate(scenes(24, num_frames=96, motions=["linear", "bounce"])):
        shaken = jitter(truth(episode), 1.0, seed=i)
        errors.append(motion_scores(shaken, episode, start=START)["ade"])
        assert looks(shaken, spec) == [1.0] * 5
    assert mean(errors) == pytest.approx(math.sqrt(math.pi / 2) / 64, rel=0.05)


def test_a_frozen_video_is_as_good_as_a_still() -> None:
    for spec, episode in scenes(24, num_frames=96, motions=["linear", "pan", "collide"]):
        still = freeze(truth(episode), START)
        scores = motion_scores(still, episode, start=START)
        assert scores["nade"] == pytest.approx(1.0, abs=0.02)
        for late in ("nade@1s", "nade@2s"):
            assert math.isnan(scores[late]) or scores[late] == pytest.approx(1.0, abs=0.02)
        assert math.isnan(scores["v_err@1s"]) or scores["v_err@1s"] > 0.9
        if spec.motion == "linear":
            assert looks(still, spec)[:3] == [1.0] * 3
    spec = fixed_prompts()[6][1]
    still = freeze(truth(simulate(spec, 0, num_frames=48)), 1)
    scores = prompt_scores(still, spec)
    assert scores["direction_acc"] == scores["speed_ratio"] == 0.0
    assert looks(still, spec) == [1.0] * 5


def test_time_runs_one_way() -> None:
    for spec, episode in scenes(24, num_frames=48, motions=["linear"]):
        if episode.events:
            continue  # there and back again looks the same from the end
        back = reverse(truth(episode))
        assert prompt_scores(back, spec)["direction_acc"] == 0.0
        assert motion_scores(back, episode, start=START)["ade"] > 0.05
        assert looks(back, spec) == [1.0] * 5
    for spec, episode in scenes(12, num_frames=48, motions=["gravity"]):
        assert law_scores(truth(episode), spec)["g_err"] < 1e-4
        assert law_scores(reverse(truth(episode)), spec)["g_err"] == 1.0
        assert prompt_scores(reverse(truth(episode)), spec)["event_fall"] == 0.0
        assert looks(reverse(truth(episode)), spec) == [1.0] * 5


def test_a_bounce_backwards_gains_energy() -> None:
    """A parabola looks the same both ways, so a bounce shows it in these two instead."""
    gains, errors = [], []
    for spec, episode in scenes(16, num_frames=120, motions=["bounce"], num_objects=1):
        forth = law_scores(truth(episode), spec)
        back = law_scores(reverse(truth(episode)), spec)
        assert forth["energy_gain"] < 0.03
        gains.append(back["energy_gain"])
        errors.append(back["e_err"])
    assert mean(gains) > 0.5
    assert mean(errors) > 0.1


def pair(shapes: tuple[str, str]) -> tuple[SceneSpec, Episode]:
    things = (
        ObjectSpec(shape=shapes[0], colour="red"),
        ObjectSpec(shape=shapes[1], colour="blue"),
    )
    spec = SceneSpec(
        objects=things, motion="linear", direction="right", speed="medium", relation="above"
    )
    return spec, simulate(spec, 0, num_frames=48)


def test_swapped_colours_break_the_binding_and_nothing_else() -> None:
    for shapes, binding in ((("disc", "square"), 0.0), (("disc", "disc"), 1.0)):
        spec, episode = pair(shapes)
        swapped = swap_colours(truth(episode))
        scores = prompt_scores(swapped, spec)
        assert scores["binding_f1"] == binding
        assert scores["colour_f1"] == scores["shape_f1"] == scores["count_acc"] == 1.0
        moved = motion_scores(swapped, episode, start=START)
        assert moved["ade_position"] == 0.0
        assert moved["ade"] > 0.1


@pytest.mark.parametrize("start", [24, 48, 72])
def test_a_deleted_object_is_missed_from_then_on(start: int) -> None:
    spec, _ = pair(("disc", "square"))
    whole = truth(simulate(spec, 0, num_frames=120))
    gone = delete(whole, "blue", start=start)
    before, after = prompt_scores(whole, spec), prompt_scores(gone, spec)
    assert after["count_frames"] == pytest.approx(start / 120)
    for name in ("direction_acc", "angle_error", "speed_ratio"):
        assert after[name] == before[name]
    assert math.isnan(law_scores(whole, spec)["permanence"])
    assert law_scores(gone, spec)["permanence"] == 0.0


def test_jumps_at_chunk_boundaries_show_at_the_seam_only() -> None:
    for spec, episode in scenes(40, num_frames=96):
        true = truth(episode)
        jumped = jump(true, 3.0)
        seam = motion_scores(jumped, episode, start=START)["seam_jump"]
        if not math.isnan(seam):
            assert seam > 1.0, spec.motion
        before, after = prompt_scores(true, spec), prompt_scores(jumped, spec)
        for name in ("count_acc", "binding_f1", "size_acc", "direction_acc", "all_correct"):
            assert after[name] == before[name] or math.isnan(before[name]), (spec.motion, name)
    spec = fixed_prompts()[1][1]
    episode = simulate(spec, 0, num_frames=96)
    seam = motion_scores(jump(truth(episode), 3.0), episode, start=START)["seam_jump"]
    assert seam == pytest.approx(3.0, abs=1e-3)
