"""The recipes `onereel train` knows, and how settings reach them.

A recipe is a frozen dataclass with a `trainer: TrainerConfig` field and a `build()` that returns a
method and a stream. Its fields are its settings: `load_recipe("toybox-vae", {"batch_size": "8",
"trainer.max_minutes": "3"})`. A field name of the trainer may stand without the prefix.
"""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from onereel.core.config import check_keys, nearest_name
from onereel.core.errors import ConfigError
from onereel.training.engine import Method, Stream, TrainerConfig

RECIPES: dict[str, tuple[str, str]] = {
    "toybox-vae": (
        "onereel.training.vae:ToyboxVaeRecipe",
        "the toybox VAE: sharp 12-frame tiles, 4x8x8 compression",
    ),
    "toybox-text": (
        "onereel.training.text:ToyboxTextRecipe",
        "the toybox T5, on captions alone: which words belong together",
    ),
    "toybox-magi": (
        "onereel.training.magi:ToyboxMagiRecipe",
        "the toybox MAGI DiT: block-causal flow matching on cached latents",
    ),
    "toybox-magi-distill": (
        "onereel.training.shortcut:ToyboxDistillRecipe",
        "its few-step student: shortcut distillation with guidance built in",
    ),
    "toybox-magi-dmd": (
        "onereel.training.magi_dmd:ToyboxMagiDmdRecipe",
        "another few-step student: DMD2, a chunk behind clean chunks",
    ),
    "toybox-magic-vae": (
        "onereel.training.magic_vae:ToyboxMagicVaeRecipe",
        "the toybox VAE in HunyuanVideo's shape: causal, its first frame a picture",
    ),
    "toybox-magic": (
        "onereel.training.magic:ToyboxMagicRecipe",
        "the toybox Magic 1-For-1: text to image and image to video in one transformer",
    ),
    "toybox-magic-distill": (
        "onereel.training.magic_distill:ToyboxMagicDistillRecipe",
        "its four-step student: DMD2 with guidance built in",
    ),
}


class Recipe(Protocol):
    """What `load_recipe` returns; a frozen dataclass."""

    @property
    def trainer(self) -> TrainerConfig:
        """Settings of the loop."""
        ...

    def build(self) -> tuple[Method, Stream]:
        """Make what is trained and the data for it."""
        ...


def load_recipe(
    name: str, overrides: Mapping[str, Any] | None = None, *, file: Path | None = None
) -> Recipe:
    """Make a recipe from its name, a TOML file and overrides, in this order.

    Args:
        name: name in `RECIPES`.
        overrides: values by field name; texts are read as TOML values where they are ones.
        file: TOML file with the same names; a `[trainer]` table for the loop's settings.

    Returns:
        The recipe.

    Raises:
        ConfigError: the name or a key is unknown, or a value has the wrong type.
    """
    if name not in RECIPES:
        near = nearest_name(name, RECIPES)
        hint = f"did you mean '{near}'?" if near else f"recipes: {', '.join(RECIPES)}"
        raise ConfigError(f"unknown recipe '{name}'", hint=hint)
    module, _, attribute = RECIPES[name][0].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    recipe = cls()
    if file is not None:
        recipe = override(recipe, _flat(tomllib.loads(file.read_text("utf-8"))), where=name)
    return typing.cast(Recipe, override(recipe, overrides or {}, where=name))


def override(recipe: Any, values: Mapping[str, Any], *, where: str) -> Any:
    """Replace fields of a recipe and of its trainer.

    Args:
        recipe: the dataclass.
        values: new values by name; `trainer.x` and, where the recipe has no `x`, plain `x` set the
            trainer's `x`.
        where: the recipe's name in messages.

    Returns:
        A new recipe.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    own = {f.name for f in dataclasses.fields(recipe)}
    loop = {f.name for f in dataclasses.fields(TrainerConfig)}
    check_keys(values, own - {"trainer"} | loop | {f"trainer.{name}" for name in loop}, where=where)
    mine: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    for key, value in values.items():
        bare = key.removeprefix("trainer.")
        target = mine if key in own else trainer
        owner = type(recipe) if key in own else TrainerConfig
        target[bare] = _typed(value, typing.get_type_hints(owner)[bare], f"{where}: {key}")
    if trainer:
        mine["trainer"] = dataclasses.replace(recipe.trainer, **trainer)
    return dataclasses.replace(recipe, **mine)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the `[trainer]` table into dotted keys."""
    flat = {key: value for key, value in data.items() if key != "trainer"}
    return flat | {f"trainer.{key}": value for key, value in data.get("trainer", {}).items()}


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Read a text as a TOML value and check it against a field's type."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, str) and not (str in kinds and value.lower() != "none"):
        value = _parsed(value)
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if int not in kinds else value
    plain = tuple(typing.get_origin(k) or k for k in kinds)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise ConfigError(where, expected=names, got=repr(value))
    return value


def _parsed(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
