"""Two folders against each other: values, what is named, what is never scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.networks.lpips import Lpips
from onereel.evaluation.pairs import evaluate_pair
from onereel.evaluation.quality import psnr, ssim


def _video(seed: int, num_frames: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 32, 36, 3), np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, first in (("a", 0), ("b", 10)):
        (tmp_path / name).mkdir()
        for i in range(3):
            np.savez(tmp_path / name / f"{i}.npz", frames=_video(first + i), fps=24)
    return tmp_path / "a", tmp_path / "b"


def test_means_are_over_videos_and_rows_are_kept(folders: tuple[Path, Path]) -> None:
    steps: list[tuple[int, int]] = []
    result = evaluate_pair(*folders, progress=lambda *step: steps.append(step))
    want = [psnr(_video(i), _video(10 + i)) for i in range(3)]
    assert result.metrics["psnr"].mean == pytest.approx(np.mean(want))
    assert [row.values["psnr"] for row in result.rows] == want
    assert result.rows[1].values["ssim"] == ssim(_video(1), _video(11))
    measured = result.metrics["psnr"]
    assert measured.unit == "dB" and measured.num == 3 and measured.low < measured.high
    assert "per_frame" in measured.note and "3 frames of 36x32" in measured.note
    assert result.problems == () and set(result.sha256) == {"videos", "references"}
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert json.loads(json.dumps(result.to_json()))["rows"][0]["fps"] == "24"


def test_lpips_needs_its_weights(folders: tuple[Path, Path]) -> None:
    without = evaluate_pair(*folders, metrics=["psnr_global", "lpips"])
    assert without.metrics["lpips"].mean is None
    assert "not computed: needs a backbone" in without.metrics["lpips"].note
    assert without.metrics["psnr_global"].mean is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Lpips("alex").eval()
    network.sha256["alex.pth"] = "00"
    result = evaluate_pair(*folders, metrics=["lpips"], lpips=network)
    assert result.metrics["lpips"].mean is not None
    assert "backbone alex" in result.metrics["lpips"].note
    assert result.sha256["alex.pth"] == "00"


def test_pairs_that_do_not_fit_are_named_and_not_scored(folders: tuple[Path, Path]) -> None:
    a, b = folders
    np.savez(a / "0.npz", frames=_video(0, num_frames=2))
    np.savez(b / "2.npz", frames=np.full((3, 32, 36, 3), np.nan))
    result = evaluate_pair(a, b)
    assert [row.name for row in result.rows] == ["1"]
    assert len(result.problems) == 2
    assert "0.npz: expected 3 frames of 36x32 as its reference, got 2 frames" in result.problems[0]
    assert "2.npz" in result.problems[1] and "NaN" in result.problems[1]
    assert "2 of 3 pairs not scored" in result.metrics["ssim"].note
    with pytest.raises(MediaError, match="1 of 1 videos"):
        for name in "12":
            (a / f"{name}.npz").unlink()
            (b / f"{name}.npz").unlink()
        evaluate_pair(a, b)


def test_only_the_first_frames_may_be_compared(folders: tuple[Path, Path]) -> None:
    a, b = folders
    np.savez(a / "0.npz", frames=_video(0, num_frames=5), fps=25)
    result = evaluate_pair(a, b, num_frames=2)
    assert result.problems == () and {row.num_frames for row in result.rows} == {2}
    want = psnr(_video(0, num_frames=5)[:2], _video(10)[:2])
    assert result.rows[0].values["psnr"] == want
    assert "frame rates differ from the references' in 1 videos" in result.metrics["psnr"].note


def test_missing_partners_and_unknown_metrics_stop_at_once(folders: tuple[Path, Path]) -> None:
    (folders[1] / "1.npz").unlink()
    with pytest.raises(MediaError, match="1 missing in .*: 1"):
        evaluate_pair(*folders)
    with pytest.raises(ConfigError, match="did you mean 'psnr'"):
        evaluate_pair(*folders, metrics=["pnsr"])
