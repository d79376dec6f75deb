"""Samples while a model is trained: a sheet of fixed prompts, and what the instrument says."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from onereel.core.errors import ConfigError

if TYPE_CHECKING:
    from onereel.training.engine import Method, TrainerConfig

NUM_PROMPTS = 4
NUM_FRAMES = 48
SCORES = ("colour_f1", "shape_f1", "all_correct")
_COLUMNS = 8
_FPS = 24


class SampleSheets:
    """Makes videos of the first fixed prompts with the averaged weights, and scores them.

    The weights are those of an export, so that the samples are what users would get.

    Args:
        folder: where `step-00000120.png` and the like go.
        minutes: between two sheets.
        num_prompts: rows of a sheet.
        num_frames: frames of a video.
    """

    name = "samples"

    def __init__(
        self,
        folder: Path,
        minutes: float,
        *,
        num_prompts: int = NUM_PROMPTS,
        num_frames: int = NUM_FRAMES,
    ) -> None:
        self.folder, self.minutes = folder, minutes
        self.num_prompts, self.num_frames = num_prompts, num_frames

    def on_interval(self, step: int, method: Method) -> Mapping[str, float]:
        """Make a sheet.

        Args:
            step: number of the step.
            method: what is trained, with the averaged weights in place.

        Returns:
            Means of `SCORES` over the prompts that ask for them.
        """
        from onereel.evaluation.toybox.prompts import prompt_scores
        from onereel.evaluation.toybox.tracker import track
        from onereel.media import frame_sheet
        from onereel.world import fixed_prompts

        prompts = fixed_prompts()[: self.num_prompts]
        videos = self._videos([text for text, _ in prompts], method)
        found = [
            prompt_scores(track(video, fps=_FPS), spec)
            for video, (_, spec) in zip(videos, prompts, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        frame_sheet(
            videos,
            columns=min(_COLUMNS, self.num_frames),
            labels=[text for text, _ in prompts],
            path=self.folder / f"step-{step:08d}.png",
        )
        values = {name: [s[name] for s in found if math.isfinite(s[name])] for name in SCORES}
        return {name: round(fmean(known), 4) for name, known in values.items() if known}

    def _videos(self, texts: list[str], method: Method) -> list[Any]:
        """Export the weights to a passing folder and make a video of every text."""
        from onereel.evaluation.generate import ModelChoice, Order, open_maker

        weights = self.folder / "weights"
        method.export(weights)
        try:
            device = next(iter(method.networks.values())).parameters()
            maker = open_maker(ModelChoice(model=str(weights), device=next(device).device.type))
            return [
                maker.make(Order(texts=(text,), num_frames=self.num_frames, seed=number)).frames
                for number, text in enumerate(texts)
            ]
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(weights)


def make_callbacks(method: Method, config: TrainerConfig, *, out: Path) -> list[SampleSheets]:
    """Make what the settings ask for.

    Args:
        method: what is trained.
        config: `sample_minutes` is read.
        out: folder of the run.

    Returns:
        The sheets, or nothing.

    Raises:
        ConfigError: the recipe makes no videos.
    """
    if config.sample_minutes <= 0:
        return []
    if not method.exports_pipeline:
        hint = "this recipe's export makes no videos"
        raise ConfigError("sample_minutes", expected="0", got=config.sample_minutes, hint=hint)
    return [SampleSheets(out / "samples", config.sample_minutes)]
