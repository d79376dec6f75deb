"""Physics-IQ equals the official tool: a cut of its recorded masks and columns, and its scores.

The folder holds eight frames of one view, whose masks and per-frame numbers do not depend on later
frames, and in `columns.json` the official table of three models, from which its scores follow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onereel.evaluation.parity.evaluation_physics_iq import physics_iq_cases
from onereel.evaluation.physics_iq.official_csv import COLUMNS, cells_row
from onereel.evaluation.physics_iq.scoring import score

GOLDENS = Path(__file__).parent / "evaluation_physics_iq"


def test_every_golden_case_passes() -> None:
    results = list(physics_iq_cases(GOLDENS))
    assert [r.name for r in results if not r.passed] == []
    # Three clips with their masks, and the six columns that hold a number per frame.
    assert len(results) == 3 + 3 + 6


def _change(folder: Path, change: str) -> None:
    index = json.loads((folder / "index.json").read_text())
    model = index["models"]["othersize"]
    rows = model["per_scenario"]["trimmed-square-collide"]
    if change == "mask":
        with np.load(folder / "masks.npz") as archive:
            masks = dict(archive)
        masks["trimmed-square-collide|perspective-right|take-2"][5, 50, 3] ^= 16
        np.savez_compressed(folder / "masks.npz", **masks)
    elif change == "metric":
        rows["v1_mse_perspective-right"][3] += 3e-7
    elif change == "column":
        rows["v3_mse_perspective-right"] = [0.0]
    elif change == "number":
        model["physics_iq_score_v2"] = 1.0
    elif change == "clip":
        index["scenarios"]["trimmed-square-collide"]["perspective-right"]["take-1"]["sha256"] = ""
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ("mask", "mask trimmed-square-collide|perspective-right|take-2"),
        ("metric", "othersize trimmed-square-collide v1_mse_perspective-right"),
        ("column", "othersize trimmed-square-collide v3_mse_perspective-right"),
        ("number", "othersize physics_iq_score_v2"),
        ("clip", "clip trimmed-square-collide|perspective-right|take-1"),
    ],
)
def test_a_wrong_or_unknown_golden_fails(tmp_path: Path, change: str, failed: str) -> None:
    folder = Path(shutil.copytree(GOLDENS, tmp_path / "goldens"))
    _change(folder, change)
    assert [r.name for r in physics_iq_cases(folder) if not r.passed] == [f"physics_iq.{failed}"]


@pytest.mark.parametrize("name", ["near", "static", "othersize"])
def test_the_score_of_official_columns_is_the_official_score(name: str) -> None:
    recorded = json.loads((GOLDENS / "columns.json").read_text())
    model, rows = recorded["models"][name], []
    for scenario, cells in model["per_scenario"].items():
        cells = {**cells, **recorded["variance"][scenario]}
        for column in COLUMNS:  # the second take enters no score and was left out
            for view in ("left", "center", "right"):
                first = f"{column}_perspective-{view}".replace("v2", "v1")
                cells.setdefault(f"{column}_perspective-{view}", cells[first])
        rows.append(cells_row(scenario, cells))
    got = score(rows)
    assert got.score == model["physics_iq_score"]
    assert got.unclipped == pytest.approx(model["raw_unclipped_score"], abs=1e-6)
    assert got.variance_sum == model["physical_variance_all_metrics"]
    assert got.variance.spatial == model["physical_variance"]["spatial"]
    assert got.means.mse == pytest.approx(model["means"]["mse"], abs=1e-9)
