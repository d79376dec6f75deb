from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.magi_vae import VAE_PRESETS
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.pixels import to_uint8
from onereel.models.magi_vae.posterior import LatentPosterior

SMALL: dict[str, Any] = {
    "patch_size": (4, 8, 8),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "z_dim": 4,
    "height": 32,
    "width": 32,
    "num_frames": 12,
    "ffn_dim": 48,
    "num_layers": 1,
    "use_final_proj": True,
}


def small_vae(**changes: Any) -> AutoencoderKLMagi1:
    torch.manual_seed(0)
    vae = AutoencoderKLMagi1(**{**SMALL, **changes}).eval()
    for parameter in vae.parameters():  # biases and tokens too, so that each of them matters
        torch.nn.init.normal_(parameter, std=0.2)
    return vae


def random_video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("preset", "count"), [("magi1", 613_755_239), ("toybox", 2_118_439)])
def test_presets_have_the_documented_size(preset: str, count: int) -> None:
    with torch.device("meta"):
        vae = AutoencoderKLMagi1(**VAE_PRESETS[preset])
    assert sum(parameter.numel() for parameter in vae.parameters()) == count


def test_released_sizes_are_the_defaults() -> None:
    defaults = inspect.signature(AutoencoderKLMagi1.__init__).parameters
    assert {k: defaults[k].default for k in VAE_PRESETS["magi1"]} == VAE_PRESETS["magi1"]


@pytest.mark.parametrize("ln_in_attn", [False, True])
def test_every_weight_learns_under_autocast(ln_in_attn: bool) -> None:
    vae = small_vae(ln_in_attn=ln_in_attn).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(random_video(2, 3, 8, 32, 48)).latent_dist
        video = vae.decode(posterior.sample()).sample
    (video.float().square().mean() + 1e-3 * posterior.kl().mean()).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias of keys shifts all scores of a query alike, unless keys are normalised.
        if not name.endswith("to_k.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    vae = small_vae(num_layers=2).train()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            vae.enable_gradient_checkpointing()
            assert vae.encoder.gradient_checkpointing
        vae.zero_grad()
        vae(random_video(1, 3, 4, 32, 32), sample_posterior=False).sample.square().mean().backward()
        grads.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(vae.parameters()))
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_a_picture_is_four_equal_frames() -> None:
    vae = small_vae()
    picture = random_video(1, 3, 1, 32, 40)
    repeated = vae.encode(picture.repeat(1, 1, 4, 1, 1)).latent_dist.mean
    torch.testing.assert_close(vae.encode(picture).latent_dist.mean, repeated)
    everything = vae.decode(repeated, as_image=False).sample
    assert everything.shape == (1, 3, 4, 32, 40)
    torch.testing.assert_close(vae.decode(repeated).sample, everything[:, :, :1])
    torch.testing.assert_close(vae.decode(repeated, as_image=True).sample, everything[:, :, :1])
    with pytest.raises(ShapeError, match="as_image"):
        vae.decode(repeated.repeat(1, 1, 2, 1, 1), as_image=True)


@torch.no_grad()
def test_short_temporal_patches_still_see_four_frames() -> None:
    vae = small_vae(patch_size=(2, 8, 8))
    assert vae.encode_moments(random_video(1, 3, 1, 32, 32)).shape[2] == 2
    assert vae.encode(random_video(1, 3, 1, 32, 32)).latent_dist.mean.shape[2] == 1


@torch.no_grad()
def test_resized_positions_follow_the_weights() -> None:
    vae = small_vae()
    latent = random_video(1, 4, 3, 6, 6)
    vae.enable_tiling()
    before = vae.decode(latent).sample
    # Through `.data`, as averaged weights are often swapped in: no version counter moves.
    vae.decoder.pos_embed.data.mul_(-1)
    after = vae.decode(latent).sample
    assert (before - after).abs().max() > 1e-3
    with vae.decoder.reuse_positions():
        assert vae.decoder.positions((3, 2, 2)) is vae.decoder.positions((3, 2, 2))


def test_resized_positions_keep_the_gradient() -> None:
    vae = small_vae()
    with vae.encoder.reuse_positions(), torch.no_grad():
        vae.encoder.positions((1, 2, 2))
        with torch.enable_grad():
            assert vae.encoder.positions((1, 2, 2)).requires_grad


