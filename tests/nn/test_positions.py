"""Rotary positions, time features, and layers that state their precision."""

from __future__ import annotations

import math

import pytest
import torch

from onereel.nn.embeddings import place_features, time_features
from onereel.nn.layers import LayerNorm, LinearFp32, PatchEmbeddingFp32
from onereel.nn.rope import RotaryBands, rotate


def bands(count: int = 3) -> RotaryBands:
    rope = RotaryBands(count).double()
    return rope.requires_grad_(False)


def test_first_bands_are_geometric() -> None:
    torch.testing.assert_close(
        RotaryBands(16).bands.detach(),
        torch.tensor([10000 ** (-j / 16) for j in range(16)]),
    )


def test_scores_depend_on_time_differences_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 24, 32, generator=generator)
    rope = bands(4)

    def scores(first_frame: int) -> torch.Tensor:
        table = rope((4, 2, 3), first_frame=first_frame)
        return rotate(query, table) @ rotate(key, table).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(5), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(0), query @ key.transpose(-1, -2), atol=0.1)


def test_later_frames_go_on_where_earlier_ones_end() -> None:
    rope = bands()
    whole = rope((10, 2, 3))
    tail = rope((4, 2, 3), first_frame=6)
    for part, full in zip(tail, whole, strict=True):
        torch.testing.assert_close(part, full[6 * 6 :])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_resolution_does_not_change_the_span(size: int) -> None:
    """Whatever the square's size, its corner lies where that of 16 x 16 tokens does."""
    rope = bands(1)
    rope.bands.fill_(0.01)
    sin, _ = rope((1, size, size))
    corner = sin[-1, 1:].double().asin() / 0.01
    torch.testing.assert_close(corner, torch.full((2,), 7.5).double(), atol=1e-3, rtol=0)


def test_rotation_keeps_lengths_and_the_rest() -> None:
    x = torch.randn(1, 2, 24, 32, generator=torch.Generator().manual_seed(0))
    rope = bands(3)
    turned = rotate(x, tuple(t.float() for t in rope((4, 2, 3))))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 18:], x[..., 18:])
    pair = turned[..., 4].square() + turned[..., 4 + 9].square()
    torch.testing.assert_close(pair, x[..., 4].square() + x[..., 4 + 9].square())


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_time_features(shape: tuple[int, ...]) -> None:
    t = torch.full(shape, 0.3)
    features = time_features(t, dim=8)
    assert features.shape == (*shape, 8)
    angles = [0.3 * 1000 * 10000 ** (-i / 4) for i in range(4)]
    want = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    torch.testing.assert_close(features.reshape(-1, 8)[0], want, atol=1e-4, rtol=0)


def test_time_features_are_float32_whatever_comes_in() -> None:
    assert time_features(torch.tensor(0.5, dtype=torch.bfloat16)).dtype == torch.float32
    assert torch.equal(time_features(torch.tensor(0.0)), torch.tensor([1.0] * 128 + [0.0] * 128))


def test_layers_compute_in_the_stated_precision() -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    linear = LinearFp32(8, 4).bfloat16()
    assert linear(x.bfloat16()).dtype == torch.float32
    want = x @ linear.weight.float().T + linear.bias.float()
    torch.testing.assert_close(linear(x), want)

    norm = LayerNorm(8).bfloat16()
    assert norm(x.bfloat16(), torch.float32).dtype == torch.float32
    assert norm(x, torch.bfloat16).dtype == torch.bfloat16
    centred = norm(x, torch.float32)
    torch.testing.assert_close(centred.mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)

    patches = PatchEmbeddingFp32(3, 6, (1, 2, 2), stride=(1, 2, 2), bias=False).bfloat16()
    video = torch.randn(1, 3, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    out = patches(video.bfloat16())
    assert (out.shape, out.dtype) == ((1, 6, 2, 2, 3), torch.float32)
    corner = video.bfloat16().float()[0, :, 0, :2, :2].flatten()
    torch.testing.assert_close(
        out[0, :, 0, 0, 0], patches.weight.float().flatten(1) @ corner, atol=1e-5, rtol=1e-5
    )


def test_places_are_those_of_the_canvas_and_of_the_chunk() -> None:
    features = place_features((6, 2, 4), num_chunks=2, octaves=2).unflatten(0, (6, 2, 4))
    assert features.shape == (6, 2, 4, 15)
    assert torch.equal(features[:3], features[3:])  # every chunk alike
    frame, height, width = features.unflatten(-1, (3, 5)).unbind(-2)
    assert width[0, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert height[0, :, 0, 0].tolist() == [-0.5, 0.5]
    torch.testing.assert_close(frame[:3, 0, 0, 0], torch.tensor([-2 / 3, 0, 2 / 3]))
    torch.testing.assert_close(width[0, 0, :, 2], (math.tau * width[0, 0, :, 0]).sin())
    torch.testing.assert_close(width[0, 0, :, 3], (math.pi * width[0, 0, :, 0]).cos())


def test_a_finer_grid_names_the_places_between() -> None:
    coarse, fine = (place_features((1, 1, size), num_chunks=1, octaves=0)[:, 2] for size in (2, 4))
    torch.testing.assert_close(coarse, fine.unflatten(0, (2, 2)).mean(1))
