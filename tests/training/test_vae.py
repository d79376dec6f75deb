"""The VAE recipe: losses, statistics, three real steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.core.errors import ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.training.engine import Part, Trainer
from onereel.training.memory import measure_steps
from onereel.training.pixel_losses import (
    edge_error,
    pixel_weights,
    psnr,
    saturation,
    temporal_error,
)
from onereel.training.vae import ToyboxVaeRecipe, VaeMethod, as_tiles
from onereel.training.vae_tiles import VaeBatches, crowded_episode
from onereel.world import render


def test_three_steps_export_and_normalised_latents(
    tiny_recipe: ToyboxVaeRecipe, tmp_path: Path
) -> None:
    method, stream = tiny_recipe.build()
    assert isinstance(method, VaeMethod)
    result = Trainer(method, stream, config=tiny_recipe.trainer, out=tmp_path, quiet=True).fit()
    assert result.progress.step == 3 and result.progress.skipped == 0
    assert {"val_psnr", "val_psnr_object", "val_flicker"} == set(result.metrics)
    losses = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[0]["loss"] > 0 and losses[0]["kl"] >= 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 4 * 3 * 32, 3 * 2 * 32)

    vae = AutoencoderKLMagi1.from_pretrained(tmp_path / "export", torch_dtype=torch.float32).eval()
    assert vae.config.scaling_factor == 1.0
    with torch.no_grad():
        latent = vae.encode(as_tiles(method.stats_tiles)).latent_dist.mode()
        unit = vae.normalize_latent(latent)
    assert unit.mean((0, 2, 3, 4)).abs().max() < 0.05
    assert (unit.std((0, 2, 3, 4)) - 1).abs().max() < 0.05


def test_single_frames_become_one_latent_frame(tiny_recipe: ToyboxVaeRecipe) -> None:
    method = VaeMethod(tiny_recipe)
    frames = torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8)
    assert as_tiles(frames).shape == (2, 3, 4, 32, 32)
    assert method.vae.encode(as_tiles(frames)).latent_dist.mode().shape[2] == 1


def test_all_frames_of_a_single_latent_frame_are_compared(tiny_recipe: ToyboxVaeRecipe) -> None:
    method = VaeMethod(tiny_recipe)
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    outputs: list[torch.Size] = []
    decode = method.vae.decode

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        outputs.append(output.sample.shape)
        return output

    method.vae.decode = recorded
    method.train_step(frames, 0)
    assert outputs == [(1, 3, 4, 32, 32)]


def test_last_convolution_starts_as_the_identity_on_three_channels(
    tiny_recipe: ToyboxVaeRecipe,
) -> None:
    convolution = VaeMethod(tiny_recipe).vae.decoder.conv_out
    volume = torch.randn(1, 4, 3, 5, 5)
    assert torch.allclose(convolution(volume), 0.3 * volume[:, :3], atol=1e-6)


def test_weights_stress_saturated_and_moving_pixels_and_average_to_one() -> None:
    video = torch.zeros(1, 3, 4, 6, 6)
    video[:, 0, :, 1, 1] = 1.0  # a still red pixel
    video[:, :, 2:, 4, 4] = 0.5  # a grey one that appears
    assert saturation(video)[0, 0, 0, 1, 1] == 0.5
    weights = pixel_weights(video, object_weight=4.0, motion_weight=4.0)
    assert weights.mean() == pytest.approx(1.0)
    plain = weights[0, 0, 0, 0, 0]
    assert weights[0, 0, 0, 1, 1] / plain == pytest.approx(3.0)
    assert [round(float(w / plain), 4) for w in weights[0, 0, :, 4, 4]] == [1.0, 3.0, 3.0, 1.0]
    around = pixel_weights(video, object_weight=4.0, motion_weight=4.0, reach=1)[0, 0, 0]
    assert around.shape == video.shape[-2:]
    assert torch.equal(around[:3, :3], around[1, 1].expand(3, 3))  # what surrounds it counts as it
    assert around[1, 1] / around[5, 5] == pytest.approx(3.0)


def test_edge_error_is_blind_to_a_shift_of_brightness_and_sees_a_blur() -> None:
    weights = torch.ones(1, 1, 1, 4, 4)
    assert edge_error(torch.full((1, 3, 1, 4, 4), 0.3), weights) == 0
    error = torch.zeros(1, 3, 1, 4, 4)
    error[..., 2:] = 1.0
    assert edge_error(error, weights) == pytest.approx(1 / 3)


def test_psnr_of_the_full_range() -> None:
    assert psnr(4.0) == pytest.approx(0.0) and psnr(0.004) == pytest.approx(30.0)


def test_a_crowded_episode_holds_the_objects_of_several_scenes(
    tiny_recipe: ToyboxVaeRecipe,
) -> None:
    recipe = dataclasses.replace(tiny_recipe, crowd=5)
    episode = crowded_episode(np.random.default_rng(0), recipe)
    assert episode.state.shape[1] >= 5
    assert episode.state.shape[:2] == episode.opacity.shape == episode.rgb.shape[:2]
    lawful = render(dataclasses.replace(episode, state=episode.state[:, :1], rgb=episode.rgb[:, :1],
                                        opacity=episode.opacity[:, :1]))  # fmt: skip
    crowded = render(episode)
    saturated = [(np.ptp(v.astype(int), axis=-1) > 60).mean() for v in (lawful, crowded)]
    assert saturated[1] > 2 * saturated[0]
    batches = VaeBatches(recipe)
    assert torch.equal(batches[9], VaeBatches(recipe)[9])  # depends on the index alone


def test_some_clips_have_a_moving_camera(tiny_recipe: ToyboxVaeRecipe) -> None:
    still, moving = (
        VaeBatches(dataclasses.replace(tiny_recipe, crowd=1, camera_share=share, reuse=1))
        for share in (0.0, 1.0)
    )
    specs = [moving.camera_clips[i].specs[0] for i in range(8)]
    assert {spec.camera[:4] for spec in specs} == {"pan_", "zoom"}
    for index in range(4):
        rendered = moving._video(index)
        assert np.array_equal(rendered, moving.camera_clips[index].video)
        assert np.array_equal(still._video(index), still.clips[index].video)


def test_the_temporal_error_sees_what_stands_still_and_should_not() -> None:
    steady = torch.linspace(0, 1, 8)[None, None, :, None, None].expand(1, 3, 8, 4, 4)
    stepping = steady[:, :, ::4].repeat_interleave(4, dim=2)
    assert temporal_error(torch.zeros_like(steady) + 0.3, steady) == 0
    assert temporal_error(stepping - steady, steady) > 0.1
    one = torch.rand(1, 3, 1, 4, 4)
    assert temporal_error(one, one) == temporal_error(one, one, floor=0.1) == 0


def test_over_its_own_change_a_slow_motion_weighs_as_much_as_a_fast_one() -> None:
    fast = torch.rand(2, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    slow, rest = 0.1 * fast, torch.zeros_like(fast)
    frozen = [temporal_error(-video, video, floor=1e-6) for video in (fast, slow)]
    assert frozen == pytest.approx([1.0, 1.0], rel=1e-3)
    plain = [float(temporal_error(-video, video)) for video in (fast, slow)]
    assert plain[1] == pytest.approx(0.1 * plain[0])
    # What rests counts by the floor, and every item by itself.
    mixed = torch.cat((fast[:1], rest[:1]))
    flicker = torch.cat((rest[:1], slow[:1]))
    change = float(slow[:1].diff(dim=2).abs().mean())
    assert temporal_error(flicker, mixed, floor=0.01) == pytest.approx(change / 0.01 / 2)


def test_the_temporal_floor_is_above_zero(tiny_recipe: ToyboxVaeRecipe) -> None:
    with pytest.raises(ConfigError, match="temporal_floor"):
        dataclasses.replace(tiny_recipe, temporal=1.0, temporal_floor=0.0)
    still = dataclasses.replace(tiny_recipe, temporal=1.0, temporal_floor=0.002)
    plain = dataclasses.replace(still, temporal_floor=None)
    parts = []
    for recipe in (still, plain):
        parts.append(VaeMethod(recipe).train_step(VaeBatches(recipe)[0], 0))
    assert parts[0]["temporal"] > 2 * parts[1]["temporal"] > 0
    assert parts[0]["l1"] == parts[1]["l1"]


def test_a_decoder_learns_alone(tiny_recipe: ToyboxVaeRecipe, tmp_path: Path) -> None:
    Trainer(*tiny_recipe.build(), config=tiny_recipe.trainer, out=tmp_path / "a", quiet=True).fit()
    again = dataclasses.replace(
        tiny_recipe, init=str(tmp_path / "a/export"), decoder_only=True, temporal=1.0
    )
    Trainer(*again.build(), config=again.trainer, out=tmp_path / "b", quiet=True).fit()
    before, after = (AutoencoderKLMagi1.from_pretrained(tmp_path / n / "export") for n in "ab")
    assert str(tmp_path) not in (tmp_path / "b/export/config.json").read_text()
    assert after.config.latents_mean == before.config.latents_mean
    assert after.config.latents_std == before.config.latents_std
    assert after.config.latent_rgb_factors == before.config.latent_rgb_factors
    changed = {
        name.partition(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder"}
    with pytest.raises(ConfigError, match="decoder_only: expected init"):
        dataclasses.replace(tiny_recipe, decoder_only=True)


def test_a_decoder_is_shown_latents_that_are_off(
    tiny_recipe: ToyboxVaeRecipe, tmp_path: Path
) -> None:
    Trainer(*tiny_recipe.build(), config=tiny_recipe.trainer, out=tmp_path / "a", quiet=True).fit()
    alone = dataclasses.replace(tiny_recipe, init=str(tmp_path / "a/export"), decoder_only=True)
    method = VaeMethod(alone)
    batch = VaeBatches(alone)[0]
    losses, seen = [], []
    method.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for amount in (0.0, 1.0):
        method.recipe = dataclasses.replace(alone, latent_noise=amount)
        losses.append(method.train_step(batch, 3)["l1"].item())
    assert losses[0] != losses[1]
    moved = (seen[1] - seen[0]).transpose(0, 1).flatten(1).std(1)
    unit = torch.tensor(method.vae.config.latents_std)
    assert (0.02 * unit < moved).all() and (moved < unit).all()
    with pytest.raises(ConfigError, match="latent_noise: expected decoder_only"):
        dataclasses.replace(tiny_recipe, latent_noise=0.1)


def test_activations_computed_twice_give_the_same_gradients_with_less_memory(
    tiny_recipe: ToyboxVaeRecipe, tmp_path: Path
) -> None:
    found = []
    for twice in (False, True):
        # In float32: in bfloat16 attention is rounded otherwise where it is computed twice.
        loop = dataclasses.replace(tiny_recipe.trainer, activation_checkpointing=twice, bf16=False)
        recipe = dataclasses.replace(tiny_recipe, trainer=loop)
        trainer = Trainer(*recipe.build(), config=loop, out=tmp_path, quiet=True)
        (measured,) = measure_steps(trainer, [0])
        trainer.progress.step = 0
        found.append((trainer.train_batch(VaeBatches(recipe)[0]), measured["activations_mib"]))
    (kept, much), (computed, little) = found
    assert computed == pytest.approx(kept, rel=1e-5) and kept["grad_norm"] > 0
    assert little < 0.95 * much  # of two blocks; the pixels' share stays


def test_a_whole_batch_is_the_sum_of_its_parts(tiny_recipe: ToyboxVaeRecipe) -> None:
    method = VaeMethod(dataclasses.replace(tiny_recipe, batch_size=3))
    batch = VaeBatches(method.recipe)[0]
    whole = method.train_step(batch, 7)
    sums = dict.fromkeys(whole, 0.0)
    for index in range(2):
        method.part = Part(index=index, count=2)
        for name, value in method.train_step(batch, 7).items():
            sums[name] += float(value.detach())
    assert sums == pytest.approx({k: float(v.detach()) for k, v in whole.items()}, rel=1e-5)
    assert method.finish(sums)["psnr"] == pytest.approx(psnr(float(whole["l2"].detach())))
