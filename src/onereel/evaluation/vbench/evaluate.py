"""A folder of videos in, scores per video and per dimension out. Read `evaluate_folder` first.

Each video is decoded once for all its dimensions. A video that cannot be read or scored is named
in `problems` and left out, never scored silently. To resume, pass the scores that exist as
`known`; to run in parallel, split the samples, `score_samples` each part, and `collect` the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onereel.core.config import from_mapping, nearest_name
from onereel.core.errors import ConfigError, OneReelError
from onereel.evaluation.measure import Measurement, missing
from onereel.evaluation.vbench.dimensions import DIMENSIONS, Scored
from onereel.evaluation.vbench.motion import is_still
from onereel.evaluation.vbench.networks import Networks, PairNetwork
from onereel.evaluation.vbench.suite import Sample, SampleSet, custom_samples, refuse_not_custom
from onereel.evaluation.videos import Video, load_video

Reader = Callable[[Path], Video]
Progress = Callable[[int, int, str], None]
Score = Callable[[Video, Sample, str], Scored]
Keeper = Callable[["VideoScore"], None]

_RESAMPLES = 1000
_MAX_STILL = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoScore:
    """One video's score on one dimension.

    Args:
        dimension: name of the dimension.
        path: of the video.
        prompt: it was made from.
        value: the score as the official file has it for a video.
        weight: in the mean over videos.
        details: what else the dimension says.
    """

    dimension: str
    path: str
    prompt: str
    value: float
    weight: float = 1.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VideoScore:
        """Read what `dataclasses.asdict` gave.

        Args:
            data: fields by name.

        Returns:
            The score.

        Raises:
            ConfigError: a field is not known.
        """
        return from_mapping(cls, data, where="VideoScore")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that could not be scored.

    Args:
        video: path or file name.
        dimension: which one; empty when the video itself is the problem.
        reason: what is wrong.
    """

    video: str
    dimension: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VBenchResult:
    """What an evaluation found.

    Args:
        dimensions: overall score per dimension asked for; the mean is the official number, the
            interval a bootstrap over prompts.
        scores: one per video and dimension.
        problems: what could not be scored.
        networks: descriptions of the networks that were used, by name.
    """

    dimensions: Mapping[str, Measurement]
    scores: tuple[VideoScore, ...]
    problems: tuple[Problem, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)

    def overall(self) -> dict[str, float]:
        """Give the scores that exist.

        Returns:
            Overall score by dimension.
        """
        return {n: m.mean for n, m in self.dimensions.items() if m.mean is not None}


def evaluate_folder(
    videos: str | Path | SampleSet,
    *,
    dimensions: Sequence[str],
    networks: Networks,
    known: Iterable[VideoScore] = (),
    read: Reader = load_video,
    progress: Progress | None = None,
    on_score: Keeper | None = None,
) -> VBenchResult:
    """Score videos on VBench's dimensions.

    Args:
        videos: a folder (every video in it, prompts by name), or what `suite_samples` or
            `custom_samples` gave.
        dimensions: names of `DIMENSIONS`.
        networks: the networks at hand; a dimension that lacks one is reported as not computed.
        known: scores of an earlier run, which are not computed again; the caller vouches that the
            videos have not changed since.
        read: reads one video.
        progress: called with (scores done, scores in all, what is being scored).
        on_score: called with every new score, so that the caller can save it.

    Returns:
        Overall scores, scores per video, and everything that could not be scored.

    Raises:
        ConfigError: a dimension is unknown, or needs an official list.
        MediaError: the folder is missing or empty.
    """
    check_dimensions(dimensions)
    if not isinstance(videos, SampleSet):
        refuse_not_custom(dimensions)
        videos = custom_samples(videos)
    absent = not_computable(dimensions, networks, samples=videos.samples)

    def score(video: Video, sample: Sample, dimension: str) -> Scored:
        return DIMENSIONS[dimension].score(video, sample, networks)

    scores, problems = score_samples(
        videos.samples,
        [name for name in dimensions if name not in absent],
        score=score,
        known=known,
        read=read,
        progress=progress,
        on_score=on_score,
    )
    result = collect(scores, dimensions, networks=networks, problems=problems, absent=absent)
    return with_missing(result, videos.missing)


