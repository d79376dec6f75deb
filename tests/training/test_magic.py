"""The recipe of the Magic 1-For-1 family: windows, conditions, losses, export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.device import computes_bfloat16
from onereel.core.errors import ConfigError
from onereel.models.text.llava import encode_image_tokens, encode_pooled, encode_prompt_tokens
from onereel.models.text.toybox_llava import TOYBOX_TEMPLATE
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.training.engine import Part, Trainer, TrainerConfig
from onereel.training.latent_cache import CacheConfig, LatentCache, write_shard
from onereel.training.magic import (
    IMAGE,
    V2V,
    MagicBatches,
    MagicMethod,
    ToyboxMagicRecipe,
    draw_sigmas,
    prior_of,
)
from onereel.training.magic_cache import frame_of, load_magic_vae


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of three and four seconds, some with a change, and six pictures; random VAE."""
    folder = tmp_path_factory.mktemp("magic")
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
    )
    vae.save_pretrained(folder / "vae")
    loaded = load_magic_vae(str(folder / "vae"))
    for name, images_only in (("clips", False), ("pictures", True)):
        config = CacheConfig(
            vae=str(folder / "vae"),
            min_chunks=3,
            max_chunks=4,
            timeline_share=0.5,
            images_only=images_only,
            shard_size=6,
            height=64,
            width=64,
        )
        (folder / name).mkdir()
        (folder / name / "cache.json").write_text(json.dumps(dataclasses.asdict(config)))
        write_shard(loaded, config, folder=folder / name, shard=0)
    return folder


@pytest.fixture
def recipe(caches: Path) -> ToyboxMagicRecipe:
    """Two windows or pictures per step."""
    return ToyboxMagicRecipe(
        cache=str(caches / "clips"),
        image_cache=str(caches / "pictures"),
        tokenizer=str(caches / "tokenizer"),
        batch_size=2,
        image_batch_size=4,
        image_steps=0,
        image_every=2,
        lengths=(5, 3),
        validation_items=2,
        workers=0,
        trainer=TrainerConfig(max_steps=2, ema_decay=0.9),
    )


@pytest.fixture
def method(recipe: ToyboxMagicRecipe) -> MagicMethod:
    """Fresh networks."""
    return MagicMethod(recipe, LatentCache(recipe.cache))


def test_a_clip_is_cut_to_whole_latent_frames(caches: Path) -> None:
    cache = LatentCache(caches / "clips")
    vae = load_magic_vae(str(caches / "vae"))
    clip = cache[0]
    assert clip.first is not None
    assert clip.latent.shape == (16, 6 * len(clip.captions), 8, 8)
    assert clip.maps.shape[1] == clip.latent.shape[1]
    video = torch.as_tensor(clip.first)[None, None].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    fast = computes_bfloat16(video.device)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
        image = vae.encode(video).latent_dist.mode()[0] * vae.config.scaling_factor
    assert torch.equal(clip.images, image.half())
    assert [frame_of(i) for i in range(3)] == [0, 3, 7]


def test_windows_have_one_caption_and_stay_on_their_side(recipe: ToyboxMagicRecipe) -> None:
    batches = MagicBatches(recipe, LatentCache(recipe.cache))
    assert {batches.task(i) for i in range(0, 20, 2)} == {IMAGE}
    rng = np.random.default_rng(0)
    for task in ("t2v", "i2v", "v2v"):
        batch = batches.gather([0, 1, 2, 3], task, length=5, rng=rng)
        assert batch["latent"].shape == (4, 16, 5, 8, 8)
        given = batch["reference"].shape[2]
        assert given == 1 or task == V2V
        if task == V2V:
            assert torch.equal(batch["reference"], batch["latent"][:, :, :given])
        prior = prior_of(batch)
        assert prior.shape == (4, 17, 5, 8, 8)
        assert prior[:, -1].sum() == (0 if task == "t2v" else 4 * given * 64)
    again = batches[3]
    assert torch.equal(batches[3]["latent"], again["latent"])


