"""Measure how many Toybox clips one core draws per second: python scripts/bench_world.py."""

from __future__ import annotations

import time

from onereel.world import sample_clip

_SECONDS = 3.0


def main() -> None:
    """Print clips per second for a few lengths and sizes."""
    print(f"{'frames':>6} {'size':>8} {'clips/s':>8}")  # noqa: T201
    for num_frames in (24, 96):
        for size in (64, 96, 128):
            sample_clip(0, num_frames=num_frames, height=size, width=size)
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < _SECONDS:
                sample_clip(count, num_frames=num_frames, height=size, width=size)
                count += 1
            rate = count / (time.perf_counter() - begin)
            print(f"{num_frames:>6} {size:>4}x{size:<3} {rate:>8.1f}")  # noqa: T201


if __name__ == "__main__":
    main()
