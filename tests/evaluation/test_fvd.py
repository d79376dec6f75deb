"""FVD and FID: preprocessing, the archives' calling forms, what a result states, bad sets."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from onereel.core.errors import (
    BackendUnavailable,
    CheckpointError,
    ConfigError,
    MediaError,
    ShapeError,
)
from onereel.evaluation.distances import frechet_distance, polynomial_mmd
from onereel.evaluation.fid import FidConfig, evaluate_fid, picture_features
from onereel.evaluation.fvd import FvdConfig, evaluate_fvd, preprocess


class _FakeI3d(nn.Module):
    """Answers only when called as the StyleGAN-V archive must be."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale and not resize and return_features
        return x[:, :, :, 100, 100].mean(2)


class _FakeLogits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :, 100, 100]


class _FakeInception(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and x.dtype == torch.uint8
        return x.float().mean((2, 3))


def _archive(path: Path, network: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the form is what is under test
        torch.jit.script(network).save(str(path))
    return path


def _colours(num: int, seed: int, num_frames: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, num_frames, 1, 1, 3), np.uint8)


def _folder(path: Path, colours: np.ndarray, height: int = 8, width: int = 10) -> Path:
    path.mkdir()
    for i, video in enumerate(colours):
        frames = np.broadcast_to(video, (len(video), height, width, 3))
        np.savez(path / f"{i}.npz", frames=frames, fps=24)
    return path


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    real = _folder(tmp_path / "real", _colours(6, 0))
    return real, _folder(tmp_path / "fake", _colours(5, 1))


def _features(colours: np.ndarray) -> np.ndarray:
    return (colours[:, :, 0, 0].astype(np.float32).mean(1) / 255 - 0.5) * 2


@pytest.mark.parametrize(
    ("convention", "network"), [("styleganv", _FakeI3d()), ("videogpt", _FakeLogits())]
)
def test_archives_are_called_as_the_convention_says(
    tmp_path: Path, sets: tuple[Path, Path], convention: str, network: nn.Module
) -> None:
    path = _archive(tmp_path / "i3d.pt", network)
    config = FvdConfig(convention=convention, mmd="all", batch_size=4)
    steps: list[tuple[int, int]] = []
    results = evaluate_fvd(
        *sets, network=path, config=config, progress=lambda *step: steps.append(step)
    )
    real, fake = _features(_colours(6, 0)), _features(_colours(5, 1))
    assert results["fvd"].value == pytest.approx(frechet_distance(real, fake), rel=1e-4)
    assert results["kvd"].value == pytest.approx(polynomial_mmd(real, fake), rel=1e-3)
    assert steps == [(i, 11) for i in range(1, 12)]


def test_a_result_states_its_conditions(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    path = _archive(tmp_path / "i3d.pt", _FakeI3d())
    results = evaluate_fvd(*sets, network=path)
    fvd, kvd = results["fvd"], results["kvd"]
    assert (fvd.num_real, fvd.num_fake, fvd.dim, fvd.num_frames) == (6, 5, 3, (16,))
    assert fvd.resolution_real == fvd.resolution_fake == ("10x8",)
    assert set(fvd.sha256) == {"real", "fake", "network"}
    assert kvd.spread is not None and fvd.spread is None
    assert "100 subsets of 5" in kvd.to_measurement().note
    note = fvd.to_measurement().note
    for part in ("styleganv", "n 6 real, 5 generated", "d 3", "frames 16 at stride 1", "i3d.pt"):
        assert part in note
    assert json.loads(json.dumps(fvd.to_json()))["fps_real"] == ["24"]


def test_fewer_videos_than_dimensions_are_remarked(sets: tuple[Path, Path]) -> None:
    def wide(x: Tensor) -> Tensor:
        return x[:, :, 0, :4, 0].flatten(1)

    results = evaluate_fvd(*sets, network=wide, config=FvdConfig(mmd=None))
    assert set(results) == {"fvd"}
    assert "fewer vectors (5) than dimensions (12)" in results["fvd"].to_measurement().note
    assert "given by the caller" in results["fvd"].to_measurement().note


def test_wide_videos_are_cut_left_and_right() -> None:
    frames = np.zeros((1, 20, 40, 3), np.uint8)
    frames[:, :, :10], frames[:, :, 10:30], frames[:, :, 30:] = 10, 200, 10
    x = preprocess(frames)
    assert x.shape == (1, 3, 1, 224, 224) and x.dtype == torch.float32
    inner = x[..., 100, 10:-10]
    light = 200 / 255 * 2 - 1
    assert [float(inner.min()), float(x.max())] == pytest.approx([light, light])
    torch.testing.assert_close(preprocess(frames, convention="videogpt"), x, rtol=0, atol=0)


def test_the_magic_convention_is_bicubic_with_antialias() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 300, 451, 3), np.uint8)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    # 451 * 224 / 300 = 336.7 is cut down, and the crop starts at (336 - 224) / 2.
    want = functional.interpolate(x, size=(224, 336), mode="bicubic", antialias=True)
    got = preprocess(frames, convention="magic141")[0]
    torch.testing.assert_close(got, (want[..., 56:280] * 2 - 1).transpose(0, 1))


