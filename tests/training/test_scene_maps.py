"""Scene maps: what stands where, and the loss of reading them."""

from __future__ import annotations

import math

import numpy as np
import torch

from onereel.training.scene_maps import NUM_MAPS, map_loss, scene_maps
from onereel.world import COLOURS, SHAPES, ObjectSpec, SceneSpec, simulate


def _spec(**changes: object) -> SceneSpec:
    values: dict[str, object] = {
        "objects": (ObjectSpec(shape="triangle", colour="cyan", size="large"),), "motion": "linear",
        "direction": "left", "speed": "medium",
    }  # fmt: skip
    return SceneSpec(**(values | changes))  # type: ignore[arg-type]


def test_maps_say_what_covers_how_much_and_how_fast() -> None:
    episode = simulate(_spec(), 3, num_frames=24)
    maps = scene_maps(episode, [0, 12]).float()
    assert maps.shape == (NUM_MAPS, 2, 4, 4)
    area = math.pi * (0.13 * 64) ** 2 / 16**2  # in cells
    shapes, colours = maps[: len(SHAPES)], maps[len(SHAPES) : len(SHAPES) + len(COLOURS)]
    assert abs(float(shapes[SHAPES.index("triangle"), 1].sum()) - area) < 0.02 * area
    assert float(shapes.sum()) == float(shapes[SHAPES.index("triangle")].sum())
    torch.testing.assert_close(colours[COLOURS.index("cyan")], shapes[SHAPES.index("triangle")])
    # medium speed, to the left
    torch.testing.assert_close(maps[-2], -colours[COLOURS.index("cyan")], atol=0.02, rtol=0.05)
    assert not maps[-1].any()


def test_a_moving_camera_moves_objects_over_the_screen_but_its_seam_does_not() -> None:
    spec = _spec(motion="pan", direction="right", speed=None, camera="pan_right")
    maps = scene_maps(simulate(spec, 0, num_frames=96), range(96)).float()
    covered = maps[: len(SHAPES)].sum(0)
    assert float(maps[-2].sum()) < 0  # things go left
    speed = maps[-2][covered > 0.1] / covered[covered > 0.1]
    assert float(speed.std()) < 0.05


def test_the_loss_is_least_for_the_truth_and_counts_weighted_frames_only() -> None:
    episode = simulate(_spec(), 3, num_frames=8)
    maps = scene_maps(episode, [2, 6])[None]
    parts = maps.float().permute(0, 2, 3, 4, 1)
    split = (len(SHAPES), len(COLOURS), 2)
    shapes, colours, speed = parts.split(split, -1)
    logits = [
        torch.cat((x, 1 - x.sum(-1, keepdim=True)), -1).clamp(1e-6).log() for x in (shapes, colours)
    ]
    reading = torch.cat((*logits, speed), -1)
    one = torch.ones(1, 2)
    best = map_loss(reading, maps, weight=one)
    rng = np.random.default_rng(0)
    for _ in range(5):
        noise = torch.from_numpy(rng.normal(0, 0.3, reading.shape)).float()
        assert map_loss(reading + noise, maps, weight=one) > best
    spoilt = reading.clone()
    spoilt[:, 1] += 5 * torch.randn(spoilt[:, 1].shape)
    weight = torch.tensor([[1.0, 0.0]])
    assert map_loss(spoilt, maps, weight=weight) == map_loss(reading, maps, weight=weight)
