"""Sheets of samples while a model is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import nn

from onereel.apps.cli.train_samples import SCORES, SampleSheets, make_callbacks
from onereel.core.errors import ConfigError
from onereel.evaluation import generate
from onereel.evaluation.generate import Made, Order
from onereel.training.engine import Method, TrainerConfig
from onereel.world import fixed_prompts, render, simulate


class _Exporting(Method):
    """Exports a checkpoint that is there already."""

    exports_pipeline = True

    def __init__(self, source: Path) -> None:
        self.source = source
        self.networks = {"dit": nn.Linear(1, 1)}

    def export(self, folder: Path) -> None:
        shutil.copytree(self.source, folder)


class _World:
    """Makes the videos of a perfect model, or those of the wrong prompt."""

    shift = 0

    def __init__(self, choice: Any) -> None:
        assert (Path(choice.model) / "model_index.json").is_file() and choice.device == "cpu"

    def make(self, order: Order) -> Made:
        texts = [text for text, _ in fixed_prompts()]
        _, spec = fixed_prompts()[(texts.index(order.texts[0]) + self.shift) % len(texts)]
        episode = simulate(spec, order.seed, num_frames=order.num_frames, height=64, width=64)
        return Made(frames=render(episode), seconds=0.0)


def test_a_sheet_is_drawn_and_scored_by_the_prompts_own_scenes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "open_maker", _World)
    sheets = SampleSheets(tmp_path / "samples", 5.0)
    right = sheets.on_interval(120, _Exporting(tiny_checkpoint))
    assert right == {"colour_f1": 1.0, "shape_f1": 1.0, "all_correct": 1.0}
    monkeypatch.setattr(_World, "shift", 1)
    wrong = sheets.on_interval(240, _Exporting(tiny_checkpoint))
    assert wrong["colour_f1"] < 0.5 and wrong["all_correct"] == 0.0
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step-00000120.png", "step-00000240.png"]
    with Image.open(files[0]) as image:
        assert image.width == 8 * 66 - 2 and image.height > 4 * 64


def test_samples_come_from_the_exported_pipeline(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sheets = SampleSheets(tmp_path, 5.0, num_prompts=1, num_frames=24)
    found = [sheets.on_interval(step, _Exporting(tiny_checkpoint)) for step in (1, 2)]
    assert found[0] == found[1] and set(found[0]) <= set(SCORES)
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second


def test_only_what_makes_videos_is_sampled(tmp_path: Path) -> None:
    asked = TrainerConfig(max_steps=1, sample_minutes=5.0)
    videos, none = SimpleNamespace(exports_pipeline=True), SimpleNamespace(exports_pipeline=False)
    (sheets,) = make_callbacks(videos, asked, out=tmp_path)  # type: ignore[arg-type]
    assert sheets.minutes == 5.0 and sheets.folder == tmp_path / "samples"
    assert make_callbacks(none, TrainerConfig(max_steps=1), out=tmp_path) == []  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sample_minutes"):
        make_callbacks(none, asked, out=tmp_path)  # type: ignore[arg-type]
