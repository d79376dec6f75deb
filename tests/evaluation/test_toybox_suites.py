from __future__ import annotations

import numpy as np
import pytest

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.evaluation.toybox.suites import SUITES, find_suite, make_cases, true_episode
from onereel.world import caption, fixed_prompts, render


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_always_the_same_and_half_of_it_is_held_out(name: str) -> None:
    cases = make_cases(name, limit=8, samples=2)
    assert cases == make_cases(name, limit=8, samples=2)
    assert len({case.name for case in cases}) == len(cases)
    if not SUITES[name].fixed:
        assert sum(case.held_out for case in cases) == len(cases) / 2
    for case in cases:
        assert len(case.made_specs) == len(case.texts)
        assert case.held_out == case.specs[0].is_held_out()


def test_the_noise_depends_on_the_seed_and_the_scene_does_not() -> None:
    first, second = make_cases("standard", limit=3), make_cases("standard", limit=3, seed=1)
    assert [c.texts for c in first] == [c.texts for c in second]
    assert [c.world_seed for c in first] == [c.world_seed for c in second]
    assert not {c.noise_seed for c in first} & {c.noise_seed for c in second}
    assert len({c.noise_seed for c in first}) == len(first)


def test_sizes_of_the_suites() -> None:
    counts = {name: len(make_cases(name)) for name in ("quick", "standard", "long")}
    assert counts == {"quick": 16, "standard": 256 * 5, "long": 16}
    assert {case.num_frames for case in make_cases("long")} == {60 * 24}
    assert {case.given_frames for case in make_cases("v2v", limit=1)} == {24, 72}
    assert {case.num_frames for case in make_cases("v2v", limit=1)} == {5 * 24}


def test_quick_is_the_fixed_prompts_and_prompts_say_what_is_scored() -> None:
    assert [c.texts[0] for c in make_cases("quick")] == [text for text, _ in fixed_prompts()]
    for case in make_cases("standard", limit=20, samples=1):
        assert case.texts == (caption(case.specs[0]),) * 4


def test_scenes_come_from_seeds_that_training_never_uses() -> None:
    streams = {derive_seed(seed, "toybox", i) for seed in range(20) for i in range(500)}
    drawn = {c.world_seed for n in ("standard", "v2v", "i2v") for c in make_cases(n, samples=1)}
    assert not drawn & streams


def test_a_changing_prompt_says_what_changes() -> None:
    for case in make_cases("timeline", limit=4, samples=1):
        assert len(set(case.texts)) > 1
        at = next(i for i, spec in enumerate(case.specs) if spec != case.specs[0])
        assert case.texts[at] != case.texts[0] and case.texts[:at] == (case.texts[0],) * at


def test_the_truth_goes_on_from_what_was_given() -> None:
    case = next(c for c in make_cases("v2v", limit=1) if c.given_frames == 72)
    episode = true_episode(case, height=32, width=32)
    assert episode.num_frames == 72 + 120
    shorter = next(c for c in make_cases("v2v", limit=1) if c.given_frames == 24)
    early = true_episode(shorter, height=32, width=32)
    assert np.array_equal(render(early, stop=24), render(episode, stop=24))


def test_wrong_wishes_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        find_suite("standart")
    with pytest.raises(ConfigError, match="limit: expected at least 1"):
        make_cases("quick", limit=0)
    with pytest.raises(ConfigError, match="num_frames: expected more than 24"):
        make_cases("timeline", num_frames=24)
