"""A stream of latents decodes to the frames of all latents at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.magic_vae.model import (
    VaeTiles,
    decode_latent,
    set_tiles,
    use_frame_causal_attention,
)
from onereel.models.magic_vae.streaming import StreamDecoder
from onereel.models.magic_vae.weights import config_from_official

CONFIG = config_from_official(
    {
        "block_out_channels": [4, 4, 4, 4],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
        "sample_size": 32,
        "sample_tsize": 16,
    }
)[0]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKLHunyuanVideo(**CONFIG).eval()
    use_frame_causal_attention(model)
    return model


def latents(length: int, size: tuple[int, int] = (2, 2)) -> torch.Tensor:
    return torch.randn(1, 4, length, *size, generator=torch.Generator().manual_seed(length))


def cut(latent: torch.Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, bool]]:
    """Cut a latent into pieces whose lengths repeat; says which is the last."""
    start, turn = 0, 0
    while start < latent.shape[2]:
        stop = start + sizes[turn % len(sizes)]
        yield latent[:, :, start:stop], stop >= latent.shape[2]
        start, turn = stop, turn + 1


def streamed(
    vae: AutoencoderKLHunyuanVideo, latent: torch.Tensor, sizes: tuple[int, ...]
) -> torch.Tensor:
    decoder = StreamDecoder(vae)
    return torch.cat([v for p, last in cut(latent, sizes) for v in decoder.push(p, last=last)], 2)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 8, 13])
def test_every_length_is_decoded_to_the_bit(vae: AutoencoderKLHunyuanVideo, length: int) -> None:
    set_tiles(vae, VaeTiles(size=32, num_frames=16))  # 4 latents, 3 apart
    whole = decode_latent(vae, latents(length))
    assert whole.shape[2] == 4 * (length - 1) + 1
    for sizes in ((1,), (5, 2), (100,)):
        assert torch.equal(streamed(vae, latents(length), sizes), whole)


@torch.no_grad()
@pytest.mark.parametrize(
    "tiles",
    [
        VaeTiles(size=16, num_frames=16, overlap=0.5),
        VaeTiles(size=16, num_frames=16, overlap=0.0),
        VaeTiles(size=16, num_frames=16, temporal=False),
        VaeTiles(size=16, num_frames=16, spatial=False),
        VaeTiles(),
    ],
)
def test_all_ways_to_cut(vae: AutoencoderKLHunyuanVideo, tiles: VaeTiles) -> None:
    set_tiles(vae, tiles)
    latent = latents(9, size=(2, 3))  # wider and higher than a tile of 16 pixels
    assert torch.equal(streamed(vae, latent, (4, 3)), decode_latent(vae, latent))
    assert vae.use_framewise_decoding is tiles.temporal


@torch.no_grad()
def test_little_is_held_however_long_it_is(vae: AutoencoderKLHunyuanVideo) -> None:
    set_tiles(vae, VaeTiles(size=32, num_frames=16))
    decoder, most = StreamDecoder(vae), 0
    for piece, last in cut(latents(20), (2,)):
        list(decoder.push(piece.clone(), last=last))
        held = decoder._latents
        most = max(most, 0 if held is None else held.untyped_storage().nbytes() // (4 * 4 * 4))
        assert decoder._before is None or decoder._before.untyped_storage().nbytes() == (
            4 * 3 * 4 * 16 * 16
        )
    assert most <= 6  # latent frames


def test_what_cannot_be_is_refused(vae: AutoencoderKLHunyuanVideo) -> None:
    set_tiles(vae, VaeTiles(num_frames=10))
    with pytest.raises(ConfigError, match="multiples of 4, got 10 and 7"):
        StreamDecoder(vae)
    set_tiles(vae, VaeTiles())
    with pytest.raises(ShapeError, match="at least one frame"):
        list(StreamDecoder(vae).push(latents(3)[:, :, :0], last=True))
