"""Drift over seconds: truth has none, and every corruption moves its own number."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest

from onereel.core.errors import ConfigError
from onereel.evaluation.toybox.drift import Drift, measure_drift, objects_per_second, theil_sen
from onereel.evaluation.toybox.lab import delta_e76, srgb_to_lab
from onereel.evaluation.toybox.shape_fit import template_iou
from onereel.evaluation.toybox.tracks import Tracking, truth
from onereel.world import (
    SHAPES,
    Clip,
    ObjectSpec,
    SceneSpec,
    render,
    sample_clip,
    simulate,
)

SECONDS = 4


@functools.cache
def clip(motion: str, seed: int = 0) -> Clip:
    return sample_clip(1000 + seed, num_frames=24 * SECONDS, motions=[motion])


def tracked(motion: str, seed: int = 0) -> tuple[np.ndarray, Tracking]:
    made = clip(motion, seed)
    return made.video, truth(made.episode, made.video)


def changed(tracking: Tracking, **arrays: object) -> Tracking:
    """Replace arrays of every track by what a function of the track gives."""
    tracks = tuple(
        dataclasses.replace(track, **{name: make(track) for name, make in arrays.items()})
        for track in tracking.tracks
    )
    return dataclasses.replace(tracking, tracks=tracks)


def seconds_of(track: object) -> np.ndarray:
    return track.frames / 24


def assert_no_drift(drift: Drift) -> None:
    assert np.nanmin(drift.bg_psnr) > 45
    assert np.nanmax(drift.delta_e) < 0.01
    assert np.nanmax(drift.area) < 0.01
    assert np.nanmax(np.abs(drift.shape)) < 0.05


@pytest.mark.parametrize("motion", ["linear", "bounce", "static", "zoom"])
def test_truth_does_not_drift(motion: str) -> None:
    drift = measure_drift(*tracked(motion))
    assert_no_drift(drift)
    assert (drift.count_right == 1).all()
    assert drift.usable_seconds == SECONDS


def test_a_panning_camera_is_undone_while_views_overlap() -> None:
    video, tracking = tracked("pan")
    wanted = objects_per_second(tracking)
    drift = measure_drift(video, tracking, expected=[int(n) for n in wanted])
    assert_no_drift(drift)
    assert np.isfinite(drift.bg_psnr).all()
    assert drift.usable_seconds == SECONDS


def test_luminance_drift() -> None:
    video, tracking = tracked("linear")
    rising = video + 0.5 * np.arange(len(video))[:, None, None, None]
    drift = measure_drift(rising.clip(0, 255).astype(np.uint8), tracking)
    level = 12.0 * np.arange(SECONDS)
    assert drift.bg_psnr[1:] == pytest.approx(20 * np.log10(255 / level[1:]), abs=0.5)
    values = drift.values()
    assert values["drift_bg_psnr_slope"] < -60
    assert values["drift_bg_psnr_end"] == pytest.approx(drift.bg_psnr[-1])
    assert (drift.count_right == 1).all()
    assert drift.usable_seconds == 3  # 36 levels are 17 dB, 24 are 20.5


def test_a_deleted_object() -> None:
    video, tracking = tracked("collide")
    gone = tracking.tracks[1]
    kept = gone.frames < 54
    arrays = ("frames", "x", "y", "r", "cut", "rgb")
    cut = dataclasses.replace(gone, **{name: getattr(gone, name)[kept] for name in arrays})
    short = dataclasses.replace(tracking, tracks=(tracking.tracks[0], cut))
    drift = measure_drift(video, short, expected=2)
    assert drift.count_right.tolist() == [1, 1, 0, 0]
    assert drift.usable_seconds == 2
    assert measure_drift(video, tracking, expected=2).usable_seconds == SECONDS
    assert measure_drift(video, tracking, expected=3).usable_seconds == 0


def test_a_change_of_colour() -> None:
    video, tracking = tracked("linear")
    fading = changed(tracking, rgb=lambda t: t.rgb + 30 * seconds_of(t)[:, None].astype(int))
    drift = measure_drift(video, fading)
    assert drift.delta_e[0] == 0
    assert (np.diff(drift.delta_e) > 3).all()
    assert drift.values()["drift_deltaE_slope"] > 180
    assert drift.usable_seconds < SECONDS
    assert drift.area[-1] == 0


def test_an_object_that_grows() -> None:
    video, tracking = tracked("linear")
    growing = changed(tracking, r=lambda t: t.r * 2 ** (0.25 * seconds_of(t).astype(int)))
    drift = measure_drift(video, growing)
    assert drift.area == pytest.approx([0, 0.5, 1.0, 1.5])
    assert drift.values()["drift_area_slope"] == pytest.approx(30)


def test_an_object_in_pieces_is_the_same_object() -> None:
    video, tracking = tracked("linear")
    arrays = ("frames", "x", "y", "r", "cut", "rgb")
    pieces = [
        dataclasses.replace(t, **{name: getattr(t, name)[part] for name in arrays})
        for t in tracking.tracks
        for part in (t.frames < 48, t.frames >= 48)
    ]
    drift = measure_drift(video, dataclasses.replace(tracking, tracks=tuple(pieces)))
    assert_no_drift(drift)
    assert np.isfinite(drift.delta_e).all()


def test_blur_and_fading_of_the_frames() -> None:
    video, tracking = tracked("bounce")
    soft = video.astype(float)
    soft[48:] = (soft[48:] + np.roll(soft[48:], 1, axis=2) + np.roll(soft[48:], 1, axis=1)) / 3
    drift = measure_drift(soft.astype(np.uint8), tracking)
    assert drift.sharp[-1] < -0.3
    assert abs(drift.sharp[1]) < 0.1
    grey = video.astype(float)
    grey[48:] = 0.5 * grey[48:] + 0.5 * grey[48:].mean(axis=-1, keepdims=True)
    assert measure_drift(grey.astype(np.uint8), tracking).sat[-1] == pytest.approx(0.5, abs=0.02)


def test_a_disc_that_becomes_a_triangle() -> None:
    def made(shape: str) -> tuple[np.ndarray, Tracking]:
        thing = ObjectSpec(shape=shape, colour="red", size="large")
        episode = simulate(SceneSpec(objects=(thing,), motion="static"), 0, num_frames=48)
        video = render(episode)
        return video, truth(episode, video)

    (disc, tracking), (triangle, _) = made("disc"), made("triangle")
    video = np.concatenate([disc[:24], triangle[24:]])
    assert abs(measure_drift(disc, tracking).shape[1]) < 0.01
    assert measure_drift(video, tracking).shape[1] > 0.15


@pytest.mark.parametrize("shape", SHAPES)
def test_the_right_outline_fits_best(shape: str) -> None:
    thing = ObjectSpec(shape=shape, colour="green", size="large")
    episode = simulate(SceneSpec(objects=(thing,), motion="static"), 3, num_frames=1)
    video = render(episode)
    track = truth(episode, video).tracks[0]
    fits = {name: template_iou(video, track, row=0, shape=name) for name in SHAPES}
    assert fits[shape] > 0.9
    assert max(fits, key=lambda name: fits[name]) == shape


def test_lab_of_known_colours() -> None:
    # CIE values of sRGB's corners under D65, to their printed digits
    known = {
        (255, 255, 255): (100.0, 0.0, 0.0),
        (0, 0, 0): (0.0, 0.0, 0.0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.73, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0.0, 0.0),
    }
    got = srgb_to_lab(np.array(list(known), dtype=float))
    np.testing.assert_allclose(got, np.array(list(known.values())), atol=0.02)
    black, white = np.zeros(3), np.full(3, 255.0)
    assert float(delta_e76(black, white)) == pytest.approx(100.0)


def test_the_slope_of_a_line_with_an_outlier() -> None:
    values = np.arange(20.0)
    values[7], values[9] = 500.0, np.nan
    assert theil_sen(values, step_s=1.0) == pytest.approx(60.0)
    assert theil_sen(values, step_s=0.5) == pytest.approx(120.0)
    assert math.isnan(theil_sen(np.array([1.0, np.nan]), step_s=1.0))


def test_too_short_and_wrong_counts_are_refused() -> None:
    video, tracking = tracked("linear")
    short = dataclasses.replace(tracking, tracks=(), camera=tracking.camera[:47])
    with pytest.raises(ConfigError, match="two seconds"):
        measure_drift(video[:47], short)
    with pytest.raises(ConfigError, match="expected: expected 4 numbers"):
        measure_drift(video, tracking, expected=[1, 1])


def test_the_results_have_names() -> None:
    values = measure_drift(*tracked("static")).values()
    assert values["usable_seconds"] == SECONDS
    for name in ("bg_psnr", "deltaE", "area", "sharp", "sat", "shape"):
        assert {f"drift_{name}_end", f"drift_{name}_slope"} <= set(values)
    assert values["count_right_end"] == 1.0