def test_the_magic_convention_cuts_frames_to_a_multiple_of_16(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", _colours(2, 0, num_frames=37))
    config = FvdConfig(convention="magic141", num_frames=None, mmd=None)
    result = evaluate_fvd(folder, folder, network=lambda x: x.mean((2, 3, 4)), config=config)
    assert result["fvd"].num_frames == (32,)
    short = _folder(tmp_path / "b", _colours(2, 0, num_frames=15))
    with pytest.raises(MediaError, match="2 of 2 videos.*\n.*0.npz is too short"):
        evaluate_fvd(short, short, network=lambda x: x.mean((2, 3, 4)), config=config)


def _mixed(path: Path) -> Path:
    folder = _folder(path, _colours(3, 0))
    np.savez(folder / "1.npz", frames=np.zeros((16, 6, 10, 3), np.uint8), fps=30)
    return folder


def test_mixed_sizes_are_named_or_stated(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    folder = _mixed(tmp_path / "mixed")

    def network(x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))

    with pytest.raises(MediaError, match="1.npz: expected 16 frames of 10x8 as in 0.npz, got 16 f"):
        evaluate_fvd(sets[0], folder, network=network)
    config = FvdConfig(mixed=True, mmd=None)
    result = evaluate_fvd(sets[0], folder, network=network, config=config)["fvd"]
    assert result.resolution_fake == ("10x8", "10x6")
    assert any("frame rates differ" in note for note in result.notes)


def test_bad_networks_are_refused(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="does not exist.*i3d_torchscript"):
        evaluate_fvd(*sets, network=tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a TorchScript archive"):
        evaluate_fvd(*sets, network=tmp_path / "bad.pt")
    path = _archive(tmp_path / "logits.pt", _FakeLogits())
    with pytest.raises(CheckpointError, match="network failed"):
        evaluate_fvd(*sets, network=path)
    with pytest.raises(ShapeError, match="NaN.*0, 1, 2, 3"):
        evaluate_fvd(*sets, network=lambda x: x.mean((2, 3, 4)) * float("nan"))
    with pytest.raises(ShapeError, match=r"\[n, d\]"):
        evaluate_fvd(*sets, network=lambda x: x)


def test_one_video_is_no_set(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    single = _folder(tmp_path / "single", _colours(1, 0))
    with pytest.raises(ConfigError, match="6 real and 1 generated"):
        evaluate_fvd(sets[0], single, network=lambda x: x.mean((2, 3, 4)))


@pytest.mark.parametrize(
    "settings",
    [
        {"convention": "other"},
        {"num_frames": 9},
        {"convention": "magic141", "num_frames": 15},
        {"stride": 0},
        {"mmd": "some"},
    ],
)
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FvdConfig(**settings)


def test_fid_counts_every_frame(tmp_path: Path, sets: tuple[Path, Path]) -> None:
    path = _archive(tmp_path / "inception.pt", _FakeInception())
    config = FidConfig(stride=2, batch_size=3, mmd="all")
    results = evaluate_fid(*sets, network=path, config=config)
    real, fake = (_colours(n, s)[:, ::2].reshape(-1, 3) for n, s in ((6, 0), (5, 1)))
    assert results["fid"].value == pytest.approx(frechet_distance(real, fake), rel=1e-5)
    assert results["kid"].value == pytest.approx(polynomial_mmd(real, fake), rel=1e-5)
    assert (results["fid"].num_real, results["fid"].num_frames) == (48, (8,))


def test_the_magic_convention_takes_first_frames(sets: tuple[Path, Path]) -> None:
    shapes = []

    def network(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x.float().mean((2, 3))

    config = FidConfig(convention="magic141")
    result = evaluate_fid(*sets, network=network, config=config)["fid"]
    assert shapes == [(6, 3, 299, 299), (5, 3, 299, 299)]
    real, fake = (_colours(n, s)[:, 0, 0, 0] for n, s in ((6, 0), (5, 1)))
    assert result.value == pytest.approx(frechet_distance(real, fake), rel=1e-5)
    assert "magic141" in result.to_measurement().note


def test_overshoot_of_the_resize_stays_in_8_bits() -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, :, 4:] = 255
    config = FidConfig(convention="magic141")
    rows = picture_features([frames], network=lambda x: x[:, 0, 0].float(), config=config)
    assert rows.min() == 0 and rows.max() == 255
    assert np.diff(rows[0]).min() >= 0


def test_torchmetrics_that_is_absent_is_named(
    sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    with pytest.raises(BackendUnavailable, match="TorchScript Inception"):
        evaluate_fid(*sets, network="torchmetrics")


@pytest.mark.parametrize("settings", [{"convention": "clean"}, {"num_frames": 0}, {"mmd": "x"}])
def test_fid_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FidConfig(**settings)
