"""A Toybox suite from beginning to end: make the videos, score each, sum up. Start here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.evaluation.generate import (
    Frames,
    Made,
    ModelChoice,
    Order,
    VideoMaker,
    describe_model,
    open_maker,
)
from onereel.evaluation.report.result import Result
from onereel.evaluation.toybox.aggregate import summarize_run
from onereel.evaluation.toybox.records import (
    Record,
    RunFolder,
    Scores,
    frames_hash,
    instrument_hash,
)
from onereel.evaluation.toybox.score import score_video
from onereel.evaluation.toybox.suites import Case, find_suite, make_cases, true_episode
from onereel.evaluation.toybox.workers import threads_each, work
from onereel.world import Episode, render

SIMULATOR = "simulator"  # stands for the world itself: what a perfect model would reach
_CANVAS = {"height": 64, "width": 64, "fps": 24}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxRun:
    """What shall be evaluated.

    Args:
        choice: the model and its settings; the model `simulator` is the world itself.
        suite: name of the suite.
        seed: of the noise.
        limit: only the first so many prompts; None means all.
        samples: videos per prompt; None takes the suite's number.
        num_frames: per video; None takes the suite's number.
    """

    choice: ModelChoice
    suite: str = "quick"
    seed: int = 0
    limit: int | None = None
    samples: int | None = None
    num_frames: int | None = None

    def cases(self) -> tuple[Case, ...]:
        """List the videos.

        Returns:
            The cases of the suite.

        Raises:
            ConfigError: no such suite, or a number is wrong.
        """
        return make_cases(
            self.suite,
            seed=self.seed,
            limit=self.limit,
            samples=self.samples,
            num_frames=self.num_frames,
        )


class ScoreVideo(Protocol):
    """Measures one video of a case; `score_video` is the real one."""

    def __call__(self, case: Case, frames: Frames, *, episode: Episode, truth: Frames) -> Scores:
        """Return the scores."""
        ...


Progress = Callable[[int, int, Record | None], None]


class SimulatorMaker:
    """Makes the videos that a perfect model would make: the world's own.

    Args:
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.
    """

    def __init__(self, height: int, width: int, *, fps: int) -> None:
        self._size = {"height": height, "width": width, "fps": fps}

    def make_case(self, case: Case) -> Made:
        """Render the truth of a case; where nothing of it is given, another scene of its prompt.

        Args:
            case: the case.

        Returns:
            The video, without given frames.
        """
        if case.mode == "t2v":
            seed = derive_seed(case.world_seed, "another", case.noise_seed)
            case = dataclasses.replace(case, world_seed=seed)
        frames = render(true_episode(case, **self._size), start=case.prefix_frames)
        return Made(frames=frames, seconds=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What a process needs to make and score videos."""

    choice: ModelChoice
    height: int
    width: int
    fps: int
    folder: Path
    score: ScoreVideo


def describe_choice(choice: ModelChoice) -> dict[str, Any]:
    """Write down what would make the videos, and the code that scores them.

    Args:
        choice: the model and its settings; the model `simulator` is the world itself.

    Returns:
        JSON values.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """
    if choice.model == SIMULATOR:
        if choice.loras:
            raise ConfigError("--lora", expected="a model", got=f"'{SIMULATOR}'")
        sizes = {name: getattr(choice, name) or size for name, size in _CANVAS.items()}
        found: dict[str, Any] = {"model": SIMULATOR, "model_hash": "", "sampling": {}, **sizes}
    else:
        found = describe_model(choice)
    return {**found, "instrument": instrument_hash()}


def describe_run(run: ToyboxRun) -> dict[str, Any]:
    """Write down everything that videos and scores depend on, but how many there are.

    Args:
        run: what shall be evaluated.

    Returns:
        JSON values.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """
    suite = find_suite(run.suite)
    return {
        "suite": run.suite,
        **describe_choice(run.choice),
        "seed": run.seed,
        "num_frames": run.num_frames or suite.num_frames,
    }


