"""Plots as SVG text, drawn by hand: nothing is loaded, nothing runs in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito: distinct for most kinds of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

_WIDTH, _ROW = 190, 13
_CHART = (460, 200)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart.

    Args:
        x: ascending.
        y: NaN leaves a gap.
        low: lower edge of a band, or empty.
        high: upper edge of a band, or empty.
        label: name of the line.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    label: str = ""


def colour(number: int) -> str:
    """Give the colour of a run.

    Args:
        number: from 0.

    Returns:
        Such as `#0072b2`.
    """
    return COLOURS[number % len(COLOURS)]


def interval_plot(
    found: Sequence[tuple[float, float, float] | None], *, bounds: tuple[float, float] | None = None
) -> str:
    """Draw means with intervals, one line per run.

    Args:
        found: (mean, low, high) per run, None leaves the line empty.
        bounds: ends of the axis; None fits them to what is drawn.

    Returns:
        SVG.
    """
    given = [number for triple in found if triple is not None for number in triple]
    low, high = bounds or _padded(min(given, default=0.0), max(given, default=1.0))
    height = _ROW * len(found) + 3

    def at(value: float) -> float:
        share = (value - low) / (high - low)
        return 4 + (_WIDTH - 8) * min(max(share, 0.0), 1.0)

    parts = [f'<line x1="4" x2="{_WIDTH - 4}" y1="{height - 2}" y2="{height - 2}" class="axis"/>']
    for number, triple in enumerate(found):
        if triple is None:
            continue
        mean, left, right = triple
        y, paint = _ROW * number + _ROW / 2, colour(number)
        parts.append(
            f'<line x1="{at(left):.1f}" x2="{at(right):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{paint}" stroke-width="2"/>'
            f'<circle cx="{at(mean):.1f}" cy="{y}" r="3.5" fill="{paint}"/>'
        )
    return _svg(_WIDTH, height, parts, title=f"axis from {low:.4g} to {high:.4g}")


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Draw lines over a common axis.

    Args:
        series: the lines.
        x_label: below the axis.
        y_label: above the chart, for readers that see no picture.

    Returns:
        SVG; empty text where there is nothing finite to draw.
    """
    xs = [x for line in series for x in line.x]
    ys = [y for line in series for y in (*line.y, *line.low, *line.high) if math.isfinite(y)]
    if not xs or not ys:
        return ""
    (left, right), (low, high) = _span(min(xs), max(xs)), _padded(min(ys), max(ys))
    width, height = _CHART

    def at(x: float, y: float) -> str:
        across = _LEFT + (width - _LEFT - _RIGHT) * (x - left) / (right - left)
        down = height - _BOTTOM - (height - _TOP - _BOTTOM) * (y - low) / (high - low)
        return f"{across:.1f},{down:.1f}"

    parts = _axes((left, right), (low, high), x_label=x_label)
    for number, line in enumerate(series):
        paint = colour(number)
        if line.low and line.high:
            edge = [*zip(line.x, line.high, strict=True)]
            edge += reversed([*zip(line.x, line.low, strict=True)])
            points = " ".join(at(x, y) for x, y in edge if math.isfinite(y))
            parts.append(f'<polygon points="{points}" fill="{paint}" opacity="0.15"/>')
        for piece in _pieces(line):
            points = " ".join(at(x, y) for x, y in piece)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{paint}" stroke-width="1.8"/>'
            )
    return _svg(width, height, parts, title=y_label)


def histogram(values: Sequence[float], *, label: str, bins: int = 20) -> str:
    """Draw how values are spread.

    Args:
        values: finite numbers.
        label: what they are.
        bins: bars.

    Returns:
        SVG; empty text without values.
    """
    if not values:
        return ""
    low, high = _span(min(values), max(values))
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    width, height = _CHART
    parts = _axes((low, high), (0.0, float(max(counts))), x_label=label)
    step = (width - _LEFT - _RIGHT) / bins
    for number, count in enumerate(counts):
        tall = (height - _TOP - _BOTTOM) * count / max(counts)
        parts.append(
            f'<rect x="{_LEFT + number * step:.1f}" y="{height - _BOTTOM - tall:.1f}" '
            f'width="{step - 1:.1f}" height="{tall:.1f}" fill="{colour(0)}"/>'
        )
    return _svg(width, height, parts, title=f"{len(values)} videos by {label}")


def _axes(x: tuple[float, float], y: tuple[float, float], *, x_label: str) -> list[str]:
    """Draw the frame of a chart with numbers at its ends and in the middle."""
    width, height = _CHART
    base, right = height - _BOTTOM, width - _RIGHT
    parts = [
        f'<line x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}" class="axis"/>',
        f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{base}" class="axis"/>',
        f'<text x="{(_LEFT + right) / 2}" y="{height - 4}" class="middle">{escape(x_label)}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        across, down = _LEFT + (right - _LEFT) * share, base - (base - _TOP) * share
        x_text, y_text = (
            _number(x[0] + (x[1] - x[0]) * share),
            _number(y[0] + (y[1] - y[0]) * share),
        )
        parts.append(f'<text x="{across}" y="{base + 14}" class="middle">{x_text}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down + 4}" class="end">{y_text}</text>')
    return parts


def _pieces(line: Series) -> list[list[tuple[float, float]]]:
    """Cut a line where it has gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _svg(width: int, height: int, parts: Sequence[str], *, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _span(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    low, high = _span(low, high)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def _number(value: float) -> str:
    return f"{value:.4g}"
