"""VBench's formulas on small inputs whose answers are known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.core.errors import ConfigError, ShapeError
from onereel.evaluation.vbench import camera, detections, features, motion, preprocess
from onereel.evaluation.vbench.detections import Detection


def _grey(*levels: int, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def test_flickering_counts_every_pair_without_wrapping() -> None:
    assert features.temporal_flickering(_grey(0, 255, 0)) == 0
    assert features.temporal_flickering(_grey(10, 10, 10)) == 1
    assert features.temporal_flickering(_grey(0, 51, 51)) == pytest.approx(1 - 0.1)
    assert math.isnan(features.temporal_flickering(_grey(5)))


def test_consistency_is_half_previous_half_first() -> None:
    rows = np.array([[2.0, 0], [0, 3.0], [0, 1.0], [-1.0, 0]])
    assert features.consistency(rows).tolist() == [0, 0.5, 0]
    with pytest.raises(ShapeError, match=r"shape \[F, D\]"):
        features.consistency(rows[0])


def test_image_consistency_weighs_best_mean_and_worst() -> None:
    half = [np.cos(np.pi / 3), np.sin(np.pi / 3)]
    rows = np.array([[0.0, 1.0], half, [1.0, 0.0]])
    side = math.cos(math.pi / 6)
    want = 0.4 * 1 + 0.3 * (side + 0.5) / 2 + 0.3 * 0.5
    assert features.image_consistency(np.array([1.0, 0.0]), rows) == pytest.approx(want)
    assert math.isnan(features.image_consistency(rows[0], rows[:1]))
    with pytest.raises(ShapeError, match=r"expected \[2\]"):
        features.image_consistency(np.zeros(3), rows)


def test_middle_frames_of_nothing_are_refused() -> None:
    assert features.middle_indices(3, 5) == [0, 1, 2, 2, 2]
    with pytest.raises(ShapeError, match="at least one"):
        features.middle_indices(0, 5)


def test_smoothness_cuts_grey_levels_and_pads_to_sixteen() -> None:
    shapes = []

    def interpolate(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(first.shape))
        return (first + second) / 2 + 0.9 / 255

    # 10 and 20 give 15.9, which is cut to 15; the last frame has no right neighbour
    assert motion.motion_smoothness(_grey(10, 15, 20, 99), interpolate) == 1
    assert shapes == [(1, 3, 16, 16)]
    assert motion.motion_smoothness(_grey(10, 40, 20), interpolate) == pytest.approx(1 - 25 / 255)
    assert math.isnan(motion.motion_smoothness(_grey(1, 2), interpolate))


def _flow(strengths: list[float]) -> motion.PairNetwork:
    left = iter(strengths)

    def flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 2, *first.shape[-2:]), next(left) / math.sqrt(2))

    return flow


def test_a_video_moves_when_a_quarter_of_its_pairs_do() -> None:
    frames = _grey(*range(8), size=(64, 64))  # threshold 1.5, two pairs needed
    moved, seen = motion.is_dynamic(frames, 8, flow=_flow([2, 1, 1, 2, 1, 1, 1]))
    assert (moved, len(seen)) == (True, 4)
    moved, seen = motion.is_dynamic(frames, 8, flow=_flow([2, 1, 1, 1, 1, 1, 1]))
    assert (moved, len(seen)) == (False, 7)
    assert motion.sampled(frames, 24).shape[0] == 3
    assert motion.sampled(frames, 1).shape[0] == 8


def test_two_sampled_frames_always_move_officially() -> None:
    assert motion.is_dynamic(_grey(1, 1, size=(64, 64)), 8, flow=_flow([0]))[0]


def test_still_videos_neither_jump_nor_drift() -> None:
    frames = _grey(*range(8), size=(64, 64))  # threshold 0.75, one pair may move, ends up to 1.5
    assert motion.is_still(frames, _flow([1.4, 1.4, *[0.1] * 6, 1.0]))
    assert not motion.is_still(frames, _flow([1.4, 1.6, *[0.1] * 7]))
    assert not motion.is_still(frames, _flow([0.1, 0.1, 1.0, 1.0, *[0.1] * 5]))


def test_flow_strength_is_that_of_the_fastest_pixels() -> None:
    field = torch.zeros(1, 2, 10, 10)
    field[0, 0, 0, :5] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert motion.flow_strength(field) == pytest.approx(3)
    assert motion.flow_strength(field, 0.02) == pytest.approx(4.5)


def test_objects_count_per_frame() -> None:
    frames = [[Detection(label="cat"), Detection(label="dog")], [Detection(label="cat")], []]
    assert detections.object_frames(frames, ["cat"]) == 2
    assert detections.object_frames(frames, ["cat", "dog"]) == 1


def test_only_whole_words_leave_a_colour_prompt() -> None:
    assert detections.coloured_object("a red umbrella a", "red") == "umbrella"
    assert detections.coloured_object("an orange panda bear", "orange") == "panda bear"


def test_a_captioned_colour_needs_its_object() -> None:
    red = Detection(label="car", caption="a red car")
    bare = Detection(label="car", caption="a car")
    frames = [[red], [bare], [Detection(label="bus", caption="red bus")]]
    assert detections.colour_frames(frames, "car", colour="red") == (1, 1)
    assert detections.colour_frames(frames, "car", colour="blue") == (1, 0)


def test_places_know_neither_sign_nor_order() -> None:
    a, b = (0.0, 0.0, 10.0, 10.0), (20.0, 1.0, 30.0, 11.0)
    for first, second in ((a, b), (b, a)):
        assert detections.spatial_score(first, second, relation="on the left of") == 1
        assert detections.spatial_score(first, second, relation="on the top of") == 0
    near = (5.0, 0.0, 15.0, 10.0)  # a third of the union
    got = detections.spatial_score(a, near, relation="on the right of")
    assert got == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="got above"):
        detections.spatial_score(a, b, relation="above")
    found = [Detection(label="cat", box=a), Detection(label="cat", box=near)]
    relation = "on the left of"
    best = detections.best_spatial_score(found, ("cat", "dog"), relation=relation)
    assert best == pytest.approx(0.3)
    assert detections.best_spatial_score(found[:1], ("cat", "dog"), relation=relation) == 0
    assert detections.box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_scenes_and_actions() -> None:
    assert detections.scene_frames(["a phone booth", "booth"], "phone booth") == 1
    ranked = [("riding a bike", 0.9), ("jogging", 0.5)]
    assert detections.action_hit("A person is riding a bike", ranked)
    assert detections.action_hit("a person is riding a bike-now", ranked)
    assert not detections.action_hit("A person is jogging", ranked)
    late = [(str(i), 0.9) for i in range(5)] + [("jogging", 0.9)]
    assert not detections.action_hit("A person is jogging", late)


def _moved(top: tuple[int, int], bottom: tuple[int, int]) -> set[str]:
    first = np.stack(np.meshgrid(np.arange(10) * 10, np.arange(10) * 10), -1)
    last = first.copy()
    last[0, 5] += top
    last[-1, 5] += bottom
    return camera.camera_moves(first, last, size=(200, 400))


@pytest.mark.parametrize(
    ("top", "bottom", "moves"),
    [
        ((0, -3), (0, 3), {"zoom_in"}),
        ((0, 3), (0, -3), {"zoom_out"}),
        ((3, 0), (3, 0), {"pan_left"}),
        ((-3, 3), (-3, 3), {"pan_right", "tilt_up"}),
        ((1, 0), (0, -1), {"static"}),  # one pixel is the limit at this size, and not beyond it
        ((3, 0), (-3, 0), {"None"}),  # still sides do not outweigh edges that disagree
    ],
)
def test_camera_moves(top: tuple[int, int], bottom: tuple[int, int], moves: set[str]) -> None:
    assert _moved(top, bottom) == moves


def test_the_wanted_move_is_in_the_prompt() -> None:
    assert camera.wanted_move("a lake, camera tilts down") == "tilt_down"
    assert camera.wanted_move("a lake, camera static") == "static"
    with pytest.raises(ConfigError, match="got a lake"):
        camera.wanted_move("a lake")
    with pytest.raises(ShapeError, match="two grids"):
        camera.camera_moves(np.zeros((10, 10, 2)), np.zeros((9, 10, 2)), size=(10, 10))


def test_crops_round_half_to_even() -> None:
    rows = torch.arange(75)[:, None].expand(75, 60)
    assert preprocess.centre_crop(rows, 56)[0, 0] == 10
    assert preprocess.centre_crop(rows[:73], 56)[0, 0] == 8


def test_sizes() -> None:
    assert preprocess.short_side(576, 960, side=512) == (512, 853)
    assert preprocess.short_side(960, 576, side=512) == (853, 512)
    assert preprocess.detector_size(768, 1360) == (768, 1360)
    assert preprocess.detector_size(1080, 1920) == (720, 1280)
    small = torch.full((1, 3, 40, 50), 255.0)
    assert preprocess.musiq_frames(small, "shorter_centercrop").shape == (1, 3, 40, 50)
    assert preprocess.dino_image(Image.new("RGB", (40, 20))).shape == (3, 224, 448)
    with pytest.raises(ConfigError, match="got wide"):
        preprocess.musiq_frames(small, "wide")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\[F, 3, H, W\]"):
        preprocess.clip_frames(small[0])
