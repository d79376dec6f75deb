"""The text room against outputs of the official code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from onereel.evaluation.parity import magi1_text

GOLDENS = Path(__file__).parent / "magi1_text"


def test_every_case_passes() -> None:
    results = list(magi1_text.run(GOLDENS))
    assert len(results) == 60 + 2 * 3
    assert [result.name for result in results if not result.passed] == []


def test_a_wrong_record_fails(tmp_path: Path) -> None:
    folder = tmp_path / "goldens"
    shutil.copytree(GOLDENS, folder)
    cleaning = folder / "text_cleaning.json"
    cases = json.loads(cleaning.read_text(encoding="utf-8"))
    cases["cases"][0]["twice"] = "bad boy"
    cleaning.write_text(json.dumps(cases), encoding="utf-8")
    index = folder / "tiny_t5_index.json"
    described = json.loads(index.read_text())
    described["config"]["relative_attention_max_distance"] = 16
    index.write_text(json.dumps(described))
    failed = {result.name for result in magi1_text.run(folder) if not result.passed}
    assert "clean_00" in failed
    assert any(name.startswith("t5_") for name in failed)
