r"""Magic 1-For-1's fifth figure on Toybox: is image to video distilled faster than text to video?

python scripts/bench_tasks.py --teacher toybox-magic --cache CACHE --out RUNS --chart OUT.svg

Two runs of `onereel train toybox-magic-distill`, equal but for the task, stopped and gone on with
at every stage. Measured there on held-out captions and pictures: the recipe's distance from the
teacher's many guided steps, and the share of samples that show every colour their caption names.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_prompts import colour_masks
from charts import save_charts

from onereel.evaluation.report.plots import Series
from onereel.models.magic_vae.model import decode_latent, to_uint8
from onereel.training.dmd import sample_exits
from onereel.training.latent_cache import open_caches
from onereel.training.magic_distill import MagicDmdMethod, ToyboxMagicDistillRecipe
from onereel.world import PALETTE

SHARES: dict[str, dict[str, Any]] = {
    "text to video": {"t2v_share": 1.0, "i2v_share": 0.0, "v2v_share": 0.0},
    "image to video": {"t2v_share": 0.0, "i2v_share": 1.0, "v2v_share": 0.0},
}
_FEW = 12  # pixels that do not count as an object


def train(out: Path, steps: int, shares: dict[str, Any], args: argparse.Namespace) -> float:
    """Train up to a step; returns the validation's distance there."""
    settings: dict[str, Any] = {
        "teacher": args.teacher,
        "cache": args.cache,
        "picture_share": 0.0,
        "lengths": f"[{args.length}]",
        "keep_best": "false",
        "validation_items": args.samples,
        "sharding": "replicate",
        "max_steps": steps,
        "validate_minutes": 1e9,
        **shares,
        **dict(item.split("=", 1) for item in args.set),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(args.processes), "-m", "onereel", "train"]
    command += ["toybox-magic-distill", "--out", str(out), "--resume"]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return float([line["frechet"] for line in lines if "frechet" in line][-1])


@torch.no_grad()
def colours_shown(model: str, shares: dict[str, Any], args: argparse.Namespace) -> float:
    """Sample the validation's captions in four steps; the share with all colours named."""
    recipe = ToyboxMagicDistillRecipe(
        teacher=model,
        cache=args.cache,
        picture_share=0.0,
        lengths=(args.length,),
        validation_items=args.samples,
        **shares,
    )
    method = MagicDmdMethod(recipe, open_caches(args.cache))
    vae, sigmas = method.parts["vae"].float(), method.grid(recipe.num_steps)
    right: list[bool] = []
    for batch in method.measured().values():
        for start in range(0, len(batch["latent"]), recipe.batch_size):
            rows = slice(start, start + recipe.batch_size)
            question = method.question(batch, rows, num_steps=recipe.num_steps)
            generator = torch.Generator().manual_seed(start)
            noise = torch.randn(question.clean.shape, generator=generator)
            latent = sample_exits(question.student, [noise], sigmas=sigmas)[-1]
            for made, caption in zip(latent, batch["captions"][rows], strict=True):
                frames = to_uint8(decode_latent(vae, made[None])[0])
                right.append(shows_colours(frames.permute(1, 2, 3, 0).numpy(), caption))
    return sum(right) / len(right)


def shows_colours(video: np.ndarray, caption: str) -> bool:
    """Tell whether every colour that a caption names is seen in most frames."""
    frames = video[np.linspace(0, len(video) - 1, 5).round().astype(int)]
    masks = [colour_masks(frame) for frame in frames]
    words = caption.replace("violet", "purple")
    wanted = [name for name in PALETTE if re.search(rf"\b{name}\b", words)]
    return all(np.median([mask[name].sum() for mask in masks]) > _FEW for name in wanted)


def main() -> None:
    """Train and measure both tasks; print a line per stage, and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="toybox-magic")
    parser.add_argument("--cache", required=True, help="latents, as `onereel train cache` writes")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 100, 200, 300, 400])
    parser.add_argument("--length", type=int, default=13, help="latent frames")
    parser.add_argument("--samples", type=int, default=64, help="held-out ones that are measured")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path, help="SVG file")
    args = parser.parse_args()
    lines: dict[str, list[Series]] = {}
    for task, shares in SHARES.items():
        out = args.out / task.replace(" ", "-")
        distances, shown = [], []
        for steps in args.stages:
            distances.append(train(out, steps, shares, args))
            shown.append(colours_shown(str(out / "export"), shares, args))
            found = {"task": task, "steps": steps, "distance": distances[-1], "colours": shown[-1]}
            print(json.dumps(found), flush=True)  # noqa: T201
        relative = [distance / distances[0] for distance in distances]
        for title, values in (
            ("distance from the teacher, by that at the start", relative),
            ("samples with every colour named", shown),
        ):
            lines.setdefault(title, []).append(Series(x=args.stages, y=values, label=task))
    if args.chart:
        save_charts(args.chart, lines, x_label="steps of the critic")


if __name__ == "__main__":
    main()
