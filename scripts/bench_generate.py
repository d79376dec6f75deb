"""Measure generation: seconds of compute per second of video, memory by length, first frames."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from onereel import Magi1Pipeline
from onereel.media import VideoWriter, probe
from onereel.pipelines.prompts import Prompts
from onereel.pipelines.sampling import SamplingWishes, make_config
from onereel.pipelines.stream import VideoRequest

PROMPT = "a large red disc bounces on the floor"


def speed(pipe: Any, seconds: int, steps: int | None) -> dict[str, float]:
    """Time one video, the first finished chunk and the first frames that can be played."""
    config = make_config(pipe.sampling, SamplingWishes(num_steps=steps), distilled=False)
    size = {name: int(pipe.sampling[name]) for name in ("height", "width")}
    request = VideoRequest(num_frames=24 * seconds, config=config, **size)
    prompts = Prompts(features=tuple(pipe.encode_features([PROMPT], 800)))
    begin = time.perf_counter()
    marks: dict[str, float] = {}

    def on_step(call: Any, window: torch.Tensor) -> None:
        del window
        if call.finished is not None:
            marks.setdefault("first_chunk_denoised_s", time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.mp4"
        writer: VideoWriter | None = None
        for chunk in pipe.stream(request, prompts, on_step=on_step):
            frames = chunk.to_uint8()
            if writer is None:
                height, width = frames.shape[1:3]
                writer = VideoWriter(path, width=width, height=height, fps=24)
            writer.write(frames)
            if "first_playable_s" not in marks and probe(path).num_frames > 0:
                marks["first_playable_s"] = time.perf_counter() - begin
        assert writer is not None
        writer.close()
    marks["s_per_video_s"] = (time.perf_counter() - begin) / seconds
    return marks


def peak_memory_mb(seconds: int, steps: int) -> float:
    """Run the command line in a process of its own and read its peak resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onereel", "generate", PROMPT, "--seconds", str(seconds)]
        command += ["--steps", str(steps), "--seed", "0", "-o", str(Path(folder) / "out.mp4")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print the measurements as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--memory-steps", type=int, default=4)
    args = parser.parse_args()
    pipe = Magi1Pipeline.from_pretrained(args.model)
    for steps in (None, 16):
        result = {"steps": steps or "default", **speed(pipe, args.seconds, steps)}
        print(json.dumps(result), flush=True)  # noqa: T201
    short, long = (peak_memory_mb(s, args.memory_steps) for s in (10, 60))
    result = {"peak_mb_10s": round(short), "peak_mb_60s": round(long), "ratio": long / short}
    print(json.dumps({**result, "threads": torch.get_num_threads()}))  # noqa: T201


if __name__ == "__main__":
    main()
