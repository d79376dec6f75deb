r"""What changes over a minute: suite `long`, once per set of sampling settings, and a chart.

python scripts/bench_drift.py --model toybox-magic --out RUNS --limit 8 \
    "latent=continuation=latent" "latent, anchor=continuation=latent,colour_anchor=0.5"
python scripts/bench_drift.py --model toybox-magi-distill --out RUNS
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
from pathlib import Path
from typing import Any

from bench_steps import show
from charts import mean_curve, save_charts

from onereel.apps.cli.counting import Counter
from onereel.evaluation.generate import ModelChoice
from onereel.evaluation.report.result import Result
from onereel.evaluation.toybox.evaluate import ToyboxRun, evaluate_toybox
from onereel.runtime.source import resolve_model

CURVES = {
    "drift_bg_psnr": "background against the first second, dB",
    "drift_deltaE": "colour of objects against the first second, CIE76",
    "count_right": "share of videos with the right number of objects",
}
_SECONDS = 60  # of a video of suite `long`
NUMBERS = (
    "usable_seconds",
    "drift_bg_psnr_end",
    "drift_deltaE_end",
    "colour_f1",
    "shape_f1",
    "count_acc",
)


def with_sampling(model: str, settings: dict[str, Any], folder: Path) -> str:
    """Copy a model's files into a folder, with other sampling settings."""
    if not settings:
        return model
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(resolve_model(model).path, folder)
    index = folder / "model_index.json"
    described = json.loads(index.read_text("utf-8"))
    described["sampling"] |= settings
    index.write_text(json.dumps(described), "utf-8")
    return str(folder)


def parse_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Read `LABEL=KEY=VALUE,KEY=VALUE`."""
    label, _, rest = text.partition("=")
    pairs = (item.split("=", 1) for item in rest.split(",") if item)
    return label, {key: _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def evaluate(model: str, label: str, args: argparse.Namespace) -> Result:
    """Make and measure the minutes; what is there is not made again."""
    out = args.out / label.replace(" ", "-").replace(",", "")
    choice = ModelChoice(model=model, steps=args.steps)
    run = ToyboxRun(choice=choice, suite="long", seed=0, limit=args.limit, samples=1)
    with Counter(f"minutes, {label}") as counter:
        return evaluate_toybox(
            run,
            out=out,
            workers=args.workers,
            resume=out.is_dir(),
            progress=functools.partial(show, counter),
        )


def usable_to_the_end(result: Result) -> str:
    """Count the videos of which every second is usable, as `12 of 16`."""
    seconds = [video.values["usable_seconds"] for video in result.videos]
    return f"{sum(found == _SECONDS for found in seconds)} of {len(seconds)}"


def main() -> None:
    """Print a table as Markdown, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=["as it is="], metavar="LABEL=KEY=VALUE,...")
    parser.add_argument("--model", default="toybox-magic")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--limit", type=int, help="first prompts of suite long [16]")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--chart", type=Path, help="SVG file")
    args = parser.parse_args()
    print("|", " | ".join(["settings", *NUMBERS, "all of it usable"]), "|")  # noqa: T201
    print("|" + "---|" * (len(NUMBERS) + 2))  # noqa: T201
    found = {}
    for number, text in enumerate(args.settings):
        label, settings = parse_settings(text)
        model = with_sampling(args.model, settings, args.out / f"model-{number}")
        result = found[label] = evaluate(model, label, args)
        row = [result.metrics[name] for name in NUMBERS]
        cells = ["" if m.mean is None else f"{m.mean:.2f}" for m in row]
        cells.append(usable_to_the_end(result))
        print("|", " | ".join([label, *cells]), "|", flush=True)  # noqa: T201
    if args.chart:
        charts = {
            title: [mean_curve(result, name, label=label) for label, result in found.items()]
            for name, title in CURVES.items()
        }
        save_charts(args.chart, charts, x_label="seconds")


if __name__ == "__main__":
    main()
