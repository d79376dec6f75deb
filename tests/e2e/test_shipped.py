"""The shipped checkpoint is small, whole, and shows what the prompt says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onereel
from onereel import Magi1Pipeline
from onereel.runtime.source import resolve_model
from onereel.runtime.verify import verify
from onereel.world import PALETTE

FOLDER = Path(onereel.__file__).parent / "world" / "checkpoints" / "toybox-magi"
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def pipe() -> Any:
    """Load the shipped checkpoint."""
    pipe = Magi1Pipeline.from_pretrained("toybox-magi")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_small_and_bfloat16() -> None:
    files = list(FOLDER.rglob("*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


def test_verifies() -> None:
    report = verify(resolve_model("toybox-magi"), deep=True)
    assert report.ok, report.problems


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
def test_object_has_the_colour_of_the_prompt(pipe: Any, colour: str) -> None:
    video = pipe(
        f"a large {colour} disc bounces on the floor",
        num_frames=24,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    pixels = (video * 255).reshape(-1, 3)
    saturated = pixels[np.ptp(pixels, axis=1) > 90]
    assert len(saturated) > 24 * 20, "no object"
    colours = np.array(list(PALETTE.values()), dtype=np.float64)
    nearest = np.linalg.norm(saturated[:, None] - colours, axis=2).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(colours))
    assert list(PALETTE)[int(counts.argmax())] == colour
    assert counts.max() > 0.6 * counts.sum()
