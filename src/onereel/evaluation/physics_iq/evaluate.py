"""Scoring a folder of generated videos, view by view, in as many processes as wished."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from onereel.core.errors import ConfigError
from onereel.evaluation.physics_iq.clips import ClipFile
from onereel.evaluation.physics_iq.dataset import (
    SOURCE_FPS,
    PhysicsIqDataset,
    ViewEntry,
    missing_files,
    refuse,
)
from onereel.evaluation.physics_iq.folder import ModelFolder, read_model_folder
from onereel.evaluation.physics_iq.mask_files import MaskCodec, require_codec
from onereel.evaluation.physics_iq.official_csv import write_rows
from onereel.evaluation.physics_iq.result import OFFICIAL_SCENARIOS, PhysicsIqResult
from onereel.evaluation.physics_iq.scoring import ScenarioRow, score
from onereel.evaluation.physics_iq.view import ViewOutcome, ViewTask, score_view

RealMasks = Literal["computed", "files"]
Progress = Callable[[int, int, str], None]


def evaluate_folder(
    dataset: PhysicsIqDataset,
    folder: str | Path,
    *,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    mask_codec: MaskCodec = "none",
    real_masks: RealMasks = "computed",
    workers: int = 1,
    progress: Progress | None = None,
) -> PhysicsIqResult:
    """Score a model's videos, and a still picture beside them.

    Args:
        dataset: the real videos.
        folder: the model's videos, `{id}_{anything}.mp4`; nothing in it is changed.
        output: where `results/{folder's name}.csv`, the official table, goes, in
            place of an earlier one; None writes none.
        cache: folder where masks are kept under a hash of their video's bytes; None keeps none.
        mask_codec: "mp4v" sends masks through a lossy file as the official tool does.
        real_masks: "files" takes the published masks of the real videos.
        workers: processes; each needs about 0.6 GB for 4K videos.
        progress: is told (views done, views in all, last view) after each view.

    Returns:
        Scores, rows, and what they were made from.

    Raises:
        MediaError: files are missing or wrong; all are named, and nothing is scored.
        ConfigError: an argument is wrong.
        BackendUnavailable: there is no encoder for `mask_codec`.
    """
    options = _Options(
        mask_codec=mask_codec,
        real_masks=real_masks,
        output=None if output is None else Path(output),
        cache=None if cache is None else Path(cache),
        workers=workers,
    )
    model = read_model_folder(dataset, folder)
    rate = dataset.testing_rate(model.fps)
    what = f"model folder {folder}"
    refuse([*model.problems, *_missing(dataset, model.fps, rate, options)], what)
    tasks = [_task(dataset, entry, model, options, rate) for entry in dataset.entries]
    outcomes = _run(tasks, workers, progress)
    refuse([f"{one.scenario} {one.view}: {one.problem}" for one in outcomes if one.problem], what)
    return _result(dataset, model, outcomes, options)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    mask_codec: MaskCodec
    real_masks: RealMasks
    output: Path | None
    cache: Path | None
    workers: int

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mask_codec", self.mask_codec, get_args(MaskCodec)),
            ("real_masks", self.real_masks, get_args(RealMasks)),
        ):
            if value not in known:
                raise ConfigError(name, expected=" or ".join(known), got=value)
        if self.workers < 1:
            raise ConfigError("workers", expected="at least 1", got=self.workers)
        require_codec(self.mask_codec)


def _missing(
    dataset: PhysicsIqDataset, fps: Fraction, rate: int, options: _Options
) -> Iterator[str]:
    """Name the dataset's files that a score needs and that are not there."""
    with_masks = options.real_masks == "files"
    if with_masks and rate != fps:
        yield f"real_masks: there are no published masks at {float(fps):g} fps"
    for entry in dataset.entries:
        paths = [dataset.switch_frame(entry)]
        for take in (0, 1):
            paths.append(dataset.testing(entry, take, rate=rate))
            if with_masks and rate == fps:
                paths.append(dataset.real_mask(entry, take, rate=rate))
        yield from missing_files(paths)


