"""VBench's formulas, preprocessing and RAFT equal the recorded official code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.evaluation.parity.evaluation_vbench import vbench_cases
from onereel.evaluation.vbench import preprocess

GOLDENS = Path(__file__).parent / "evaluation_vbench"
STEP = 19  # of what is kept in preprocess.npz; 21 for MUSIQ


def test_every_golden_case_passes() -> None:
    results = list(vbench_cases(GOLDENS))
    assert [r for r in results if not r.passed] == []
    assert len({r.name for r in results}) == len(results)
    index = json.loads((GOLDENS / "index.json").read_text())
    sampling = len(index["get_frame_indices_middle"]) + len(index["prompt_from_filename"])
    dynamic = 4 * len(index["dynamic_degree_logic"]["cases"])
    boxes = len(index["spatial_relationship"]) + len(index["color"])
    raft = 2 + len(index["raft"]["probe"]) + 1 + 3
    others = 1 + 7 + 6 * len(index["total_score"]) + len(index["camera_motion"]["cases"])
    assert len(results) == sampling + dynamic + boxes + raft + others


def _failed(folder: Path, index: dict[str, Any]) -> list[str]:
    (folder / "index.json").write_text(json.dumps(index))
    return [r.name for r in vbench_cases(folder) if not r.passed]


def test_wrong_goldens_fail(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS, tmp_path, dirs_exist_ok=True)
    with np.load(tmp_path / "arrays.npz") as data:
        arrays = {name: data[name] for name in data.files}
    arrays["feat|fall"] = arrays["feat|fall"][::-1]
    arrays["i2v|image_feature"] = -arrays["i2v|image_feature"]
    arrays["aes|b"] = arrays["aes|b"] + 1e-4
    arrays["raft|low_1"] = arrays["raft|low_1"] + 2e-4
    arrays["pre_in|fall"] = 255 - arrays["pre_in|fall"]
    del arrays["raft|low_20"]
    np.savez(tmp_path / "arrays.npz", **arrays)
    index = json.loads((tmp_path / "index.json").read_text())
    index["camera_motion"]["cases"][0]["classes"] = ["pan_left"]
    index["color"][0]["object_frames_color_frames"] = [3, 1]
    index["dynamic_degree_logic"]["cases"][1]["moved"] = False
    index["total_score"][0]["i2v_total"] += 1e-6
    assert _failed(tmp_path, index) == [
        "pre|clip_t|uint8|fall",
        "subject_consistency fall",
        "background_consistency fall",
        "aesthetic_quality fall",
        "i2v_subject fall",
        "dynamic_degree 1 fall verdict",
        "color 0 red car",
        "camera_motion 0",
        "total 0 i2v total",
        "raft low 1",
    ]


def test_other_weights_fail_without_an_exception(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS, tmp_path, dirs_exist_ok=True)
    raft = json.loads((tmp_path / "index.json").read_text())["raft"]
    del raft["keys"]["fnet.conv2.bias"]
    raft["probe"] = {"fnet.conv1.weight": [0.0, 0.0, 0.0]}
    assert _failed(tmp_path, {"raft": raft}) == [
        "raft keys and shapes",
        "raft probe fnet.conv1.weight",
        "raft flow",
    ]


def _kept(values: torch.Tensor, step: int) -> torch.Tensor:
    return values[..., ::step, ::step]


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("name", ["clip_t", "dino_t", "i2v_dino_t", "i2v_clip_t", "dreamsim_t"])
def test_frames_are_prepared_exactly(name: str, kind: str) -> None:
    prepare = {
        "clip_t": lambda x: preprocess.clip_frames(x, 56),
        "dino_t": lambda x: preprocess.dino_frames(x, 56),
        "i2v_dino_t": lambda x: preprocess.i2v_dino_frames(x, 56, side=64),
        "i2v_clip_t": lambda x: preprocess.clip_frames(x, 56, antialias=True),
        "dreamsim_t": lambda x: preprocess.dreamsim_frames(x, 56),
    }[name]
    with np.load(GOLDENS / "arrays.npz") as data:
        frames = torch.from_numpy(data["pre_in|fall"])
    with np.load(GOLDENS / "preprocess.npz") as data:
        want = torch.from_numpy(data[f"pre|{name}|{kind}|fall"])
    got = _kept(prepare(frames.float() if kind == "float" else frames), STEP)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip_pil", "dino_pil", "i2v_dino_pil", "dreamsim_pil"])
def test_pictures_are_prepared_exactly(name: str) -> None:
    with np.load(GOLDENS / "arrays.npz") as data:
        pixels = np.ascontiguousarray(data["pre_in|fall"][0].transpose(1, 2, 0))
    with np.load(GOLDENS / "preprocess.npz") as data:
        want = torch.from_numpy(data[f"pre|{name}|fall"])[0]
    image = Image.fromarray(pixels)
    got = {
        "clip_pil": lambda: preprocess.clip_image(image, 56),
        "dino_pil": lambda: preprocess.dino_image(image, 56),
        "i2v_dino_pil": lambda: preprocess.i2v_dino_image(image, 56, side=64),
        "dreamsim_pil": lambda: preprocess.dreamsim_image(image, 56),
    }[name]()
    torch.testing.assert_close(_kept(got, STEP), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["longer", "shorter", "shorter_centercrop", "None"])
def test_musiq_modes_are_exact(mode: preprocess.MusiqMode) -> None:
    with np.load(GOLDENS / "preprocess.npz") as data:
        small, want = data["musiq_in_small"], torch.from_numpy(data[f"musiq|{mode}"])
    frames = torch.from_numpy(small.repeat(16, axis=2).repeat(15, axis=3)).float()
    got = preprocess.musiq_frames(frames, mode)[:, :, ::7, ::7]
    torch.testing.assert_close(_kept(got, 21), want, atol=1e-6, rtol=0)
