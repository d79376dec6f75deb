"""Physics-IQ on Toybox: second takes, views, and where model and anchors end up."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from onereel.core.errors import ConfigError, ShapeError
from onereel.evaluation.physics_iq import make_clip
from onereel.evaluation.toybox import retake as retakes
from onereel.evaluation.toybox.physics import (
    ENLARGE,
    MIRRORED,
    PLAIN,
    SMALLER,
    VIEWS,
    PhysicsScenario,
    ScenarioRows,
    physics_scenarios,
    score_scenario,
    sum_up,
)
from onereel.evaluation.toybox.retake import MOTIONS, retake
from onereel.world import Episode, SceneSpec, sample_spec, simulate

GIVEN, MADE = 12, 16


def scene(motion: str, seed: int = 5, *, frames: int = 96) -> tuple[Episode, SceneSpec]:
    spec = sample_spec(np.random.default_rng(seed), motions=[motion])
    return simulate(spec, seed, num_frames=frames), spec


@functools.cache
def scenario(motion: str) -> PhysicsScenario:
    return PhysicsScenario(
        name=motion,
        spec=scene(motion, frames=1)[1],
        seed=5,
        conditioning_frames=GIVEN,
        testing_frames=MADE,
    )


@functools.cache
def takes(motion: str, take: int) -> dict[str, np.ndarray]:
    return {view: v[GIVEN:] for view, v in scenario(motion).recordings(take).items()}


@functools.cache
def rows(motion: str, contestant: str) -> ScenarioRows:
    if contestant == "freeze":
        full = scenario(motion).recordings(1)
        made = {view: np.repeat(v[GIVEN - 1 : GIVEN], MADE, axis=0) for view, v in full.items()}
    else:
        made = takes(motion, {"truth": 1, "oracle": 3}[contestant])
    return score_scenario(scenario(motion), made)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("seed", [5, 6])
def test_without_a_shift_the_scene_comes_back(
    motion: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retakes, "PLACE_PX", 0.0)
    monkeypatch.setattr(retakes, "SPEED_SHARE", 0.0)
    episode, spec = scene(motion, seed)
    again = retake(episode, spec, take=2, seed=seed)
    np.testing.assert_allclose(again.state, episode.state, atol=0.02)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_take_starts_a_hair_differently(motion: str) -> None:
    episode, spec = scene(motion)
    again = retake(episode, spec, take=2, seed=5)
    apart = np.abs(again.state - episode.state)
    assert apart[0, :, :2].max() < 1.5
    assert 0 < apart[0, :, :4].max()  # what starts in a corner starts there again, but faster
    speed = np.abs(episode.state[0, :, 2:4])
    assert (apart[0, :, 2:4] <= 0.1 * speed + 1e-6).all()
    assert (apart[..., 4:] == 0).all()
    assert retake(episode, spec, take=1, seed=5) is episode
    third = retake(episode, spec, take=3, seed=5)
    assert np.abs(third.state - again.state).max() > 0
    same = retake(episode, spec, take=2, seed=5)
    np.testing.assert_array_equal(same.state, again.state)


def test_collisions_amplify_the_difference() -> None:
    far, near = (scene(motion, frames=96) for motion in ("collide", "gravity"))
    apart = [
        np.abs(retake(e, s, take=2, seed=5).state[-1, :, :2] - e.state[-1, :, :2]).max()
        for e, s in (far, near)
    ]
    assert apart[0] > 3 * apart[1]


@pytest.mark.parametrize("motion", ["pan", "appear"])
def test_other_scenes_have_no_takes(motion: str) -> None:
    episode, spec = scene(motion)
    with pytest.raises(ConfigError, match="a still camera on linear"):
        retake(episode, spec, take=2, seed=5)


def test_an_episode_of_other_physics_is_refused() -> None:
    episode, spec = scene("bounce")
    episode.state[40:, 0, 1] -= 5.0
    with pytest.raises(ConfigError, match="got another path"):
        retake(episode, spec, take=2, seed=5)


def test_views_show_the_same_simulation() -> None:
    views = takes("occlude", 1)
    assert tuple(views) == VIEWS
    np.testing.assert_array_equal(views[MIRRORED], views[PLAIN][:, :, ::-1])
    colourful = {view: np.ptp(v.astype(int), axis=-1)[0] > 60 for view, v in views.items()}
    ratio = colourful[SMALLER].sum() / colourful[PLAIN].sum()
    assert ratio == pytest.approx(0.9**2, abs=0.1)
    columns = {v: np.nonzero(c)[1].mean() for v, c in colourful.items()}
    moved = 0.9 * (columns[PLAIN] - 31.5) + 31.5 + 0.03 * 64
    assert columns[SMALLER] == pytest.approx(moved, abs=0.5)


def test_the_mirrored_view_is_described_as_it_looks() -> None:
    given = dataclasses.replace(
        scenario("linear"),
        spec=dataclasses.replace(scenario("linear").spec, direction="right"),
    )
    assert "right" in given.text(PLAIN)
    assert given.text(PLAIN) == given.text(SMALLER)
    assert "left" in given.text(MIRRORED)


def test_enlarging_is_taken_back() -> None:
    video = takes("linear", 1)[PLAIN][:2]
    large = video.repeat(ENLARGE, axis=1).repeat(ENLARGE, axis=2)
    np.testing.assert_array_equal(make_clip(large).frames, video)


def test_scenarios_are_fixed_and_take_turns() -> None:
    many = physics_scenarios(12)
    assert many[:4] == physics_scenarios(4)
    assert [s.spec.motion for s in many[:6]] == list(MOTIONS)
    assert [s.spec.is_held_out() for s in many] == [False] * 6 + [True] * 6
    with pytest.raises(ConfigError, match="positive"):
        physics_scenarios(0)


@pytest.mark.parametrize("motion", ["linear", "bounce"])
def test_anchors_are_the_ends_of_the_scale(motion: str) -> None:
    freeze, oracle = sum_up([rows(motion, "freeze")]), sum_up([rows(motion, "oracle")])
    assert freeze.relative == pytest.approx(0.0)
    assert oracle.relative == pytest.approx(1.0)
    values = oracle.values()
    assert values["piq_freeze"] < 60 < values["piq_oracle"]
    assert values["piq_mse"] < 0.01
    assert set(values) >= {"piq_score", "piq_rel", "piq_spatial", "piq_variance_spatial"}


def test_the_truth_itself_is_above_the_oracle() -> None:
    found = sum_up([rows(motion, "truth") for motion in ("linear", "bounce")])
    assert found.relative is not None
    assert found.relative > 1.0
    assert found.model.means.spatial == 1.0
    assert found.model.means.mse == 0.0


def test_wrong_views_and_lengths_are_refused() -> None:
    made = takes("linear", 1)
    with pytest.raises(ConfigError, match="views"):
        score_scenario(scenario("linear"), {PLAIN: made[PLAIN]})
    with pytest.raises(ShapeError, match="expected 16 frames, got 12"):
        score_scenario(scenario("linear"), {view: v[:12] for view, v in made.items()})
