"""Golden cases of Physics-IQ: masks, every column of the official table, means and scores.

`index.json` names scenarios, views and models; `clips.npz` holds the frames under
`{scenario}|{view}|{take or model}` as differences in time, `masks.npz` the official masks as bits.
Everything that the index records of a model is compared; a number that is not known here fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.physics_iq.mask_files import mp4v_round_trip
from onereel.evaluation.physics_iq.masks import Mask, Video, moving_masks
from onereel.evaluation.physics_iq.metrics import (
    Clip,
    ViewMetrics,
    compared_size,
    shrink_levels,
    shrink_mask,
    view_metrics,
)
from onereel.evaluation.physics_iq.official_csv import row_cells
from onereel.evaluation.physics_iq.resizing import resize
from onereel.evaluation.physics_iq.scoring import PhysicsIqScore, ScenarioRow, score

_TAKES = ("take-1", "take-2")
_METRIC = 1e-7
_MEAN = 1e-6  # a value rounded the other way moves the mean of 480 frames by 2e-7
_SCORE = 0.005
# The codec's arithmetic differs between builds and processors; the score moves by less than this.
_MP4V_SCORE, _MP4V_IOU = 0.05, 2e-3
_MEANS = {"st": "spatiotemporal", "sp": "spatial", "ws": "weighted_spatial", "mse": "mse"}
_SUMMARY = {"spatial_iou": "spatial", "weighted_spatial_iou": "weighted_spatial"}

Views = dict[str, dict[str, ViewMetrics]]


def physics_iq_cases(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of a folder.

    Args:
        folder: holds `index.json`, `clips.npz` and `masks.npz`.

    Yields:
        One result per clip, mask, column and model number.
    """
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    fps = Fraction(index["fps"])
    models: dict[str, Mapping[str, Any]] = index["models"]
    plain: dict[str, Views] = {name: {} for name in models}
    lossy: dict[str, Views] = {name: {} for name in models}
    with np.load(folder / "clips.npz") as clips, np.load(folder / "masks.npz") as masks:
        for scenario, views in index["scenarios"].items():
            for view, entries in views.items():
                videos = {}
                for who, entry in entries.items():
                    key = f"{scenario}|{view}|{who}"
                    if key not in clips or key not in masks:
                        yield _failed(f"physics_iq.clip {key}", "recorded, but not in the archives")
                        continue
                    video = np.cumsum(clips[key], axis=0, dtype=np.uint8)
                    found = moving_masks(video)
                    videos[who] = video, found
                    yield _same_frames(key, video, entry)
                    yield _same_masks(key, found, masks[key])
                if not videos.keys() >= set(_TAKES):
                    continue
                for target, codec in ((plain, None), (lossy, fps)):
                    if codec is None or any(_is_lossy(model) for model in models.values()):
                        _measure(target, videos, (scenario, view), codec)
    for name, model in models.items():
        yield from _model_cases(name, model, plain[name], lossy[name])


def _same_frames(key: str, video: Video, entry: Mapping[str, Any]) -> CaseResult:
    case = f"physics_iq.clip {key}"
    digest = hashlib.sha256(np.ascontiguousarray(video).tobytes()).hexdigest()
    same = digest == entry["sha256"] and list(video.shape) == list(entry["shape"])
    return CaseResult(case, True, 0.0, 0.0) if same else _failed(case, "not the frames recorded")


def _same_masks(key: str, found: Mask, packed: np.ndarray) -> CaseResult:
    want = np.unpackbits(packed, axis=-1, count=found.shape[-1])
    return compare(f"physics_iq.mask {key}", found.view(np.uint8), want=want, atol=0)


