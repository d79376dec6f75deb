"""Motion scores against the simulator: zero for the truth, and by hand where it can be counted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from onereel.core.errors import ConfigError
from onereel.evaluation.toybox.motion import MOTION_SCORES, motion_scores, spread_scores
from onereel.evaluation.toybox.tracks import Track, Tracking, truth
from onereel.world import Episode, ObjectSpec, SceneSpec, sample_spec, simulate

RIGHT = SceneSpec(
    objects=(ObjectSpec(shape="disc", colour="red"),),
    motion="linear",
    direction="right",
    speed="medium",
)
SLOW = dataclasses.replace(RIGHT, speed="slow")
PX = 0.15 * 64 / 24  # per frame, slow


def scene(num_frames: int = 96, spec: SceneSpec = SLOW) -> Episode:
    """An episode whose mover meets no wall in time, if slow."""
    return simulate(spec, 1, num_frames=num_frames)


def shift(tracking: Tracking, *, dx: float, start: int, stop: int = 10_000) -> Tracking:
    def edit(one: Track) -> Track:
        moved = (one.frames >= start) & (one.frames < stop)
        return dataclasses.replace(one, x=one.x + dx * moved)

    return dataclasses.replace(tracking, tracks=tuple(edit(one) for one in tracking.tracks))


def without(tracking: Tracking, *, start: int, stop: int) -> Tracking:
    def edit(one: Track) -> Track:
        rows = (one.frames < start) | (one.frames >= stop)
        names = ("frames", "x", "y", "r", "cut", "rgb")
        return dataclasses.replace(one, **{n: getattr(one, n)[rows] for n in names})

    return dataclasses.replace(tracking, tracks=tuple(edit(one) for one in tracking.tracks))


def test_the_truth_makes_no_error() -> None:
    rng = np.random.default_rng(3)
    for seed in range(60):
        episode = simulate(sample_spec(rng), seed, num_frames=120)
        scores = motion_scores(truth(episode), episode, start=24)
        assert tuple(scores) == MOTION_SCORES
        paths = ("ade", "fde", "ade_position", "nade", "nade@1s", "nade@2s")
        zeros = (*paths, "miss_rate", "seam_jump", "v_err@1s")
        for name in zeros:
            assert math.isnan(scores[name]) or scores[name] == 0.0, (seed, name)
        assert math.isnan(scores["skill"]) or scores["skill"] == 1.0
        assert scores["horizon"] == 4.0


def test_errors_are_in_canvas_heights_and_start_at_the_seam() -> None:
    episode = scene()
    off = shift(truth(episode), dx=3.0, start=48)
    scores = motion_scores(off, episode, start=48)
    assert scores["ade"] == scores["fde"] == scores["ade@2s"] == pytest.approx(3 / 64)
    assert math.isnan(scores["ade@5s"])
    assert scores["seam_jump"] == pytest.approx(3.0, abs=1e-4)
    assert scores["v_err@1s"] < 1e-6
    assert scores["horizon"] == 2.0
    # before the seam nothing is judged
    early = shift(truth(episode), dx=3.0, start=0, stop=40)
    assert motion_scores(early, episode, start=48)["ade"] == 0.0


def test_the_horizon_ends_where_the_error_passes_a_radius() -> None:
    episode = scene()
    off = shift(truth(episode), dx=7.0, start=60)  # the radius is 6.4 px
    assert motion_scores(off, episode, start=48)["horizon"] == pytest.approx(12 / 24)
    blink = shift(truth(episode), dx=7.0, start=60, stop=62)
    assert motion_scores(blink, episode, start=48)["horizon"] == 2.0


def test_a_missed_object_counts_from_where_it_was_last_seen() -> None:
    episode = scene(48)
    gone = without(truth(episode), start=30, stop=48)
    scores = motion_scores(gone, episode, start=24)
    assert scores["miss_rate"] == pytest.approx(18 / 24)
    assert scores["ade"] * 64 == pytest.approx(PX * sum(range(1, 19)) / 24, rel=1e-3)
    assert math.isnan(scores["v_err@2s"])


def test_skill_is_given_only_where_constant_velocity_fails() -> None:
    episode = scene(144, RIGHT)
    walls = [frame for frame, kind, _, _ in episode.events if kind == "wall"]
    assert 24 < walls[0] < 72
    assert motion_scores(truth(episode), episode, start=24)["skill"] == 1.0
    calm = scene(walls[0], RIGHT)
    assert math.isnan(motion_scores(truth(calm), calm, start=24)["skill"])
    # a video that goes straight on through the wall has the skill of constant velocity
    one = truth(episode).tracks[0]
    steps = np.maximum(one.frames - 23, 0)
    ahead = one.x[23] + 0.35 * 64 / 24 * steps
    straight = dataclasses.replace(one, x=np.where(steps, ahead, one.x))
    through = dataclasses.replace(truth(episode), tracks=(straight,))
    assert motion_scores(through, episode, start=24)["skill"] == pytest.approx(0.0, abs=1e-4)


def test_a_slower_object_errs_in_speed_and_a_turned_one_in_direction() -> None:
    episode = scene(48)
    one = truth(episode).tracks[0]
    steps = np.maximum(one.frames - 23, 0)
    slow = dataclasses.replace(one, x=one.x - 0.5 * PX * steps)
    up = dataclasses.replace(one, y=one.y - PX * steps)
    slow_scores, up_scores = (
        motion_scores(dataclasses.replace(truth(episode), tracks=(t,)), episode, start=24)
        for t in (slow, up)
    )
    assert slow_scores["v_err@1s"] == pytest.approx(0.5, rel=1e-3)
    assert slow_scores["dir_err@1s"] == pytest.approx(0.0, abs=1e-3)
    assert up_scores["dir_err@1s"] == pytest.approx(45.0, rel=1e-3)
    assert up_scores["v_err@1s"] == pytest.approx(math.sqrt(2) - 1, rel=1e-3)


def test_another_colour_is_another_object() -> None:
    episode = scene(48)
    tracking = truth(episode)
    blue = dataclasses.replace(tracking.tracks[0], colour="blue")
    scores = motion_scores(dataclasses.replace(tracking, tracks=(blue,)), episode, start=24)
    assert scores["miss_rate"] == 1.0
    assert scores["nade"] == scores["nade@1s"] == pytest.approx(1.0)
    assert math.isnan(scores["nade@2s"])  # the video ends before
    assert scores["ade_position"] == 0.0


def test_samples_are_compared_with_each_other() -> None:
    episode = scene()
    samples = [shift(truth(episode), dx=dx, start=48) for dx in (0.0, 2.0, 4.0)]
    scores = spread_scores(samples, episode, start=48)
    assert scores["ade_best"] == 0.0
    assert scores["ade_mean"] * 64 == pytest.approx(2.0)
    assert scores["diversity"] * 64 == pytest.approx((2 + 4 + 2) / 3)
    assert math.isnan(spread_scores(samples[:1], episode, start=48)["diversity"])


def test_what_cannot_be_compared_is_refused() -> None:
    episode = scene(48)
    for start in (0, 48):
        with pytest.raises(ConfigError, match="start"):
            motion_scores(truth(episode), episode, start=start)
    with pytest.raises(ConfigError, match="at most 24 frames"):
        motion_scores(truth(episode), scene(24), start=12)
    with pytest.raises(ConfigError, match="one sample"):
        spread_scores([], episode, start=24)
