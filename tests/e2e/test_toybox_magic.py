"""The shipped Magic 1-For-1 checkpoints make what they are told, from Python and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import decode

from onereel import Magi1Pipeline
from onereel.apps.cli.main import main
from onereel.core.errors import ConfigError
from onereel.pipelines.magic141_t2v import Magic141Pipeline


def reddest(frames: np.ndarray) -> float:
    """How much redder than green and blue the reddest pixels are, in [-1, 1]."""
    pixels = frames.reshape(-1, 3)
    return float(np.sort(pixels[:, 0] - pixels[:, 1:].max(axis=1))[-60:].mean())


@pytest.mark.parametrize(("model", "steps"), [("toybox-magic", 8), ("toybox-magic-4step", None)])
def test_a_prompt_becomes_a_picture_and_its_video(model: str, steps: int | None) -> None:
    pipeline = Magic141Pipeline.from_pretrained(model)
    assert pipeline.sampling.guided == (steps is not None)
    assert pipeline.text_encoder.dtype == torch.float32
    pipeline.set_progress_bar_config(disable=True)
    shown = {}
    for colour in ("red", "blue"):
        output = pipeline(
            f"a large {colour} disc rests on the floor",
            num_frames=13,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
        assert output.frames.shape == (1, 13, 64, 64, 3)
        assert np.asarray(output.images[0]).shape == (64, 64, 3)
        shown[colour] = output.frames
    assert reddest(shown["red"]) > 0.3
    assert reddest(shown["blue"]) < 0.1


def test_the_command_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red disc falls", "--model", "toybox-magic", "--num-frames", "5", "--steps", "2"]
    assert main(["generate", *words, "--seed", "1", "-q", "--json", "-o", "a.mp4"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["num_frames"] == 5
    assert decode(Path("a.mp4")).shape == (5, 64, 64, 3)


def test_checkpoints_of_the_other_family_are_refused() -> None:
    with pytest.raises(ConfigError, match="Magi1Pipeline"):
        Magic141Pipeline.from_pretrained("toybox-magi")
    with pytest.raises(ConfigError):
        Magi1Pipeline.from_pretrained("toybox-magic")
