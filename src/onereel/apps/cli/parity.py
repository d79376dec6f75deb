"""`onereel parity`: run recorded cases of official code against ours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onereel.evaluation.parity.case import CaseResult

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="Folder with an index.json and its tensors.")],
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per case and for the summary.")
    ] = False,
) -> None:
    """Run every case of a folder; one line each, exit 1 when any fails."""
    # Imported late: `--help` must not wait for torch.
    from onereel.evaluation.parity import run_folder

    raise typer.Exit(report(run_folder(folder), as_json=json_))


def report(results: Iterable[CaseResult], *, as_json: bool = False) -> int:
    """Print results as they come, then a summary line.

    Args:
        results: what each case gave.
        as_json: print JSON lines instead of text.

    Returns:
        0 when there was a case and every one passed, else 1.
    """
    counts: Counter[bool] = Counter()
    for result in results:
        counts[result.passed] += 1
        if as_json:
            fields = ("name", "passed", "max_error", "tolerance", "note")
            # NaN and infinity are no JSON: such an error is written as text.
            values = {field: getattr(result, field) for field in fields}
            values["max_error"] = _json_number(result.max_error)
            print(json.dumps(values, allow_nan=False), flush=True)
        else:
            print(_line(result), flush=True)
    passed, failed = counts[True], counts[False]
    if as_json:
        print(json.dumps({"passed": passed, "failed": failed}))
    else:
        print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def _line(result: CaseResult) -> str:
    verdict = "pass" if result.passed else "FAIL"
    note = f"  {result.note}" if result.note else ""
    numbers = f"error {result.max_error:.2e}  tolerance {result.tolerance:.2e}"
    return f"{verdict}  {result.name}  {numbers}{note}"


def _json_number(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)
