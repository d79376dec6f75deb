"""Kill a training at random moments, go on each time, and compare with an unbroken run bit by bit.

    python scripts/chaos_train.py --out /tmp/chaos              toybox-vae, small, three kills
    python scripts/chaos_train.py --out /tmp/chaos --recipe NAME --kills 10 --set lr=1e-3

Both runs are `onereel train RECIPE` in processes of their own, on this machine, one process each.
The schedule must go by steps: `time` reads the clock, and no two runs see the same one.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

SMALL = {
    "toybox-vae": ("batch_size=1", "crowd=1", "validation_clips=2", "stats_clips=2", "workers=1")
}


def start(out: Path, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start or resume a run."""
    settings = [
        f"max_steps={args.steps}", "max_minutes=none", "schedule=cosine", "log_every=1",
        "checkpoint_minutes=0.0", *SMALL.get(args.recipe, ()), *args.set,
    ]  # fmt: skip
    command = [sys.executable, "-m", "onereel", "train", args.recipe, "--resume"]
    command += ["--out", str(out), *(item for s in settings for item in ("--set", s))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps_done(out: Path) -> int:
    """Count the lines of a run's log."""
    log = out / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


def kill_and_go_on(out: Path, args: argparse.Namespace) -> list[int]:
    """Run with kills; return the steps at which they came."""
    rng = random.Random(args.seed)
    moments = sorted(rng.sample(range(1, args.steps - 1), args.kills))
    killed = []
    for moment in moments:
        with start(out, args) as process:
            while steps_done(out) < moment and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))  # into a step, a checkpoint or an export
            process.kill()
        killed.append(steps_done(out))
    return killed


def differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
    """List where two trees differ in any bit."""
    if isinstance(left, torch.Tensor):
        if not torch.equal(left, right):
            yield where
    elif isinstance(left, Mapping):
        if left.keys() != right.keys():
            yield where
            return
        for key in left:
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        for number, pair in enumerate(zip(left, right, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    elif left != right:
        yield where


def main() -> int:
    """Run both and compare.

    Returns:
        0 when everything but the clock is the same.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="toybox-vae")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    args = parser.parse_args()
    whole, broken = args.out / "whole", args.out / "broken"
    killed = kill_and_go_on(broken, args)
    for out in (broken, whole):
        with start(out, args) as process:
            pass
        if process.returncode:
            print(f"error: the run in {out} ended with {process.returncode}", file=sys.stderr)
            return 1
    last = f"checkpoints/step-{args.steps:08d}.pt"
    left, right = (torch.load(run / last, weights_only=True) for run in (whole, broken))
    found = set(differences(left, right)) - {"/progress/seconds"}
    print(f"killed after steps {killed}; differences: {sorted(found) or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
