r"""Draw numbers of training logs over steps, one chart per number, one line per run.

python scripts/draw_logs.py "with tokens=runs/a/log.jsonl" "without=runs/b/log.jsonl" \
    --keys val_i2v val_v2v --out docs/images/tokens.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from charts import save_charts

from onereel.evaluation.report.plots import Series


def read_line(log: Path, key: str, *, label: str, x: str) -> Series:
    """Read one number of a log."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    found = [(float(row[x]), float(row[key])) for row in rows if key in row]
    if not found:
        raise SystemExit(f"{log}: no line has '{key}'")
    return Series(x=[a for a, _ in found], y=[b for _, b in found], label=label)


def main() -> None:
    """Read the logs and write one SVG file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=LOG")
    parser.add_argument("--keys", nargs="+", required=True)
    parser.add_argument("--x", default="step", help="step or seconds")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    args = parser.parse_args()
    logs = [(label, Path(path)) for label, path in (run.split("=", 1) for run in args.runs)]
    charts = {
        key: [read_line(path, key, label=label, x=args.x) for label, path in logs]
        for key in args.keys
    }
    save_charts(args.out, charts, x_label=args.x)


if __name__ == "__main__":
    main()
