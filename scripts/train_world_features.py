"""Train the small classifier behind the world video distance and write its weights."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from onereel.evaluation.toybox.world_features import (
    CHECKPOINT,
    classifier_sha256,
    label_accuracy,
    save_world_classifier,
    train_world_classifier,
)


def main() -> None:
    """Train, write the file, and print accuracies and the file's hash as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12_000)
    parser.add_argument("--stills", type=int, default=48_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    args = parser.parse_args()
    begin = time.perf_counter()

    def report(stage: str, done: int, loss: float) -> None:
        if done % 1600 == 0:
            print(f"{done} {stage}, loss {loss:.3f}, {time.perf_counter() - begin:.0f} s")

    model = train_world_classifier(
        args.clips,
        num_stills=args.stills,
        learning_rate=args.learning_rate,
        seed=args.seed,
        on_batch=report,
    )
    save_world_classifier(model, args.out)
    result = {"seconds": round(time.perf_counter() - begin), "bytes": args.out.stat().st_size}
    result["sha256"] = classifier_sha256(args.out)
    print(json.dumps({**result, "right": label_accuracy(model)}))


if __name__ == "__main__":
    main()
