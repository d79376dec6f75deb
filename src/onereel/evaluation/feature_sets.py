"""What FVD and FID share: the features of a folder of videos, and the distance of two folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onereel.core.errors import ConfigError, MediaError, ShapeError
from onereel.evaluation.distances import (
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    Features,
    Moments,
    RunningMoments,
    frechet_from_moments,
    polynomial_mmd,
    polynomial_mmd_subsets,
)
from onereel.evaluation.measure import Measurement
from onereel.evaluation.videos import (
    Progress,
    Video,
    VideoFile,
    hash_videos,
    iterate_videos,
    list_videos,
)
from onereel.media.scale import Pixels

Mmd = Literal["subsets", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSet:
    """The features of one folder.

    Args:
        moments: mean and covariance of the feature vectors.
        features: the vectors [n, d]; None when they were not kept.
        num_videos: videos read.
        num_frames: frames taken of each video; several when videos differ.
        resolutions: sizes of the videos as they were on disk.
        fps: their frame rates, "unknown" where an input does not tell.
        sha256: of the videos' names and contents.
    """

    moments: Moments
    features: Features | None
    num_videos: int
    num_frames: tuple[int, ...]
    resolutions: tuple[str, ...]
    fps: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DistanceResult:
    """A distance between two folders, with all that one must know to compare it with another.

    Args:
        kind: "fvd", "kvd", "fid" or "kid".
        value: the distance.
        spread: standard deviation over subsets; None for other kinds.
        convention: preprocessing by name, and in words.
        num_real: feature vectors of the real set.
        num_fake: feature vectors of the generated set.
        dim: length of a feature vector.
        num_frames: frames taken of each video; several when videos differ.
        stride: of the frames taken.
        resolution_real: sizes of the real videos on disk.
        resolution_fake: sizes of the generated videos on disk.
        fps_real: their rates.
        fps_fake: their rates.
        network: where the features come from.
        sha256: of `real`, `fake` and, where it is a file, `network`.
        notes: what limits the value.
    """

    kind: str
    value: float
    spread: float | None
    convention: str
    num_real: int
    num_fake: int
    dim: int
    num_frames: tuple[int, ...]
    stride: int
    resolution_real: tuple[str, ...]
    resolution_fake: tuple[str, ...]
    fps_real: tuple[str, ...]
    fps_fake: tuple[str, ...]
    network: str
    sha256: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values.

        Returns:
            All fields by name.
        """
        return asdict(self)

    def to_measurement(self) -> Measurement:
        """Give the value with its conditions as the note.

        Returns:
            A measurement without interval: a distance is one number of the whole set.
        """
        conditions = [
            self.convention,
            f"n {self.num_real} real, {self.num_fake} generated",
            f"d {self.dim}",
            f"frames {_joined(self.num_frames)} at stride {self.stride}",
            f"{_joined(self.resolution_real)} real, {_joined(self.resolution_fake)} generated",
            f"network {self.network}",
            *([] if self.spread is None else [f"spread over subsets {self.spread:.4g}"]),
            *self.notes,
        ]
        num = min(self.num_real, self.num_fake)
        return Measurement(mean=self.value, num=num, note="; ".join(conditions))


@dataclass(frozen=True, kw_only=True, slots=True)
class Extractor:
    """How features are taken, and what to say about it.

    Args:
        select: gives the frames uint8 [F, H, W, 3] of a video that its features are taken from;
            raises MediaError when there are too few.
        extract: gives features [n, d] of a batch of such frames of equal shape.
        batch_size: videos per batch.
        stride: of the frames taken, for the result.
        convention: preprocessing by name, and in words.
        network: where the features come from.
        network_sha256: of the network's file; None where it is no file.
        mixed: let sizes and frame counts differ inside a set.
    """

    select: Callable[[Video], Pixels]
    extract: Callable[[list[Pixels]], Features]
    batch_size: int
    stride: int
    convention: str
    network: str
    network_sha256: str | None = None
    mixed: bool = False


