"""Recipes by name, with overrides that are typed and strict; the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from onereel.apps.cli.main import main
from onereel.apps.cli.train import RecipeGroup, app, parse_settings
from onereel.core.errors import ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.training.latent_cache import CacheConfig, build_cache, write_shard
from onereel.training.recipes import load_recipe
from onereel.training.vae import ToyboxVaeRecipe, VaeMethod


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
    small = [item for k in ("batch_size", "crowd") for item in ("--set", f"{k}=1")]
    small += ["--set", "workers=0"]
    dry = runner.invoke(app, ["toybox-vae", "--dry-run", "--max-minutes", "3", *small])
    data = json.loads(dry.stdout)
    assert data["max_minutes"] == data["estimated_minutes"] == 3.0
    sizes, (first, middle) = data["memory_mib"], data["steps"]
    assert sizes["total"] == pytest.approx(sum(sizes.values()) - sizes["total"], abs=0.5)
    assert sizes["weights"] == sizes["gradients"] == sizes["averages"]
    assert sizes["weights"] < sizes["optimizers"] < 2 * sizes["weights"]  # Muon's half and AdamW's
    assert first["step"] == 0 < middle["step"] and first["seconds"] > 0
    assert sizes["activations"] == max(first["activations_mib"], middle["activations_mib"]) > 0
    steps = data["estimated_steps"] * data["estimated_seconds_per_step"]
    assert steps == pytest.approx(180, rel=0.05)
    assert data["networks"]["vae"]["parameters"] == data["networks"]["vae"]["trained"] > 10**5


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["toybox-vae", "--set", "batchsize=3"], 2, "unknown key 'batchsize'", "batch_size"),
        (["--resume", "toybox-vea"], 2, "unknown recipe 'toybox-vea'", "toybox-vae"),
        (["toybox-magi", "--set", "cache=nowhere"], 3, "nowhere holds no latent cache",
         "train cache --vae DIR --out nowhere"),
        (["cache", "--vae", "none", "--out", "new", "--clips", "1"], 3, "none holds no VAE",
         "train toybox-vae"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_how_to_mend_it_stand_on_lines_of_their_own(
    arguments: list[str], code: int, error: str, hint: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == code
    *_, first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ") and error in first and "hint" not in first
    assert second.startswith("hint: ") and hint in second


def test_command_goes_on_with_a_cache_of_the_same_settings(
    tiny_recipe: ToyboxVaeRecipe, tmp_path: Path
) -> None:
    VaeMethod(tiny_recipe).export(tmp_path / "vae")
    vae = AutoencoderKLMagi1.from_pretrained(tmp_path / "vae").eval()
    config = CacheConfig(
        vae=str(tmp_path / "vae"), seed=5, height=32, width=32, timeline_share=0.0,
        images_only=True, shard_size=2,
    )  # fmt: skip
    arguments = ["cache", "--vae", config.vae, "--out", str(tmp_path / "out"), "--clips", "2",
                 "--shard-size", "2", "--height", "32", "--width", "32", "--seed", "5",
                 "--timeline-share", "0", "--images-only"]  # fmt: skip
    next(build_cache(config, tmp_path / "out", clips=0))
    write_shard(vae, config, folder=tmp_path / "out", shard=0)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["2/2 clips, 0.00 clips/s"]
    other = CliRunner().invoke(app, [*arguments, "--max-chunks", "7"])
    assert isinstance(other.exception, ConfigError)


def test_the_group_knows_recipes_and_the_cache_by_name() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, RecipeGroup)
    assert group.list_commands(None) == [
        "toybox-vae",
        "toybox-text",
        "toybox-magi",
        "toybox-magi-distill",
        "toybox-magi-dmd",
        "toybox-magic-vae",
        "toybox-magic",
        "toybox-magic-distill",
        "cache",
        "lora",
        "finetune",
    ]
    flags = {
        name: {
            flag for parameter in group.get_command(None, name).params for flag in parameter.opts
        }
        for name in ("toybox-magi", "cache")
    }
    assert "--set" in flags["toybox-magi"] and "--clips" in flags["cache"]


def test_command_trains(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "batch_size": 1, "workers": 0, "validation_clips": 2,
                "stats_clips": 2}  # fmt: skip
    arguments = [item for k, v in settings.items() for item in ("--set", f"{k}={v}")]
    done = CliRunner().invoke(app, ["toybox-vae", "--out", str(tmp_path / "run"), *arguments])
    summary = json.loads(done.stdout)
    assert done.exit_code == 0 and summary["reason"] == "steps" and summary["steps"] == 2
    assert (tmp_path / "run" / "export" / "config.json").is_file()
