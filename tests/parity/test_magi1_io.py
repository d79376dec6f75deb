"""Media input equals ffmpeg's, and the bookkeeping equals the official code's."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onereel.evaluation.parity.magi1_io import official_frames, run

GOLDENS = Path(__file__).parent / "magi1_io"


def test_every_golden_case_passes() -> None:
    results = list(run(GOLDENS))
    assert [r.name for r in results if not r.passed] == []
    kinds = {r.name.split()[0] for r in results}
    assert kinds == {"image", "video", "fps", "bookkeeping"}
    rows = len(json.loads((GOLDENS / "frame_bookkeeping.json").read_text())["rows"])
    assert len(results) == 11 + 3 + 10 + rows


def test_pixels_are_exact_where_the_goldens_were_made() -> None:
    same_build = platform.machine() == "x86_64" and av.library_versions["libswscale"][0] == 9
    if not same_build:
        pytest.skip("another build of swscale may differ by two levels")
    assert [r.name for r in run(GOLDENS) if r.max_error != 0] == []


def test_a_wrong_golden_fails(tmp_path: Path) -> None:
    folder = tmp_path / "io"
    shutil.copytree(GOLDENS, folder)
    outputs = load_file(folder / "preprocess.safetensors")
    outputs["img0.crop"] = np.roll(outputs["img0.crop"], 1, axis=2)
    outputs["vid2.first32"] = outputs["vid2.first32"][:-1].copy()
    save_file(outputs, folder / "preprocess.safetensors")
    failed = [r.name for r in run(folder) if not r.passed]
    assert failed == ["image img0.crop", "video vid2.first32"]


@pytest.mark.parametrize(("latents", "frames"), [(6, 24), (4, 13), (1, 1), (5, 20), (3, 12)])
def test_official_tiles_lose_frames(latents: int, frames: int) -> None:
    assert official_frames(latents) == frames
