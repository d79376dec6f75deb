"""Tiles: ours against whole inputs, official ones against a plain transcription of the rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.tiling import OfficialTiles, TileConfig

FACTORS = (4, 8, 8)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLMagi1:
    torch.manual_seed(0)
    model = AutoencoderKLMagi1(
        num_attention_heads=2,
        attention_head_dim=16,
        z_dim=4,
        height=32,
        width=32,
        num_frames=12,
        ffn_dim=48,
        num_layers=1,
        use_final_proj=True,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(autouse=True)
def plain(vae: AutoencoderKLMagi1) -> None:
    vae.disable_tiling()
    vae.tiling = vae._default_tiles()


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def small_tiles(**changes: int) -> TileConfig:
    values = {"height": 32, "width": 32, "length": 12}
    values |= {"stride_height": 24, "stride_width": 24, "stride_length": 12}
    return TileConfig(**(values | changes))


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 4, 4), (4, 5, 9), (7, 12, 7), (6, 13, 16)])
@pytest.mark.parametrize("stride_length", [4, 8, 12])
def test_blending_what_agrees_changes_nothing(
    size: tuple[int, int, int], stride_length: int
) -> None:
    plan = small_tiles(stride_length=stride_length).decode_plan(FACTORS)
    latent = random_tensor(1, 2, *size).double()
    pixels = latent
    for dim, factor in enumerate(FACTORS, start=2):
        pixels = pixels.repeat_interleave(factor, dim)
    tiles = []
    for tile in plan.cut(latent):
        for dim, factor in enumerate(FACTORS, start=2):
            tile = tile.repeat_interleave(factor, dim)
        tiles.append(tile)
    torch.testing.assert_close(plan.assemble(tiles, plan.counts(latent)), pixels)


@torch.no_grad()
def test_an_input_of_one_tile_is_not_tiled(vae: AutoencoderKLMagi1) -> None:
    video = random_tensor(1, 3, 12, 32, 32)
    latent = vae.encode(video).latent_dist.mean
    decoded = vae.decode(latent).sample
    vae.enable_tiling()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, latent)
    torch.testing.assert_close(vae.decode(latent).sample, decoded)
    torch.testing.assert_close(vae.encode_frames(video), vae.normalize_latent(latent))
    torch.testing.assert_close(vae.decode_chunk(vae.normalize_latent(latent)), decoded)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "groups"), [(1, [1]), (4, [4]), (6, [3, 3]), (7, [3, 4])])
def test_no_frame_is_lost_and_no_short_tail_left(
    vae: AutoencoderKLMagi1, frames: int, groups: list[int]
) -> None:
    latent = random_tensor(1, 4, frames, 4, 4)
    video = vae.decode_chunk(latent)
    parts = [
        vae.decode(vae.denormalize_latent(part), as_image=False).sample
        for part in latent.split(groups, dim=2)
    ]
    assert video.shape == (1, 3, 4 * frames, 32, 32)
    torch.testing.assert_close(video, torch.cat(parts, dim=2))
    encoded = vae.encode_frames(video)
    parts = [vae.encode(p).latent_dist.mean for p in video.split([4 * n for n in groups], dim=2)]
    torch.testing.assert_close(encoded, vae.normalize_latent(torch.cat(parts, dim=2)))


@torch.no_grad()
def test_bytes_and_pictures_go_in(vae: AutoencoderKLMagi1) -> None:
    levels = (random_tensor(1, 3, 4, 32, 32) * 127.5 + 127.5).round()
    latent = vae.encode_frames(levels.to(torch.uint8))
    torch.testing.assert_close(latent, vae.encode_frames(levels / 127.5 - 1))
    picture = vae.encode_frames(random_tensor(1, 3, 1, 48, 64))
    assert picture.shape == (1, 4, 1, 6, 8)
    assert vae.decode_chunk(picture).shape == (1, 3, 4, 48, 64)
    assert vae.decode_chunk(picture, as_image=True).shape == (1, 3, 1, 48, 64)


@torch.no_grad()
def test_tiles_blend_in_float32(vae: AutoencoderKLMagi1) -> None:
    latent = random_tensor(1, 4, 3, 8, 4)
    half = AutoencoderKLMagi1.from_config(vae.config).eval()
    half.load_state_dict(vae.state_dict())
    half = half.bfloat16()
    assert half.decode_chunk(latent).dtype == torch.float32
    rows = half.decode_chunk(latent)[:, :, :, 24:32]
    # Values between the steps of bfloat16 exist only where the blend was not rounded to it.
    assert not torch.equal(rows, rows.bfloat16().float())


@torch.no_grad()
def test_tiled_samples_have_the_variance_of_their_weights(vae: AutoencoderKLMagi1) -> None:
    vae.enable_tiling(32, 32)
    video = random_tensor(1, 3, 4, 32, 56)
    posterior = vae.encode(video).latent_dist
    left, right = (vae.encode(part).latent_dist for part in (video[..., :32], video[..., 24:]))
    # One latent column overlaps: the first of a band is all predecessor.
    assert posterior.mean.shape[-1] == 7
    torch.testing.assert_close(posterior.mean[..., 3], left.mean[..., 3])
    torch.testing.assert_close(posterior.var[..., 3], left.var[..., 3])
    vae.enable_tiling(32, 32, tile_sample_stride_width=16)
    posterior = vae.encode(video[..., :48]).latent_dist
    right = vae.encode(video[..., 16:48]).latent_dist
    torch.testing.assert_close(posterior.mean[..., 3], (left.mean[..., 3] + right.mean[..., 1]) / 2)
    torch.testing.assert_close(posterior.var[..., 3], (left.var[..., 3] + right.var[..., 1]) / 4)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"height": 36}, "tile height"),
        ({"length": 2}, "tile length"),
        ({"stride_width": 20}, "stride_width"),
        ({"stride_height": 40}, "at most"),
    ],
)
def test_tiles_off_the_grid_are_refused(changes: dict[str, int], word: str) -> None:
    with pytest.raises(ShapeError, match=word):
        small_tiles(**changes).encode_plan(FACTORS)


@pytest.mark.parametrize("shape", [(1, 3, 10, 32, 32), (1, 3, 4, 36, 32), (1, 3, 4, 32, 30)])
def test_videos_off_the_grid_are_refused(vae: AutoencoderKLMagi1, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="a multiple of"):
        vae.encode_frames(torch.zeros(shape))


def mix(before: torch.Tensor, tile: torch.Tensor, dim: int, extent: int) -> None:
    """Fade in place, position by position."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    for i in range(extent):
        old = before.select(dim, before.shape[dim] - extent + i)
        tile.select(dim, i).copy_(old * (1 - i / extent) + tile.select(dim, i) * (i / extent))