@torch.no_grad()
def test_slices_equal_the_batch() -> None:
    vae = small_vae(norm_code=True)
    video = random_video(3, 3, 8, 32, 32)
    latent, sample = vae.encode(video).latent_dist, vae(video, sample_posterior=False).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(video).latent_dist.parameters, latent.parameters)
    torch.testing.assert_close(vae.decode(latent.mean).sample, sample)
    torch.testing.assert_close(
        latent.parameters.norm(dim=1), torch.ones(3, 2, 4, 4), msg="norm_code gives unit vectors"
    )


@torch.no_grad()
def test_without_variance_samples_are_means() -> None:
    vae = small_vae(double_z=False)
    video = random_video(2, 3, 4, 32, 32)
    posterior = vae.encode(video).latent_dist
    torch.testing.assert_close(posterior.sample(), posterior.mean)
    assert posterior.kl().tolist() == [0.0, 0.0]
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, posterior.mean)


def test_divergence_sums_over_all_but_the_batch() -> None:
    parameters = random_video(2, 8, 3, 4, 5)
    posterior, other = LatentPosterior(parameters), LatentPosterior(-parameters)

    def normal(p: LatentPosterior) -> torch.distributions.Normal:
        return torch.distributions.Normal(p.mean, p.std)

    unit = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(posterior.kl(), kl(normal(posterior), unit).flatten(1).sum(1))
    wanted = kl(normal(posterior), normal(other)).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(other), wanted)
    sample = other.mean
    wanted = -normal(posterior).log_prob(sample).flatten(1).sum(1)
    torch.testing.assert_close(posterior.nll(sample), wanted)


def test_latents_are_normalised_and_back() -> None:
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
    vae = small_vae(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    z = random_video(1, 4, 2, 3, 3)
    x = vae.normalize_latent(z)
    torch.testing.assert_close(x[:, 1], (z[:, 1] + 1.0) / 0.5 * 0.5)
    torch.testing.assert_close(vae.denormalize_latent(x), z)
    torch.testing.assert_close(small_vae().normalize_latent(z), z * 0.18215)


def test_statistics_of_another_vae_are_ignored() -> None:
    foreign = inspect.signature(AutoencoderKLWan.__init__).parameters
    mean, std = (foreign[k].default for k in ("latents_mean", "latents_std"))
    vae = small_vae(z_dim=16, latents_mean=mean, latents_std=std)
    z = random_video(1, 16, 1, 2, 2)
    torch.testing.assert_close(vae.normalize_latent(z), z * 0.18215)
    near = [mean[0] + 0.01, *mean[1:]]
    vae = small_vae(z_dim=16, latents_mean=near, latents_std=std)
    assert not torch.allclose(vae.normalize_latent(z), z * 0.18215)


def test_bytes_are_rounded_or_truncated() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 0.996, 1.0, 2.0])
    assert to_uint8(pixels).tolist() == [0, 0, 128, 254, 255, 255]
    assert to_uint8(pixels, official_compat=True).tolist() == [0, 0, 127, 254, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    vae = small_vae(latents_mean=[0.0, 1.0, 2.0, 3.0], latents_std=[1.0] * 4)
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == type(vae).__name__
    again = AutoencoderKLMagi1.from_pretrained(tmp_path)
    video = random_video(1, 3, 4, 32, 32)
    with torch.no_grad():
        want = vae(video, sample_posterior=False).sample
        torch.testing.assert_close(again.eval()(video, sample_posterior=False).sample, want)
    torch.testing.assert_close(
        again.normalize_latent(torch.zeros(1, 4, 1, 1, 1)),
        vae.normalize_latent(torch.zeros(1, 4, 1, 1, 1)),
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patch_size": (4, 8, 4)}, "patch_size"),
        ({"conv_last_layer": False}, "conv_last_layer"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio"),
        ({"use_final_proj": False}, "multiple of the patch"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"num_frames": 2}, "num_frames"),
    ],
)
def test_contradicting_configs_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        small_vae(**changes)


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (1, 4, 4, 32, 32), (1, 3, 2, 32, 32)])
def test_videos_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="video"):
        small_vae().encode(torch.zeros(shape))
