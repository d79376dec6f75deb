"""Room `evaluation/physics_iq`: does a video go on as the real world did?

Read `metrics.py` first: what is compared. On arrays alone, a score is
`score([ScenarioRow(scenario=name, views={view: view_metrics(a, b, generated=g)})])` with clips from
`make_clip`.

| file | holds |
|---|---|
| `masks.py`, `resizing.py` | what moves, and shrinking, equal to the official tool's in every bit |
| `metrics.py`, `scoring.py` | four numbers per view, one per model |
"""

from __future__ import annotations

from onereel.evaluation.physics_iq.masks import MaskStream, moving_masks
from onereel.evaluation.physics_iq.metrics import (
    Clip,
    PairMetrics,
    ViewMetrics,
    frozen_clip,
    make_clip,
    pair_metrics,
    view_metrics,
)
from onereel.evaluation.physics_iq.resizing import resize
from onereel.evaluation.physics_iq.scoring import (
    MetricMeans,
    PhysicsIqScore,
    ScenarioRow,
    score,
)

__all__ = [
    "Clip",
    "MaskStream",
    "MetricMeans",
    "PairMetrics",
    "PhysicsIqScore",
    "ScenarioRow",
    "ViewMetrics",
    "frozen_clip",
    "make_clip",
    "moving_masks",
    "pair_metrics",
    "resize",
    "score",
    "view_metrics",
]
