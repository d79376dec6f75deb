"""Measure rounded weights: size on disk, memory, time, and how far the frames move."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onereel.media import read_metadata, read_video
from onereel.runtime.convert import convert
from onereel.runtime.quantize import STORED
from onereel.runtime.source import resolve_model
from onereel.world import fixed_prompts


def render(model: str, out: Path, *, prompt: str, seconds: int, steps: str) -> tuple[float, int]:
    """Run the command; returns wall seconds and peak resident megabytes."""
    command = [sys.executable, "-m", "onereel", "generate", prompt, "--model", model, "--no-run"]
    command += ["--seconds", str(seconds), "--steps", steps, "--seed", "0", "-q", "-o", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss // 1024


def frames(path: Path) -> np.ndarray:
    """Decode a video."""
    record = read_metadata(path)
    video = read_video(path, width=record["width"], height=record["height"])
    return np.asarray(video, dtype=np.float64)


def main() -> None:
    """Print one JSON line per level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--prompts", type=int, default=8, help="of the fixed sixteen")
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--steps", default="16")
    args = parser.parse_args()
    prompts = [text for text, _ in fixed_prompts()][: args.prompts]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {"as stored": args.model, **{level: str(folder / level) for level in STORED}}
        for level in STORED:
            convert(resolve_model(args.model), models[level], level=level)
        videos: dict[str, list[np.ndarray]] = {level: [] for level in models}
        costs: dict[str, list[tuple[float, int]]] = {level: [] for level in models}
        for prompt in prompts:  # levels in turn, so that what else the machine does meets them all
            for level, model in models.items():
                path = folder / f"{level}.mp4"
                costs[level].append(
                    render(model, path, prompt=prompt, seconds=args.seconds, steps=args.steps)
                )
                videos[level].append(frames(path))
        for level, model in models.items():
            weights = resolve_model(model).folder("transformer").glob("*.safetensors")
            pairs = zip(videos[level], videos["as stored"], strict=True)
            errors = [np.square(a - b).mean() for a, b in pairs]
            decibels = [10 * np.log10(255**2 / error) for error in errors if error]
            result = {
                "level": level,
                "transformer_mb": round(sum(path.stat().st_size for path in weights) / 1e6, 2),
                "wall_s": round(float(np.median([spent for spent, _ in costs[level]])), 2),
                "peak_mb": max(peak for _, peak in costs[level]),
                "psnr_db": round(float(np.median(decibels)), 1) if decibels else None,
            }
            print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
