"""Measure what tracking costs per frame: python scripts/bench_tracker.py [--size 64]."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from onereel.evaluation.toybox.tracker import track
from onereel.world import MOTIONS, sample_clip

_LENGTHS = (24, 96, 480)


def measure(videos: list[np.ndarray]) -> dict[str, float]:
    """Track videos once each; CPU time counts all threads, so it never flatters one core."""
    frames = sum(len(video) for video in videos)
    wall, busy = time.perf_counter(), time.process_time()
    for video in videos:
        track(video)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return {
        "cpu_ms_per_frame": round(1e3 * busy / frames, 3),
        "wall_ms_per_frame": round(1e3 * wall / frames, 3),
    }


def main() -> None:
    """Print the cost by length of the video and by motion as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--scenes", type=int, default=12, help="videos per line")
    args = parser.parse_args()

    def clips(num_frames: int, motions: list[str] | None = None) -> list[np.ndarray]:
        return [
            sample_clip(
                seed, num_frames=num_frames, height=args.size, width=args.size, motions=motions
            ).video
            for seed in range(args.scenes)
        ]

    track(clips(24)[0])  # what is imported on first use is not part of the cost
    by_length = {str(n): measure(clips(n)) for n in _LENGTHS}
    by_motion = {motion: measure(clips(96, [motion])) for motion in MOTIONS}
    worst = max(row["cpu_ms_per_frame"] for row in (*by_length.values(), *by_motion.values()))
    print(
        json.dumps(
            {
                "size": args.size,
                "scenes": args.scenes,
                "worst_cpu_ms_per_frame": worst,
                "by_length": by_length,
                "by_motion": by_motion,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