def test_text_and_pictures_are_encoded_as_the_pipeline_does(
    recipe: ToyboxMagicRecipe, method: MagicMethod
) -> None:
    captions = ["a red disc falls", "a large blue ring moves left"]
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        condition = method.text(captions, pictures)
    parts = method.parts
    for row, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        seen = encode_image_tokens(
            PIL.Image.fromarray(picture.numpy()),
            parts["tokenizer"],
            image_processor=parts["image_processor"],
            llava=parts["text_encoder"],
            template=TOYBOX_TEMPLATE,
        )
        prompt = encode_prompt_tokens(
            caption,
            parts["tokenizer"],
            language_model=parts["text_encoder"],
            template=TOYBOX_TEMPLATE,
            crop=None,
            num_tokens=64,
        )
        expected = torch.cat((seen[0], prompt.embeds[0, prompt.mask[0]]))
        length = len(expected)
        assert int(condition.mask[row].sum()) == length
        torch.testing.assert_close(condition.text[row, :length], expected, rtol=1e-4, atol=1e-5)
    pooled = encode_pooled(captions, parts["tokenizer_2"], encoder=parts["text_encoder_2"])
    torch.testing.assert_close(condition.pooled, pooled, rtol=1e-4, atol=1e-5)


def test_dropped_text_is_the_empty_prompt(method: MagicMethod) -> None:
    with torch.no_grad():
        dropped = method.text(["a red disc", "a ring"], dropped=torch.tensor([True, False]))
        empty = method.text(["", "a ring"])
    assert torch.equal(dropped.text, empty.text)
    assert torch.equal(dropped.pooled, empty.pooled)


@pytest.mark.parametrize("index", [2, 3])
def test_parts_add_up_to_the_whole(method: MagicMethod, index: int) -> None:
    torch.nn.init.normal_(method.dit.proj_out.weight, std=0.1)
    batch = MagicBatches(method.recipe, LatentCache(method.recipe.cache))[index]
    with torch.no_grad():
        whole = method.train_step(batch, 0)["loss"]
        total = 0.0
        for part in range(2):
            method.part = Part(index=part, count=2)
            total += float(method.train_step(batch, 0)["loss"])
    assert total == pytest.approx(float(whole), rel=1e-4)


def test_every_network_learns(method: MagicMethod) -> None:
    torch.nn.init.normal_(method.dit.proj_out.weight, std=0.1)
    for block in (*method.dit.transformer_blocks, *method.dit.single_transformer_blocks):
        torch.nn.init.normal_(block.norm.linear.weight if hasattr(block, "norm") else
                              block.norm1.linear.weight, std=0.1)  # fmt: skip
    batches = MagicBatches(method.recipe, LatentCache(method.recipe.cache))
    batch = batches.gather([0, 1], "i2v", length=3, rng=np.random.default_rng(0))
    method.train_step(batch, 0)["loss"].backward()
    for name, network in method.networks.items():
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in grads), name


def test_a_run_exports_a_pipeline(recipe: ToyboxMagicRecipe, tmp_path: Path) -> None:
    built: Any = recipe.build()
    result = Trainer(*built, config=recipe.trainer, out=tmp_path, quiet=True).fit()
    assert result.reason == "steps"
    pipeline = Magic141Pipeline.from_pretrained(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        "a red disc", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert output.frames.shape == (1, 5, 64, 64, 3)


def test_noise_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = draw_sigmas(20000, generator, shift=1.0, uniform_share=0.0)
    shifted = draw_sigmas(20000, generator, shift=5.0, uniform_share=0.0)
    even = draw_sigmas(20000, generator, shift=5.0, uniform_share=1.0)
    assert plain.median() == pytest.approx(0.5, abs=0.01)
    assert shifted.median() == pytest.approx(5 / 6, abs=0.01)
    assert even.quantile(0.25) == pytest.approx(0.25, abs=0.01)


def test_wrong_settings(recipe: ToyboxMagicRecipe) -> None:
    with pytest.raises(ConfigError, match="shares"):
        dataclasses.replace(recipe, shares=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="image_cache"):
        MagicBatches(dataclasses.replace(recipe, image_cache=""), LatentCache(recipe.cache))