def not_computable(
    dimensions: Sequence[str], networks: Networks, *, samples: Sequence[Sample]
) -> dict[str, str]:
    """Say which dimensions cannot be computed at all.

    Args:
        dimensions: what is asked for.
        networks: the networks at hand.
        samples: the videos.

    Returns:
        What is lacking, by dimension.
    """
    has_images = any(sample.image is not None for sample in samples)
    reasons = {}
    for name in dimensions:
        reason = networks.lacking(DIMENSIONS[name].needs)
        if not reason and DIMENSIONS[name].needs_image and not has_images:
            reason = "needs the reference pictures: a folder of pictures named like the videos"
        if reason:
            reasons[name] = reason
    return reasons


def with_missing(result: VBenchResult, names: Sequence[str]) -> VBenchResult:
    """Add videos that were not there at all to a result.

    Args:
        result: of those that were.
        names: of the files.

    Returns:
        The result with one more problem per name, and a note at every score.
    """
    if not names:
        return result
    problems = tuple(Problem(video=name, dimension="", reason="missing") for name in names)
    notes = {
        name: measured
        if measured.mean is None
        else replace(measured, note=_joined(measured.note, f"{len(names)} files are missing"))
        for name, measured in result.dimensions.items()
    }
    return replace(result, dimensions=notes, problems=problems + result.problems)


def check_dimensions(names: Sequence[str]) -> None:
    """Refuse unknown dimensions.

    Args:
        names: what is asked for.

    Raises:
        ConfigError: there is none, or one is unknown.
    """
    if not names:
        raise ConfigError("dimensions", expected=f"some of {', '.join(DIMENSIONS)}", got="none")
    for name in names:
        if name not in DIMENSIONS:
            near = nearest_name(name, DIMENSIONS)
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(DIMENSIONS)}"
            raise ConfigError(f"dimension '{name}' is unknown", hint=hint)


def score_samples(
    samples: Sequence[Sample],
    dimensions: Sequence[str],
    *,
    score: Score,
    known: Iterable[VideoScore] = (),
    read: Reader = load_video,
    progress: Progress | None = None,
    on_score: Keeper | None = None,
) -> tuple[list[VideoScore], list[Problem]]:
    """Score videos one after another.

    Args:
        samples: the videos.
        dimensions: those whose networks are there.
        score: scores one video on one dimension.
        known: scores that exist already.
        read: reads one video.
        progress: called with (scores done, scores in all, what is being scored).
        on_score: called with every new score.

    Returns:
        Scores in the order of the samples, and what could not be scored.
    """
    existing = {(s.dimension, s.path): s for s in known}
    asked = [[d for d in dimensions if _applies(sample, d)] for sample in samples]
    total, done = sum(map(len, asked)), 0
    scores: list[VideoScore] = []
    problems: list[Problem] = []
    for sample, names in zip(samples, asked, strict=True):
        path = str(sample.path)
        video: Video | None = None
        for name in names:
            if progress is not None:
                progress(done, total, f"{name}: {sample.path.name}")
            done += 1
            if (name, path) in existing:
                scores.append(existing[name, path])
                continue
            try:
                video = read(sample.path) if video is None else video
            except OneReelError as error:
                problems.append(Problem(video=path, dimension="", reason=str(error)))
                done += len(names) - names.index(name) - 1
                break
            found = _score_one(video, sample, name, score)
            if isinstance(found, Problem):
                problems.append(found)
                continue
            scores.append(found)
            if on_score is not None:
                on_score(found)
    if progress is not None:
        progress(total, total, "")
    return scores, problems


