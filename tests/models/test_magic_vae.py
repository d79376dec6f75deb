"""The Magic 1-For-1 VAE: tiles, attention without masks, checkpoints, pixel ranges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magic_vae.model import (
    VaeTiles,
    decode_latent,
    encode_latent,
    set_tiles,
    to_uint8,
    use_frame_causal_attention,
)
from onereel.models.magic_vae.weights import build_vae, config_from_official, strip_prefix

OFFICIAL = {
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
    "sample_tsize": 8,
}
CONFIG, TILES = config_from_official(OFFICIAL)


@pytest.fixture(scope="module")
def plain() -> AutoencoderKLHunyuanVideo:
    """diffusers' model as it comes, with the official tiles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLHunyuanVideo(**CONFIG).eval()
    set_tiles(vae, TILES)
    return vae


@pytest.fixture(scope="module")
def ours(plain: AutoencoderKLHunyuanVideo) -> AutoencoderKLHunyuanVideo:
    return build_vae(plain.state_dict(), CONFIG, tiles=TILES)


def video(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand((1, 3, frames, height, width), generator=generator) * 2 - 1


def test_tiles_are_the_official_ones(ours: AutoencoderKLHunyuanVideo) -> None:
    assert config_from_official({})[1] == VaeTiles()
    set_tiles(ours, VaeTiles())
    assert (ours.tile_sample_min_height, ours.tile_sample_stride_width) == (256, 192)
    assert (ours.tile_sample_min_num_frames, ours.tile_sample_stride_num_frames) == (64, 48)
    assert ours.use_tiling and ours.use_framewise_decoding and ours.use_framewise_encoding
    set_tiles(ours, VaeTiles(spatial=False, temporal=False))
    assert not (ours.use_tiling or ours.use_framewise_decoding or ours.use_framewise_encoding)
    set_tiles(ours, TILES)
    with pytest.raises(ConfigError, match="overlap"):
        VaeTiles(overlap=1.0)


@pytest.mark.parametrize("shape", [(1, 16, 24), (9, 16, 24), (6, 24, 16), (13, 40, 48)])
@torch.no_grad()
def test_no_mask_is_built_and_nothing_changes(
    plain: AutoencoderKLHunyuanVideo,
    ours: AutoencoderKLHunyuanVideo,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
) -> None:
    from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as library

    pixels = video(*shape)
    moments = plain.encode(pixels).latent_dist.parameters
    latent = moments.chunk(2, dim=1)[0]
    decoded = plain.decode(latent).sample

    def refuse(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("a mask was built")

    monkeypatch.setattr(library, "prepare_causal_attention_mask", refuse)
    got = ours.encode(pixels).latent_dist.parameters
    torch.testing.assert_close(got, moments, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(latent).sample, decoded, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_is_causal_in_frames(ours: AutoencoderKLHunyuanVideo) -> None:
    """Of the middle block only the group norms see later frames; hold them to one frame."""
    block = ours.decoder.mid_block
    x = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    attention = block.attentions[0]
    norm, attention.group_norm = attention.group_norm, torch.nn.Identity()
    try:
        whole = block._attend(attention, x)
        torch.testing.assert_close(block._attend(attention, x[:, :, :2]), whole[:, :, :2])
        changed = x.clone()
        changed[:, :, 0] += 1
        assert not torch.allclose(block._attend(attention, changed)[:, :, 2], whole[:, :, 2])
    finally:
        attention.group_norm = norm


def test_names_stay_and_training_works(plain: AutoencoderKLHunyuanVideo) -> None:
    vae = build_vae(plain.state_dict(), CONFIG).train()
    assert vae.state_dict().keys() == plain.state_dict().keys()
    use_frame_causal_attention(vae)  # a second call changes nothing
    vae.enable_gradient_checkpointing()
    vae.decode(torch.randn(1, 4, 2, 2, 2)).sample.square().mean().backward()
    assert vae.decoder.mid_block.attentions[0].to_q.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_latents_are_scaled_and_drawn_on_request(ours: AutoencoderKLHunyuanVideo) -> None:
    pixels = video(1)
    posterior = ours.encode(pixels).latent_dist
    scale = ours.config.scaling_factor
    mean = encode_latent(ours, pixels)
    torch.testing.assert_close(mean, posterior.mean * scale)
    drawn = encode_latent(ours, pixels, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn, (posterior.mean + posterior.std * noise) * scale)


@torch.no_grad()
def test_decoded_pixels_are_in_range(ours: AutoencoderKLHunyuanVideo) -> None:
    latent = 40 * torch.randn(1, 4, 3, 2, 3, generator=torch.Generator().manual_seed(6))
    pixels = decode_latent(ours, latent)
    assert pixels.shape == (1, 3, 9, 16, 24)
    raw = ours.decode(latent / ours.config.scaling_factor).sample
    torch.testing.assert_close(pixels, (raw / 2 + 0.5).clamp(0, 1))


def test_bytes_round_and_officially_truncate() -> None:
    levels = torch.tensor([-1.0, 0.0, 0.4999, 0.5, 1.0, 2.0])
    assert to_uint8(levels).tolist() == [0, 0, 127, 128, 255, 255]
    assert to_uint8(levels, official_compat=True).tolist() == [0, 0, 127, 127, 255, 255]


def test_checkpoints_of_several_networks(plain: AutoencoderKLHunyuanVideo) -> None:
    state = {f"vae.{name}": tensor for name, tensor in plain.state_dict().items()}
    state["loss.logvar"] = torch.zeros(1)
    assert strip_prefix(state).keys() == plain.state_dict().keys()
    build_vae(state, CONFIG)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(loss.logvar\)"):
        build_vae(plain.state_dict() | {"loss.logvar": torch.zeros(1)}, CONFIG)


def test_the_full_size_has_the_official_counts() -> None:
    with torch.device("meta"):
        state = AutoencoderKLHunyuanVideo(**config_from_official({})[0]).state_dict()
    assert len(state) == 248
    assert sum(tensor.numel() for tensor in state.values()) == 246_478_803


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_tsiz": 8}, "sample_tsize"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 4}, "up_block_types"),
        ({"down_block_types": ["DownEncoderBlockCausal3D"] * 3}, "down_block_types"),
    ],
)
def test_configs_without_counterpart_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_official({**OFFICIAL, **change})
