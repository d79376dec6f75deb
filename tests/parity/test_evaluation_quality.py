"""PSNR, SSIM, set distances, FVD's preprocessing and LPIPS equal the recorded tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onereel.core.errors import CheckpointError
from onereel.evaluation.parity import run_folder
from onereel.evaluation.parity.evaluation import run

GOLDENS = Path(__file__).parent / "evaluation_quality"


def _copy(folder: Path) -> Path:
    shutil.copytree(GOLDENS, folder)
    return folder


def _index(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_golden_case_passes() -> None:
    results = list(run_folder(GOLDENS))
    assert [r for r in results if not r.passed] == []
    assert len(results) == 4 + 2 * 2 + 1 + 2 * 2
    assert len({r.name for r in results}) == len(results)


def test_wrong_goldens_fail(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "goldens") / "quality"
    with np.load(folder / "arrays.npz") as data:
        arrays = {name: data[name] for name in data.files}
    arrays["fvd_pre_tall_sub"] = arrays["fvd_pre_tall_sub"][:, :, ::-1]
    arrays["feat|0|x"] = arrays["feat|0|x"] * np.float32(1.001)
    arrays["b"] = np.roll(arrays["b"], 1, axis=2)
    np.savez_compressed(folder / "arrays.npz", **arrays)
    _index(folder, family="evaluation")
    failed = {r.name for r in run(folder) if not r.passed}
    assert failed == {
        *(f"quality.{name}" for name in ("psnr_per_frame", "psnr", "psnr_global", "ssim")),
        *(f"distance.0.rankdef.{name}" for name in ("frechet_distance", "polynomial_mmd")),
        "quality.fvd_in_tall",
    }


def test_a_folder_may_hold_some_of_the_sets(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "goldens")
    sets = json.loads((folder / "index.json").read_text())["sets"]
    _index(folder, sets={"quality": sets["quality"]})
    shutil.rmtree(folder / "lpips")
    assert {r.name.split(".")[0] for r in run(folder)} == {"quality", "distance"}


def test_an_unknown_set_is_a_failed_case(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "goldens")
    _index(folder, sets={"sharpness": {}})
    (result,) = run(folder)
    assert not result.passed and result.name == "sharpness.set"
    assert "lpips" in result.note


def test_a_set_may_name_itself(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "goldens")
    (folder / "quality").rename(folder / "other")
    _index(folder / "other", family="evaluation", set="quality")
    assert all(r.passed for r in run_folder(folder / "other"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "sha256"),
    ],
    ids=["missing", "cut off", "changed"],
)
def test_files_that_are_not_the_recorded_ones_are_refused(
    tmp_path: Path, change: object, message: str
) -> None:
    folder = _copy(tmp_path / "goldens")
    change(folder / "lpips" / "arrays.npz")
    with pytest.raises(CheckpointError, match=message):
        list(run(folder))