def _task(
    dataset: PhysicsIqDataset, entry: ViewEntry, model: ModelFolder, options: _Options, rate: int
) -> ViewTask:
    takes = [dataset.testing(entry, take, rate=rate) for take in (0, 1)]
    resampled = None if rate == model.fps else model.fps
    count = model.num_frames
    first, second = (ClipFile(path=path, num_frames=count, fps=resampled) for path in takes)
    masks = (dataset.real_mask(entry, 0, rate=rate), dataset.real_mask(entry, 1, rate=rate))
    return ViewTask(
        scenario=entry.name,
        view=entry.view,
        clips=(first, second, ClipFile(path=model.videos[entry.ids[0]], num_frames=count)),
        real_masks=masks if options.real_masks == "files" else None,
        switch_frame=dataset.switch_frame(entry),
        fps=model.fps,
        codec=options.mask_codec,
        cache=options.cache,
        threads=0 if options.workers == 1 else 1,
    )


def _run(tasks: Sequence[ViewTask], workers: int, progress: Progress | None) -> list[ViewOutcome]:
    """Score all views, in order when there is one process; fresh processes inherit no state."""
    outcomes: list[ViewOutcome] = []

    def take(outcome: ViewOutcome) -> None:
        outcomes.append(outcome)
        if progress is not None:
            progress(len(outcomes), len(tasks), f"{outcome.scenario} {outcome.view}")

    if workers == 1:
        for task in tasks:
            take(score_view(task))
        return outcomes
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(score_view, task) for task in tasks]):
                take(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _result(
    dataset: PhysicsIqDataset,
    model: ModelFolder,
    outcomes: Sequence[ViewOutcome],
    options: _Options,
) -> PhysicsIqResult:
    rows, freeze_rows = _rows(dataset, outcomes)
    table = None if options.output is None else options.output / "results" / f"{model.name}.csv"
    return PhysicsIqResult(
        model=model.name,
        fps=float(model.fps),
        num_frames=model.num_frames,
        score=score(rows),
        freeze=score(freeze_rows),
        rows=rows,
        freeze_rows=freeze_rows,
        categories={scenario.name: scenario.category for scenario in dataset.scenarios},
        mask_codec=options.mask_codec,
        real_masks=options.real_masks,
        sizes=model.sizes,
        sha256={path: digest for one in outcomes for path, digest in one.sha256.items()},
        ignored=model.ignored,
        notes=tuple(_notes(dataset, model, options)),
        csv=None if table is None else write_rows(table, rows),
    )


def _rows(
    dataset: PhysicsIqDataset, outcomes: Sequence[ViewOutcome]
) -> tuple[tuple[ScenarioRow, ...], tuple[ScenarioRow, ...]]:
    """Rows of the model and of the freeze baseline, in the dataset's order."""
    found = {(one.scenario, one.view): one for one in outcomes}
    model, freeze = [], []
    for scenario in dataset.scenarios:
        views = {entry.view: found[scenario.name, entry.view] for entry in scenario.views}
        made = {view: one.model for view, one in views.items() if one.model is not None}
        still = {view: one.freeze for view, one in views.items() if one.freeze is not None}
        model.append(ScenarioRow(scenario=scenario.name, views=made))
        freeze.append(ScenarioRow(scenario=scenario.name, views=still))
    return tuple(model), tuple(freeze)


def _notes(dataset: PhysicsIqDataset, model: ModelFolder, options: _Options) -> Iterator[str]:
    """Say what limits the numbers."""
    rate = dataset.testing_rate(model.fps)
    count = len(dataset.scenarios)
    if count != OFFICIAL_SCENARIOS:
        yield f"{count} of {OFFICIAL_SCENARIOS} scenarios: not the official score"
    if rate != model.fps:
        shown = f"{float(model.fps):g}"
        yield f"the real videos were resampled from {SOURCE_FPS} to {shown} fps, without a codec"
    if model.fps.denominator != 1:
        yield f"{float(model.fps):g} fps: the first {model.num_frames} frames were compared"
    if options.mask_codec == "mp4v":
        yield "masks went through a lossy codec, as in the official tool"
    if model.ignored:
        yield f"{len(model.ignored)} files of the folder belong to no scenario and were not read"
