"""What the benchmarks return, brought into the one form of `Result`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onereel.evaluation.feature_sets import DistanceResult
from onereel.evaluation.measure import Measurement
from onereel.evaluation.pairs import PairResult
from onereel.evaluation.physics_iq.result import PhysicsIqResult
from onereel.evaluation.report.result import (
    Result,
    VideoRow,
    split_missing,
    used_versions,
    utc_now,
)
from onereel.evaluation.vbench.evaluate import VBenchResult


def pair_report(found: PairResult, *, videos: Path, references: Path) -> Result:
    """Report videos against their references.

    Args:
        found: what `evaluate_pair` gave.
        videos: the folder that was judged.
        references: what it was held against.

    Returns:
        The result; the worst videos are those least like their reference.
    """
    rows = tuple(
        VideoRow(name=row.name, group=row.name, values=row.values, tags={"size": row.resolution})
        for row in found.rows
    )
    rank = [name for name in found.metrics if name != "lpips"]
    rank += ["-lpips"] if "lpips" in found.metrics else []
    return _result(
        kind="pair",
        folder=videos,
        suite=references.resolve().name,
        measured=found.metrics,
        num_videos=len(found.rows),
        config={
            "videos": str(videos),
            "references": str(references),
            "sha256": found.sha256,
            "rows": [
                {"name": r.name, "frames": r.num_frames, "size": r.resolution, "fps": r.fps}
                for r in found.rows
            ],
        },
        problems=found.problems,
        rank=tuple(rank),
        videos=rows,
    )


def distance_report(
    found: Mapping[str, DistanceResult], *, real: Path, fake: Path, kinds: Sequence[str]
) -> Result:
    """Report distances between two folders.

    Args:
        found: what `evaluate_fvd` or `evaluate_fid` gave.
        real: folder of the real videos.
        fake: folder of the generated videos.
        kinds: which of the distances were asked for.

    Returns:
        The result.
    """
    chosen = {kind: found[kind] for kind in kinds}
    return _result(
        kind="distance",
        folder=fake,
        suite=real.resolve().name,
        measured={kind: one.to_measurement() for kind, one in chosen.items()},
        num_videos=min(one.num_fake for one in chosen.values()),
        config={
            "real": str(real),
            "fake": str(fake),
            "distances": {kind: one.to_json() for kind, one in chosen.items()},
        },
    )


def vbench_report(
    found: VBenchResult,
    *,
    kind: str,
    folder: Path,
    suite: str,
    totals: Mapping[str, Measurement],
    config: Mapping[str, Any],
) -> Result:
    """Report VBench's dimensions.

    Args:
        found: what `evaluate_folder` gave.
        kind: `vbench`, `vbench-i2v` or `magic141`.
        folder: of the videos.
        suite: the list of prompts, or `custom`.
        totals: total scores by name.
        config: what else the numbers depend on.

    Returns:
        The result.
    """
    values: dict[str, dict[str, float | None]] = {}
    prompts: dict[str, str] = {}
    for score in found.scores:
        values.setdefault(score.path, {})[score.dimension] = score.value
        prompts[score.path] = score.prompt
    rows = tuple(
        VideoRow(name=Path(path).name, prompt=prompts[path], group=prompts[path], values=numbers)
        for path, numbers in values.items()
    )
    texts = [": ".join(t for t in (p.video, p.dimension, p.reason) if t) for p in found.problems]
    return _result(
        kind=kind,
        folder=folder,
        suite=suite,
        measured={**found.dimensions, **totals},
        num_videos=len(rows),
        config={**config, "networks": dict(found.networks)},
        problems=tuple(texts),
        rank=tuple(found.dimensions),
        videos=rows,
    )


def physics_iq_report(found: PhysicsIqResult, *, config: Mapping[str, Any]) -> Result:
    """Report Physics-IQ, the freeze baseline and the physical variance beside it.

    Args:
        found: what `evaluate_folder` gave.
        config: what else the numbers depend on, such as the model that made the videos.

    Returns:
        The result; its rows are scenarios.
    """
    data = found.to_json()
    kept = ("fps", "num_frames", "mask_codec", "real_masks", "sizes", "sha256", "ignored", "csv")
    rows = []
    for scenario in data["scenarios"]:
        values = dict(scenario["model"])
        values |= {f"freeze_{name}": value for name, value in scenario["freeze"].items()}
        tags = {"category": scenario["category"]}
        name = scenario["scenario"]
        rows.append(VideoRow(name=name, group=name, tags=tags, values=values))
    return _result(
        kind="physics-iq",
        folder=Path(found.model),
        suite="physics-iq",
        measured=found.measurements(),
        num_videos=sum(len(row.views) for row in found.rows),
        config={**{name: data[name] for name in kept}, **config},
        notes=found.notes,
        rank=("weighted_spatial", "-mse"),
        videos=tuple(rows),
    )


def floor_report(
    found: Mapping[str, Measurement],
    *,
    scenes: int,
    model: str,
    model_hash: str,
    config: Mapping[str, Any],
) -> Result:
    """Report what the Toybox instrument itself gets wrong.

    Args:
        found: what `measure_floor` gave.
        scenes: per row.
        model: whose VAE made the round trip; empty when there was none.
        model_hash: of its weights.
        config: what else the numbers depend on.

    Returns:
        The result.
    """
    metrics, reasons = split_missing(found)
    return Result(
        kind="floor",
        model=model or "instrument",
        suite="floor",
        num_videos=scenes * len(dict.fromkeys(name.split("/")[0] for name in found)),
        metrics=metrics,
        not_computed=reasons,
        config=config,
        model_hash=model_hash,
        versions=used_versions(),
        created=utc_now(),
    )


def _result(
    *, kind: str, folder: Path, suite: str, measured: Mapping[str, Measurement], **fields: Any
) -> Result:
    metrics, reasons = split_missing(measured)
    return Result(
        kind=kind,
        model=folder.resolve().name,
        suite=suite,
        metrics=metrics,
        not_computed=reasons,
        versions=used_versions(),
        created=utc_now(),
        **fields,
    )
