"""The shipped MAGI checkpoints are small, whole, and show what the prompt says."""

from __future__ import annotations

import functools
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

FOLDER = Path(onereel.__file__).parent / "world" / "checkpoints"
STEPS = {"toybox-magi": 8, "toybox-magi-distill": 4}
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module", params=STEPS)
def pipe(request: pytest.FixtureRequest) -> Any:
    """Load a shipped checkpoint, set to few steps."""
    pipe = Magi1Pipeline.from_pretrained(request.param)
    pipe.set_progress_bar_config(disable=True)
    return functools.partial(pipe, num_inference_steps=STEPS[request.param])


@pytest.mark.parametrize("name", STEPS)
def test_weights_are_small_and_bfloat16(name: str) -> None:
    files = list((FOLDER / name).rglob("*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


@pytest.mark.parametrize("name", STEPS)
def test_verifies(name: str) -> None:
    report = verify(resolve_model(name), deep=True)
    assert report.ok, report.problems


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
def test_object_has_the_colour_of_the_prompt(pipe: Any, colour: str) -> None:
    video = pipe(
        f"a large {colour} disc bounces on the floor",
        num_frames=24,
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
