from __future__ import annotations

import json
from pathlib import Path

import pytest

from onereel.apps.cli.main import main
from onereel.apps.cli.parity import report
from onereel.evaluation.parity.case import CaseResult

GOOD = CaseResult("rope", True, 1e-7, 1e-5)
BAD = CaseResult("forward", False, 0.25, 1e-5, "3 of 4 values differ")
LOST = CaseResult("shape", False, float("inf"), 1e-5, "shape (1,) instead of (2,)")


def test_one_line_per_case_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([GOOD, BAD]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pass  rope  error 1.00e-07  tolerance 1.00e-05",
        "FAIL  forward  error 2.50e-01  tolerance 1.00e-05  3 of 4 values differ",
        "1 passed, 1 failed",
    ]


def test_json_lines_are_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([GOOD, LOST], as_json=True) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = capsys.readouterr().out.splitlines()
    first, second, last = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first == {
        "name": "rope",
        "passed": True,
        "max_error": 1e-7,
        "tolerance": 1e-5,
        "note": "",
    }
    assert second["max_error"] == "inf"
    assert last == {"passed": 1, "failed": 1}


@pytest.mark.parametrize(("results", "code"), [([GOOD], 0), ([GOOD, BAD], 1), ([], 1)])
def test_exit_code(results: list[CaseResult], code: int) -> None:
    assert report(results) == code


def test_a_folder_that_is_none_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(tmp_path / "nowhere")]) == 3
    assert "index.json" in capsys.readouterr().err


def test_a_recorded_folder_passes(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[1] / "parity" / "magi1_text"
    assert main(["parity", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 0 failed")
