"""Measure what keeping a render costs: the same video with and without a run folder, in turns."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from onereel.apps.cli.main import main as onereel


def render(words: list[str]) -> tuple[float, float]:
    """Run the command in this process; returns wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = onereel(words)
    if code:
        raise SystemExit(f"{' '.join(words)} failed with code {code}")
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print one JSON line per pair, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--seconds", default="60")
    parser.add_argument("--steps", default="4")
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    words = ["generate", "a red disc bounces on the floor", "--model", args.model, "--quiet"]
    words += ["--steps", args.steps, "--seed", "1"]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        video = str(Path(folder) / "a.mp4")
        render([*words, "--seconds", "1", "-o", video])  # what is imported once is not counted
        for pair in range(args.pairs):
            modes = [["--no-run"], []] if pair % 2 else [[], ["--no-run"]]
            long = [*words, "--seconds", args.seconds, "-o", video]
            times = {not mode: render([*long, *mode]) for mode in modes}
            ratios.append(
                [kept / bare for kept, bare in zip(times[True], times[False], strict=True)]
            )
            print(json.dumps({"kept_s": times[True][0], "not_kept_s": times[False][0],
                              "wall_ratio": ratios[-1][0], "cpu_ratio": ratios[-1][1]}),
                  flush=True)  # noqa: T201  # fmt: skip
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.run/**/*") if f.is_file())
    wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
    print(json.dumps({"wall_ratio": wall, "cpu_ratio": cpu, "folder_bytes": size}))  # noqa: T201


if __name__ == "__main__":
    main()