def reference(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, axes: list[Any], chained: bool
) -> torch.Tensor:
    """Tile as the specification says; an axis is (tile, stride, extent, limit)."""
    counts = [math.ceil(x.shape[k + 2] / axis[1]) for k, axis in enumerate(axes)]
    raw = {}
    for t in range(counts[0]):
        for i in range(counts[1]):
            for j in range(counts[2]):
                cut = x
                for k, n in enumerate((t, i, j)):
                    start = n * axes[k][1]
                    length = min(axes[k][0], x.shape[k + 2] - start)
                    cut = cut.narrow(k + 2, start, length)
                raw[t, i, j] = run(cut)
    tiles = {key: tile.clone() for key, tile in raw.items()}
    near = tiles if chained else raw
    for t, i, j in tiles:
        for k, key in enumerate([(t - 1, i, j), (t, i - 1, j), (t, i, j - 1)]):
            if key in near:
                mix(near[key], tiles[t, i, j], k + 2, axes[k][2])
    slabs = []
    for t in range(counts[0]):
        rows = []
        for i in range(counts[1]):
            row = [
                tiles[t, i, j][:, :, : axes[0][3], : axes[1][3], : axes[2][3]]
                for j in range(counts[2])
            ]
            rows.append(torch.cat(row, dim=4))
        slabs.append(torch.cat(rows, dim=3))
    return torch.cat(slabs, dim=2)


@torch.no_grad()
@pytest.mark.parametrize("size", [(12, 32, 32), (24, 72, 56), (25, 40, 32), (30, 32, 48)])
def test_official_encoding_is_as_specified(
    vae: AutoencoderKLMagi1, size: tuple[int, int, int]
) -> None:
    video = random_tensor(1, 3, *size)
    spatial = (32, 24, 1, 3)
    want = reference(
        lambda x: vae.encode(x).latent_dist.mean, video, [(12, 12, 0, 3), spatial, spatial], True
    )
    tiles = OfficialTiles(height=32, width=32, length=12)
    vae.enable_official_tiling(tiles)
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, want)
    got = vae.encode_frames(video, tiling=tiles)
    torch.testing.assert_close(got, vae.normalize_latent(want))


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 4, 4), (7, 9, 7), (4, 5, 4), (1, 4, 6)])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_official_decoding_is_as_specified(
    vae: AutoencoderKLMagi1, size: tuple[int, int, int], overlap: float
) -> None:
    latent = random_tensor(1, 4, *size)
    extent = int(32 * overlap)
    spatial = (4, int(4 * (1 - overlap)), extent, 32 - extent)
    axes = [(3, 3, 0, 12), spatial, spatial]
    want = reference(lambda z: vae.decode(z).sample, latent, axes, False)
    tiles = OfficialTiles(height=32, width=32, length=12, spatial_overlap=overlap)
    vae.enable_official_tiling(tiles)
    got = vae.decode(latent).sample
    torch.testing.assert_close(got, want)
    # The rule for pictures fires on a tail of one latent frame: three frames are lost.
    assert got.shape[2] == 4 * size[0] - (3 if size[0] % 3 == 1 else 0)


@torch.no_grad()
def test_official_time_overlap_blends_frames(vae: AutoencoderKLMagi1) -> None:
    latent = random_tensor(1, 4, 6, 4, 4)
    whole = (12_500, 12_500, 0, 100_000)
    axes = [(4, 2, 8, 8), whole, whole]
    want = reference(lambda z: vae.decode(z).sample, latent, axes, False)
    vae.enable_official_tiling(OfficialTiles(length=16, temporal_overlap=0.5, spatial=False))
    torch.testing.assert_close(vae.decode(latent).sample, want)


@torch.no_grad()
def test_official_frame_rate_rules_the_tiles(vae: AutoencoderKLMagi1) -> None:
    latent = random_tensor(1, 4, 6, 4, 4)
    assert vae.decode_chunk(latent, official_compat=True).shape[2] == 24
    assert vae.decode_chunk(latent, official_compat=True, fps=8).shape[2] == 6
    assert vae.decode_chunk(latent, fps=8).shape[2] == 24
    assert vae.encode_frames(torch.zeros(1, 3, 32, 32, 32), official_compat=True).shape[2] == 8
    with pytest.raises(ShapeError, match="fps // 2"):
        vae.decode_chunk(latent, official_compat=True, fps=7)
    with pytest.raises(ConfigError, match="overlap"):
        OfficialTiles(spatial_overlap=1.0)
