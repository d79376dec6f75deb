"""The text encoder's own recipe: what is asked of a caption, and that it is learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import T5Tokenizer

from onereel.core.errors import ConfigError
from onereel.models.text.presets import build_text_encoder
from onereel.training.engine import Trainer
from onereel.training.magi import MagiMethod, ToyboxMagiRecipe, open_caches
from onereel.training.method import TrainerConfig
from onereel.training.text import (
    QUESTIONS,
    TextBatches,
    TextMethod,
    ToyboxTextRecipe,
    answers,
)
from onereel.world import ObjectSpec, SceneSpec

SCENE = SceneSpec(
    objects=(
        ObjectSpec(shape="disc", colour="red", size="large"),
        ObjectSpec(shape="square", colour="blue", size="small"),
    ),
    motion="linear", direction="left", speed="slow", relation="above", background=0,
)  # fmt: skip


@pytest.fixture
def text_recipe(recipe: ToyboxMagiRecipe) -> ToyboxTextRecipe:
    trainer = TrainerConfig(max_steps=60, log_every=60, ema_decay=0.9)
    return ToyboxTextRecipe(
        preset="tiny", tokenizer=recipe.tokenizer, batch_size=16, lr=1e-2, matrix_lr=None,
        workers=0, trainer=trainer,
    )  # fmt: skip


def test_answers_tell_the_objects_apart() -> None:
    said = [
        {name: kinds[i] for (name, kinds), i in zip(QUESTIONS.items(), row, strict=True)}
        for row in (answers(SCENE, 0), answers(SCENE, 1))
    ]
    assert said == [
        {"colour": "red", "shape": "disc", "size": "large", "motion": "linear",
         "direction": "left", "relation": "above"},
        {"colour": "blue", "shape": "square", "size": "small", "motion": "none",
         "direction": "none", "relation": "below"},
    ]  # fmt: skip


def test_batches_ask_at_the_words_of_the_objects(text_recipe: ToyboxTextRecipe) -> None:
    tokenizer = T5Tokenizer.from_pretrained(text_recipe.tokenizer)
    batches = TextBatches(text_recipe, tokenizer, tag="text")
    batch, again = batches[3], batches[3]
    assert all(torch.equal(value, again[name]) for name, value in batch.items())
    assert not torch.equal(batch["ids"], batches[4]["ids"])
    assert len(batch["row"]) == len(batch["place"]) == len(batch["answers"])
    several = (batch["row"].bincount() > 2).float().mean()
    assert 0.4 < several < 1.0
    asked = batch["ids"][batch["row"], batch["place"]]
    pieces = tokenizer.convert_ids_to_tokens(asked.tolist())
    # The words of a colour and of a shape take turns, and each begins a word.
    assert all(piece.startswith("▁") for piece in pieces)
    colours, shapes = pieces[::2], pieces[1::2]
    assert not set(colours) & set(shapes)


def test_it_learns_and_is_exported_for_the_transformer(
    text_recipe: ToyboxTextRecipe, recipe: ToyboxMagiRecipe, tmp_path: Path
) -> None:
    method, stream = text_recipe.build()
    assert isinstance(method, TextMethod)
    before = method.validate(0)
    Trainer(method, stream, config=text_recipe.trainer, out=tmp_path / "run", quiet=True).fit()
    after = method.validate(0)
    assert set(after) == {f"val_{name}" for name in QUESTIONS}
    assert after["val_direction"] > before["val_direction"] + 0.2
    method.export(tmp_path / "export")
    changed = dataclasses.replace(recipe, text=str(tmp_path / "export" / "text_encoder"))
    build_text_encoder("tiny", 50).save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match="vocab_size"):
        MagiMethod(
            dataclasses.replace(recipe, text=str(tmp_path / "small")), open_caches(recipe.cache)
        )
    magi = MagiMethod(changed, open_caches(recipe.cache))
    for name, value in method.text.state_dict().items():
        assert torch.equal(magi.text.state_dict()[name], value.bfloat16().float()), name


def test_it_can_stay_near_another(text_recipe: ToyboxTextRecipe, tmp_path: Path) -> None:
    tokens = len(T5Tokenizer.from_pretrained(text_recipe.tokenizer))
    other = build_text_encoder("tiny", tokens)
    other.save_pretrained(tmp_path / "other")
    distances = []
    for weight in (0.0, 100.0):
        changed = dataclasses.replace(text_recipe, near=str(tmp_path / "other"), near_weight=weight)
        method, stream = changed.build()
        assert isinstance(method, TextMethod)
        out = tmp_path / str(weight)
        Trainer(method, stream, config=changed.trainer, out=out, quiet=True).fit()
        distances.append(float(method.train_step(method.validation[0], 0)["distance"]))
    assert distances[1] < 0.5 * distances[0]