def _measure(
    target: dict[str, Views],
    videos: Mapping[str, tuple[Video, Mask]],
    place: tuple[str, str],
    fps: Fraction | None,
) -> None:
    """Add the metrics of one view of every model, with masks as they are or through the codec."""
    scenario, view = place
    size = compared_size(*videos[_TAKES[0]][0].shape[1:3])
    clips = {who: _clip(video, masks, size, fps) for who, (video, masks) in videos.items()}
    for name, views in target.items():
        if name in clips:
            takes = [clips[take] for take in _TAKES]
            metrics = view_metrics(takes[0], takes[1], generated=clips[name])
            views.setdefault(scenario, {})[view] = metrics


def _clip(video: Video, masks: Mask, size: tuple[int, int], fps: Fraction | None) -> Clip:
    height, width = size
    if fps is None:
        small = [shrink_mask(mask, height=height, width=width) for mask in masks]
    else:
        levels = mp4v_round_trip(masks, fps)
        small = [shrink_levels(level, height=height, width=width) for level in levels]
    frames = [resize(frame, height=height, width=width) for frame in video]
    return Clip(np.stack(frames), np.stack(small))


def _is_lossy(model: Mapping[str, Any]) -> bool:
    return any("mp4v" in name for name in model)


def _model_cases(
    name: str, model: Mapping[str, Any], plain: Views, lossy: Views
) -> Iterator[CaseResult]:
    """Compare everything that is recorded of a model."""
    rows = [ScenarioRow(scenario=scenario, views=views) for scenario, views in plain.items()]
    for row in rows:
        yield from _column_cases(name, row, model["per_scenario"].get(row.scenario, {}))
    for scenario in model["per_scenario"].keys() - plain.keys():
        yield _unknown(f"physics_iq.{name} {scenario}")
    recorded = {key: value for key, value in model.items() if key != "per_scenario"}
    if not rows:
        yield _failed(f"physics_iq.{name}", "no scenario of it could be measured")
    if not rows or not recorded:
        return
    exact = score(rows)
    compressed = score([ScenarioRow(scenario=s, views=v) for s, v in lossy.items()] or rows)
    for key, value in recorded.items():
        yield from _number_cases(f"physics_iq.{name} {key}", key, value, (exact, compressed))


def _column_cases(name: str, row: ScenarioRow, want: Mapping[str, Any]) -> Iterator[CaseResult]:
    cells = row_cells(row)
    for column, value in want.items():
        case = f"physics_iq.{name} {row.scenario} {column}"
        if column not in cells:
            yield _unknown(case)
        else:
            yield _close(case, cells[column], value, _METRIC)


def _number_cases(
    case: str, key: str, want: Any, scores: tuple[PhysicsIqScore, PhysicsIqScore]
) -> Iterator[CaseResult]:
    exact, lossy = scores
    single = {
        "physics_iq_score": (exact.score, _SCORE),
        "raw_unclipped_score": (exact.unclipped, _SCORE),
        "physical_variance_all_metrics": (exact.variance_sum, _MEAN),
        "score_with_real_mp4v_mask_files": (lossy.score, _MP4V_SCORE),
    }
    several = {
        "means": (exact.means, _MEANS, _MEAN),
        "physical_variance": (exact.variance, {n: n for n in _MEANS.values()}, _MEAN),
        "summary": (exact.means, _SUMMARY, _METRIC),
        "summary_mp4v": (lossy.means, _SUMMARY, _MP4V_IOU),
    }
    if key in single:
        got, atol = single[key]
        yield _close(case, float("nan") if got is None else got, want, atol)
    elif key in several:
        numbers, names, atol = several[key]
        for part, value in want.items():
            if part in names:
                yield _close(f"{case}.{part}", getattr(numbers, names[part]), value, atol)
            else:
                yield _unknown(f"{case}.{part}")
    else:
        yield _unknown(case)


def _close(case: str, got: float | list[float], want: Any, atol: float) -> CaseResult:
    return compare(case, np.array(got, np.float64), want=np.array(want, np.float64), atol=atol)


def _unknown(case: str) -> CaseResult:
    return _failed(case, "recorded, but not known here")


def _failed(case: str, note: str) -> CaseResult:
    return CaseResult(case, False, float("inf"), 0.0, note)
