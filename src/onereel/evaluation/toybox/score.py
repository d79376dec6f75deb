"""Everything that is measured in one Toybox video."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from onereel.evaluation.generate import Frames
from onereel.evaluation.toybox import consistency, flicker
from onereel.evaluation.toybox.chains import cut_out
from onereel.evaluation.toybox.coverage import find_saturated
from onereel.evaluation.toybox.distribution import trajectory_features
from onereel.evaluation.toybox.drift import measure_drift
from onereel.evaluation.toybox.laws import law_scores
from onereel.evaluation.toybox.motion import compare, motion_scores
from onereel.evaluation.toybox.prompts import prompt_scores
from onereel.evaluation.toybox.records import Scores
from onereel.evaluation.toybox.suites import Case
from onereel.evaluation.toybox.timeline import timeline_scores
from onereel.evaluation.toybox.tracker import track
from onereel.evaluation.toybox.tracks import Tracking
from onereel.evaluation.toybox.tracks import truth as true_tracking
from onereel.evaluation.toybox.world_features import (
    MIN_FRAMES,
    WorldClassifier,
    load_world_classifier,
    world_features,
)
from onereel.evaluation.vbench.features import temporal_flickering
from onereel.world import CHUNK_FRAMES, Episode

CURVE_STEP_S = {"position_error": 0.25, "position_error_of_freeze": 0.25}
DRIFT_SECONDS = 10  # shorter videos have no drift to speak of


def score_video(case: Case, frames: Frames, *, episode: Episode, truth: Frames) -> Scores:
    """Measure one video.

    Args:
        case: what was asked for.
        frames: the made frames, uint8 [F, H, W, 3].
        episode: the true scene, given frames in front.
        truth: its frames.

    Returns:
        The scores. Prompt scores are of the made frames; motion, flicker and seams of the whole
        video, so that the seam to given frames counts.
    """
    video = np.concatenate([truth[: case.prefix_frames], frames])
    tracking = track(video, fps=episode.fps)
    # Without the background, which costs time and which nothing here asks of the truth.
    real = dataclasses.replace(true_tracking(episode), covered=find_saturated(truth))
    values = _prompt(case, tracking)
    curves: dict[str, list[float]] = {}
    if case.mode != "t2v":
        start = max(case.prefix_frames, 1)
        values |= motion_scores(tracking, episode, start=start)
        curves |= _error_curves(tracking, episode, start=start)
    if len(set(case.specs)) == 1:
        known = None if case.mode == "t2v" else episode
        values |= law_scores(tracking, case.specs[0], start=case.prefix_frames, episode=known)
    values |= _looks(case, video, tracking=tracking, truth=truth, real=real)
    if len(video) >= DRIFT_SECONDS * episode.fps:
        drift = measure_drift(video, tracking, expected=len(case.specs[0].objects))
        values |= drift.values()
        curves |= drift.curves()
    parts = [cut_out(one, case.prefix_frames, stop=tracking.num_frames) for one in (tracking, real)]
    videos = [frames, truth[case.prefix_frames :]]
    features = _features(videos, parts)
    return Scores(values=values, curves=curves, features=features, tracking=tracking)


def _prompt(case: Case, tracking: Tracking) -> dict[str, float]:
    """Score what the prompts ask for, on the frames that they govern."""
    specs = case.made_specs
    if len(set(specs)) > 1:
        return timeline_scores(tracking, specs)
    if not case.prefix_frames:
        return prompt_scores(tracking, specs[0])
    made = cut_out(tracking, case.prefix_frames, stop=tracking.num_frames)
    return prompt_scores(made, specs[0], before=specs[0])


def _error_curves(tracking: Tracking, episode: Episode, *, start: int) -> dict[str, list[float]]:
    """Mean distance from the truth, and that of a still picture, every quarter of a second."""
    side = compare(tracking, episode, start=start)
    curves = {}
    for name, places in zip(CURVE_STEP_S, (side.followed, side.freeze), strict=True):
        gap = places - side.true
        error = np.hypot(gap[..., 0], gap[..., 1]) / side.height
        error = np.where(side.judged, error, np.nan)[:: max(1, episode.fps // 4)]
        counts = np.isfinite(error).sum(axis=1)
        sums = np.nansum(error, axis=1)
        curves[name] = [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]
    return curves


def _looks(
    case: Case, video: Frames, *, tracking: Tracking, truth: Frames, real: Tracking
) -> dict[str, float]:
    """Measure constancy of objects, flicker, seams, and what a given picture or rest asks for."""
    residual = flicker.motion_residual(video, tracking)
    # From the last given chunk on: the seam to the made frames is the first that counts.
    seams = residual[max(case.prefix_frames - CHUNK_FRAMES, 0) :]
    values = {
        "subject_consistency_sim": consistency.subject_consistency_sim(video, tracking),
        "flicker_bg": flicker.flicker_bg(video, tracking),
        "flicker_excess": flicker.flicker_excess(
            video, tracking, true_video=truth, true_tracking=real
        ),
        "flicker_fg": flicker.flicker_fg(video, tracking),
        "vbench_flicker": temporal_flickering(video[case.prefix_frames :]),
        "seam_ratio": flicker.seam_ratio(seams, chunk_frames=CHUNK_FRAMES),
    }
    if case.mode == "i2v":
        values["motion_smoothness_sim"] = consistency.motion_smoothness_sim(video)
        values["dynamic_degree_sim"] = consistency.dynamic_degree_sim(tracking)
        values["first_frame_psnr"] = consistency.first_frame_psnr(video, truth[0])
        values["i2v_subject_sim"] = consistency.i2v_subject_sim(
            video, tracking, image=truth[0], image_tracking=track(truth[:1], fps=real.fps)
        )
    if all(spec.motion == "static" for spec in case.specs):
        psnr, growth = consistency.static_psnr(video, fps=real.fps)
        values["static_psnr"], values["static_growth"] = float(psnr.mean()), growth
    return values


def _features(videos: Sequence[Frames], trackings: Sequence[Tracking]) -> dict[str, list[float]]:
    """Take the features of distribution distances, of the made video and of the true one."""
    names = ("", "_true")
    found = {f"ftd{n}": trajectory_features(t) for n, t in zip(names, trackings, strict=True)}
    if min(len(video) for video in videos) >= MIN_FRAMES:
        rows = world_features(videos, model=_classifier())
        found |= {f"wvd{name}": row for name, row in zip(names, rows, strict=True)}
    return {name: [float(v) for v in vector] for name, vector in found.items()}


@functools.cache
def _classifier() -> WorldClassifier:
    """Load the classifier once per process."""
    return load_world_classifier()
