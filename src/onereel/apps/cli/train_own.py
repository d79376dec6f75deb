"""`onereel train lora` and `onereel train finetune`: train a checkpoint on your own data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from onereel.apps.cli.train_report import describe, parse_settings, summarise

LORA, FINETUNE = "lora", "finetune"
ABOUT = {  # beside the recipes, whose names may follow `onereel train` as well
    LORA: "a LoRA on your own videos and pictures",
    FINETUNE: "all weights of a transformer on your own videos and pictures",
}
_DEFAULT_STEPS = 1000

_Data = Annotated[
    Path, typer.Option(help="folder of videos and pictures with captions, or a .jsonl file")
]
_Prior = Annotated[
    Path | None,
    typer.Option(
        help="the same, of what the model makes already and shall go on making as it does"
    ),
]
_Model = Annotated[
    str, typer.Option(metavar="NAME|DIR|CONFIG.json", help="checkpoint to start from")
]
_Out = Annotated[Path | None, typer.Option(help="folder of the run [runs/lora, runs/finetune]")]
_Steps = Annotated[
    int | None, typer.Option(min=1, help=f"steps to train [{_DEFAULT_STEPS} without --max-minutes]")
]
_Minutes = Annotated[float | None, typer.Option(help="end gracefully after this time")]
_Rate = Annotated[float | None, typer.Option(help="learning rate [1e-4]")]
_Batch = Annotated[int | None, typer.Option(min=1, help="pieces of video per step [4]")]
_Size = Annotated[
    str | None, typer.Option(metavar="WxH", help="pixels to train at [the checkpoint's own]")
]
_Policy = Annotated[
    str, typer.Option(metavar="crop|fit|pad", help="what is done with pictures of another shape")
]
_Seed = Annotated[int, typer.Option(help="of all draws")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
_Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one more setting")
]
_Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check the data, print sizes and settings; write nothing")
]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(LORA)
def lora(
    data: _Data,
    prior: _Prior = None,
    model: _Model = "toybox-magi",
    out: _Out = None,
    rank: Annotated[int, typer.Option(min=1, help="of the updates")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="updates are scaled by alpha / rank [the rank]")
    ] = None,
    steps: _Steps = None,
    max_minutes: _Minutes = None,
    lr: _Rate = None,
    batch_size: _Batch = None,
    size: _Size = None,
    policy: _Policy = "crop",
    seed: _Seed = 0,
    device: _Device = "auto",
    set_: _Set = None,
    resume: _Resume = False,
    dry_run: _DryRun = False,
) -> None:
    """Train a LoRA on your own videos and pictures.

    DATA holds clip.mp4 and clip.txt with its caption, and so on, or one metadata.jsonl with lines
    such as {"file": "clip.mp4", "caption": "a dog runs"}. What cannot be used is listed and left
    out. `onereel generate --lora OUT/export/pytorch_lora_weights.safetensors` uses the result.
    """
    raise typer.Exit(_run(LORA, dict(locals())))


@app.command(FINETUNE)
def finetune(
    data: _Data,
    prior: _Prior = None,
    model: _Model = "toybox-magi",
    out: _Out = None,
    steps: _Steps = None,
    max_minutes: _Minutes = None,
    lr: _Rate = None,
    batch_size: _Batch = None,
    size: _Size = None,
    policy: _Policy = "crop",
    seed: _Seed = 0,
    device: _Device = "auto",
    set_: _Set = None,
    resume: _Resume = False,
    dry_run: _DryRun = False,
) -> None:
    """Train all weights of a checkpoint's transformer on your own videos and pictures.

    DATA is as of `onereel train lora`. `onereel generate --model OUT/export` uses the result.
    """
    raise typer.Exit(_run(FINETUNE, dict(locals())))


def _run(kind: str, flags: dict[str, Any]) -> int:
    from onereel.training.engine import Trainer
    from onereel.training.own_run import prepare_run

    recipe = _recipe(kind, flags)
    if flags["dry_run"]:
        _look(recipe)
        return 0
    out = flags["out"] or Path("runs") / kind
    method, stream = prepare_run(recipe, out, say=_say, resume=flags["resume"])
    trainer = Trainer(method, stream, config=recipe.trainer, out=out)
    result = trainer.fit(resume=flags["resume"])
    export = out / "export"
    if kind == LORA:
        export /= "pytorch_lora_weights.safetensors"
    typer.echo(json.dumps(summarise(result, export)))
    return 130 if result.reason == "interrupted" else 0


def _look(recipe: Any) -> None:
    """Check data and checkpoint, and print what would be trained."""
    from onereel.training.finetune import make_method
    from onereel.training.own_base import open_base
    from onereel.training.own_run import check_data

    base = open_base(recipe)
    report = check_data(recipe, base, say=_say)
    report.require_usable()
    sizes = describe(make_method(recipe, base), recipe.trainer)
    typer.echo(json.dumps({"data": report.to_dict(), "size": dataclasses.asdict(base.shape),
                           **sizes}, indent=2, ensure_ascii=False))  # fmt: skip


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _recipe(kind: str, flags: dict[str, Any]) -> Any:
    """Turn the flags into a recipe."""
    from onereel.apps.cli.reading import parse_size
    from onereel.core.device import pick_device
    from onereel.training.own_base import OwnDataRecipe
    from onereel.training.recipes import override

    steps, minutes = flags["steps"], flags["max_minutes"]
    if steps is None and minutes is None:
        steps = _DEFAULT_STEPS
    values: dict[str, Any] = {"trainer.max_steps": steps, "trainer.max_minutes": minutes}
    values["trainer.schedule"] = "time" if steps is None else "cosine"
    device = pick_device(flags["device"])
    values |= {"trainer.seed": flags["seed"], "trainer.device": str(device)}
    values["trainer.bf16"] = device.type == "cuda"  # on a CPU it is slower at these sizes
    values |= {name: flags.get(name) for name in ("rank", "alpha", "lr", "batch_size")}
    if flags["size"] is not None:
        values["width"], values["height"] = parse_size(flags["size"])
    values = {k: v for k, v in values.items() if v is not None or k == "trainer.max_steps"}
    recipe = OwnDataRecipe(
        kind=kind,
        data=str(flags["data"]),
        prior=str(flags["prior"] or ""),
        model=flags["model"],
        policy=flags["policy"],
    )
    recipe = override(recipe, values, where=kind)
    return override(recipe, parse_settings(flags["set_"] or []), where=kind)
