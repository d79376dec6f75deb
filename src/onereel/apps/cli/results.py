"""How results are printed and written: the same for all of `onereel evaluate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onereel.evaluation.report.result import Result

Json = Annotated[
    Path | None, typer.Option("--json", metavar="OUT.json", help="Write the result here.")
]
Html = Annotated[Path | None, typer.Option(metavar="OUT.html", help="Write a page here.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def present(result: Result, *, json_: Path | None, html: Path | None, kept: bool = True) -> int:
    """Print a result, and write it where it is wanted.

    Args:
        result: of an evaluation.
        json_: file for the result.
        html: file for the page; the sheet of the worst videos is written beside it.
        kept: whether the folder with the videos stays.

    Returns:
        The exit code: 1 when an input or a video had a problem.
    """
    import dataclasses

    from onereel.evaluation.report.result import write_json

    result = dataclasses.replace(result, command=shlex.join(["onereel", *sys.argv[1:]]))
    print(table_of([result]))
    if html is not None:
        from onereel.evaluation.report.page import write_page

        sheet = html.with_name(f"{html.stem}-worst.png")
        print(write_page([result], html, sheet=sheet if result.folder else None))
    if json_ is not None:
        stored = result if kept else dataclasses.replace(result, folder="")
        print(write_json(stored.to_json(), json_))
    for problem in result.problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if result.problems else 0


def table_of(results: list[Result]) -> str:
    """Write metrics as lines of text.

    Args:
        results: one, or several of the same kind.

    Returns:
        A line per metric; where there are several, with the difference to the first, marked by ~
        where the intervals overlap.
    """
    from onereel.evaluation.report.compare import compare_results, comparison_warnings

    rows = [["", *(result.title for result in results)]]
    for metric in compare_results(results):
        cells = [metric.name]
        for number, found in enumerate(metric.found):
            if found is None or found.mean is None:
                cells.append("-")
                continue
            text = f"{found.mean:.4g}"
            if found.low is not None and found.high is not None:
                text += f" [{found.low:.4g}, {found.high:.4g}]"
            change = metric.differences[number - 1] if number else None
            if change is not None and change.value is not None:
                text += f" {'~' if change.overlap else ''}{change.value:+.3g}"
            cells.append(f"{text} {found.unit}".rstrip())
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    for result in results:
        speed = result.seconds_per_video_second
        pace = "" if speed is None else f", {speed:.3g} s per s of video"
        missing = f", {len(result.not_computed)} not computed" if result.not_computed else ""
        lines.append(f"{result.title}: {result.num_videos} videos{pace}{missing}")
    return "\n".join([*lines, *comparison_warnings(results), *results[0].notes])
