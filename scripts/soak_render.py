"""Render ten minutes, killed three times on the way, and watch the memory.

    python scripts/soak_render.py                 toybox-magi, 14,400 frames, about five minutes

Prints one JSON line: frames, kills, resident memory in the second and in the last tenth of the
video (of the broken render or the unbroken one, whichever grew more), that of each process while it
wrote (least, median, most; the unbroken one comes last), and whether latents and frames are those
of an unbroken render (`--no-compare` leaves it out). Exit code 1 when memory grew by more than 5 %
or anything differs.
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

Samples = list[tuple[int, int, bool]]  # chunks that are kept, resident bytes, whether it writes


def kept(folder: Path) -> int:
    """Count the chunks that are kept; fast, for it is asked while a render runs."""
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b'"kind":"chunk"') if path.exists() else 0


def resident(pid: int) -> int:
    """Read a process's resident bytes; 0 once it has ended."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def has_written(video: Path, start: float) -> bool:
    """Tell whether a process that began at a time has put a chunk into the video."""
    return video.exists() and video.stat().st_mtime > start


def watch(words: list[str], folder: Path, *, kill_at: int | None) -> Samples:
    """Run a command until it ends, or has kept some chunks and is killed."""
    command, start = [sys.executable, "-m", "onereel", *words, "--quiet"], time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: Samples = []
    while process.poll() is None:
        time.sleep(0.1)
        count = kept(folder)
        try:
            writes = has_written(folder.with_suffix(".mp4"), start)
            size = resident(process.pid)
        except (OSError, IndexError):
            continue
        if size:
            samples.append((count, size, writes))
        if kill_at is not None and count >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return samples
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with code {process.returncode}")
    return samples


def spread(samples: Samples) -> list[int]:
    """Return least, median and most resident megabytes of a process from its tenth reading on.

    Only readings while it writes count: loading takes less, and longer on a busy machine.
    """
    sizes = [size for _, size, writes in samples if writes]
    sizes = sizes[len(sizes) // 10 :]
    return [round(f(sizes) / 1e6) for f in (min, statistics.median, max)]


def ends(samples: Samples, seconds: int) -> tuple[float, float]:
    """Return the mean resident bytes in the second and in the last tenth of a video."""
    tenth = seconds // 10
    early = (size for count, size, _ in samples if tenth <= count <= 2 * tenth)
    late = (size for count, size, _ in samples if count >= seconds - tenth)
    return statistics.mean(early), statistics.mean(late)


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
        processes, command = [], [*words, str(video)]
        for moment in [*moments, None]:
            processes.append(watch(command, folder, kill_at=moment))
            command = ["resume", str(folder)]
        frames, found = digest(video, folder)
        renders, same = [sum(processes, [])], None
        if not args.no_compare:
            other = Path(temporary) / "b.mp4"
            processes.append(watch([*words, str(other)], other.with_suffix(".run"), kill_at=None))
            renders.append(processes[-1])
            same = digest(other, other.with_suffix(".run")) == (frames, found)
    early, late = max((ends(one, args.seconds) for one in renders), key=lambda e: e[1] / e[0])
    growth = late / early - 1
    result = {"frames": frames, "kills": len(moments), "killed_at_s": moments, "same": same,
              "early_mb": round(early / 1e6), "late_mb": round(late / 1e6),
              "growth": round(growth, 4),
              "processes_mb": [spread(process) for process in processes]}  # fmt: skip
    print(json.dumps(result))  # noqa: T201
    return int(growth > 0.05 or same is False)


if __name__ == "__main__":
    raise SystemExit(main())
