"""Settings small enough for a test."""

from __future__ import annotations

import dataclasses

import pytest

from onereel.models import magi_vae
from onereel.training import vae


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