def collect(
    scores: Iterable[VideoScore],
    dimensions: Sequence[str],
    *,
    networks: Networks,
    problems: Iterable[Problem] = (),
    absent: Mapping[str, str] | None = None,
    remark: str = "",
) -> VBenchResult:
    """Average the scores of videos.

    Args:
        scores: of all videos, in their order; parts of a parallel run simply follow each other.
        dimensions: what was asked for.
        networks: the networks at hand.
        problems: what could not be scored.
        absent: what `not_computable` said.
        remark: put into every dimension's note.

    Returns:
        The result.
    """
    scores, problems = tuple(scores), tuple(problems)
    absent = absent or {}
    overall = {}
    for name in dimensions:
        if name in absent:
            overall[name] = missing(absent[name])
            continue
        measured = average([s for s in scores if s.dimension == name], DIMENSIONS[name].scale)
        lost = sum(p.dimension in (name, "") for p in problems)
        lost_note = f"{lost} videos could not be scored, see the problems" if lost else ""
        note = _joined(measured.note, lost_note, DIMENSIONS[name].note, remark)
        overall[name] = replace(measured, note=note)
    used = {need for name in dimensions for need in DIMENSIONS[name].needs}
    descriptions = {n: d for n, d in networks.descriptions().items() if n in used}
    return VBenchResult(dimensions=overall, scores=scores, problems=problems, networks=descriptions)


def average(scores: Sequence[VideoScore], scale: float = 1.0) -> Measurement:
    """Take the weighted mean over videos, with a 95 % bootstrap interval over prompts.

    Args:
        scores: of one dimension.
        scale: of the result.

    Returns:
        The measurement; without value when no video counts.
    """
    counted = [s for s in scores if s.weight > 0]
    if not counted:
        return missing("applies to none of the videos")
    groups = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt for s in counted))}
    sums, weights = np.zeros(len(groups)), np.zeros(len(groups))
    for s in counted:
        sums[groups[s.prompt]] += s.weight * s.value * scale
        weights[groups[s.prompt]] += s.weight
    drawn = np.random.default_rng(0).integers(0, len(groups), (_RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / weights[drawn].sum(1)
    low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
    mean = float(sums.sum() / weights.sum())
    return Measurement(mean=mean, low=low, high=high, num=len(counted))


def select_still(
    samples: Sequence[Sample],
    flow: PairNetwork,
    *,
    keep: int = _MAX_STILL,
    read: Reader = load_video,
    progress: Progress | None = None,
) -> tuple[list[Sample], list[Problem]]:
    """Choose the videos for temporal_flickering: still ones, at most five per prompt.

    Args:
        samples: usually 25 per prompt.
        flow: estimates optical flow.
        keep: videos per prompt.
        read: reads one video.
        progress: called with (videos done, videos in all, name).

    Returns:
        The chosen ones in their order, and videos that could not be read.
    """
    chosen: list[Sample] = []
    problems: list[Problem] = []
    kept: dict[str, int] = {}
    for i, sample in enumerate(samples):
        if progress is not None:
            progress(i, len(samples), sample.path.name)
        if kept.get(sample.prompt, 0) >= keep:
            continue
        try:
            still = is_still(read(sample.path).frames, flow)
        except OneReelError as error:
            problem = Problem(video=str(sample.path), dimension="", reason=str(error))
            problems.append(problem)
            continue
        if still:
            kept[sample.prompt] = kept.get(sample.prompt, 0) + 1
            chosen.append(sample)
    return chosen, problems


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _applies(sample: Sample, dimension: str) -> bool:
    return sample.dimensions is None or dimension in sample.dimensions


def _score_one(video: Video, sample: Sample, dimension: str, score: Score) -> VideoScore | Problem:
    path = str(sample.path)
    try:
        found = score(video, sample, dimension)
    except OneReelError as error:
        return Problem(video=path, dimension=dimension, reason=str(error))
    if not math.isfinite(found.value):
        reason = f"the score is {found.value} ({len(video.frames)} frames)"
        return Problem(video=path, dimension=dimension, reason=reason)
    return VideoScore(
        dimension=dimension,
        path=path,
        prompt=sample.prompt,
        value=found.value,
        weight=found.weight,
        details=found.details,
    )
