"""VBench-Long: a long video is cut into clips, each is scored, and the clips are averaged.

Source:
    spec/evaluation.md 5.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.vbench import features, preprocess
from onereel.evaluation.vbench.dimensions import DIMENSIONS, Scored, embed
from onereel.evaluation.vbench.evaluate import (
    Keeper,
    Progress,
    Reader,
    VBenchResult,
    VideoScore,
    check_dimensions,
    collect,
    not_computable,
    score_samples,
    with_missing,
)
from onereel.evaluation.vbench.networks import Networks
from onereel.evaluation.vbench.suite import Sample, SampleSet, custom_samples, refuse_not_custom
from onereel.evaluation.videos import FILE_SUFFIXES, Video, load_video

# Takes a video file, gives the frames at which a new scene starts.
CutFinder = Callable[[Path], Sequence[int]]

CLIP_S, LONG_CLIP_S = 2.0, 10.0
LONG_CLIP_DIMENSIONS = ("human_action", "temporal_style", "overall_consistency")

_CUT_THRESHOLD = 27.0
_PAIR = re.compile(r"['\"]?(\d*\.?\d+)['\"]?\s*:\s*(-?\d*\.?\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LongSettings:
    """How long videos are cut and fused.

    Args:
        find_cuts: finds scene cuts; None looks for scenedetect and says so when it is absent. Give
            `no_cuts` for videos that are one scene.
        tables: `read_mapping` of the official tables for subject_consistency and
            background_consistency; without one these are averages over clips only.
    """

    find_cuts: CutFinder | None = None
    tables: Mapping[str, features.Floats] = field(default_factory=dict)


def evaluate_long(
    videos: str | Path | SampleSet,
    *,
    dimensions: Sequence[str],
    networks: Networks,
    settings: LongSettings | None = None,
    known: Iterable[VideoScore] = (),
    read: Reader = load_video,
    progress: Progress | None = None,
    on_score: Keeper | None = None,
) -> VBenchResult:
    """Score long videos.

    Args:
        videos: as in `evaluate_folder`.
        dimensions: names of `DIMENSIONS`.
        networks: the networks at hand.
        settings: how to cut and fuse; None is the default.
        known: scores of an earlier run.
        read: reads one video.
        progress: called with (scores done, scores in all, what is being scored).
        on_score: called with every new score.

    Returns:
        As `evaluate_folder`; every long video counts once, and its details list its clips.

    Raises:
        ConfigError: a dimension is unknown, or needs an official list.
        MediaError: the folder is missing or empty.
    """
    settings = settings or LongSettings()
    check_dimensions(dimensions)
    if not isinstance(videos, SampleSet):
        refuse_not_custom(dimensions)
        videos = custom_samples(videos)
    find_cuts, remark = _cut_finder(settings)
    absent = not_computable(dimensions, networks, samples=videos.samples)

    def score(video: Video, sample: Sample, dimension: str) -> Scored:
        cuts = find_cuts(sample.path)
        return score_long(
            video, sample, dimension=dimension, networks=networks, cuts=cuts, tables=settings.tables
        )

    scores, problems = score_samples(
        videos.samples,
        [name for name in dimensions if name not in absent],
        score=score,
        known=known,
        read=read,
        progress=progress,
        on_score=on_score,
    )
    result = collect(
        scores, dimensions, networks=networks, problems=problems, absent=absent, remark=remark
    )
    return with_missing(result, videos.missing)


def score_long(
    video: Video,
    sample: Sample,
    *,
    dimension: str,
    networks: Networks,
    cuts: Sequence[int] = (),
    tables: Mapping[str, features.Floats] | None = None,
) -> Scored:
    """Score one long video on one dimension.

    Args:
        video: the video.
        sample: what it is.
        dimension: name of the dimension.
        networks: those that the dimension needs.
        cuts: frames at which a new scene starts.
        tables: see `LongSettings`.

    Returns:
        The mean over clips; clips to which the dimension does not apply are left out.

    Raises:
        MediaError: the frame rate is not known.
    """
    if video.fps is None:
        hint = "give a video file, or an .npz with fps"
        raise MediaError(f"{video.path}", expected="a known frame rate", got="none", hint=hint)
    seconds = LONG_CLIP_S if dimension in LONG_CLIP_DIMENSIONS else CLIP_S
    size = round(float(video.fps) * seconds)
    spans = split(len(video.frames), size, cuts=cuts)
    clips = [replace(video, frames=video.frames[a:b]) for a, b in spans]
    found = [DIMENSIONS[dimension].score(clip, sample, networks) for clip in clips]
    names = clip_names(video.name, len(spans), is_whole=len(video.frames) < size)
    details: dict[str, Any] = {
        "cuts": list(cuts),
        "clips": [
            {"name": name, "frames": list(span), "value": _number(s.value)}
            for name, span, s in zip(names, spans, found, strict=True)
        ],
    }
    if "type" in found[0].details:
        details["type"] = found[0].details["type"]
    values = [s.value for s in found if s.weight > 0 and math.isfinite(s.value)]
    if not values:
        counts = any(s.weight > 0 for s in found)
        return Scored(value=float("nan") if counts else 0.0, weight=float(counts), details=details)
    value = float(np.mean(values))
    table = (tables or {}).get(dimension)
    if table is not None and len(clips) > 1:
        value, between = _fuse(value, [clip.frames[0] for clip in clips], table, networks)
        details.update(between)
    return Scored(value=value, details=details)


def split(num_frames: int, size: int, *, cuts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Cut a video into clips of one size.

    Args:
        num_frames: of the video.
        size: frames per clip.
        cuts: frames at which a new scene starts; no clip crosses one.

    Returns:
        (start, end) of each clip. A shorter rest of a scene is made whole by going back into the
        clip before it; a scene shorter than one clip stays as it is.

    Raises:
        ConfigError: a number is not positive.
    """
    if num_frames < 1 or size < 1:
        raise ConfigError("frames, size", expected="at least 1", got=f"{num_frames}, {size}")
    inner = sorted({cut for cut in cuts if 0 < cut < num_frames})
    bounds = [0, *inner, num_frames]
    spans: list[tuple[int, int]] = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        spans += [(i, i + size) for i in range(start, end - size + 1, size)]
        if end - start < size:
            spans.append((start, end))
        elif (end - start) % size:
            spans.append((end - size, end))
    return spans


