"""Consistency, flicker and seams: what truth gives, and which corruption moves which number."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest

from onereel.core.errors import ConfigError
from onereel.evaluation.toybox.compensate import seen_by
from onereel.evaluation.toybox.consistency import (
    dynamic_degree_sim,
    first_frame_psnr,
    i2v_subject_sim,
    motion_smoothness_sim,
    static_psnr,
    subject_consistency_sim,
)
from onereel.evaluation.toybox.descriptor import descriptors, paint_share
from onereel.evaluation.toybox.flicker import (
    flicker_bg,
    flicker_excess,
    flicker_fg,
    motion_residual,
    seam_ratio,
)
from onereel.evaluation.toybox.tracks import Tracking, truth
from onereel.evaluation.vbench.features import temporal_flickering
from onereel.world import MOTIONS, PALETTE, Clip, render, sample_clip

FRAMES = 48


@functools.cache
def clip(motion: str, seed: int = 0) -> Clip:
    return sample_clip(1000 + seed, num_frames=FRAMES, motions=[motion])


def tracked(motion: str, seed: int = 0) -> tuple[np.ndarray, Tracking]:
    made = clip(motion, seed)
    return made.video, truth(made.episode, made.video)


def image_of(made: Clip) -> dict[str, object]:
    """The first frame and what is in it."""
    first = {
        name: getattr(made.episode, name)[:1] for name in ("state", "camera", "opacity", "rgb")
    }
    episode = dataclasses.replace(made.episode, events=(), **first)
    return {"image": made.video[0], "image_tracking": truth(episode, made.video[:1])}


def alternating(video: np.ndarray, amplitude: int) -> np.ndarray:
    signs = (-1) ** np.arange(len(video))
    return (
        (video.astype(int) + amplitude * signs[:, None, None, None]).clip(0, 255).astype(np.uint8)
    )


def frozen(video: np.ndarray, tracking: Tracking) -> tuple[np.ndarray, Tracking]:
    tracks = tuple(
        dataclasses.replace(t, **{n: np.full_like(getattr(t, n), getattr(t, n)[0]) for n in "xy"})
        for t in tracking.tracks
    )
    covered = np.repeat(tracking.covered[:1], len(video), axis=0)
    still = dataclasses.replace(tracking, tracks=tracks, covered=covered)
    return np.repeat(video[:1], len(video), axis=0), still


def test_truth_is_consistent() -> None:
    scores = [subject_consistency_sim(*tracked(motion)) for motion in MOTIONS]
    assert min(scores) >= 0.99


def test_truth_does_not_flicker() -> None:
    for motion in ("linear", "collide", "static"):
        video, tracking = tracked(motion)
        assert flicker_bg(video, tracking) < 0.01
        assert flicker_fg(video, tracking) < 0.5
    # the world resamples its background under a moving camera, and so do we
    assert flicker_bg(*tracked("pan")) < 1.0
    assert flicker_bg(*tracked("zoom")) < 1.0


@pytest.mark.parametrize("amplitude", [2, 4])
def test_alternating_light_is_measured_as_flicker(amplitude: int) -> None:
    video, tracking = tracked("linear")
    bad = alternating(video, amplitude)
    truth_of = {"true_video": video, "true_tracking": tracking}
    assert flicker_excess(bad, tracking, **truth_of) == pytest.approx(2 * amplitude, rel=0.05)
    assert flicker_fg(bad, tracking) == pytest.approx(2 * amplitude, rel=0.1)
    assert temporal_flickering(bad) < temporal_flickering(video) - amplitude / 255


def test_a_frozen_video_keeps_its_consistency() -> None:
    video, tracking = tracked("linear")
    still = frozen(video, tracking)
    assert subject_consistency_sim(*still) == pytest.approx(1.0)
    assert flicker_bg(*still) == flicker_fg(*still) == 0.0
    assert temporal_flickering(still[0]) == 1.0


def test_reversed_time_flickers_alike() -> None:
    video, tracking = tracked("linear")
    tracks = tuple(
        dataclasses.replace(
            t,
            frames=(len(video) - 1 - t.frames)[::-1],
            **{n: getattr(t, n)[::-1] for n in ("x", "y", "r", "cut", "rgb")},
        )
        for t in tracking.tracks
    )
    back = dataclasses.replace(tracking, tracks=tracks, covered=tracking.covered[::-1])
    assert flicker_bg(video[::-1].copy(), back) == pytest.approx(flicker_bg(video, tracking))
    assert flicker_fg(video[::-1].copy(), back) == pytest.approx(flicker_fg(video, tracking))


def test_the_camera_is_undone() -> None:
    video, tracking = tracked("pan")
    blind = dataclasses.replace(tracking, camera=np.tile([0.0, 0.0, 1.0], (len(video), 1)))
    assert flicker_bg(video, tracking) < 0.6 * flicker_bg(video, blind)


def test_a_still_camera_changes_nothing() -> None:
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    camera = np.tile([3.0, 0.0, 1.0], (2, 1))
    seen, inside = seen_by(images, camera, viewers=camera)
    assert seen is images
    assert inside.all()


def test_a_shifted_camera_shifts() -> None:
    images = np.random.default_rng(0).random((1, 8, 8, 1)).astype(np.float32)
    seen, inside = seen_by(images, np.array([[0.0, 0.0, 1.0]]), viewers=np.array([[2.0, 1.0, 1.0]]))
    np.testing.assert_allclose(seen[0, :-1, :-2], images[0, 1:, 2:], atol=1e-5)
    assert inside[0, :-1, :-2].all()
    assert not inside[0, -1].any()
    assert not inside[0, :, -2:].any()


def test_zooming_in_and_out_comes_back() -> None:
    rows = np.linspace(0, 50, 32, dtype=np.float32)
    images = (rows[:, None] + rows[None, :])[None, ..., None]
    still, near = np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, -2.0, 1.5]])
    seen, _ = seen_by(images, still, viewers=near)
    back, inside = seen_by(seen, near, viewers=still)
    assert 0.2 < inside.mean() < 0.6  # the rest was out of sight
    np.testing.assert_allclose(back[inside], images[inside], atol=0.1)


def test_jumps_at_chunk_boundaries_are_seams() -> None:
    video, tracking = tracked("linear")
    clean = seam_ratio(motion_residual(video, tracking), chunk_frames=12)
    jumping = video.copy()
    for start in range(12, FRAMES, 24):  # every second chunk is 3 px off, background and all
        jumping[start : start + 12] = np.roll(video[start : start + 12], 3, axis=2)
    seam = seam_ratio(motion_residual(jumping, tracking), chunk_frames=12)
    assert 0.5 < clean < 1.5
    assert seam > 5 * clean


def test_a_jump_that_the_tracker_follows_is_a_seam_too() -> None:
    made = clip("linear")
    state = made.episode.state.copy()
    state[24:, 0, 1] += 3.0 if state[24, 0, 1] < 32 else -3.0
    episode = dataclasses.replace(made.episode, state=state)
    video = render(episode)
    residual = motion_residual(video, truth(episode, video))
    calm = motion_residual(made.video, truth(made.episode, made.video))
    assert residual[23] > 3 * calm[23]
    assert seam_ratio(residual, chunk_frames=24) > 2 * seam_ratio(calm, chunk_frames=24)


def test_a_still_video_has_invisible_seams() -> None:
    video, tracking = tracked("static")
    assert seam_ratio(motion_residual(video, tracking), chunk_frames=24) == pytest.approx(1.0)
    assert math.isnan(seam_ratio(np.ones(10), chunk_frames=24))
    with pytest.raises(ConfigError, match="at least 2"):
        seam_ratio(np.ones(10), chunk_frames=1)


def test_a_change_of_looks_lowers_consistency() -> None:
    video, tracking = tracked("linear", 1)
    track = max(tracking.tracks, key=lambda t: (~t.cut).sum())
    changed = video.copy()
    for k, frame in enumerate(track.frames):
        if frame >= FRAMES // 2:
            top, left = int(track.y[k] - 1), int(track.x[k] - track.r[k])
            changed[frame, top:, left : left + int(2 * track.r[k])] = 255 - video[frame, top, left]
    kept = dataclasses.replace(tracking, tracks=(track,))
    before, after = (subject_consistency_sim(v, kept) for v in (video, changed))
    assert before > 0.99
    assert after < before - 0.02


def test_no_objects_is_no_score() -> None:
    video, tracking = tracked("linear")
    empty = dataclasses.replace(tracking, tracks=())
    assert math.isnan(subject_consistency_sim(video, empty))
    assert math.isnan(flicker_fg(video, empty))


@pytest.mark.parametrize("motion", ["bounce", "gravity", "zoom"])
def test_a_video_of_its_picture(motion: str) -> None:
    made = clip(motion)
    tracking, picture = truth(made.episode, made.video), image_of(made)
    assert first_frame_psnr(made.video, made.video[0]) == 100.0
    assert i2v_subject_sim(made.video, tracking, **picture) > 0.98
    lost = dataclasses.replace(tracking, tracks=())
    assert i2v_subject_sim(made.video, lost, **picture) == 0.0


def test_a_noisy_first_frame() -> None:
    video = np.full((2, 8, 8, 3), 100, np.uint8)
    assert first_frame_psnr(video + 10, video[0]) == pytest.approx(20 * math.log10(25.5))


def test_growing_error_of_a_still_scene() -> None:
    still = np.full((49, 8, 8, 3), 100, np.uint8)
    psnr, growth = static_psnr(still, fps=24)
    assert (psnr == 100.0).all()
    assert growth == 0.0
    rising = still + np.arange(49, dtype=np.uint8)[:, None, None, None]
    psnr, growth = static_psnr(rising, fps=24)
    assert psnr[0] == pytest.approx(20 * math.log10(255))
    assert (np.diff(psnr) < 0).all()
    assert growth == pytest.approx(24 * 60)


def test_paint_is_told_from_light() -> None:
    red = np.array(PALETTE["red"], dtype=float)
    grey = np.array([120.0, 118.0, 116.0])
    pixels = np.stack([red, 0.5 * red + 0.5 * grey, grey, np.array(PALETTE["blue"], float)])
    np.testing.assert_allclose(paint_share(pixels, red), [1.0, 0.5, 0.0, 0.0], atol=0.03)
    np.testing.assert_allclose(paint_share(pixels + 20, red), paint_share(pixels, red))


def test_descriptors_have_unit_length() -> None:
    video, tracking = tracked("linear")
    rows = descriptors(video, tracking.tracks[0])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)


def test_moving_is_dynamic_and_standing_smooth() -> None:
    video, tracking = tracked("linear")
    fast = dataclasses.replace(tracking, tracks=tuple(_faster(t, 20.0) for t in tracking.tracks))
    assert dynamic_degree_sim(fast) == 1.0
    still, standing = frozen(video, tracking)
    assert dynamic_degree_sim(standing) == 0.0
    assert motion_smoothness_sim(still) == 1.0
    assert 0.95 < motion_smoothness_sim(video) < 1.0
    shaken = alternating(video, 20)
    assert motion_smoothness_sim(shaken) < motion_smoothness_sim(video) - 0.05
    assert math.isnan(motion_smoothness_sim(video[:2]))


def _faster(track: Any, step: float) -> Any:
    return dataclasses.replace(track, x=np.arange(len(track.frames)) * step)
