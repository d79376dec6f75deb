"""Room `evaluation/physics_iq`: does a video go on as the real world did?

Read `metrics.py` first: what is compared. On arrays alone, a score is
`score([ScenarioRow(scenario=name, views={view: view_metrics(a, b, generated=g)})])` with clips from
`make_clip`; on files it is `evaluate_folder(read_dataset(root), folder)`.

| file | holds |
|---|---|
| `masks.py`, `resizing.py` | what moves, and shrinking, equal to the official tool's in every bit |
| `metrics.py`, `scoring.py` | four numbers per view, one per model |
| `dataset.py`, `folder.py`, `clips.py` | the real videos, a model's videos, their frames |
| `view.py`, `mask_files.py` | one view from files; masks that are kept or compressed |
| `evaluate.py`, `result.py`, `official_csv.py` | a folder's score, its JSON, the official table |
| `protocol.py`, `generate.py`, `making.py` | what to generate, a loop that resumes, a model in it |
"""

from __future__ import annotations

from onereel.evaluation.physics_iq.dataset import PhysicsIqDataset, read_dataset
from onereel.evaluation.physics_iq.evaluate import evaluate_folder
from onereel.evaluation.physics_iq.generate import GenerationReport, generate_videos
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
from onereel.evaluation.physics_iq.official_csv import read_rows, write_rows
from onereel.evaluation.physics_iq.protocol import GenerationJob, plan_generation
from onereel.evaluation.physics_iq.resizing import resize
from onereel.evaluation.physics_iq.result import PhysicsIqResult
from onereel.evaluation.physics_iq.scoring import (
    MetricMeans,
    PhysicsIqScore,
    ScenarioRow,
    score,
)

__all__ = [
    "Clip",
    "GenerationJob",
    "GenerationReport",
    "MaskStream",
    "MetricMeans",
    "PairMetrics",
    "PhysicsIqDataset",
    "PhysicsIqResult",
    "PhysicsIqScore",
    "ScenarioRow",
    "ViewMetrics",
    "evaluate_folder",
    "frozen_clip",
    "generate_videos",
    "make_clip",
    "moving_masks",
    "pair_metrics",
    "plan_generation",
    "read_dataset",
    "read_rows",
    "resize",
    "score",
    "view_metrics",
    "write_rows",
]
