"""From the records of a run to its result: means with intervals, and what they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onereel.evaluation.measure import Measurement, missing, summarize
from onereel.evaluation.report.result import (
    RESULT_FILE,
    Result,
    VideoRow,
    split_missing,
    used_versions,
    utc_now,
    write_json,
)
from onereel.evaluation.toybox.distribution import ftd, wvd
from onereel.evaluation.toybox.motion import spread_scores
from onereel.evaluation.toybox.records import Record, RunFolder
from onereel.evaluation.toybox.score import CURVE_STEP_S
from onereel.evaluation.toybox.suites import Case, find_suite, true_episode
from onereel.world import CHUNK_FRAMES

if TYPE_CHECKING:
    from onereel.evaluation.toybox.evaluate import ToyboxRun

_HEIGHTS, _GREY = "canvas heights", "grey levels"
UNITS = {
    **dict.fromkeys(("ade", "fde", "ade_position", "ade@1s", "ade@2s", "ade@5s"), _HEIGHTS),
    **dict.fromkeys(("ade_freeze", "ade_cv", "ade_best", "ade_mean", "diversity"), _HEIGHTS),
    **dict.fromkeys(("flicker_bg", "flicker_excess", "flicker_fg"), _GREY),
    **dict.fromkeys(("first_frame_psnr", "static_psnr", "drift_bg_psnr_end"), "dB"),
    **{f"dir_err@{second}s": "degrees" for second in range(1, 6)},
    "angle_error": "degrees",
    "speed_error": "octaves",
    "horizon": "s",
    "usable_seconds": "s",
    "seam_jump": "px/frame²",
    "g_residual": "px",
    "id_switches": "per video",
    "switch_latency": "frames",
    "static_growth": "grey levels/min",
    "drift_bg_psnr_slope": "dB/min",
}
# Told apart for combinations seen in training and held out from it.
_SPLIT = ("all_correct", "binding_f1", "ade", "nade", "nade@1s", "usable_seconds")
# By which videos are worst; a minus says that high is bad.
_RANK = {
    "t2v": ("all_correct", "binding_f1", "count_frames"),
    "i2v": ("all_correct", "-ade"),
    "v2v": ("-ade",),
}
_RANK_LONG = ("usable_seconds", "all_correct", "binding_f1")


def summarize_run(
    run: ToyboxRun,
    settings: Mapping[str, Any],
    *,
    cases: Sequence[Case],
    records: Sequence[Record],
    folder: Path,
) -> Result:
    """Sum up a finished run, and write `result.json`.

    Args:
        run: what was evaluated.
        settings: what `describe_run` gave.
        cases: the videos that were asked for.
        records: one per case, in the same order.
        folder: of the run.

    Returns:
        The result.
    """
    pairs = list(zip(cases, records, strict=True))
    scored = [(case, record) for case, record in pairs if not record.problem]
    suite, fps = find_suite(run.suite), int(settings["fps"])
    measured = measure(scored)
    if suite.mode == "v2v":
        measured |= _spread(scored, settings, RunFolder(folder))
    metrics, reasons = split_missing({**measured, **_distances(scored)})
    made_s = sum(case.num_frames for case in cases) / fps
    seconds = sum(record.seconds for record in records)
    result = Result(
        kind="toybox",
        model=str(settings["model"]),
        suite=run.suite,
        steps=settings["sampling"].get("num_steps"),
        num_videos=len(scored),
        metrics=metrics,
        seconds_per_video_second=seconds / made_s if seconds else None,
        not_computed=reasons,
        config={
            **settings,
            "prompts": len({case.prompt for case in cases}),
            "prompts_of_suite": suite.num_prompts,
            "samples": len({case.sample for case in cases}),
            "samples_of_suite": suite.num_samples,
            "frames_of_suite": suite.num_frames,
            "curve_step_s": CURVE_STEP_S,
        },
        model_hash=str(settings["model_hash"]),
        seeds={"noise": run.seed, "scenes": "derived from 'evaluation', suite and prompt"},
        versions=used_versions(),
        problems=tuple(f"{c.name}: {r.problem}" for c, r in pairs if r.problem),
        notes=_notes(run, cases),
        rank=_RANK_LONG if run.suite == "long" else _RANK[suite.mode],
        videos=tuple(_row(case, record) for case, record in pairs),
        folder=str(folder.resolve()),
        created=utc_now(),
    )
    write_json(result.to_json(), folder / RESULT_FILE)
    return result


def measure(scored: Sequence[tuple[Case, Record]]) -> dict[str, Measurement]:
    """Average every value over the videos, with intervals over prompts.

    Args:
        scored: cases and their records.

    Returns:
        Measurements by name; headline values also for parts of the videos.
    """
    names = list(dict.fromkeys(name for _, record in scored for name in record.values))
    given = sorted({case.given_frames // CHUNK_FRAMES for case, _ in scored})
    found = {}
    for name in names:
        found[name] = _mean(scored, name)
        if name in _SPLIT:
            parts = {"seen": False, "unseen": True}
            for label, held_out in parts.items():
                some = [pair for pair in scored if pair[0].held_out is held_out]
                found[f"{name}_{label}"] = _mean(some, name)
            for chunks in given if len(given) > 1 else ():
                some = [p for p in scored if p[0].given_frames == chunks * CHUNK_FRAMES]
                found[f"{name}_given{chunks}"] = _mean(some, name)
    return found


def _mean(scored: Sequence[tuple[Case, Record]], name: str) -> Measurement:
    values = [_number(record.values.get(name)) for _, record in scored]
    groups = [str(case.prompt) for case, _ in scored]
    return summarize(values, groups=groups, unit=UNITS.get(name, ""))


def _spread(
    scored: Sequence[tuple[Case, Record]], settings: Mapping[str, Any], folder: RunFolder
) -> dict[str, Measurement]:
    """Compare the samples of each prompt with each other; values are one per prompt and prefix."""
    groups: dict[tuple[int, int], list[Case]] = {}
    for case, _ in scored:
        groups.setdefault((case.prompt, case.given_frames), []).append(case)
    size = {name: int(settings[name]) for name in ("height", "width", "fps")}
    found: dict[str, list[float]] = {"ade_best": [], "ade_mean": [], "diversity": []}
    for cases in groups.values():
        if len(cases) < 2:
            continue
        trackings = [folder.read_tracking(case.name) for case in cases]
        episode = true_episode(cases[0], **size)
        scores = spread_scores(trackings, episode, start=cases[0].prefix_frames)
        for name, values in found.items():
            values.append(scores[name])
    return {name: summarize(values, unit=UNITS[name]) for name, values in found.items()}


def _distances(scored: Sequence[tuple[Case, Record]]) -> dict[str, Measurement]:
    """Take the distances of all made videos from the true ones of the same prompts."""
    found = {}
    for name, distance in (("ftd", ftd), ("wvd", wvd)):
        rows = [record.features for _, record in scored if name in record.features]
        if len(rows) < 2:
            found[name] = missing("it needs two videos of two seconds")
            continue
        made = np.array([row[name] for row in rows], dtype=np.float64)
        found[name] = distance(made, np.array([row[f"{name}_true"] for row in rows], np.float64))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _notes(run: ToyboxRun, cases: Sequence[Case]) -> tuple[str, ...]:
    """Say where a run is smaller than its suite."""
    suite, notes = find_suite(run.suite), []
    prompts, samples = len({c.prompt for c in cases}), len({c.sample for c in cases})
    if prompts < suite.num_prompts:
        notes.append(f"only the first {prompts} of the suite's {suite.num_prompts} prompts")
    if samples != suite.num_samples:
        notes.append(f"{samples} videos per prompt, the suite has {suite.num_samples}")
    if run.num_frames not in (None, suite.num_frames):
        notes.append(f"{run.num_frames} frames per video, the suite has {suite.num_frames}")
    return tuple(notes)


def _row(case: Case, record: Record) -> VideoRow:
    tags: dict[str, Any] = {
        "held_out": case.held_out,
        "motion": case.specs[0].motion,
        "objects": len(case.specs[0].objects),
    }
    if case.mode == "v2v":
        tags["given_chunks"] = case.given_frames // CHUNK_FRAMES
    return VideoRow(
        name=case.name,
        prompt=" | ".join(dict.fromkeys(case.texts)),
        group=str(case.prompt),
        seed=case.noise_seed,
        tags=tags,
        values=record.values,
        curves={name: tuple(curve) for name, curve in record.curves.items()},
        files={kind: f"videos/{name}" for kind, name in record.files.items()},
        frames_sha256=record.frames_sha256,
        problem=record.problem,
    )
