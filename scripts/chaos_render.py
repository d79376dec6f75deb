"""Kill renders at random moments, resume them until they are done, and compare bit by bit.

    python scripts/chaos_render.py --kills 200            toybox-magi, 6 seconds each
    python scripts/chaos_render.py --kills 40 --model toybox-magic --seconds 12

Every attempt is a fork of this process and is killed with SIGKILL, also while it loads, writes a
chunk, its journal or the video. A finished video must have the latents (files, byte by byte) and
the frames of an unbroken one. Prints one JSON line; exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # no threads before the forks

from onereel.apps.cli.main import main as onereel
from onereel.core.errors import OneReelError
from onereel.media import read_video
from onereel.pipelines import run as _imported_once  # noqa: F401
from onereel.runs import magic as _as_well  # noqa: F401
from onereel.runs import render as _too  # noqa: F401
from onereel.runs.folder import RunFolder


def attempt(words: Sequence[str], steps: Path, *, kill_after: float | None) -> int | None:
    """Run a command in a fork; returns its exit code, or None when it was killed."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")
            _count_steps(steps)
            code = onereel(list(words))
        finally:
            os._exit(code)
    end = None if kill_after is None else time.monotonic() + kill_after
    while end is None or time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG if end else 0)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def _count_steps(path: Path) -> None:
    """Let every step of either family leave a byte, so that repeated work can be counted."""
    from onereel.pipelines.magic_writing import MagicClock
    from onereel.samplers.engine import ChunkEngine

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def count(*values: Any) -> None:
            step(*values)
            with path.open("ab") as file:
                file.write(b".")

        return count

    ChunkEngine._step = counted(ChunkEngine._step)  # type: ignore[method-assign]
    MagicClock.step_done = counted(MagicClock.step_done)  # type: ignore[method-assign]


def hashes(folder: Path) -> list[tuple[int, str]]:
    """List a run's chunks; whether their files are whole is part of it."""
    run = RunFolder(folder)
    return [(chunk.index, run.problem_of(chunk) or chunk.sha256) for chunk in run.chunks]


def frames(path: Path, size: tuple[int, int]) -> bytes:
    """Decode a video."""
    return read_video(path, width=size[0], height=size[1]).tobytes()


def main() -> int:
    """Run until enough were killed; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--seconds", default="6")
    parser.add_argument("--steps", default="4")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="keep everything here")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        steps = out / "steps"
        words = ["generate", "a red disc bounces", "--model", args.model, "--seed", "1"]
        words += ["--seconds", args.seconds, "--steps", args.steps, "--device", "cpu", "-o"]
        begin = time.monotonic()
        if attempt([*words, str(out / "whole.mp4")], steps, kill_after=None) != 0:
            raise SystemExit("the unbroken render failed")
        length, needed = time.monotonic() - begin, steps.stat().st_size
        record = RunFolder(out / "whole.run").manifest.record
        size = (record["width"], record["height"])
        whole = hashes(out / "whole.run"), frames(out / "whole.mp4", size)
        steps.unlink()
        kills = videos = differences = unreadable = 0
        while kills < args.kills:
            video, folder = out / f"{videos}.mp4", out / f"{videos}.run"
            code: int | None = None
            while code is None:
                resumable = (folder / "manifest.json").exists()
                command = ["resume", str(folder)] if resumable else [*words, str(video)]
                code = attempt(command, steps, kill_after=rng.uniform(0, 1.2 * length))
                kills += code is None
                try:
                    if (folder / "manifest.json").exists():
                        RunFolder(folder)
                except OneReelError:
                    unreadable += 1
            same = code == 0 and (hashes(folder), frames(video, size)) == whole
            differences += not same
            videos += 1
            if same:
                shutil.rmtree(folder)
                video.unlink()
        done = steps.stat().st_size
    again = done / max(videos, 1) / needed - 1
    result = {"kills": kills, "videos": videos, "differences": differences,
              "unreadable": unreadable, "steps_computed_again": round(again, 3)}  # fmt: skip
    print(json.dumps(result))  # noqa: T201
    return int(differences > 0 or unreadable > 0)


if __name__ == "__main__":
    raise SystemExit(main())
