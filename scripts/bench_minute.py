"""Where the time of a Magic 1-For-1 video goes: command to file, and the parts in one process.

python scripts/bench_minute.py --model toybox-magic-4step --seconds 60 [--quantize int8]
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "a red disc moves to the right"


def command_seconds(args: argparse.Namespace, out: Path) -> float:
    """Run the command once; seconds from its start to its end."""
    command = [sys.executable, "-m", "onereel", "generate", PROMPT, "--model", args.model]
    command += ["--seconds", str(args.seconds), "--seed", "0", "-q", "-o", str(out)]
    command += [] if args.quantize is None else ["--quantize", args.quantize]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def parts_seconds(args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Make the same video in this process; seconds by part."""
    begin = time.perf_counter()
    from diffusers import AutoencoderKLHunyuanVideo

    from onereel.media import VideoWriter
    from onereel.pipelines import magic_sampling
    from onereel.pipelines.listeners import SilentListener
    from onereel.pipelines.magic141_t2v import Magic141Pipeline
    from onereel.pipelines.magic_parts import MagicParts
    from onereel.pipelines.magic_prepare import prepare_magic
    from onereel.pipelines.magic_run import MagicRun
    from onereel.pipelines.wishes import RunWishes

    spent = dict.fromkeys(("load", "text", "picture", "denoise", "vae", "encode"), 0.0)
    open_parts: list[str] = []

    def timed(owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def measured(*values: Any, **options: Any) -> Any:
            if open_parts and open_parts[-1] in (part, "picture"):
                return function(*values, **options)
            open_parts.append(part)
            start = time.perf_counter()
            try:
                return function(*values, **options)
            finally:
                open_parts.pop()
                spent[part] += time.perf_counter() - start

        setattr(owner, name, measured)

    timed(MagicParts, "_load", "load")
    timed(MagicRun, "make_picture", "picture")
    timed(Magic141Pipeline, "encode_prompt", "text")
    timed(Magic141Pipeline, "encode_image", "text")
    timed(magic_sampling, "predict_velocity", "denoise")
    timed(AutoencoderKLHunyuanVideo, "encode", "vae")
    timed(AutoencoderKLHunyuanVideo, "decode", "vae")
    timed(VideoWriter, "write", "encode")
    spent["import"] = time.perf_counter() - begin
    wishes = RunWishes(
        prompt=PROMPT, model=args.model, seconds=args.seconds, seed=0, quantize=args.quantize
    )
    plan = prepare_magic(wishes, str(out))
    parts = MagicParts(plan.files, plan.place)
    for group in ("texts", "transformer", "vae"):
        parts.bring(group)
    MagicRun(plan, SilentListener(), parts=parts).run()
    spent["rest"] = time.perf_counter() - begin - sum(spent.values())
    return spent


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magic-4step")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quantize")
    parser.add_argument("--repeats", type=int, default=2, help="of the command; the least counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        command = min(command_seconds(args, out) for _ in range(args.repeats))
        parts = parts_seconds(args, Path(folder) / "parts.mp4")
    result = {"command_s": command, **parts}
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
