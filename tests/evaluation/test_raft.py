"""RAFT: correlation lookup against its definition, padding, and strict loading of weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from onereel.core.errors import CheckpointError, ShapeError
from onereel.evaluation.networks.raft import (
    NUM_LEVELS,
    RADIUS,
    Raft,
    correlation_pyramid,
    load_raft,
    look_up,
    pad_frames,
    upsample,
)


@pytest.fixture(scope="module")
def network() -> Raft:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Raft().eval().requires_grad_(False)


def _bilinear(image: torch.Tensor, x: float, y: float) -> float:
    """The value of an image [H, W] at a point, zero outside."""
    total = 0.0
    for j in (math.floor(y), math.floor(y) + 1):
        for i in (math.floor(x), math.floor(x) + 1):
            if 0 <= j < image.shape[0] and 0 <= i < image.shape[1]:
                total += float(image[j, i]) * (1 - abs(x - i)) * (1 - abs(y - j))
    return total


def test_the_lookup_reads_a_transposed_window_at_every_level() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 1, 8, 9, 10, generator=generator)
    coords = torch.rand(1, 2, 9, 10, generator=generator) * 12 - 2
    found = look_up(correlation_pyramid(first, second), coords)
    assert found.shape == (1, NUM_LEVELS * 81, 9, 10)
    volume = torch.einsum("cp,chw->phw", first[0].flatten(1), second[0]) / 8**0.5
    for level, row, column in ((0, 2, 3), (0, 8, 9), (1, 0, 0), (2, 5, 5), (3, 4, 1)):
        image = volume[row * 10 + column]
        for _ in range(level):
            image = torch.nn.functional.avg_pool2d(image[None], 2)[0]
        x, y = (float(v) / 2**level for v in coords[0, :, row, column])
        for i, j in ((0, 0), (4, 4), (8, 0), (3, 7)):
            want = _bilinear(image, x + i - RADIUS, y + j - RADIUS)
            got = float(found[0, level * 81 + i * 9 + j, row, column])
            assert got == pytest.approx(want, abs=2e-5)


def test_a_constant_flow_stays_constant_away_from_the_border() -> None:
    flow = torch.tensor([3.0, -1.0])[None, :, None, None].expand(1, 2, 5, 6)
    mask = torch.randn(1, 576, 5, 6, generator=torch.Generator().manual_seed(0))
    full = upsample(flow, mask)
    assert full.shape == (1, 2, 40, 48)
    inner = full[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(inner[:, 0], torch.full_like(inner[:, 0], 24.0))
    torch.testing.assert_close(inner[:, 1], torch.full_like(inner[:, 1], -8.0))


@pytest.mark.parametrize(
    ("size", "padded", "offset"),
    [((132, 152), (136, 152), (2, 0)), ((65, 71), (72, 72), (3, 0)), ((64, 64), (64, 64), (0, 0))],
)
def test_padding_repeats_the_edge(
    size: tuple[int, int], padded: tuple[int, int], offset: tuple[int, int]
) -> None:
    frames = torch.rand(1, 3, *size)
    got, at = pad_frames(frames)
    assert (tuple(got.shape[-2:]), at) == (padded, offset)
    top, left = at
    torch.testing.assert_close(got[..., top : top + size[0], left : left + size[1]], frames)
    assert torch.equal(got[..., 0, left], frames[..., 0, 0])
    assert torch.equal(got[..., -1, -1], frames[..., -1, -1])


def test_the_smallest_size_works_and_smaller_ones_are_named(network: Raft) -> None:
    frames = torch.rand(2, 3, 64, 64) * 255
    low, up = network(frames[:1], frames[1:], 2)
    assert (low.shape, up.shape) == ((1, 2, 8, 8), (1, 2, 64, 64))
    assert torch.isfinite(up).all()
    with pytest.raises(ShapeError, match="at least 64, got 64x56"):
        network(frames[:1, :, :56], frames[1:, :, :56])
    with pytest.raises(ShapeError, match=r"two of shape \[B, 3, H, W\]"):
        network(frames[:1], frames[1:, :, :56])


def test_official_weights_load_strictly(network: Raft, tmp_path: Path) -> None:
    path = tmp_path / "raft-things.pth"
    official = {f"module.{name}": value for name, value in network.state_dict().items()}
    alias = "module.cnet.layer2.0.downsample.1.weight"
    official[alias.replace("downsample.1", "norm3")] = official[alias]
    torch.save(official, path)
    loaded = load_raft(path)
    assert not loaded.training
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.state_dict().items())

    torch.save({k: v for k, v in official.items() if "flow_head" not in k}, path)
    with pytest.raises(CheckpointError, match="not the weights of RAFT.*flow_head"):
        load_raft(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected tensors by name, got list"):
        load_raft(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not readable weights"):
        load_raft(path)
