"""A result, or several side by side, as one HTML file that needs nothing else, not even scripts."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from onereel.core.errors import MediaError
from onereel.evaluation.measure import Measurement
from onereel.evaluation.report.compare import (
    ComparedMetric,
    Difference,
    compare_results,
    comparison_warnings,
    group_means,
    worst_rows,
)
from onereel.evaluation.report.plots import Series, colour, histogram, interval_plot, line_chart
from onereel.evaluation.report.result import Result
from onereel.evaluation.report.sheets import embed_picture, video_sheet

_MOST_ROWS = 2000
_MOST_COLUMNS = 14

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: middle; }
th:first-child, td:first-child, td.text { text-align: left; }
.wide { overflow-x: auto; } img { max-width: 100%; image-rendering: pixelated; }
svg { vertical-align: middle; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .axis { stroke: #888; stroke-width: 1; }
.soft { opacity: .7; } .warn { background: var(--soft); padding: .4em .8em; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em; }
.charts { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; }
pre { overflow-x: auto; background: var(--soft); padding: .6em; }
"""


def write_page(
    results: Sequence[Result], path: str | Path, *, sheet: str | Path | None = None
) -> Path:
    """Write the page of one or more results.

    Args:
        results: one, or several of the same kind to compare; the first is the reference.
        path: the HTML file.
        sheet: PNG of the worst videos of the first result to write as well; None keeps it in the
            page alone.

    Returns:
        The path written.

    Raises:
        ConfigError: the results are of several kinds.
        MediaError: the place cannot be written.
    """
    path = Path(path)
    text = make_page(results, sheet=sheet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MediaError(f"cannot write {path}", got=error.strerror) from error
    return path


def make_page(results: Sequence[Result], *, sheet: str | Path | None = None) -> str:
    """Make the page of one or more results.

    Args:
        results: one, or several of the same kind to compare.
        sheet: see `write_page`.

    Returns:
        HTML.

    Raises:
        ConfigError: the results are of several kinds.
    """
    compared = compare_results(results)
    first = results[0]
    title = f"{first.kind} {first.suite}: {' against '.join(r.title for r in results)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _runs(results),
        _sentences([*comparison_warnings(results), *_problems(results)], "warn"),
        _sentences([note for result in results for note in result.notes], "soft"),
        "<h2>Metrics</h2>",
        _metrics(results, compared),
        _missing(results),
        _curves(results),
        *(_groups(result) for result in results),
        *(
            _worst(result, number, sheet=sheet if number == 0 else None)
            for number, result in enumerate(results)
        ),
        *(_videos(result) for result in results),
        *(_exactly(result) for result in results),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table; cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def _name(results: Sequence[Result], number: int) -> str:
    """Name a run, with its colour where there are several."""
    text = escape(results[number].title)
    if len(results) == 1:
        return text
    return f'<span class="key" style="background:{colour(number)}"></span>{text}'


def _runs(results: Sequence[Result]) -> str:
    rows = []
    for number, result in enumerate(results):
        speed = result.seconds_per_video_second
        rows.append(
            [
                _name(results, number),
                escape(result.suite),
                str(result.num_videos),
                str(len(result.problems)),
                _number(speed),
                f"<code>{escape(result.model_hash[:12]) or '–'}</code>",
                escape(result.created),
            ]
        )
    head = ("run", "suite", "videos", "problems", "s per s of video", "weights", "made (UTC)")
    return _table(head, rows)


def _sentences(texts: Sequence[str], kind: str) -> str:
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>'


def _problems(results: Sequence[Result]) -> list[str]:
    several = len(results) > 1
    return [
        f"run {number}: {text}" if several else text
        for number, result in enumerate(results, start=1)
        for text in result.problems
    ]


def _metrics(results: Sequence[Result], compared: Sequence[ComparedMetric]) -> str:
    head = ["metric", *(_name(results, n) for n in range(len(results)))]
    head += [f"run {n + 2} − run 1" for n in range(len(results) - 1)]
    rows = []
    for metric in compared:
        unit = next((m.unit for m in metric.found if m is not None and m.unit), "")
        label = escape(metric.name) + (f' <span class="soft">{escape(unit)}</span>' if unit else "")
        cells = [label, *(_cell(found) for found in metric.found)]
        cells += [_difference(found) for found in metric.differences]
        rows.append([*cells, _plot(metric)])
    text = _table([*head, "95 % interval"], rows)
    if len(results) > 1:
        text += (
            '<p class="soft">Differences in bold: the intervals do not overlap. '
            "≈: they overlap, so the runs cannot be told apart by this number.</p>"
        )
    return text


def _cell(found: Measurement | None) -> str:
    if found is None:
        return "–"
    text = f"<b>{_number(found.mean)}</b>"
    if found.low is not None and found.high is not None:
        text += f' <span class="soft">{_number(found.low)} … {_number(found.high)}</span>'
    if found.num:
        text += f' <span class="soft">n {found.num}</span>'
    if found.note:
        text = f'<span title="{escape(found.note, quote=True)}">{text} *</span>'
    return text


def _difference(found: Difference) -> str:
    if found.value is None:
        return "–"
    text = f"{found.value:+.4g}"
    if found.overlap is None:
        return text
    return f"≈ {text}" if found.overlap else f"<b>{text}</b>"


def _plot(metric: ComparedMetric) -> str:
    found: list[tuple[float, float, float] | None] = []
    for m in metric.found:
        if m is None or m.mean is None or m.low is None or m.high is None:
            found.append(None)
        else:
            found.append((m.mean, m.low, m.high))
    given = [number for triple in found if triple is not None for number in triple]
    if not given:
        return ""
    share = min(given) >= 0 and max(given) <= 1 and not any(m.unit for m in metric.found if m)
    return interval_plot(found, bounds=(0.0, 1.0) if share else None)


def _missing(results: Sequence[Result]) -> str:
    reasons = {name: why for result in results for name, why in result.not_computed.items()}
    if not reasons:
        return ""
    rows = ([escape(name), f"{escape(why)}"] for name, why in reasons.items())
    table = _table(("not computed", "why"), rows)
    return f"<details><summary>{len(reasons)} not computed</summary>{table}</details>"


def _curves(results: Sequence[Result]) -> str:
    """Draw every curve, mean over the videos, with the middle half as a band."""
    names = dict.fromkeys(name for r in results for row in r.videos for name in row.curves)
    charts = []
    for name in names:
        series = [line for r in results if (line := _mean_curve(r, name)) is not None]
        chart = line_chart(series, x_label="seconds", y_label=name)
        if chart:
            charts.append(f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>")
    if not charts:
        return ""
    note = '<p class="soft">Mean over the videos; the band holds the middle half of them.</p>'
    return f'<h2>Over time</h2>{note}<div class="charts">{"".join(charts)}</div>'


def _mean_curve(result: Result, name: str) -> Series | None:
    rows = [row.curves[name] for row in result.videos if name in row.curves and not row.problem]
    if not rows:
        return None
    length = max(len(row) for row in rows)
    table = np.full((len(rows), length), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = [math.nan if value is None else value for value in row]
    seen = np.isfinite(table).any(axis=0)
    mean, low, high = (np.full(length, np.nan) for _ in range(3))
    mean[seen] = np.nanmean(table[:, seen], axis=0)
    low[seen], high[seen] = np.nanquantile(table[:, seen], (0.25, 0.75), axis=0)
    step = float(result.config.get("curve_step_s", {}).get(name, 1.0))
    seconds = [step * i for i in range(length)]
    return Series(x=seconds, y=mean.tolist(), low=low.tolist(), high=high.tolist(), label=name)


def _groups(result: Result) -> str:
    """Show the ranking values by every tag, which tells where a model fails."""
    names = _columns(result)
    tags = list(dict.fromkeys(tag for row in result.videos for tag in row.tags))
    parts = []
    for tag in tags:
        groups = group_means(result, tag, names=names)
        if len(groups) < 2:
            continue
        rows = (
            [escape(label), str(count), *(_number(means.get(name)) for name in names)]
            for label, (count, means) in groups.items()
        )
        parts.append(_table((escape(tag), "videos", *map(escape, names)), rows))
    if not parts:
        return ""
    return f"<h2>By kind of prompt: {escape(result.title)}</h2>{''.join(parts)}"


def _columns(result: Result) -> list[str]:
    """Choose the values to show per video: those that rank, then others in order."""
    ranked = [name.removeprefix("-") for name in result.rank]
    known = dict.fromkeys(name for row in result.videos for name in row.values)
    names = [name for name in ranked if name in known]
    names += [name for name in known if name not in names]
    return names[:_MOST_COLUMNS]


def _worst(result: Result, number: int, *, sheet: str | Path | None) -> str:
    rows = worst_rows(result)
    if not rows:
        return ""
    names = _columns(result)
    table = _table(
        ("video", "prompt", *map(escape, names)),
        (
            [
                escape(row.name),
                escape(row.problem or row.prompt),
                *(_number(row.values.get(name)) for name in names),
            ]
            for row in rows
        ),
    )
    drawn = [row for row in rows if row.files]
    lost = '<p class="soft">The videos were not kept, so there is no picture of them.</p>'
    picture = lost if drawn else ""
    if result.folder and drawn:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "sheet.png" if sheet is None else Path(sheet)
            video_sheet(result, drawn, path=target)
            picture = embed_picture(target, text=f"frames of the worst videos of run {number + 1}")
    spread = _spread(result)
    return f"<h2>The worst {len(rows)}: {escape(result.title)}</h2>{spread}{table}{picture}"


def _spread(result: Result) -> str:
    """Draw how the last ranking value that is no plain yes or no is spread."""
    for name in reversed([name.removeprefix("-") for name in result.rank]):
        values = [v for row in result.videos if (v := row.values.get(name)) is not None]
        if len(set(values)) > 2:
            return histogram(values, label=name)
    return ""


def _videos(result: Result) -> str:
    names = _columns(result)
    shown = result.videos[:_MOST_ROWS]
    if not shown:
        return ""
    rows = (
        [
            escape(row.name),
            escape(row.problem or row.prompt),
            *(_number(row.values.get(name)) for name in names),
        ]
        for row in shown
    )
    table = _table(("video", "prompt", *map(escape, names)), rows)
    more = len(result.videos) - len(shown)
    note = f"<p>{more} more are in the JSON.</p>" if more else ""
    summary = f"{len(result.videos)} videos: {escape(result.title)}"
    return f"<details><summary>{summary}</summary>{table}{note}</details>"


def _exactly(result: Result) -> str:
    """Show everything that the numbers depend on."""
    values: Mapping[str, Any] = {
        "command": result.command,
        "model_hash": result.model_hash,
        "config": result.config,
        "seeds": result.seeds,
        "versions": result.versions,
    }
    text = escape(json.dumps(values, indent=2, ensure_ascii=False, default=str))
    return (
        f"<details><summary>Exact configuration: {escape(result.title)}</summary>"
        f"<pre>{text}</pre></details>"
    )