def evaluate_toybox(
    run: ToyboxRun,
    *,
    out: str | Path,
    workers: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
    score: ScoreVideo = score_video,
) -> Result:
    """Make the videos of a suite, score them, and sum up.

    Args:
        run: what shall be evaluated.
        out: folder for videos, records and `result.json`.
        workers: processes, each with its own copy of the model; 1 stays in this process.
        resume: go on with the run in `out`; finished videos are not made again.
        progress: called with videos done, videos in all, and the newest record, if any.
        score: measures one video; a function of a module where there are several workers.

    Returns:
        The result, which is in `out` as well.

    Raises:
        ConfigError: a setting is wrong, or `out` holds another run.
        CheckpointError: the model is missing or damaged.
    """
    if workers < 1:
        raise ConfigError("workers", expected="at least 1", got=workers)
    settings, cases = describe_run(run), run.cases()
    folder = RunFolder(out)
    folder.claim(settings, resume=resume)
    job = _Job(
        choice=run.choice,
        height=settings["height"],
        width=settings["width"],
        fps=settings["fps"],
        folder=folder.path,
        score=score,
    )
    found = {case.name: folder.read(case.name) for case in cases}
    missing = [case for case in cases if found[case.name] is None]
    done = len(cases) - len(missing)
    if progress is not None:
        progress(done, len(cases), None)
    for record in work(functools.partial(_Bench, job), missing, workers=workers):
        found[record.name] = record
        done += 1
        if progress is not None:
            progress(done, len(cases), record)
    records = [record for record in found.values() if record is not None]
    # What the pace depends on; the pixels do so only in their last bits.
    pace = {"workers": workers, "threads": threads_each(workers)}
    return summarize_run(run, settings | pace, cases=cases, records=records, folder=folder.path)


class _Bench:
    """One model, loaded when the first video is asked for."""

    def __init__(self, job: _Job) -> None:
        self.job = job

    @functools.cached_property
    def maker(self) -> VideoMaker | SimulatorMaker:
        job = self.job
        if job.choice.model == SIMULATOR:
            return SimulatorMaker(job.height, job.width, fps=job.fps)
        return open_maker(job.choice)

    def run(self, case: Case) -> Record:
        """Make, score and store one video."""
        job, folder = self.job, RunFolder(self.job.folder)
        episode = true_episode(case, height=job.height, width=job.width, fps=job.fps)
        truth = render(episode)
        made = self._make(case, truth)
        problem = made.problem or _shape_problem(made.frames, truth[case.prefix_frames :])
        scores = Scores(values={})
        if not problem:
            scores = job.score(case, made.frames, episode=episode, truth=truth)
        files = {"made": folder.save_video(case.name, made.frames, fps=job.fps)}
        if case.mode != "t2v":
            name = f"{case.name}-truth"
            files["truth"] = folder.save_video(name, truth[case.prefix_frames :], fps=job.fps)
        if case.mode == "v2v" and scores.tracking is not None:
            folder.save_tracking(case.name, scores.tracking)
        record = Record(
            name=case.name,
            seconds=made.seconds,
            frames_sha256=frames_hash(made.frames),
            files=files,
            problem=problem,
            values=scores.values,
            curves=scores.curves,
            features=scores.features,
        )
        return folder.write(record)

    def _make(self, case: Case, truth: Frames) -> Made:
        if isinstance(self.maker, SimulatorMaker):
            return self.maker.make_case(case)
        given = None if case.mode == "t2v" else truth[: case.given_frames]
        return self.maker.make(
            Order(
                texts=case.texts,
                num_frames=case.num_frames,
                seed=case.noise_seed,
                given=given,
                is_image=case.mode == "i2v",
            )
        )


def _shape_problem(frames: Frames, wanted: Frames) -> str:
    if frames.shape == wanted.shape and frames.dtype == np.uint8:
        return ""
    return f"expected frames {list(wanted.shape)}, got {list(frames.shape)} {frames.dtype}"
