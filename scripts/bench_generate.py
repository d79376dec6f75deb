"""Measure generation: compute per second of video, first frames, whole files and their memory."""

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
    distilled = bool(pipe.transformer.config.enable_distillation)
    config = make_config(pipe.sampling, SamplingWishes(num_steps=steps), distilled=distilled)
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


def command_line(model: str, seconds: int, steps: int | None) -> dict[str, float]:
    """Run the command line in a process of its own: its wall time and its peak resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onereel", "generate", PROMPT, "--model", model]
        command += ["--seconds", str(seconds), "--seed", "0", "-o", str(Path(folder) / "out.mp4")]
        command += [] if steps is None else ["--steps", str(steps)]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    wall = time.perf_counter() - begin
    return {"wall_s": round(wall, 1), "peak_mb": round(usage.ru_maxrss / 1024)}


def main() -> None:
    """Print the measurements as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", default=["toybox-magi"], metavar="MODEL[:STEPS]",
        help="each twice, in turns, so that all see the same machine",
    )  # fmt: skip
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--files", type=int, nargs="*", default=[10, 60], help="seconds of video")
    args = parser.parse_args()
    cases = []
    for case in args.cases:
        model, _, steps = case.partition(":")
        cases.append((case, model, int(steps) if steps else None))
    pipes = {model: Magi1Pipeline.from_pretrained(model) for _, model, _ in cases}
    for name, model, steps in cases * 2:
        result = {"case": name, **speed(pipes[model], args.seconds, steps)}
        print(json.dumps(result), flush=True)  # noqa: T201
    pipes.clear()
    for name, model, steps in cases:
        for seconds in args.files:
            result = {"case": name, "file_s": seconds, **command_line(model, seconds, steps)}
            print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
