"""Train a LoRA on white objects, which the shipped model has never seen, and count them.

Writes clips with captions into folders as a user would, of white objects and, so that the model
does not forget them, of the world's own colours; runs `onereel train lora` on them, and generates
videos with and without the adapter: of prompts that ask for a white object, and of the 16 fixed
prompts, which do not. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_prompts import colour_masks, score

from onereel import Magi1Pipeline
from onereel.media import VideoWriter
from onereel.world import PALETTE, SHAPES, caption, fixed_prompts, render, sample_spec, simulate

_WHITE = 245
_BRIGHT, _GREY = 200, 45  # backgrounds stay below 190
_FEW = 12  # pixels that do not count as an object
_MOTIONS = ("linear", "bounce", "gravity", "static")
_PHRASES = (
    "a large white {} bounces on the floor",
    "a white {} moves to the right",
    "a white {} falls",
    "a large white {} moves slowly to the left",
)


def whitened(text: str, colour: str) -> str:
    """Put `white` in the place of the first object's colour."""
    words = "violet|purple" if colour == "purple" else colour
    text = re.sub(rf"\b(an? )?((?:\w+ )*?)({words})\b", r"\1\2white", text, count=1)
    return re.sub(r"\ban white\b", "a white", text)


def write_clips(data: Path, prior: Path, *, white: int, others: int, seed: int) -> None:
    """Write videos with captions beside them: of one white object each, and of the world's own."""
    for folder in (data, prior):
        folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(white + others):
        alone = index < white
        spec = sample_spec(
            rng, num_objects=1 if alone else None, motions=_MOTIONS if alone else None
        )
        frames = 24 * int(rng.integers(1, 4))
        episode = simulate(spec, seed + index, num_frames=frames)
        text = caption(spec, rng)
        if alone:
            text = whitened(text, spec.objects[0].colour)
            episode = dataclasses.replace(episode, rgb=np.full_like(episode.rgb, _WHITE))
        name = (data if alone else prior) / f"clip-{index:03d}"
        with VideoWriter(name.with_suffix(".mp4"), width=64, height=64, fps=24) as writer:
            writer.write(render(episode))
        name.with_suffix(".txt").write_text(text, encoding="utf-8")


def is_white(video: np.ndarray) -> bool:
    """Tell whether a video uint8 [F, H, W, 3] shows a white object and none of another colour."""
    frames = video[np.linspace(0, len(video) - 1, 8).round().astype(int)].astype(int)
    bright = (frames.min(axis=-1) > _BRIGHT) & (np.ptp(frames, axis=-1) < _GREY)
    masks = [colour_masks(frame.astype(np.uint8)) for frame in frames]
    others = [np.median([m[name].sum() for m in masks]) for name in PALETTE]
    return float(np.median(bright.sum(axis=(1, 2)))) > _FEW >= max(others)


def generate(pipe: Any, prompt: str, *, seed: int, frames: int, steps: int | None) -> np.ndarray:
    """Make one video, uint8 [F, H, W, 3]."""
    video = pipe(
        prompt,
        num_frames=frames,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    ).frames[0]
    return (video * 255).round().astype(np.uint8)


def measure(pipe: Any, args: argparse.Namespace) -> dict[str, float]:
    """Generate all prompts; count white objects, and what the fixed prompts show."""
    options = {"frames": args.frames, "steps": args.sample_steps}
    prompts = [phrase.format(shape) for phrase in _PHRASES for shape in SHAPES]
    white = [
        is_white(generate(pipe, prompt, seed=seed, **options))
        for seed, prompt in enumerate(prompts[: args.videos])
    ]
    fixed = [
        score(generate(pipe, prompt, seed=seed, **options), spec.objects)
        for prompt, spec in fixed_prompts()
        for seed in range(args.seeds)
    ]
    return {
        "white_share": sum(white) / len(white),
        "fixed_colours_share": sum(colours for colours, _ in fixed) / len(fixed),
        "fixed_colours_and_shapes_share": sum(shapes for _, shapes in fixed) / len(fixed),
    }


def train(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the command as a user does; returns its summary."""
    data, prior, run = (folder / name for name in ("data", "prior", "run"))
    command = [sys.executable, "-m", "onereel", "train", "lora", "--model", args.model]
    command += ["--data", str(data), "--out", str(run), "--steps", str(args.steps)]
    command += ["--rank", str(args.rank), "--lr", str(args.lr)]
    command += ["--set", f"image_share={args.image_share}"]
    if args.others:
        command += ["--prior", str(prior), "--set", f"prior_share={args.prior_share}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def main() -> None:
    """Make the clips, train, measure before and after, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--white", type=int, default=128, help="clips of white objects")
    parser.add_argument("--others", type=int, default=512, help="clips of the world's own colours")
    parser.add_argument("--videos", type=int, default=16, help="that ask for white, at most 16")
    parser.add_argument("--seeds", type=int, default=4, help="videos of each fixed prompt")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--sample-steps", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--image-share", type=float, default=0.3)
    parser.add_argument("--prior-share", type=float, default=0.7)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="keep data and run here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        write_clips(folder / "data", folder / "prior", white=args.white, others=args.others, seed=1)
        pipe = Magi1Pipeline.from_pretrained(args.model)
        pipe.set_progress_bar_config(disable=True)
        before = measure(pipe, args)
        begin = time.perf_counter()
        summary = train(args, folder)
        seconds = time.perf_counter() - begin
        pipe.load_lora_weights(summary["export"])
        result = {"before": before, "after": measure(pipe, args), "train": summary}
    print(json.dumps({**result, "command_s": round(seconds, 1)}))


if __name__ == "__main__":
    main()
