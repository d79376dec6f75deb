"""The Physics-IQ score: what the videos share with reality, divided by what two realities share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onereel.core.errors import ConfigError
from onereel.evaluation.physics_iq.metrics import PairMetrics, ViewMetrics

_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioRow:
    """All views of one scenario.

    Args:
        scenario: its name.
        views: by the view's name, the same names in the same order for all scenarios.
    """

    scenario: str
    views: Mapping[str, ViewMetrics]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricMeans:
    """The four metrics over all scenarios, or the same between the two takes.

    Args:
        spatiotemporal: overlap in place and time, 0 to 1, higher is better.
        spatial: overlap in place.
        weighted_spatial: overlap in place and amount.
        mse: mean squared error, lower is better.
    """

    spatiotemporal: float
    spatial: float
    weighted_spatial: float
    mse: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsIqScore:
    """The verdict on one model.

    Args:
        score: 0 to 100, two decimals, as the official tool prints it; None where it has none.
        unclipped: the same before clipping and rounding; a video can be nearer to the first take
            than the second take is, so 100 is not the ceiling.
        means: of the generated videos against the first take.
        variance: of the second take against the first, rounded as the official tool rounds.
        variance_sum: the three overlaps of `variance` less its error, the official second value.
        num_scenarios: scenarios that this is the mean of.
        note: why there is no score.
    """

    score: float | None
    unclipped: float | None
    means: MetricMeans
    variance: MetricMeans
    variance_sum: float
    num_scenarios: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values.

        Returns:
            All fields by name.
        """
        return asdict(self)


def score(rows: Sequence[ScenarioRow]) -> PhysicsIqScore:
    """Score a model.

    Args:
        rows: one per scenario.

    Returns:
        The score, its parts, and the physical variance.

    Raises:
        ConfigError: there are no rows, or they name different views.

    Source:
        spec/evaluation.md 1.6.
    """
    views = _common_views(rows)
    means, spread = _means(rows, views), _variance(rows, views)
    overlaps = ("spatiotemporal", "spatial", "weighted_spatial")
    total = sum(getattr(spread, name) for name in overlaps) - spread.mse
    zero = [name for name in overlaps if getattr(spread, name) == 0]
    unclipped = note = None
    if zero:
        note = f"no score: the two takes never overlap ({', '.join(zero)} variance is 0)"
    else:
        ratio = sum(getattr(means, name) / getattr(spread, name) for name in overlaps) / 3
        unclipped = 100 * (ratio - (means.mse - spread.mse))
    return PhysicsIqScore(
        score=None if unclipped is None else round(min(100.0, max(0.0, unclipped)), 2),
        unclipped=unclipped,
        means=means,
        variance=spread,
        variance_sum=round(total, _DIGITS),
        num_scenarios=len(rows),
        note=note or "",
    )


def _common_views(rows: Sequence[ScenarioRow]) -> list[str]:
    if not rows:
        raise ConfigError("rows", expected="at least one scenario", got="none")
    views = list(rows[0].views)
    for row in rows:
        if list(row.views) != views:
            raise ConfigError(f"scenario {row.scenario}", expected=f"views {views}",
                              got=list(row.views))  # fmt: skip
    return views


def _means(rows: Sequence[ScenarioRow], views: list[str]) -> MetricMeans:
    pairs = [[row.views[view].take1 for view in views] for row in rows]
    return MetricMeans(
        spatiotemporal=_mean([_mean(_frames(row, "spatiotemporal")) for row in pairs]),
        spatial=_mean([pair.spatial for row in pairs for pair in row]),
        weighted_spatial=_mean([pair.weighted_spatial for row in pairs for pair in row]),
        mse=_mean([_mean(_frames(row, "mse")) for row in pairs]),
    )


def _variance(rows: Sequence[ScenarioRow], views: list[str]) -> MetricMeans:
    pairs = [[row.views[view].variance for row in rows] for view in views]
    return MetricMeans(
        spatiotemporal=round(_mean([_mean(_frames(v, "spatiotemporal")) for v in pairs]), _DIGITS),
        # The official tool keeps one decimal more of this one.
        spatial=round(_mean([pair.spatial for view in pairs for pair in view]), _DIGITS + 1),
        weighted_spatial=round(
            _mean([pair.weighted_spatial for view in pairs for pair in view]), _DIGITS
        ),
        mse=round(_mean([_mean(_frames(view, "mse")) for view in pairs]), _DIGITS),
    )


def _frames(pairs: Sequence[PairMetrics], name: str) -> list[float]:
    """All frames of some videos, rounded as the official tool rounds them before averaging."""
    return [round(value, _DIGITS) for pair in pairs for value in getattr(pair, name)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
