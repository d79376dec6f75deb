"""Charts of the benchmarks as SVG files, drawn as the pages of `onereel evaluate report` are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from onereel.evaluation.report.plots import Series, colour, line_chart
from onereel.evaluation.report.result import Result

_WIDTH, _HEIGHT, _LINE = 460, 200, 18
_STYLE = (
    "text { font: 12px sans-serif; fill: #222; } .middle { text-anchor: middle; } "
    ".end { text-anchor: end; } .axis { stroke: #888; }"
)


def save_charts(path: Path, charts: Mapping[str, Sequence[Series]], *, x_label: str) -> None:
    """Write charts below each other into one SVG file, with a legend.

    Args:
        path: the file.
        charts: lines by the chart's title; all charts have lines of the same labels in one order.
        x_label: below every axis.
    """
    labels = list(dict.fromkeys(line.label for lines in charts.values() for line in lines))
    parts, top = [], 4
    for number, label in enumerate(labels):
        middle = top + _LINE / 2
        parts.append(
            f'<line x1="52" x2="76" y1="{middle}" y2="{middle}" stroke="{colour(number)}" '
            f'stroke-width="2.5"/><text x="84" y="{middle + 4}">{escape(label)}</text>'
        )
        top += _LINE
    for title, lines in charts.items():
        top += _LINE
        parts.append(f'<text x="52" y="{top - 2}" font-weight="bold">{escape(title)}</text>')
        chart = line_chart(lines, x_label=x_label, y_label=title)
        parts.append(f'<g transform="translate(0 {top})">{chart}</g>')
        top += _HEIGHT + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}">'
    back = f'<rect width="{_WIDTH}" height="{top}" fill="white"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<style>{_STYLE}</style>{back}{''.join(parts)}</svg>\n", "utf-8")


def mean_curve(result: Result, name: str, *, label: str) -> Series:
    """Average a curve of a result over its videos, from the second value on.

    The first one compares the first second with itself.

    Args:
        result: of `onereel evaluate`, one value per second.
        name: of the curve.
        label: of the line.

    Returns:
        The line; NaN where no video has a value.
    """
    rows = [[math.nan if v is None else v for v in row.curves[name]] for row in result.videos]
    table = np.array(rows)
    seen = np.isfinite(table).any(axis=0)
    mean = np.full(table.shape[1], np.nan)
    mean[seen] = np.nanmean(table[:, seen], axis=0)
    return Series(x=list(range(1, len(mean))), y=mean[1:].tolist(), label=label)
