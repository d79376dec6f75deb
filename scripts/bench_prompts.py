"""Count in how many of the 16 fixed prompts colours and shapes are as asked for."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
import torch

from onereel import Magi1Pipeline
from onereel.world import PALETTE, SHAPES, coverage, fixed_prompts, render, simulate

_SATURATED = 60.0  # backgrounds stay below 24
_FEW = 12  # pixels that do not count as an object


def colour_masks(frame: np.ndarray) -> dict[str, np.ndarray]:
    """Give the pixels of every palette colour in a frame uint8 [H, W, 3]."""
    pixels = frame.astype(np.float64)
    saturated = np.ptp(pixels, axis=2) > _SATURATED
    names = list(PALETTE)
    palette = np.array([PALETTE[name] for name in names], dtype=np.float64)
    # Directions, not distances: edges are mixed with the background.
    centred = pixels - pixels.mean(axis=2, keepdims=True)
    hues = palette - palette.mean(axis=1, keepdims=True)
    score = centred @ (hues / np.linalg.norm(hues, axis=1, keepdims=True)).T
    nearest = score.argmax(axis=2)
    return {name: saturated & (nearest == i) for i, name in enumerate(names)}


def best_shape(mask: np.ndarray) -> str:
    """Name the shape whose coverage at the same place and area fits best."""
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean() + 0.5), float(rows.mean() + 0.5))
    radius = float(np.sqrt(mask.sum() / np.pi))
    scores = {}
    for shape, angle in itertools.product(SHAPES, np.arange(0, np.pi, np.pi / 24)):
        cover = coverage(shape, centre=centre, radius=radius, angle=angle, size=mask.shape)
        overlap = np.minimum(cover, mask).sum() / np.maximum(cover, mask).sum()
        scores[shape] = max(scores.get(shape, 0.0), float(overlap))
    return max(scores, key=lambda shape: scores[shape])


def score(video: np.ndarray, objects: Any) -> tuple[bool, bool]:
    """Judge one video uint8 [F, H, W, 3]: are the colours right, are the shapes right too?"""
    frames = video[np.linspace(0, len(video) - 1, 8).round().astype(int)]
    masks = [colour_masks(frame) for frame in frames]
    seen = {name for name in PALETTE if np.median([m[name].sum() for m in masks]) > _FEW}
    shown = {name for name in PALETTE if max(m[name].sum() for m in masks) > 3 * _FEW}
    wanted = {thing.colour for thing in objects}
    colours = wanted <= (seen | shown) and seen <= wanted
    shapes = colours
    for thing in objects:
        found = [best_shape(m[thing.colour]) for m in masks if m[thing.colour].sum() > _FEW]
        shapes = shapes and bool(found) and max(SHAPES, key=found.count) == thing.shape
    return colours, shapes


def report(results: list[tuple[bool, bool]]) -> None:
    """Print the counts as one JSON line."""
    colours, shapes = (sum(column) for column in zip(*results, strict=True))
    print(  # noqa: T201
        json.dumps({"prompts": len(results), "colours": colours, "colours_and_shapes": shapes})
    )


def main() -> None:
    """Generate, judge and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--truth", action="store_true", help="judge the simulator's own videos")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.truth:
        report(
            [
                score(render(simulate(spec, seed, num_frames=args.frames)), spec.objects)
                for seed, (_, spec) in itertools.product(seeds, fixed_prompts())
            ]
        )
        return
    pipe = Magi1Pipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for seed, (prompt, spec) in itertools.product(seeds, fixed_prompts()):
        video = pipe(
            prompt,
            num_frames=args.frames,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=torch.Generator().manual_seed(seed),
        ).frames[0]
        results.append(score((video * 255).round().astype(np.uint8), spec.objects))
    report(results)


if __name__ == "__main__":
    main()
