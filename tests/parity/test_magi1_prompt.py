"""Special tokens and caption rows against outputs of the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onereel.evaluation.parity.prompt_cases import (
    flags_from_environment,
    run_prompt_case,
    run_token_rows_case,
)
from onereel.models.text import ConditioningFlags

GOLDENS = Path(__file__).parent / "magi1_prompt"
CASES = {case["id"]: case for case in json.loads((GOLDENS / "index.json").read_text())["cases"]}
PROMPTS = [case for case in CASES.values() if case["kind"] == "prompt"]


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["id"])
def test_rows_equal_the_recorded_ones(case: dict[str, Any]) -> None:
    results = run_prompt_case(GOLDENS, case)
    assert len(results) == 8
    assert [result.name for result in results if not result.passed] == []


def test_token_names_find_their_rows() -> None:
    (result,) = run_token_rows_case(GOLDENS, CASES["token_rows"])
    assert result.passed


def test_other_flags_fail() -> None:
    case = CASES["prompt_10_n3_off0_len17"]
    env = {"PAD_HQ": "1"}
    failed = {
        r.name.split("/")[1] for r in run_prompt_case(GOLDENS, case | {"env": env}) if not r.passed
    }
    assert {"cond_first", "cond_mask_len", "null_first"} <= failed


def test_environment_values() -> None:
    env = {"PAD_HQ": "Yes", "PAD_DURATION": "2", "PAD_2D_ANIME": "1", "NEG_PROMPT": "on"}
    assert flags_from_environment(env) == ConditioningFlags(hq=True, negative=True)
