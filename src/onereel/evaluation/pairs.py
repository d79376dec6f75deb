"""Videos against their references, frame by frame: PSNR, SSIM and LPIPS on two folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError, MediaError, OneReelError
from onereel.evaluation.measure import Measurement, missing, summarize
from onereel.evaluation.networks.lpips import Lpips, lpips_frames
from onereel.evaluation.quality import psnr, ssim
from onereel.evaluation.videos import (
    Progress,
    Video,
    VideoFile,
    choose_frames,
    hash_videos,
    load_video,
    pair_videos,
    refuse_problems,
)
from onereel.media.scale import Pixels

# Metric -> (unit, what exactly it is).
METRICS = {
    "psnr": ("dB", "variant per_frame: mean over frames of each frame's PSNR; 100 without error"),
    "psnr_global": ("dB", "variant global: PSNR of the mean squared error over all frames"),
    "ssim": ("", "Gaussian 11x11, sigma 1.5, valid region, per RGB channel, float64"),
    "lpips": ("", "version 0.1, mean over frames"),
}
DEFAULT_METRICS = ("psnr", "ssim")
_NEEDS_LPIPS = (
    "not computed: needs a backbone (AlexNet 244 MB or VGG16 553 MB, BSD-3-Clause) and the LPIPS "
    "heads (8 kB, BSD-2-Clause) as files"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRow:
    """One video and its reference.

    Args:
        name: of both.
        values: by metric.
        num_frames: frames compared.
        resolution: width x height.
        fps: of the video, "unknown" where it does not tell.
        fps_reference: of the reference.
    """

    name: str
    values: dict[str, float]
    num_frames: int
    resolution: str
    fps: str
    fps_reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PairResult:
    """Two folders compared.

    Args:
        metrics: mean over videos, by metric; without value where something is missing.
        rows: one per pair that was scored.
        problems: one message per pair that was not.
        sha256: of the two sets, and of the weights by file name.
    """

    metrics: dict[str, Measurement]
    rows: tuple[PairRow, ...]
    problems: tuple[str, ...]
    sha256: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values.

        Returns:
            All fields by name.
        """
        return asdict(self)


def evaluate_pair(
    videos: str | Path,
    references: str | Path,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    lpips: Lpips | None = None,
    num_frames: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> PairResult:
    """Compare the videos of two folders, paired by name.

    Args:
        videos: folder of the videos to judge.
        references: folder of what they should be.
        metrics: names out of `METRICS`.
        lpips: network with weights, needed for "lpips".
        num_frames: compare the first so many frames; None compares all, and counts must agree.
        batch_size: frames at once through the network; bounds memory.
        progress: called with (pairs done, pairs in all).

    Returns:
        Means with intervals over videos; pairs that cannot be scored are named in `problems`.

    Raises:
        MediaError: a video has no partner, or not one pair can be scored.
        ConfigError: an unknown metric.
    """
    for name in metrics:
        _check_metric(name)
    pairs = pair_videos(videos, references)
    computed = [name for name in metrics if name != "lpips" or lpips is not None]
    rows, problems = [], []
    for i, pair in enumerate(pairs):
        try:
            first, second = _load_pair(pair, num_frames)
            values = {
                name: _score(name, first.frames, second.frames, lpips, batch_size)
                for name in computed
            }
        except OneReelError as error:
            problems.append(f"{pair[0].name}: {error}")
        else:
            rows.append(_row(first, second, values))
        if progress is not None:
            progress(i + 1, len(pairs))
    if not rows:
        refuse_problems(problems, num_files=len(pairs))
    hashes = {
        "videos": hash_videos([a for a, _ in pairs]),
        "references": hash_videos([b for _, b in pairs]),
        **(lpips.sha256 if lpips is not None and "lpips" in metrics else {}),
    }
    return PairResult(
        metrics={name: _summary(name, rows, problems, lpips) for name in metrics},
        rows=tuple(rows),
        problems=tuple(problems),
        sha256=hashes,
    )


def _check_metric(name: str) -> None:
    if name not in METRICS:
        near = nearest_name(name, METRICS)
        hint = f"did you mean '{near}'?" if near else None
        raise ConfigError("metrics", expected=f"some of {', '.join(METRICS)}", got=name, hint=hint)


def _load_pair(pair: tuple[VideoFile, VideoFile], num_frames: int | None) -> tuple[Video, Video]:
    first, second = (
        replace(video, frames=choose_frames(video, num_frames=num_frames))
        for video in map(load_video, pair)
    )
    if first.frames.shape != second.frames.shape:
        sizes = (f"{len(video.frames)} frames of {video.resolution}" for video in (second, first))
        expected, got = sizes
        raise MediaError(str(first.path), expected=f"{expected} as its reference", got=got)
    return first, second


def _score(
    name: str, video: Pixels, reference: Pixels, network: Lpips | None, batch_size: int
) -> float:
    if name == "psnr":
        return psnr(video, reference)
    if name == "psnr_global":
        return psnr(video, reference, variant="global")
    if name == "ssim":
        return ssim(video, reference)
    assert network is not None
    distances: npt.NDArray[Any] = lpips_frames(
        network, video, reference=reference, batch_size=batch_size
    )
    return float(distances.mean())


def _row(video: Video, reference: Video, values: dict[str, float]) -> PairRow:
    fps, wanted = ("unknown" if v.fps is None else str(v.fps) for v in (video, reference))
    return PairRow(
        name=video.name,
        values=values,
        num_frames=len(video.frames),
        resolution=video.resolution,
        fps=fps,
        fps_reference=wanted,
    )


def _summary(
    name: str, rows: Sequence[PairRow], problems: Sequence[str], network: Lpips | None
) -> Measurement:
    unit, meaning = METRICS[name]
    if name == "lpips" and network is None:
        return missing(_NEEDS_LPIPS)
    measured = summarize([row.values[name] for row in rows], unit=unit)
    notes = [meaning]
    if name == "lpips" and network is not None:
        notes.append(f"backbone {network.net}")
    sizes = dict.fromkeys(f"{row.num_frames} frames of {row.resolution}" for row in rows)
    notes.append(" or ".join(sizes))
    differing = [row.name for row in rows if row.fps != row.fps_reference]
    if differing:
        notes.append(f"frame rates differ from the references' in {len(differing)} videos")
    if problems:
        notes.append(f"{len(problems)} of {len(rows) + len(problems)} pairs not scored")
    return replace(measured, note="; ".join(notes))
