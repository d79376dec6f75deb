"""Settings small enough for a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel.models import magi_vae
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text import presets as text_presets
from onereel.models.text.tokenizer import train_tokenizer
from onereel.training import vae
from onereel.training.latent_cache import CacheConfig, build_cache, write_shard
from onereel.training.magi import ToyboxMagiRecipe
from onereel.training.method import TrainerConfig
from onereel.world import sample_captions

TINY_VAE = magi_vae.VAE_PRESETS["toybox"] | {
    "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 1,
    "height": 32, "width": 32,
}  # fmt: skip
TINY_DIT = DIT_PRESETS["toybox"] | {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "num_kv_heads": 1,
    "cross_attention_dim": 32, "ffn_dim": 32, "caption_max_length": 64,
}  # fmt: skip
TINY_TEXT = {
    **text_presets.TEXT_PRESETS["toybox"], "d_model": 32, "d_kv": 16, "d_ff": 32,
    "num_layers": 1, "num_heads": 2,
}  # fmt: skip


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> vae.ToyboxVaeRecipe:
    """A VAE recipe on a 32x32 canvas with one narrow block per side."""
    tiny = magi_vae.VAE_PRESETS["toybox"] | {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 32,
        "num_layers": 1,
        "height": 32,
        "width": 32,
    }
    monkeypatch.setitem(magi_vae.VAE_PRESETS, "tiny", tiny)
    recipe = vae.ToyboxVaeRecipe(
        preset="tiny", height=32, width=32, batch_size=2, workers=0, validation_clips=4,
        stats_clips=8,
    )  # fmt: skip
    loop = dataclasses.replace(
        recipe.trainer,
        max_steps=3,
        max_minutes=None,
        schedule="cosine",
        log_every=1,
        warmup_steps=1,
    )
    return dataclasses.replace(recipe, trainer=loop)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny VAE, a tokenizer, a cache of 16 clips and one of 8 images."""
    folder = tmp_path_factory.mktemp("magi")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoencoderKLMagi1(**TINY_VAE).eval()
    network.save_pretrained(folder / "vae")
    small: dict[str, Any] = {
        "vae": str(folder / "vae"), "height": 32, "width": 32, "shard_size": 8, "min_chunks": 4,
        "max_chunks": 6, "timeline_share": 0.5,
    }  # fmt: skip
    for name, changes, shards in (("clips", {}, 2), ("images", {"images_only": True}, 1)):
        config = CacheConfig(**(small | changes))
        next(build_cache(config, folder / name, clips=0))
        for shard in range(shards):
            write_shard(network, config, folder=folder / name, shard=shard)
    train_tokenizer(sample_captions(300, 0), folder / "tokenizer", vocab_size=200)
    return folder


@pytest.fixture
def recipe(stored: Path, monkeypatch: pytest.MonkeyPatch) -> ToyboxMagiRecipe:
    """The recipe with tiny networks and the stored data."""
    monkeypatch.setitem(DIT_PRESETS, "tiny", TINY_DIT)
    texts = {**text_presets.TEXT_PRESETS, "tiny": TINY_TEXT}
    monkeypatch.setattr(text_presets, "TEXT_PRESETS", texts)
    trainer = TrainerConfig(max_steps=4, warmup_steps=2, log_every=1, bf16=True, ema_decay=0.9)
    return ToyboxMagiRecipe(
        preset="tiny", cache=str(stored / "clips"), image_cache=str(stored / "images"),
        tokenizer=str(stored / "tokenizer"), batch_size=2, image_batch_size=3, image_steps=2,
        image_every=3, workers=0, validation_items=3, map_weight=0.0, map_block=0, trainer=trainer,
    )  # fmt: skip
