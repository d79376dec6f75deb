"""Laws: kept by the simulator in every scene, and each one seen to be broken."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from onereel.evaluation.toybox.laws import LAW_SCORES, law_scores
from onereel.evaluation.toybox.tracks import Track, Tracking, truth
from onereel.world import SceneSpec, fixed_prompts, sample_spec, simulate

LIMITS = {
    "g_err": 1e-5,
    "g_residual": 1e-4,
    "e_err": 1e-5,
    "momentum_err": 1e-4,
    "energy_gain": 0.03,
    "penetration": 0.0,
    "teleport": 0.0,
    "id_switches": 0.0,
}


def prompt(word: str) -> SceneSpec:
    return next(spec for text, spec in fixed_prompts() if word in text)


def film(spec: SceneSpec, num_frames: int = 96) -> Tracking:
    return truth(simulate(spec, 0, num_frames=num_frames))


def with_tracks(tracking: Tracking, *tracks: Track) -> Tracking:
    return dataclasses.replace(tracking, tracks=tracks)


def keep(one: Track, rows: np.ndarray) -> Track:
    names = ("frames", "x", "y", "r", "cut", "rgb")
    return dataclasses.replace(one, **{name: getattr(one, name)[rows] for name in names})


@pytest.mark.parametrize(("num_frames", "start"), [(96, 0), (192, 72)])
def test_the_simulator_keeps_its_laws(num_frames: int, start: int) -> None:
    rng = np.random.default_rng(3)
    judged = dict.fromkeys(LAW_SCORES, 0)
    for seed in range(120):
        spec = sample_spec(rng)
        episode = simulate(spec, seed, num_frames=num_frames)
        scores = law_scores(
            truth(episode), spec, start=start, episode=episode if seed % 2 else None
        )
        assert tuple(scores) == LAW_SCORES
        for name, value in scores.items():
            judged[name] += not math.isnan(value)
            good = value == 1.0 if name == "permanence" else not value > LIMITS[name]
            assert math.isnan(value) or good, (seed, spec.motion, name, value)
    assert all(judged.values())


def test_gravity_is_measured() -> None:
    spec = prompt("purple diamond falls")
    tracking = film(spec, 48)
    one = tracking.tracks[0]
    half = dataclasses.replace(one, y=one.y[-1] + 0.5 * (one.y - one.y[-1]))
    assert law_scores(with_tracks(tracking, half), spec)["g_err"] == pytest.approx(0.5, abs=0.01)
    hovering = dataclasses.replace(one, y=one.y * 0 + 20.0)
    assert law_scores(with_tracks(tracking, hovering), spec)["g_err"] == 1.0
    lying = dataclasses.replace(one, y=one.y * 0 + one.y[-1])
    assert math.isnan(law_scores(with_tracks(tracking, lying), spec)["g_err"])


def test_restitution_is_compared_with_the_true_one() -> None:
    spec = prompt("red disc bounces")
    episode = simulate(spec, 0, num_frames=120)
    other = next(
        simulate(spec, seed, num_frames=120)
        for seed in range(1, 30)
        if law_scores(truth(simulate(spec, seed, num_frames=120)), spec, episode=episode)["e_err"]
        > 0.1
    )
    assert law_scores(truth(other), spec)["e_err"] < 1e-5  # lawful for some ball, not for this one
    assert law_scores(truth(other), spec, episode=episode)["e_err"] in (
        pytest.approx(0.2, abs=1e-3),
        pytest.approx(0.4, abs=1e-3),
    )


def test_momentum_that_vanishes_is_seen() -> None:
    spec = prompt("hits")
    tracking = film(spec)
    assert law_scores(tracking, spec)["momentum_err"] < 1e-4
    target = next(t for t in tracking.tracks if t.colour == spec.objects[1].colour)
    mover = next(t for t in tracking.tracks if t is not target)
    wall = dataclasses.replace(target, x=target.x * 0 + target.x[0], y=target.y * 0 + target.y[0])
    assert law_scores(with_tracks(tracking, mover, wall), spec)["momentum_err"] > 0.9


def test_objects_inside_each_other_are_seen() -> None:
    spec = prompt("hits")
    tracking = film(spec)
    mover, target = tracking.tracks
    inside = dataclasses.replace(target, x=mover.x + 1.0, y=mover.y)
    assert law_scores(with_tracks(tracking, mover, inside), spec)["penetration"] == 1.0


def test_energy_from_nowhere_is_seen() -> None:
    spec = prompt("blue square moves")
    tracking = film(spec)
    one = tracking.tracks[0]
    time = np.arange(96)
    faster = dataclasses.replace(one, x=one.x[0] - 0.1 * time - 0.002 * time**2)
    assert law_scores(with_tracks(tracking, faster), spec)["energy_gain"] > 1.0


@pytest.mark.parametrize(
    ("edit", "value"),
    [
        ({}, 1.0),
        ({"r": 1.3}, 0.0),
        ({"y": 15.0}, 0.0),
        ({"shape": "square"}, 0.0),
        ({"colour": "blue"}, 0.0),
    ],
)
def test_what_comes_back_from_behind_the_slab_must_be_the_same(
    edit: dict[str, float | str], value: float
) -> None:
    spec = prompt("slab")
    tracking = film(spec, 60)
    one = tracking.tracks[0]
    after = one.frames > 30
    back = keep(one, after)
    if "y" in edit:
        back = dataclasses.replace(back, y=back.y + edit["y"])
    elif "r" in edit:
        back = dataclasses.replace(back, r=back.r * edit["r"])
    else:
        back = dataclasses.replace(back, **edit)
    changed = with_tracks(tracking, keep(one, ~after), back)
    # another colour is another object: the first one never comes back
    assert law_scores(changed, spec)["permanence"] == value


def test_teleports_and_handovers_are_counted() -> None:
    spec = prompt("blue square moves")
    tracking = film(spec)
    one = tracking.tracks[0]
    jumped = dataclasses.replace(one, y=one.y + 25.0 * (one.frames >= 50))
    assert law_scores(with_tracks(tracking, jumped), spec)["teleport"] == pytest.approx(1 / 95)
    first, second = keep(one, one.frames < 40), keep(one, one.frames >= 41)
    taken = with_tracks(tracking, first, dataclasses.replace(second, colour="red"))
    assert law_scores(taken, spec)["id_switches"] == 1.0
    later = with_tracks(tracking, first, keep(one, one.frames >= 60))
    assert law_scores(later, spec)["id_switches"] == 0.0
