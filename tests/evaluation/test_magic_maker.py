"""Videos of a Magic 1-For-1 checkpoint for an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.evaluation.generate import (
    ModelChoice,
    Order,
    describe_model,
    open_maker,
    open_round_trip,
)
from onereel.evaluation.magic_maker import MagicMaker
from onereel.pipelines.magic141_t2v import Magic141Pipeline

SIZE = {"height": 32, "width": 32}


def choice(folder: Path) -> ModelChoice:
    return ModelChoice(model=str(folder), device="cpu", **SIZE)


def test_it_begins_with_the_pipelines_picture(tiny_magic: Path) -> None:
    maker = open_maker(choice(tiny_magic))
    assert isinstance(maker, MagicMaker)
    made = maker.make(Order(texts=("a red disc",), num_frames=8, seed=3))
    assert made.frames.shape == (8, 32, 32, 3) and made.problem == ""
    pipeline = Magic141Pipeline.from_pretrained(tiny_magic, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline.picture("a red disc", **SIZE, seed=derive_seed(3, "picture"))
    assert made.frames.std() > 0
    given = maker.make(
        Order(
            texts=("a red disc",), num_frames=9, seed=3, given=picture.pixels[None], is_image=True
        )  # fmt: skip
    )
    assert np.array_equal(given.frames[:8], made.frames)


def test_frames_of_a_video_are_refused(tiny_magic: Path) -> None:
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    maker = open_maker(choice(tiny_magic))
    with pytest.raises(ConfigError, match="expected one picture, got 24 frames"):
        maker.make(Order(texts=("a disc",), num_frames=8, seed=0, given=frames))


def test_a_video_goes_through_the_vae_and_back(tiny_magic: Path) -> None:
    trip = open_round_trip(str(tiny_magic), device="cpu")
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    made = trip(frames)
    assert made.shape == frames.shape and made.dtype == np.uint8 and made.std() > 0
    longer = np.concatenate((frames, frames[-1:]))  # 9 frames are 3 latent ones, 8 are not whole
    assert np.array_equal(trip(longer)[:8], made)
    assert trip.name == "tiny-magic" and len(trip.model_hash) == 64


def test_it_is_described_without_loading_it(tiny_magic: Path) -> None:
    found = describe_model(choice(tiny_magic))
    assert found["sampling"]["num_steps"] == 1 and len(found["model_hash"]) == 64
    assert (found["height"], found["fps"], found["device"]) == (32, 24, "cpu")
