"""Two or more results side by side: differences, and whether their intervals overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onereel.core.errors import ConfigError
from onereel.evaluation.measure import Measurement
from onereel.evaluation.report.result import Result, VideoRow

# Differences in these are what a comparison is for, or say nothing.
_EXPECTED = ("model", "model_hash", "loras", "sampling", "device", "dtype", "threads", "workers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One run against the first one.

    Args:
        value: mean of this run minus mean of the first; None where one of them has none.
        overlap: whether the 95 % intervals touch; None where one of them has none.
    """

    value: float | None = None
    overlap: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedMetric:
    """One metric of several runs.

    Args:
        name: of the metric.
        found: measurement per run, None where the run has none.
        differences: of every run but the first.
    """

    name: str
    found: tuple[Measurement | None, ...]
    differences: tuple[Difference, ...]


def compare_results(results: Sequence[Result]) -> tuple[ComparedMetric, ...]:
    """Put metrics of several runs side by side.

    Args:
        results: one or more of the same kind.

    Returns:
        Every metric that a run has, in the order in which they first occur.

    Raises:
        ConfigError: there is no result, or they are of several kinds.
    """
    kinds = list(dict.fromkeys(result.kind for result in results))
    if len(kinds) != 1:
        raise ConfigError("results", expected="one or more of the same kind",
                          got=", ".join(kinds) or "none")  # fmt: skip
    names = dict.fromkeys(name for result in results for name in result.metrics)
    rows = []
    for name in names:
        found = tuple(result.metrics.get(name) for result in results)
        differences = tuple(_difference(found[0], other) for other in found[1:])
        rows.append(ComparedMetric(name=name, found=found, differences=differences))
    return tuple(rows)


def _difference(first: Measurement | None, other: Measurement | None) -> Difference:
    if first is None or other is None or first.mean is None or other.mean is None:
        return Difference()
    overlap = None
    if None not in (first.low, first.high, other.low, other.high):
        assert first.low is not None and first.high is not None
        assert other.low is not None and other.high is not None
        overlap = first.low <= other.high and other.low <= first.high
    return Difference(value=other.mean - first.mean, overlap=overlap)


def comparison_warnings(results: Sequence[Result]) -> tuple[str, ...]:
    """Say what makes runs hard to compare.

    Args:
        results: two or more.

    Returns:
        One sentence per difference in suite, settings or videos, the model and its sampling left
        out.
    """
    texts = []
    first = results[0]
    for number, other in enumerate(results[1:], start=2):
        if other.suite != first.suite:
            texts.append(f"run {number} is of suite {other.suite}, run 1 of {first.suite}")
        for name in sorted({*first.config, *other.config} - {*_EXPECTED, "suite"}):
            before, after = first.config.get(name), other.config.get(name)
            if before != after:
                texts.append(f"{name} is {after} in run {number} and {before} in run 1")
        if other.num_videos != first.num_videos:
            counts = f"{other.num_videos} videos in run {number}, {first.num_videos} in run 1"
            texts.append(f"{counts}: means are over different videos")
    return tuple(texts)


def worst_rows(result: Result, count: int = 10) -> tuple[VideoRow, ...]:
    """Find the worst videos.

    Args:
        result: of one run; `rank` says what counts.
        count: how many.

    Returns:
        Rows, the worst first; videos with a problem come before all others, and those without any
        of the ranking values are left out.
    """
    wanted = [(name.removeprefix("-"), name.startswith("-")) for name in result.rank]
    rows = [
        row
        for row in result.videos
        if row.problem or any(row.values.get(name) is not None for name, _ in wanted)
    ]
    return tuple(sorted(rows, key=_badness(wanted))[:count])


def _badness(wanted: Sequence[tuple[str, bool]]) -> Callable[[VideoRow], tuple[Any, ...]]:
    def key(row: VideoRow) -> tuple[Any, ...]:
        numbers = []
        for name, high_is_bad in wanted:
            value = row.values.get(name)
            numbers.append(math.inf if value is None else -value if high_is_bad else value)
        return (not row.problem, *numbers, row.name)

    return key


def group_means(
    result: Result, tag: str, *, names: Sequence[str]
) -> dict[str, tuple[int, dict[str, float]]]:
    """Average values over the rows of every value of a tag.

    Args:
        result: of one run.
        tag: name of the tag.
        names: of the values.

    Returns:
        Per value of the tag: number of rows, and the means of those values that apply.
    """
    groups: dict[str, list[VideoRow]] = {}
    for row in result.videos:
        if tag in row.tags and not row.problem:
            groups.setdefault(str(row.tags[tag]), []).append(row)
    found = {}
    for label in sorted(groups):
        rows, means = groups[label], {}
        for name in names:
            given = [v for row in rows if (v := row.values.get(name)) is not None]
            if given:
                means[name] = sum(given) / len(given)
        found[label] = (len(rows), means)
    return found
