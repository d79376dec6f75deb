"""Magic 1-For-1's first table on Toybox: many Euler steps of a base against few of its student.

python scripts/bench_steps.py --base toybox-magic --student toybox-magic-4step --out RUNS

Videos are made from true first pictures (suite `i2v`), as in the paper, and from text (`standard`).
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from typing import Any

from onereel.apps.cli.counting import Counter
from onereel.evaluation.generate import ModelChoice
from onereel.evaluation.toybox.evaluate import ToyboxRun, evaluate_toybox

COLUMNS = {  # heading: measure of suite i2v
    "i2v subject": "i2v_subject_sim",
    "subject cons.": "subject_consistency_sim",
    "smooth": "motion_smoothness_sim",
    "dynamic": "dynamic_degree_sim",
    "flicker": "vbench_flicker",
    "all correct": "all_correct",
}
BESIDE = {"shapes (F1)": "shape_f1", "shape and colour (F1)": "binding_f1"}  # not in the average
TEXT = "all correct, from text"


def show(counter: Counter, done: int, total: int, _record: object) -> None:
    """Show how many videos are made."""
    counter.show(done, total)


def evaluate(model: str, suite: str, *, steps: int, limit: int, args: Any) -> dict[str, float]:
    """Evaluate one model at one number of steps; the means."""
    choice = ModelChoice(model=model, steps=steps)
    run = ToyboxRun(choice=choice, suite=suite, seed=0, limit=limit, samples=args.samples)
    out = args.out / f"{Path(model).name}-{steps}-{suite}"
    with Counter(f"videos, {suite}, {steps} steps") as counter:
        found = evaluate_toybox(
            run,
            out=out,
            workers=args.workers,
            resume=out.is_dir(),
            progress=functools.partial(show, counter),
        ).metrics
    return {name: math.nan if m.mean is None else m.mean for name, m in found.items()}


def row(model: str, steps: int, args: argparse.Namespace) -> list[float]:
    """Measure the columns, their average, what stands beside it, and text to video."""
    means = evaluate(model, "i2v", steps=steps, limit=args.i2v, args=args)
    columns = [means[name] for name in COLUMNS.values()]
    values = [*columns, sum(columns) / len(columns), *(means[name] for name in BESIDE.values())]
    if args.t2v:
        text = evaluate(model, "standard", steps=steps, limit=args.t2v, args=args)
        values.append(text["all_correct"])
    return values


def main() -> None:
    """Print the table as Markdown, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="toybox-magic")
    parser.add_argument("--student", default="toybox-magic-4step")
    parser.add_argument("--steps", type=int, nargs="*", default=[56, 28, 16, 8, 4])
    parser.add_argument("--student-steps", type=int, nargs="*", default=[4])
    parser.add_argument("--i2v", type=int, default=64, help="first prompts of suite i2v")
    parser.add_argument("--t2v", type=int, default=128, help="first prompts of suite standard")
    parser.add_argument("--samples", type=int, default=1, help="videos per prompt")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args()
    head = ["steps", "method", *COLUMNS, "average", *BESIDE, *([TEXT] if args.t2v else [])]
    print("|", " | ".join(head), "|")  # noqa: T201
    print("|" + "---|" * len(head))  # noqa: T201
    rows = [(args.base, steps, "Euler") for steps in args.steps]
    rows += [(args.student, steps, "DMD2") for steps in args.student_steps]
    for model, steps, method in rows:
        numbers = [f"{value:.4f}" for value in row(model, steps, args)]
        print("|", " | ".join([str(steps), method, *numbers]), "|", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
