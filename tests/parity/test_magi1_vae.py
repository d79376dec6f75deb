"""Recordings of the official VAE: two small configs, every operation without tiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError, ConfigError
from onereel.evaluation.parity import run_folder

FOLDER = Path(__file__).parent / "magi1_vae"


def test_every_recorded_output_is_reproduced() -> None:
    results = list(run_folder(FOLDER))
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    assert len(results) == sum(len(case["outputs"]) for case in index["cases"])
    assert [result for result in results if not result.passed] == []
    # Variances reach 16, where processors' exp differs by 2e-5; the index allows 1e-4.
    small = [r for r in results if r.name.startswith(("B_", "C_")) and not r.name.endswith(".var")]
    assert max(r.max_error for r in small) < 1e-5


def test_a_wrong_value_fails(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "vae")
    path = tmp_path / "vae" / "C_cases.safetensors"
    tensors = load_file(path)
    tensors["C_dec_native.out.video"][0, 1, 2, 3, 4] += 1e-3
    save_file(tensors, path)
    failed = [result.name for result in run_folder(tmp_path / "vae") if not result.passed]
    assert failed == ["C_dec_native.video"]


def test_an_official_error_passes_when_ours_says_why(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "vae")
    path = tmp_path / "vae" / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    case = next(case for case in index["cases"] if case["name"] == "B_enc_native")
    case |= {"op": "tiled_encode", "outputs": {}, "official_error": "division by zero"}
    case["args"] = {
        "tile_sample_min_height": 32,
        "tile_sample_min_width": 32,
        "tile_sample_min_length": 1,
        "spatial_tile_overlap_factor": 0.25,
        "temporal_tile_overlap_factor": 0.0,
        "allow_spatial_tiling": True,
    }
    index["cases"] = [case]
    path.write_text(json.dumps(index), encoding="utf-8")
    (result,) = run_folder(tmp_path / "vae")
    assert result.passed
    assert "tile length" in result.note


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable index"):
        run_folder(tmp_path)
    (tmp_path / "index.json").write_text('{"family": "magi_vae"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean 'magi1_vae'"):
        run_folder(tmp_path)
    shutil.copytree(FOLDER, tmp_path / "vae")
    path = tmp_path / "vae" / "index.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"decode"', '"dekode"'))
    with pytest.raises(ConfigError, match="dekode"):
        list(run_folder(tmp_path / "vae"))
