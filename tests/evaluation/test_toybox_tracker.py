"""The Toybox instrument on rendered scenes: bounds of its floor, and what must not mislead it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onereel.core.errors import ConfigError, ShapeError
from onereel.evaluation.toybox.components import draw_templates
from onereel.evaluation.toybox.floor import ROWS, compare, distort, measure_floor, touching_discs
from onereel.evaluation.toybox.tracker import track
from onereel.evaluation.toybox.tracks import truth
from onereel.world import (
    SHAPES,
    ObjectSpec,
    SceneSpec,
    coverage,
    render,
    sample_clip,
    simulate,
    simulate_chunks,
    texture,
)


def scene(text: str, motion: str, **more: object) -> SceneSpec:
    """Read "large red disc" and a motion."""
    size, colour, shape = text.split()
    things = (ObjectSpec(size=size, colour=colour, shape=shape),)
    return SceneSpec(objects=things, motion=motion, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [name for name in ROWS if name != "round_trip"])
def test_floor_is_within_the_bounds_of_the_specification(row: str) -> None:
    floor = {k: v.mean for k, v in measure_floor(scenes=8, num_frames=10, rows=[row]).items()}
    assert floor[f"{row}/centroid_error"] <= 0.05
    assert floor[f"{row}/centroid_max"] <= 0.2
    assert floor[f"{row}/radius_error"] <= 0.01
    assert floor[f"{row}/count"] == 1.0
    assert floor[f"{row}/colour"] == 1.0
    assert floor[f"{row}/shape"] >= 0.98
    assert floor[f"{row}/at_rest"] in (None, 1.0)
    assert (floor[f"{row}/camera_error"] or 0.0) <= 0.05


def test_floor_names_what_a_round_trip_does() -> None:
    def shifted(video: np.ndarray) -> np.ndarray:
        return np.roll(video, 1, axis=2)

    def emptied(video: np.ndarray) -> np.ndarray:
        return np.full_like(video, 128)

    def of(function: object, name: str) -> float | None:
        row = measure_floor(scenes=2, num_frames=4, rows=["round_trip"], round_trip=function)  # type: ignore[arg-type]
        return row[f"round_trip/{name}"].mean

    assert of(shifted, "centroid_error") == pytest.approx(1.0, abs=0.05)
    assert of(emptied, "count") == 0.0
    assert of(emptied, "centroid_max") is None


def test_floor_tells_whether_moving_cameras_still_count() -> None:
    def held(video: np.ndarray) -> np.ndarray:
        return np.repeat(video[::4], 4, axis=0)[: len(video)]

    def of(function: object) -> dict[str, float | None]:
        row = measure_floor(scenes=24, num_frames=24, rows=["round_trip"], round_trip=function)  # type: ignore[arg-type]
        return {name: row[f"round_trip/{name}"].mean for name in ("camera_event", "all_correct")}

    assert of(lambda video: video) == {"camera_event": 1.0, "all_correct": 1.0}
    stepping = of(held)
    assert stepping["camera_event"] == 0.0  # every fourth frame only
    assert (stepping["all_correct"] or 0.0) < 1.0


def test_floor_refuses_unknown_rows_and_a_missing_round_trip() -> None:
    with pytest.raises(ConfigError, match="rows"):
        measure_floor(scenes=1, rows=["dirty"])
    with pytest.raises(ConfigError, match="round trip"):
        measure_floor(scenes=1, rows=["round_trip"])


@pytest.mark.parametrize("shape", SHAPES)
def test_templates_are_the_renderers_own_pictures(shape: str) -> None:
    centres, radii = np.array([(9.3, 10.1), (8.0, 9.6)]), np.array([4.5, 6.2])
    angles = np.radians([0.0, 22.5, 75.0])
    drawn = draw_templates(shape, centres=centres, radii=radii, angles=angles, size=(18, 20))
    for n in range(2):
        for a in range(3):
            want = coverage(
                shape,
                centre=(centres[n, 0], centres[n, 1]),
                radius=radii[n],
                angle=angles[a],
                size=(18, 20),
            )
            np.testing.assert_allclose(drawn[n, a], want, atol=1e-5)


def test_one_track_goes_on_behind_a_slab_and_flags_its_hidden_frames() -> None:
    spec = scene("small blue disc", "occlude", direction="right", speed="medium", background=2)
    episode = simulate(spec, 3, num_frames=60)
    found = track(render(episode))
    assert [(t.colour, t.shape) for t in found.tracks] == [("blue", "disc")]
    only = found.tracks[0]
    assert np.diff(only.frames).max() > 8
    errors = np.hypot(only.x - episode.state[only.frames, 0, 0], only.y - episode.state[0, 0, 1])
    assert errors.max() > 1.0
    assert errors[~only.cut].max() < 0.3
    assert (~only.cut).sum() > 20


def test_a_change_of_colour_begins_a_new_track() -> None:
    red = scene("large red disc", "static")
    green = scene("large green disc", "static")
    episode = simulate_chunks((red, green), 1, num_frames=48)
    found = track(render(episode))
    first, second = sorted(found.tracks, key=lambda t: t.frames[0])
    assert (first.colour, second.colour) == ("red", "green")
    # while the colour fades, the object is neither
    assert (first.frames[0], second.frames[-1]) == (0, 47)
    assert abs(first.frames[-1] - truth(episode).tracks[0].frames[-1]) <= 2
    assert abs(second.frames[0] - truth(episode).tracks[1].frames[0]) <= 2


def test_a_flicker_of_colour_stays_in_its_track() -> None:
    episode = simulate(scene("large red disc", "static"), 1, num_frames=24)
    rgb = episode.rgb.copy()
    rgb[10:12] = (30, 60, 220)
    found = track(render(dataclasses.replace(episode, rgb=rgb)))
    assert [(t.colour, len(t.frames)) for t in found.tracks] == [("red", 24)]


@pytest.mark.parametrize("seed", [700111, 700144, 700042])
def test_touching_discs_of_cancelling_hues_stay_in_their_places(seed: int) -> None:
    """Green and pink, orange and blue: where they mix, a pixel is grey like the background."""
    episode = touching_discs(seed)
    found = compare(track(distort(render(episode), noise=3.0, blur=0.6, seed=seed)), episode)
    assert found.count.all() and found.colour.all()
    assert found.centroid.max() < 0.17


def test_touching_objects_of_one_colour_are_seen_as_one() -> None:
    episode = touching_discs(4)
    assert compare(track(render(episode)), episode).count.tolist() == [1.0] * 4
    rgb = episode.rgb.copy()
    rgb[:] = rgb[:, :1]
    merged = track(render(dataclasses.replace(episode, rgb=rgb)))
    assert len(merged.tracks) == 1


def test_an_object_that_leaves_is_cut_and_one_that_touches_is_not() -> None:
    spec = scene("large red square", "pan", direction="right", camera="pan_right", background=2)
    episode = simulate(spec, 3, num_frames=72)
    only = track(render(episode)).tracks[0]
    want = truth(episode).tracks[0]
    last = min(only.frames[-1], want.frames[-1])
    assert want.cut[-1]
    assert abs(int((~only.cut).sum()) - int((~want.cut).sum())) <= 3
    assert not only.cut[0]
    assert only.cut[only.frames == last].all()

    fallen = simulate(scene("medium green square", "gravity"), 1, num_frames=48)
    landed = track(render(fallen)).tracks[0]
    assert fallen.state[-1, 0, 1] > 57.0
    assert not landed.cut.any()


def test_a_shape_never_seen_whole_has_no_name() -> None:
    video = np.full((4, 64, 64, 3), 120, np.uint8)
    alpha = coverage("triangle", centre=(63.0, 30.0), radius=8.0, angle=0.0, size=(64, 64))
    red = np.array([210, 20, 30])
    video[:] = np.rint(120 + alpha[..., None] * (red - 120)).astype(np.uint8)
    found = track(video)
    assert [(t.colour, t.shape) for t in found.tracks] == [("red", None)]
    assert found.tracks[0].cut.all()


def test_background_is_what_frame_0_sees_with_holes_where_nothing_was_seen() -> None:
    spec = scene("large red disc", "static", background=1)
    episode = simulate(spec, 1, num_frames=8)
    found = track(render(episode))
    hole = np.isnan(found.background).any(axis=2)
    plain = texture(1, (64, 64), unit=64)
    assert 200 < hole.sum() < 500
    np.testing.assert_allclose(found.background[~hole], np.rint(plain)[~hole], atol=1.0)
    assert found.covered[:, hole].all()

    moving = simulate(
        scene("small blue disc", "pan", camera="pan_left", background=3), 1, num_frames=30
    )
    video = render(moving)
    seen = track(video).background
    open_places = ~np.isnan(seen).any(axis=2) & ~track(video).covered[0]
    assert open_places.mean() > 0.8
    assert np.abs(seen - video[0])[open_places].mean() < 1.0


def test_a_given_background_is_used() -> None:
    # a red wall is no background that could be found, but one that can be given
    wall = np.full((64, 64, 3), (200.0, 60.0, 60.0))
    alpha = coverage("square", centre=(30.3, 20.7), radius=7.0, angle=0.0, size=(64, 64))
    frame = wall + alpha[..., None] * (np.array([30, 60, 220]) - wall)
    video = np.repeat(np.rint(frame).astype(np.uint8)[None], 3, axis=0)
    found = track(video, background=wall)
    assert [(t.colour, t.shape) for t in found.tracks] == [("blue", "square")]
    assert found.tracks[0].x == pytest.approx([30.3] * 3, abs=0.05)
    assert found.tracks[0].y == pytest.approx([20.7] * 3, abs=0.05)


@pytest.mark.parametrize("per_frame", [0.5, -0.5])
def test_drifting_and_flickering_light_changes_no_track(per_frame: float) -> None:
    clip = sample_clip(7, num_frames=48, motions=["linear"])
    frames = np.arange(48)
    light = (per_frame * frames + 4.0 * (-1.0) ** frames)[:, None, None, None]
    lit = np.clip(np.rint(clip.video + light), 0, 255).astype(np.uint8)
    before, after = track(clip.video), track(lit)
    assert [(t.colour, t.shape) for t in before.tracks] == [
        (t.colour, t.shape) for t in after.tracks
    ]
    for one, two in zip(before.tracks, after.tracks, strict=True):
        assert np.abs(one.x - two.x).max() < 0.15
        assert np.abs(one.y - two.y).max() < 0.15
    assert np.all(after.camera == (0.0, 0.0, 1.0))


def test_long_videos_are_measured_in_stretches_as_short_ones() -> None:
    spec = scene("small green diamond", "linear", direction="right", speed="slow", background=2)
    episode = simulate(spec, 2, num_frames=400)
    found = track(render(episode))
    assert [len(t.frames) for t in found.tracks] == [400]
    assert np.abs(found.tracks[0].x - episode.state[:, 0, 0]).max() < 0.1


def test_far_away_objects_are_still_objects() -> None:
    spec = scene("small orange disc", "zoom", camera="zoom_out", background=2)
    episode = simulate(spec, 1, num_frames=150)
    found = track(render(episode))
    assert [(t.colour, len(t.frames)) for t in found.tracks] == [("orange", 150)]
    assert found.tracks[0].r[-1] == pytest.approx(4.48 * episode.camera[-1, 2], rel=0.03)


def test_a_single_frame_is_measured() -> None:
    clip = sample_clip(7, num_frames=1, motions=["static"])
    found = track(clip.video)
    want = truth(clip.episode)
    assert sorted((t.colour, t.shape) for t in found.tracks) == sorted(
        (t.colour, t.shape) for t in want.tracks
    )


def test_a_video_without_objects_has_no_tracks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    assert track(noise).tracks == ()
    assert track(np.zeros((2, 64, 64, 3), np.uint8)).tracks == ()


def test_wrong_arrays_are_named() -> None:
    video = np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(ShapeError, match="video"):
        track(video.astype(np.float32))
    with pytest.raises(ShapeError, match="video"):
        track(video[:0])
    with pytest.raises(ShapeError, match="background"):
        track(video, background=np.zeros((32, 64, 3)))


def test_distort_blurs_and_adds_noise() -> None:
    video = np.full((2, 64, 64, 3), 128, np.uint8)
    assert distort(video) is video
    assert distort(video, noise=4.0).std() == pytest.approx(4.0, rel=0.05)
    video[:, 32, 32] = 255
    soft = distort(video, blur=1.0)
    assert soft[0, 32, 32, 0] == pytest.approx(128 + 127 / (2 * np.pi), abs=2.0)
