"""Stored sampling settings and a user's wishes."""

from __future__ import annotations

import pytest

from onereel.core.errors import ConfigError
from onereel.pipelines.sampling import (
    SamplingWishes,
    make_config,
    round_steps,
    sample_config,
    step_unit,
    with_guidance,
)

STORED = {
    "num_steps": 8,
    "height": 64,
    "text_scales": [4.0, 4.0, 4.0, 1.0, 0.0],
    "prev_chunk_scales": [1.5, 1.5, 1.0, 1.0, 1.0],
}


def test_stored_settings_and_changes() -> None:
    config = sample_config(STORED, window_size=2, num_steps=None)
    assert config.num_steps == 8 and config.window_size == 2
    assert config.text_scales == (4.0, 4.0, 4.0, 1.0, 0.0)
    with pytest.raises(ConfigError, match="did you mean 'num_steps'"):
        sample_config(STORED, num_stepz=8)


def test_guidance_replaces_only_where_there_is_guidance() -> None:
    config = sample_config(STORED)
    assert with_guidance(config, 7.0).text_scales == (7.0, 7.0, 7.0, 1.0, 0.0)
    assert with_guidance(config, None, prev_chunk_scale=2.0).prev_chunk_scales == (2, 2, 1, 1, 1)
    plain = sample_config(STORED, text_scales=(1.0, 1.0, 1.0, 1.0, 0.0))
    assert with_guidance(plain, 7.0).text_scales == (7.0, 7.0, 7.0, 7.0, 0.0)


def test_guidance_of_one_is_a_single_pass_everywhere() -> None:
    config = with_guidance(sample_config(STORED), 1.0)
    assert set(config.text_scales) == set(config.prev_chunk_scales) == {1.0}


def test_distilled_settings_know_no_guidance() -> None:
    config = make_config(STORED, SamplingWishes(guidance_scale=7.0), distilled=True)
    assert config.distilled and config.text_scales == (4.0, 4.0, 4.0, 1.0, 0.0)


def test_steps_follow_window_and_kv_ranges() -> None:
    assert step_unit({}) == 4
    assert step_unit({"window_size": 3, "noise2clean_kvrange": [3, 2]}) == 6
    assert step_unit({"window_size": 5, "noise2clean_kvrange": []}) == 5
    assert round_steps(12, {"window_size": 3}) == 12
    with pytest.warns(UserWarning, match="10 is not a multiple of 4; using 12"):
        assert round_steps(10, {}) == 12
