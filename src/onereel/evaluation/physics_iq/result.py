"""What a scored folder comes to: the model beside the freeze baseline and the physical variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onereel.evaluation.measure import RESAMPLES, Measurement, missing
from onereel.evaluation.physics_iq.metrics import PairMetrics
from onereel.evaluation.physics_iq.scoring import PhysicsIqScore, ScenarioRow

OFFICIAL_SCENARIOS = 66
_OVERLAPS = ("spatiotemporal", "spatial", "weighted_spatial")
METRICS = (*_OVERLAPS, "mse")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsIqResult:
    """Everything about the score of one folder.

    Args:
        model: the folder's name.
        fps: of the frames that were compared.
        num_frames: per video.
        score: of the model.
        freeze: the same for the repeated switch frame: what a model gets for doing nothing.
        rows: of the model, per scenario.
        freeze_rows: of the freeze baseline.
        categories: of physics, by scenario.
        mask_codec: what the masks went through.
        real_masks: "computed", or "files" for the published ones.
        sizes: rows and columns of the generated videos, each once.
        sha256: of all videos read, by path.
        ignored: files of the folder that belong to no scenario.
        notes: what limits the numbers.
        csv: the official table, when it was written.
    """

    model: str
    fps: float
    num_frames: int
    score: PhysicsIqScore
    freeze: PhysicsIqScore
    rows: tuple[ScenarioRow, ...]
    freeze_rows: tuple[ScenarioRow, ...]
    categories: Mapping[str, str]
    mask_codec: str
    real_masks: str
    sizes: tuple[tuple[int, int], ...]
    sha256: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    csv: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Give everything but the numbers of single frames, which the table holds.

        Returns:
            JSON values.
        """
        return {
            "model": self.model,
            "fps": self.fps,
            "num_frames": self.num_frames,
            "num_scenarios": self.score.num_scenarios,
            "score": self.score.to_json(),
            "freeze": self.freeze.to_json(),
            "metrics": {name: value.to_json() for name, value in self.measurements().items()},
            "scenarios": [
                self._scenario(pair) for pair in zip(self.rows, self.freeze_rows, strict=True)
            ],
            "mask_codec": self.mask_codec,
            "real_masks": self.real_masks,
            "sizes": [list(size) for size in self.sizes],
            "sha256": dict(self.sha256),
            "ignored": list(self.ignored),
            "notes": list(self.notes),
            "csv": None if self.csv is None else str(self.csv),
        }

    def measurements(self) -> dict[str, Measurement]:
        """Give the headline numbers with their intervals, from drawing scenarios.

        Returns:
            Score clipped and unclipped, the four metrics, their physical variance, and the freeze
            baseline's score, by name.
        """
        model, freeze = _table(self.rows), _table(self.freeze_rows)
        named = {
            "physics_iq": _scored(self.score.score, self.score, model, clip=True),
            "physics_iq_unclipped": _scored(self.score.unclipped, self.score, model, clip=False),
            "freeze_physics_iq": _scored(self.freeze.score, self.freeze, freeze, clip=True),
            "freeze_physics_iq_unclipped": _scored(
                self.freeze.unclipped, self.freeze, freeze, clip=False
            ),
        }
        for i, name in enumerate(METRICS):
            named[name] = _measured(getattr(self.score.means, name), model[0][:, i])
        for i, name in enumerate(METRICS):
            value = getattr(self.score.variance, name)
            named[f"variance_{name}"] = _measured(value, model[1][:, i])
        return named

    def _scenario(self, pair: tuple[ScenarioRow, ScenarioRow]) -> dict[str, Any]:
        row, freeze = pair
        return {
            "scenario": row.scenario,
            "category": self.categories.get(row.scenario, ""),
            "model": _summary([view.take1 for view in row.views.values()]),
            "freeze": _summary([view.take1 for view in freeze.views.values()]),
            "variance": _summary([view.variance for view in row.views.values()]),
            "views": {name: _summary([view.take1]) for name, view in row.views.items()},
        }


def _summary(pairs: Sequence[PairMetrics]) -> dict[str, float]:
    return {
        name: float(np.mean([np.mean(getattr(pair, name)) for pair in pairs])) for name in METRICS
    }


def _table(rows: Sequence[ScenarioRow]) -> tuple[np.ndarray, np.ndarray]:
    """The four metrics per scenario, of the videos and of the takes: two arrays [N, 4]."""
    tables = []
    for pair in ("take1", "variance"):
        summaries = [_summary([getattr(v, pair) for v in row.views.values()]) for row in rows]
        tables.append(np.array([[one[name] for name in METRICS] for one in summaries]))
    return tables[0], tables[1]


def _drawn(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num, (RESAMPLES, num))


def _measured(value: float, values: np.ndarray) -> Measurement:
    means = values[_drawn(len(values))].mean(1)
    low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
    return Measurement(mean=value, low=low, high=high, num=len(values))


def _scored(
    value: float | None, score: PhysicsIqScore, table: tuple[np.ndarray, np.ndarray], *, clip: bool
) -> Measurement:
    """The score with the interval of drawing whole scenarios, their variance with them."""
    if value is None:
        return missing(score.note)
    drawn = _drawn(score.num_scenarios)
    means, variance = (part[drawn].mean(1) for part in table)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (means[:, :3] / variance[:, :3]).mean(1)
    scores = 100 * (ratio - (means[:, 3] - variance[:, 3]))
    scores = scores[np.isfinite(scores)]  # a draw may hold only takes that never overlap
    low, high = (float(q) for q in np.quantile(scores, (0.025, 0.975)))
    if clip:
        low, high = (round(min(100.0, max(0.0, end)), 2) for end in (low, high))
    return Measurement(mean=value, low=low, high=high, num=score.num_scenarios)
