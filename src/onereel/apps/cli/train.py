"""`onereel train`: run a training recipe, store the latents that one trains on, or use own data.

`onereel train RECIPE ...` runs a recipe; `cache`, `lora` and `finetune` are commands of their own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from onereel.apps.cli import train_own
from onereel.apps.cli.train_report import describe, parse_settings, summarise

if TYPE_CHECKING:
    from onereel.training.recipes import Recipe

CACHE, RECIPE = "cache", "recipe"
OWN = (CACHE, train_own.LORA, train_own.FINETUNE)  # commands of their own


class RecipeGroup(TyperGroup):
    """Takes the name of a recipe where other groups take a subcommand's."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List what may follow `onereel train`.

        Args:
            ctx: the parser's context.

        Returns:
            The recipes, then the subcommands.
        """
        from onereel.training.recipes import RECIPES

        return [*RECIPES, *OWN]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find the command of a word.

        Args:
            ctx: the parser's context.
            cmd_name: the word.

        Returns:
            The parser's command; any word but a subcommand's stands for a recipe.
        """
        return self.commands[cmd_name if cmd_name in OWN else RECIPE]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave all arguments to the command, so that a recipe's options may precede its name.

        Args:
            ctx: the parser's context.
            args: what follows `onereel train`.

        Returns:
            Nothing that is left over.
        """
        # A word without letters: usage lines then read `onereel train [OPTIONS] [RECIPE]`.
        own = bool(args) and args[0] in OWN
        return super().parse_args(ctx, args if own else ["", *args])


app = typer.Typer(cls=RecipeGroup, add_completion=False, rich_markup_mode=None)
app.add_typer(train_own.app)


@app.command(RECIPE)
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="name of the recipe; none lists them")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one setting")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run [runs/RECIPE]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="take a few steps, print sizes and times, keep nothing"),
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="end gracefully after this time")
    ] = None,
) -> None:
    """Train a model with a recipe; the weights end up in OUT/export.

    `onereel train lora --help` and `onereel train finetune --help` tell how to train a checkpoint
    on your own videos and pictures, `onereel train cache --help` how to store the latents that
    toybox-magi is trained on.
    """
    code = _run(recipe, set_ or [], config, out, resume=resume, dry_run=dry_run,
                max_minutes=max_minutes)  # fmt: skip
    raise typer.Exit(code)


@app.command(CACHE)
def cache(
    vae: Annotated[Path, typer.Option(help="folder of the VAE")],
    out: Annotated[Path, typer.Option(help="folder of the cache")],
    clips: Annotated[int, typer.Option(min=1, help="clips it shall hold")],
    workers: Annotated[int, typer.Option(min=1, help="processes that render and encode")] = 1,
    seed: Annotated[int, typer.Option(help="seed of the stream of clips")] = 0,
    height: Annotated[int, typer.Option(help="canvas height in pixels")] = 64,
    width: Annotated[int, typer.Option(help="canvas width in pixels")] = 64,
    min_chunks: Annotated[int, typer.Option(min=1, help="fewest chunks of a clip")] = 4,
    max_chunks: Annotated[int, typer.Option(min=1, help="most chunks of a clip")] = 10,
    timeline_share: Annotated[
        float, typer.Option(min=0, max=1, help="share of clips whose prompt changes")
    ] = 0.25,
    several_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="share of clips with several objects [world's own: 0.4]"),
    ] = None,
    motions: Annotated[
        str, typer.Option(help="motions that clips are drawn from, with commas [all]")
    ] = "",
    images_only: Annotated[
        bool, typer.Option("--images-only", help="one frame per clip, as an image")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="clips per file")] = 64,
) -> None:
    """Render clips and store their latents and captions; may be stopped and repeated."""
    values = dict(locals())
    from onereel.training.latent_cache import CacheConfig, build_cache

    for name in ("out", "clips", "workers"):
        del values[name]
    chosen = tuple(name.strip() for name in motions.split(",") if name.strip())
    config = CacheConfig(**{**values, "vae": str(vae), "motions": chosen})
    started, before = time.monotonic(), None
    for done, wanted in build_cache(config, out, clips=clips, workers=workers):
        before = done if before is None else before
        rate = (done - before) / (time.monotonic() - started)
        typer.echo(f"{done}/{wanted} clips, {rate:.2f} clips/s", err=True)


def _run(
    name: str | None,
    settings: list[str],
    config: Path | None,
    out: Path | None,
    *,
    resume: bool,
    dry_run: bool,
    max_minutes: float | None,
) -> int:
    # Imported late: `--help` must not wait for torch.
    from onereel.training.distributed import launched
    from onereel.training.recipes import RECIPES, load_recipe

    if name is None:
        for key, (_, text) in RECIPES.items():
            typer.echo(f"{key:20} {text}")
        for key, text in train_own.ABOUT.items():
            typer.echo(f"{key:20} {text}")
        return 0
    overrides = parse_settings(settings)
    if max_minutes is not None:
        overrides["trainer.max_minutes"] = max_minutes
    recipe = load_recipe(name, overrides, file=config)
    folder = out or Path("runs") / name
    with launched(recipe.trainer.device):
        return _train(name, recipe, folder, resume=resume, dry_run=dry_run)


def _train(name: str, recipe: Recipe, folder: Path, *, resume: bool, dry_run: bool) -> int:
    """Run a recipe, or measure it; of several processes the first one speaks."""
    from onereel.apps.cli.train_dry_run import measure_run
    from onereel.apps.cli.train_samples import make_callbacks
    from onereel.training.engine import Trainer

    method, stream = recipe.build()
    config = recipe.trainer
    callbacks = make_callbacks(method, config, out=folder)
    sizes = describe(method, config)
    trainer = Trainer(method, stream, config=config, out=folder, callbacks=callbacks)
    if dry_run:
        plan = {"recipe": name, **sizes, **measure_run(trainer)}
        if trainer.team.is_first:
            typer.echo(json.dumps(plan, indent=2))
        return 0
    result = trainer.fit(resume=resume)
    if trainer.team.is_first:
        typer.echo(json.dumps(summarise(result, folder / "export")))
    return 130 if result.reason == "interrupted" else 0