def clip_names(name: str, num_clips: int, *, is_whole: bool) -> list[str]:
    """Name clips as the official tool does.

    Args:
        name: of the video, without suffix.
        num_clips: how many.
        is_whole: the video is shorter than one clip and was kept whole.

    Returns:
        File names.
    """
    if is_whole and num_clips == 1:
        return [f"{name}_full.mp4"]
    return [f"{name}_{i:03d}.mp4" for i in range(num_clips)]


def no_cuts(path: Path) -> Sequence[int]:
    """Find no scene cuts.

    Args:
        path: is not looked at.

    Returns:
        Nothing.
    """
    return ()


def installed_cut_finder() -> CutFinder | None:
    """Look for PySceneDetect, which finds scene cuts by content.

    Returns:
        A function that uses it, or None when it is not installed.
    """
    name = "scenedetect"  # optional, never a dependency: it brings opencv
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError:
        return None

    def find(path: Path) -> Sequence[int]:
        detector = package.ContentDetector(threshold=_CUT_THRESHOLD)
        scenes = package.detect(str(path), detector)
        return [int(start.frame_num) for start, _ in scenes]

    return find


def read_mapping(path: str | Path) -> features.Floats:
    """Read `subject_mapping_table.yaml` or `background_mapping_table.yaml`.

    Args:
        path: the file, from the user's copy of the official repository; any text with pairs
            `number: number`.

    Returns:
        (score between clips, mapped score), ascending, [N, 2].

    Raises:
        ConfigError: the file cannot be read or holds no such table.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable table ({error})") from error
    table = np.array([[float(x), float(y)] for x, y in _PAIR.findall(text)]).reshape(-1, 2)
    if len(table) < 2 or (np.diff(table[:, 0]) <= 0).any():
        expected = "ascending pairs `number: number`"
        raise ConfigError(f"{path}", expected=expected, got=f"{len(table)} pairs")
    return table


def fuse(in_clip: float, between: float, *, table: features.Floats) -> float:
    """Mix the score within clips with the one between clips.

    Args:
        in_clip: mean over clips.
        between: score of the video that the clips' first frames make.
        table: what `read_mapping` gave.

    Returns:
        Half of each, the second mapped; a mapped value of exactly 0 leaves the first alone.
    """
    mapped = float(np.interp(between, table[:, 0], table[:, 1]))
    return in_clip if mapped == 0 else 0.5 * in_clip + 0.5 * mapped


def _fuse(
    in_clip: float, firsts: list[features.Pixels], table: features.Floats, networks: Networks
) -> tuple[float, dict[str, Any]]:
    if networks.dino is None:
        raise ConfigError("the mapping tables", expected="DINO", hint=networks.lacking(["dino"]))
    # DINO is one of the official choices for this branch, for subject and background alike.
    found = embed(np.stack(firsts), networks.dino, prepare=preprocess.dino_frames)
    between = float(features.consistency(found).mean())
    value = fuse(in_clip, between, table=table)
    return value, {"in_clip": in_clip, "between_clips": between}


def _cut_finder(settings: LongSettings) -> tuple[CutFinder, str]:
    """A function that looks at every video once, and what it cannot do."""
    find = settings.find_cuts or installed_cut_finder()
    if find is None:
        return (
            no_cuts,
            "fixed clips: scenedetect is not installed, so no scene cuts were looked for",
        )

    def look(path: Path) -> Sequence[int]:
        return find(path) if path.suffix.lower() in FILE_SUFFIXES else ()

    return functools.cache(look), "scene cuts are looked for in video files only"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
