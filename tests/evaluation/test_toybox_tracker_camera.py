"""The camera: pans, zooms and large steps are followed; objects, light and noise are not."""

from __future__ import annotations

import numpy as np
import pytest

from onereel.evaluation.toybox.camera import estimate_camera, steps_between
from onereel.evaluation.toybox.coverage import find_saturated
from onereel.evaluation.toybox.floor import distort
from onereel.world import sample_clip, texture


def follow(video: np.ndarray) -> np.ndarray:
    return estimate_camera(video, find_saturated(video))


def off_per_frame(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Misplacement of the corner of a 64 px screen from frame to frame."""
    change = np.abs(np.diff(found - true, axis=0))
    return np.asarray(np.hypot(change[:, 0], change[:, 1]) + 45.0 * change[:, 2])


@pytest.mark.parametrize("motion", ["pan", "zoom"])
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_pan_and_zoom_are_followed(motion: str, noise: float) -> None:
    off = []
    for seed in range(4):
        clip = sample_clip(seed, num_frames=48, motions=[motion])
        found = follow(distort(clip.video, noise=noise, seed=seed))
        off.append(off_per_frame(found, clip.episode.camera.astype(np.float64)).mean())
        drift = np.abs(found[-1] - clip.episode.camera[-1]) * (1.0, 1.0, 45.0)
        assert drift.max() < 0.5
    assert max(off) <= 0.05


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_moving_objects_do_not_move_a_resting_camera(noise: float) -> None:
    for seed, motion in enumerate(("linear", "bounce", "collide", "occlude", "appear", "static")):
        clip = sample_clip(seed, num_frames=36, motions=[motion])
        found = follow(distort(clip.video, noise=noise, seed=seed))
        assert np.all(found == (0.0, 0.0, 1.0)), motion


@pytest.mark.parametrize("background", [1, 2, 3])
@pytest.mark.parametrize("speed", [2, 5])
def test_large_steps_are_found_by_phase_correlation(background: int, speed: int) -> None:
    wide = texture(background, (64, 256), unit=64)
    starts = np.arange(24) * speed
    video = np.stack([np.rint(wide[:, s : s + 64]) for s in starts]).astype(np.uint8)
    # stripes repeat every 8 px, so that 5 px to one side look like 3 to the other
    want = starts if (background, speed) != (1, 5) else -3 * np.arange(24)
    np.testing.assert_allclose(follow(video)[:, 0], want, atol=0.1)


def test_what_a_texture_does_not_show_stays_at_rest() -> None:
    stripes = texture(1, (64, 96), unit=64)
    video = np.stack([np.rint(stripes[:, s : s + 64]) for s in range(24)]).astype(np.uint8)
    found = follow(distort(video, noise=4.0))
    assert np.all(found[:, 1] == 0.0)
    np.testing.assert_allclose(found[:, 0], np.arange(24), atol=0.1)
    plain = np.repeat(np.rint(texture(0, (64, 64), unit=64)).astype(np.uint8)[None], 24, axis=0)
    assert np.all(follow(distort(plain, noise=4.0)) == (0.0, 0.0, 1.0))


def test_a_step_in_the_middle_stays_a_step() -> None:
    wide = texture(3, (64, 96), unit=64)
    video = np.stack([np.rint(wide[:, s : s + 64]) for s in [0] * 12 + [3] * 12])
    found = follow(video.astype(np.uint8))
    np.testing.assert_allclose(found[:, 0], [0.0] * 12 + [3.0] * 12, atol=0.1)


def test_steps_between_undo_the_camera() -> None:
    camera = np.array([(0.0, 0.0, 1.0), (3.0, -2.0, 1.0), (3.0, -2.0, 2.0)])
    world = np.array([5.0, 7.0])

    def screen(frame: int) -> np.ndarray:
        return np.asarray((world - camera[frame, :2]) * camera[frame, 2])

    steps = steps_between(camera, np.array([0, 1, 0]), later=np.array([1, 2, 2]))
    for (earlier, later), step in zip([(0, 1), (1, 2), (0, 2)], steps, strict=True):
        np.testing.assert_allclose(step[2] * screen(later) + step[:2], screen(earlier))
