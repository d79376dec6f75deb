"""What every evaluation returns: named numbers with their uncertainty, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onereel.core.config import from_mapping

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One number of a result.

    Args:
        mean: the value, or None when it was not computed.
        low: lower end of the 95 % interval; None where there is no interval.
        high: upper end.
        num: how many values the mean is of.
        unit: of the value; empty for shares and scores.
        note: why there is no value, or what limits it.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    num: int = 0
    unit: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values.

        Returns:
            All fields by name.
        """
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` gave.

        Args:
            data: fields by name; unknown ones are refused.

        Returns:
            The measurement.

        Raises:
            ConfigError: a field is not known.
        """
        return from_mapping(cls, data, where="Measurement")


def missing(reason: str) -> Measurement:
    """Say that a number was not computed.

    Args:
        reason: what is missing and how to get it.

    Returns:
        A measurement without value.
    """
    return Measurement(mean=None, note=reason)


def summarize(
    values: Sequence[float],
    *,
    groups: Sequence[str] | None = None,
    unit: str = "",
    seed: int = 0,
) -> Measurement:
    """Take the mean with a 95 % bootstrap interval; NaN means "does not apply" and is left out.

    Args:
        values: one per video.
        groups: the prompt of every video; whole prompts are drawn. None draws single values.
        unit: of the values.
        seed: of the 1000 resamples.

    Returns:
        The measurement; without value when nothing applied.

    Source:
        spec/evaluation.md 9.3.
    """
    given = [str(i) for i in range(len(values))] if groups is None else list(groups)
    kept = [(g, float(v)) for g, v in zip(given, values, strict=True) if not math.isnan(v)]
    if not kept:
        return Measurement(mean=None, unit=unit, note="applies to none of the videos")
    names = {name: i for i, name in enumerate(dict.fromkeys(g for g, _ in kept))}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for group, value in kept:
        sums[names[group]] += value
        counts[names[group]] += 1
    mean = float(sums.sum() / counts.sum())
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
    return Measurement(mean=mean, low=low, high=high, num=len(kept), unit=unit)