class SameShape:
    """A check that all videos of a set have one size and give one number of frames.

    Args:
        extractor: selects the frames, and tells whether sizes and counts may differ.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._first = ""
        self.resolutions: dict[str, None] = {}
        self.num_frames: dict[int, None] = {}
        self.fps: dict[str, None] = {}

    def __call__(self, video: Video) -> None:
        """Check a video.

        Args:
            video: the next one.

        Raises:
            MediaError: it differs from the first, or has too few frames.
        """
        count = len(self._extractor.select(video))
        same = video.resolution in self.resolutions and count in self.num_frames
        if self._first and not same and not self._extractor.mixed:
            raise MediaError(
                f"video {video.path}",
                expected=f"{_joined(self.num_frames)} frames of {_joined(self.resolutions)} "
                f"as in {self._first}",
                got=f"{count} frames of {video.resolution}",
            )
        self._first = self._first or video.path.name
        self.resolutions[video.resolution] = None
        self.num_frames[count] = None
        self.fps["unknown" if video.fps is None else str(video.fps)] = None


def compare_sets(
    real: str | Path,
    fake: str | Path,
    *,
    extractor: Extractor,
    kinds: tuple[str, str],
    mmd: Mmd | None = None,
    progress: Progress | None = None,
) -> dict[str, DistanceResult]:
    """Take the distances between two folders of videos.

    Args:
        real: folder of the real videos.
        fake: folder of the generated videos.
        extractor: gives the features.
        kinds: names of the Fréchet distance and of the MMD, such as ("fvd", "kvd").
        mmd: take the MMD, too: over random subsets, or over all vectors at once; None leaves it
            out, and the vectors need not be kept.
        progress: called with (videos read, videos in both folders).

    Returns:
        Results by kind.

    Raises:
        MediaError: videos that cannot be scored, all of them named.
        ConfigError: fewer than two vectors in a set.
        ShapeError: the network gave something else than finite vectors.
    """
    files = list_videos(real), list_videos(fake)
    total = len(files[0]) + len(files[1])
    sets = []
    for offset, listed in zip((0, len(files[0])), files, strict=True):
        report = None if progress is None else _shifted(progress, offset, total)
        sets.append(collect_features(listed, extractor=extractor, keep=bool(mmd), progress=report))
    a, b = sets
    if min(a.moments.num, b.moments.num) < 2:
        got = f"{a.moments.num} real and {b.moments.num} generated"
        raise ConfigError("features", expected="at least 2 vectors in each set", got=got)
    value = frechet_from_moments(a.moments, b.moments)
    results = {kinds[0]: _result(kinds[0], value, (a, b), extractor)}
    if mmd is not None and a.features is not None and b.features is not None:
        if mmd == "all":
            value, spread = polynomial_mmd(a.features, b.features), None
            note = "all vectors at once"
        else:
            values = polynomial_mmd_subsets(a.features, b.features)
            value, spread = float(values.mean()), float(values.std())
            size = min(KID_SUBSET_SIZE, a.moments.num, b.moments.num)
            note = f"{KID_SUBSETS} subsets of {size}"
        results[kinds[1]] = _result(kinds[1], value, (a, b), extractor, spread, note)
    return results


def collect_features(
    files: Sequence[VideoFile],
    *,
    extractor: Extractor,
    keep: bool,
    progress: Progress | None = None,
) -> FeatureSet:
    """Take the features of all videos, holding one batch in memory.

    Args:
        files: the videos.
        extractor: gives the features.
        keep: keep the vectors, which the MMD needs.
        progress: called with (videos read, videos in all).

    Returns:
        The features.

    Raises:
        MediaError: videos that cannot be scored, all of them named.
        ShapeError: the network gave something else than finite vectors.
    """
    running = RunningMoments()
    kept: list[Features] = []
    check = SameShape(extractor)
    videos = iterate_videos(files, check=check, progress=progress)
    for names, batch in _batches(videos, extractor):
        features = extractor.extract(batch)
        _check_features(features, names)
        running.update(features)
        if keep:
            kept.append(features)
    return FeatureSet(
        moments=running.result(),
        features=np.concatenate(kept) if keep else None,
        num_videos=len(files),
        num_frames=tuple(check.num_frames),
        resolutions=tuple(check.resolutions),
        fps=tuple(check.fps),
        sha256=hash_videos(files),
    )


def _batches(
    videos: Iterable[Video], extractor: Extractor
) -> Iterator[tuple[list[str], list[Pixels]]]:
    """Group videos into batches of one shape."""
    names: list[str] = []
    batch: list[Pixels] = []
    for video in videos:
        frames = extractor.select(video)
        if batch and (len(batch) == extractor.batch_size or batch[-1].shape != frames.shape):
            yield names, batch
            names, batch = [], []
        names.append(video.name)
        batch.append(frames)
    if batch:
        yield names, batch


def _result(
    kind: str,
    value: float,
    sets: tuple[FeatureSet, FeatureSet],
    extractor: Extractor,
    spread: float | None = None,
    note: str = "",
) -> DistanceResult:
    a, b = sets
    dim, num = len(a.moments.mean), min(a.moments.num, b.moments.num)
    notes = [note] if note else []
    if not note and num < dim:
        notes.append(f"biased upwards: fewer vectors ({num}) than dimensions ({dim})")
    if a.fps != b.fps:
        notes.append(f"frame rates differ: {_joined(a.fps)} real, {_joined(b.fps)} generated")
    if len({*a.num_frames, *b.num_frames}) > 1:
        notes.append("frame counts differ")
    hashes = {"real": a.sha256, "fake": b.sha256, "network": extractor.network_sha256}
    return DistanceResult(
        kind=kind,
        value=value,
        spread=spread,
        convention=extractor.convention,
        num_real=a.moments.num,
        num_fake=b.moments.num,
        dim=dim,
        num_frames=tuple(dict.fromkeys((*a.num_frames, *b.num_frames))),
        stride=extractor.stride,
        resolution_real=a.resolutions,
        resolution_fake=b.resolutions,
        fps_real=a.fps,
        fps_fake=b.fps,
        network=extractor.network,
        sha256={name: value for name, value in hashes.items() if value is not None},
        notes=tuple(notes),
    )


def _shifted(progress: Progress, offset: int, total: int) -> Progress:
    return lambda done, _: progress(offset + done, total)


def _check_features(features: Features, names: list[str]) -> None:
    if features.ndim != 2:
        got = str(list(features.shape))
        raise ShapeError("features of the network", expected="[n, d]", got=got)
    if not np.isfinite(features).all():
        got = f"NaN or infinity in the batch of {', '.join(names)}"
        raise ShapeError("features of the network", expected="finite numbers", got=got)


def _joined(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in values)
