"""The folder of a Toybox run: its settings, and a record and a picture per finished video."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onereel.core.config import from_mapping
from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.generate import Frames
from onereel.evaluation.report.result import read_json, write_json
from onereel.evaluation.toybox.tracks import Track, Tracking
from onereel.media import EncoderSettings, VideoWriter

_SETTINGS = "run.json"
_VIDEOS = "videos"
_ROWS = ("frames", "x", "y", "r", "cut", "rgb")
_INSTRUMENT = Path(__file__).parent
# Code that a record does not depend on.
_AFTERWARDS = ("aggregate.py", "floor.py", "records.py", "workers.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What was measured in one video.

    Args:
        values: numbers by name; NaN where one does not apply.
        curves: numbers over time by name.
        features: vectors of distribution distances by name.
        tracking: of the whole video, kept where samples are compared with each other.
    """

    values: Mapping[str, float]
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    features: Mapping[str, list[float]] = field(default_factory=dict)
    tracking: Tracking | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One finished video; stored as JSON, the numbers that are not finite as null.

    Args:
        name: of the case.
        seconds: of computing.
        frames_sha256: of the frames as they were scored.
        files: names within the folder of videos, by what they show.
        problem: why it was not scored; empty when it was.
        values: as in `Scores`.
        curves: as in `Scores`.
        features: as in `Scores`.
    """

    name: str
    seconds: float
    frames_sha256: str
    files: Mapping[str, str]
    problem: str = ""
    values: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    features: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


class RunFolder:
    """The files of a run.

    Args:
        path: the folder; created when missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def videos(self) -> Path:
        """Name the folder of videos and records.

        Returns:
            The path.
        """
        return self.path / _VIDEOS

    def claim(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Write the settings of a new run, or compare with those of the one to go on with.

        Args:
            settings: everything the videos and their scores depend on, as JSON values.
            resume: go on with a run that is there.

        Raises:
            ConfigError: there is a run and `resume` is False, or its settings are others.
        """
        file = self.path / _SETTINGS
        if not file.is_file():
            write_json(settings, file)
            return
        if not resume:
            raise ConfigError(
                f"{self.path} holds a run", hint="go on with it (--resume), or use another folder"
            )
        differing = differences(read_json(file), json.loads(json.dumps(settings)))
        if differing:
            raise ConfigError(
                f"{self.path} holds a run with other settings", got="; ".join(differing),
                hint="use another folder, or the settings of that run",
            )  # fmt: skip

    def record_file(self, name: str) -> Path:
        """Name the record of a video.

        Args:
            name: of the case.

        Returns:
            The path.
        """
        return self.videos / f"{name}.json"

    def read(self, name: str) -> Record | None:
        """Read the record of a video.

        Args:
            name: of the case.

        Returns:
            The record, or None when the video is not finished.
        """
        file = self.record_file(name)
        if not file.is_file():
            return None
        return from_mapping(Record, read_json(file), where=str(file))

    def write(self, record: Record) -> Record:
        """Write the record of a video; it is finished from then on.

        Args:
            record: what was found.

        Returns:
            The record as it will be read again.
        """
        write_json(asdict(record), self.record_file(record.name))
        stored = self.read(record.name)
        assert stored is not None
        return stored

    def save_tracking(self, name: str, tracking: Tracking) -> None:
        """Write where the objects of a video were.

        Args:
            name: of the case.
            tracking: of the video; its background is left out.
        """
        arrays: dict[str, Any] = {"camera": tracking.camera}
        tracks = []
        for number, found in enumerate(tracking.tracks):
            tracks.append([found.colour, found.shape, found.shape_iou])
            arrays |= {f"{number}.{key}": getattr(found, key) for key in _ROWS}
        meta = [tracking.height, tracking.width, tracking.fps, tracks]
        self.videos.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(self._tracking_file(name), meta=np.array(json.dumps(meta)), **arrays)

    def read_tracking(self, name: str) -> Tracking:
        """Read what `save_tracking` wrote.

        Args:
            name: of the case.

        Returns:
            The tracking, its background unknown and nothing covered.

        Raises:
            MediaError: the file is missing or damaged.
        """
        file = self._tracking_file(name)
        try:
            with np.load(file, allow_pickle=False) as data:
                height, width, fps, listed = json.loads(str(data["meta"]))
                tracks = tuple(
                    Track(
                        colour=colour,
                        shape=shape,
                        shape_iou=overlap,
                        **{key: data[f"{number}.{key}"] for key in _ROWS},
                    )
                    for number, (colour, shape, overlap) in enumerate(listed)
                )
                camera = data["camera"]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise MediaError(str(file), expected="the tracks of a video", got=error) from error
        return Tracking(
            tracks=tracks,
            camera=camera,
            background=np.full((height, width, 3), np.nan),
            covered=np.zeros((len(camera), height, width), dtype=bool),
            height=height,
            width=width,
            fps=fps,
        )

    def _tracking_file(self, name: str) -> Path:
        return self.videos / f"{name}-tracks.npz"

    def save_video(self, name: str, frames: Frames, *, fps: int) -> str:
        """Write frames to look at; scores are of the frames in memory.

        Args:
            name: of the file without suffix.
            frames: uint8 [F, H, W, 3].
            fps: frames per second.

        Returns:
            Name of the file.
        """
        file = self.videos / f"{name}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = frames.shape[1:3]
        settings = EncoderSettings(crf=12)
        with VideoWriter(file, width=width, height=height, fps=fps, settings=settings) as writer:
            writer.write(frames)
        return file.name


def differences(before: Any, after: Any, *, where: str = "") -> list[str]:
    """Say where two JSON values differ.

    Args:
        before: the old value.
        after: the new one.
        where: its name.

    Returns:
        Such as `sampling.num_steps was 8, is 16`, one per difference.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        texts = []
        for name in dict.fromkeys([*before, *after]):
            place = f"{where}.{name}".lstrip(".")
            texts += differences(before.get(name), after.get(name), where=place)
        return texts
    return [] if before == after else [f"{where} was {_short(before)}, is {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def instrument_hash() -> str:
    """Hash the code that scores, so that old and new scores are never mixed.

    Returns:
        The first 16 digits of a SHA-256 over the world's code, the code beside this file that
        videos and their scores depend on, and the classifier's weights.
    """
    world = _INSTRUMENT.parents[1] / "world"
    files = [*_INSTRUMENT.glob("*.py"), *_INSTRUMENT.glob("*.safetensors"), *world.glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.name not in _AFTERWARDS:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def frames_hash(frames: Frames) -> str:
    """Hash a video's frames.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        SHA-256 in hexadecimal over shape and bytes.
    """
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(frames.tobytes())
    return digest.hexdigest()
