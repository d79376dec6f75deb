"""Recipes by name, with overrides that are typed and strict; the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onereel.apps.cli.train import app, parse_settings
from onereel.core.errors import ConfigError
from onereel.training.recipes import load_recipe
from onereel.training.vae import ToyboxVaeRecipe


def test_overrides_reach_the_recipe_and_its_trainer(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("batch_size = 3\nkl = 1\n[trainer]\nmax_minutes = 2\nseed = 5\n")
    texts = {"batch_size": "4", "matrix_lr": "none", "trainer.seed": "7", "bf16": "false"}
    recipe = load_recipe("toybox-vae", texts, file=file)
    assert isinstance(recipe, ToyboxVaeRecipe)
    assert (recipe.batch_size, recipe.kl, recipe.matrix_lr) == (4, 1.0, None)
    assert isinstance(recipe.kl, float)
    assert (recipe.trainer.max_minutes, recipe.trainer.seed, recipe.trainer.bf16) == (2.0, 7, False)


@pytest.mark.parametrize(
    ("name", "overrides", "word"),
    [
        ("toybox-vea", {}, "toybox-vae"),
        ("toybox-vae", {"batchsize": "3"}, "batch_size"),
        ("toybox-vae", {"trainer.max_minute": "3"}, "trainer.max_minutes"),
        ("toybox-vae", {"batch_size": "many"}, "int"),
        ("toybox-vae", {"batch_size": "true"}, "int"),
        ("toybox-vae", {"workers": "none"}, "int"),
    ],
)
def test_mistakes_are_named(name: str, overrides: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_recipe(name, overrides)


def test_settings_need_an_equals_sign() -> None:
    assert parse_settings(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_settings(["a"])


def test_command_lists_describes_and_refuses() -> None:
    runner = CliRunner()
    assert "toybox-vae" in runner.invoke(app, []).stdout
    dry = runner.invoke(app, ["toybox-vae", "--dry-run", "--max-minutes", "3"])
    data = json.loads(dry.stdout)
    assert data["max_minutes"] == 3.0
    assert data["networks"]["vae"]["parameters"] == data["networks"]["vae"]["trained"] > 10**5
    wrong = runner.invoke(app, ["toybox-vae", "--set", "batchsize=3"])
    assert wrong.exit_code == 2


def test_command_trains(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "batch_size": 1, "workers": 0, "validation_clips": 2,
                "stats_clips": 2}  # fmt: skip
    arguments = [item for k, v in settings.items() for item in ("--set", f"{k}={v}")]
    done = CliRunner().invoke(app, ["toybox-vae", "--out", str(tmp_path / "run"), *arguments])
    summary = json.loads(done.stdout)
    assert done.exit_code == 0 and summary["reason"] == "steps" and summary["steps"] == 2
    assert (tmp_path / "run" / "export" / "config.json").is_file()
