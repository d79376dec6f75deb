"""Render ten minutes, killed three times on the way, and watch the memory.

    python scripts/soak_render.py                 toybox-magi, 14,400 frames, about five minutes

Prints one JSON line: frames, kills, resident memory in the second and in the last tenth of the
video, and whether latents and frames are those of an unbroken render (`--no-compare` leaves that
out). Exit code 1 when memory grew by more than 5 % or anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from onereel.media import stream_video
from onereel.runs.folder import RunFolder

Samples = list[tuple[int, int]]  # chunks that are kept, resident bytes


def kept(folder: Path) -> int:
    """Count the chunks that are kept; fast, for it is asked while a render runs."""
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b'"kind":"chunk"') if path.exists() else 0


def resident(pid: int) -> int:
    """Read a process's resident bytes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def watch(words: list[str], folder: Path, *, kill_at: int | None) -> tuple[Samples, bool]:
    """Run a command until it ends, or has kept some chunks and is killed."""
    command = [sys.executable, "-m", "onereel", *words, "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: Samples = []
    while process.poll() is None:
        time.sleep(0.1)
        count = kept(folder)
        try:
            samples.append((count, resident(process.pid)))
        except (OSError, IndexError):
            continue
        if kill_at is not None and count >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return samples, True
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with code {process.returncode}")
    return samples, False


def digest(video: Path, folder: Path) -> tuple[int, str]:
    """Hash frames and latents; returns the number of frames, too."""
    run, sum_, frames = RunFolder(folder), hashlib.sha256(), 0
    record = run.manifest.record
    for frame in stream_video(video, height=record["height"], width=record["width"]):
        sum_.update(frame.tobytes())
        frames += 1
    for chunk in run.chunks:
        sum_.update(chunk.sha256.encode())
    return frames, sum_.hexdigest()


def main() -> int:
    """Render, kill, resume, compare; print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--steps", default="4")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--no-compare", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        video, folder = Path(temporary) / "a.mp4", Path(temporary) / "a.run"
        words = ["generate", "a red disc bounces on the floor", "--model", args.model]
        words += ["--seconds", str(args.seconds), "--steps", args.steps, "--seed", "1", "-o"]
        moments = sorted(rng.sample(range(1, args.seconds), args.kills))
        samples, command = [], [*words, str(video)]
        for moment in [*moments, None]:
            samples += watch(command, folder, kill_at=moment)[0]
            command = ["resume", str(folder)]
        frames, found = digest(video, folder)
        same = None
        if not args.no_compare:
            other = Path(temporary) / "b.mp4"
            samples, _ = watch([*words, str(other)], other.with_suffix(".run"), kill_at=None)
            same = digest(other, other.with_suffix(".run")) == (frames, found)
    tenth = args.seconds // 10
    early = statistics.mean(size for count, size in samples if tenth <= count <= 2 * tenth)
    late = statistics.mean(size for count, size in samples if count >= args.seconds - tenth)
    growth = late / early - 1
    result = {"frames": frames, "kills": len(moments), "killed_at_s": moments, "same": same,
              "early_mb": round(early / 1e6), "late_mb": round(late / 1e6),
              "growth": round(growth, 4)}  # fmt: skip
    print(json.dumps(result))  # noqa: T201
    return int(growth > 0.05 or same is False)


if __name__ == "__main__":
    raise SystemExit(main())
