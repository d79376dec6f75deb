"""The recipe of the VAE in HunyuanVideo's shape."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image

from onereel.core.errors import ConfigError
from onereel.models.magic_vae.presets import MAGIC_VAE_PRESETS
from onereel.models.magic_vae.preview import colours_of
from onereel.training.engine import Trainer, TrainerConfig
from onereel.training.magic_vae import MagicVaeMethod, ToyboxMagicVaeRecipe, start_as_pooling
from onereel.training.vae_tiles import VaeBatches


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ToyboxMagicVaeRecipe:
    """A network of a few thousand parameters on a small canvas."""
    monkeypatch.setitem(
        MAGIC_VAE_PRESETS,
        "tiny",
        {**MAGIC_VAE_PRESETS["toybox-magic"], "block_out_channels": (8, 8, 8, 8)},
    )
    return ToyboxMagicVaeRecipe(
        preset="tiny", height=32, width=32, frames=5, short_frames=(1,), crop=16, batch_size=2,
        reuse=2, workers=0, validation_clips=4, stats_clips=4,
        trainer=TrainerConfig(max_steps=3, log_every=1, ema_decay=0.9),
    )  # fmt: skip


def test_three_steps_and_an_export_that_others_load(
    recipe: ToyboxMagicVaeRecipe, tmp_path: Path
) -> None:
    method, stream = recipe.build()
    assert isinstance(method, MagicVaeMethod)
    result = Trainer(method, stream, config=recipe.trainer, out=tmp_path, quiet=True).fit()
    assert result.progress.step == 3 and result.progress.skipped == 0
    assert {"val_psnr", "val_psnr_object", "val_flicker"} == set(result.metrics)
    losses = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[0]["loss"] > 0 and losses[0]["kl"] >= 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 4 * 3 * 32, 3 * 2 * 32)
    vae = AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "export", torch_dtype=torch.float32)
    with torch.no_grad():
        latent = vae.encode(method.as_input(method.stats_tiles)).latent_dist.mode()
    assert latent.shape == (4, 16, 2, 4, 4)
    assert float(latent.std()) * vae.config.scaling_factor == pytest.approx(1, abs=0.02)
    assert colours_of(vae) is not None


def test_parts_of_the_canvas_and_single_pictures(recipe: ToyboxMagicVaeRecipe) -> None:
    assert VaeBatches(dataclasses.replace(recipe, short_share=0.0))[0].shape == (2, 5, 16, 16, 3)
    pictures = VaeBatches(dataclasses.replace(recipe, short_share=1.0, crop=None))[1]
    assert pictures.shape == (2, 1, 32, 32, 3)
    method = MagicVaeMethod(recipe)
    scalars = method.train_step(pictures, 0)
    assert torch.isfinite(scalars["loss"])


def test_it_starts_as_an_average_of_pixels() -> None:
    vae = AutoencoderKLHunyuanVideo(**MAGIC_VAE_PRESETS["toybox-magic"])
    start_as_pooling(vae)
    flat = torch.tensor([0.5, -0.2, 0.1])[None, :, None, None, None].expand(1, 3, 5, 32, 32)
    noisy = flat + 0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        colours = vae.encoder.conv_in(noisy)[:, :6:2]
        assert torch.allclose(colours, noisy)
        means = vae.encoder.down_blocks[0].downsamplers[0](vae.encoder.conv_in(noisy))[:, :6:2]
    blocks = torch.nn.functional.avg_pool3d(noisy, (1, 2, 2))
    assert torch.allclose(means[..., :-1, :-1], blocks[..., :-1, :-1], atol=1e-5)


def test_a_decoder_learns_alone(recipe: ToyboxMagicVaeRecipe, tmp_path: Path) -> None:
    Trainer(*recipe.build(), config=recipe.trainer, out=tmp_path / "whole", quiet=True).fit()
    again = dataclasses.replace(recipe, init=str(tmp_path / "whole/export"), decoder_only=True)
    Trainer(*again.build(), config=again.trainer, out=tmp_path / "decoder", quiet=True).fit()
    before, after = (
        AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / name / "export")
        for name in ("whole", "decoder")
    )
    assert after.config.scaling_factor == before.config.scaling_factor
    changed = {
        name.partition(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder", "post_quant_conv"}
    method = MagicVaeMethod(dataclasses.replace(again, latent_noise=0.1))
    deviation = float(method.latent_deviations(torch.zeros(1)))
    assert deviation == pytest.approx(1 / before.config.scaling_factor)
    batch = VaeBatches(again)[0]
    noisy, plain = (m.train_step(batch, 0)["l1"] for m in (method, MagicVaeMethod(again)))
    assert torch.isfinite(noisy) and noisy != plain
    with pytest.raises(ConfigError, match="decoder_only: expected init"):
        dataclasses.replace(recipe, decoder_only=True)
