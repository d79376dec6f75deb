"""The videos of one model: a folder that is read, checked and never changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from onereel.core.errors import MediaError
from onereel.evaluation.physics_iq.clips import frame_count, plain_rate
from onereel.evaluation.physics_iq.dataset import PhysicsIqDataset
from onereel.media.video import VideoInfo, probe

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
_NUMBERED = re.compile(r"(\d{4})_.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """What lies in a model's folder.

    Args:
        path: the folder.
        videos: by the id of the first take; only those that can be scored.
        fps: of all videos; 0 when there is none.
        sizes: rows and columns, each once.
        problems: a line for everything that forbids a score.
        ignored: files that belong to no chosen scenario.
    """

    path: Path
    videos: Mapping[str, Path]
    fps: Fraction
    sizes: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the folder's own name, which results are filed under."""
        return self.path.resolve().name

    @property
    def num_frames(self) -> int:
        """Return how many frames of each video are compared."""
        return frame_count(self.fps) if self.fps else 0


def read_model_folder(dataset: PhysicsIqDataset, folder: str | Path) -> ModelFolder:
    """Look at a model's videos without decoding them.

    Args:
        dataset: says which videos there should be.
        folder: holds `{id}_{anything}.mp4`, one per view and scenario, flat.

    Returns:
        What was found, with every problem in words.

    Raises:
        MediaError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MediaError(f"model folder {folder}: no such folder")
    found, ignored = _by_id(dataset, folder)
    problems: list[str] = []
    infos: dict[str, VideoInfo] = {}
    for entry in dataset.entries:
        number = entry.ids[0]
        paths = found[number]
        if len(paths) == 1:
            try:
                infos[number] = _look(paths[0])
            except MediaError as error:
                problems.append(str(error))
        elif paths:
            names = ", ".join(path.name for path in paths)
            problems.append(f"id {number}: several videos, {names}")
        else:
            problems.append(f"missing: {folder / entry.generated_name}")
    rates = [plain_rate(info.fps) for info in infos.values()]
    fps = max(set(rates), key=rates.count) if rates else Fraction(0)
    for number, info in infos.items():
        problems += _misfits(found[number][0].name, info, fps)
    return ModelFolder(
        path=folder,
        videos={number: found[number][0] for number in infos},
        fps=fps,
        sizes=tuple(sorted({(info.height, info.width) for info in infos.values()})),
        problems=tuple(problems),
        ignored=ignored,
    )


def _by_id(
    dataset: PhysicsIqDataset, folder: Path
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    found: dict[str, list[Path]] = {entry.ids[0]: [] for entry in dataset.entries}
    ignored = []
    for path in sorted(folder.iterdir()):
        match = _NUMBERED.fullmatch(path.name)
        wanted = match is not None and match[1] in found and path.suffix.lower() in SUFFIXES
        if match is not None and wanted:
            found[match[1]].append(path)
        elif path.is_file() and not path.name.startswith("."):
            ignored.append(path.name)
    return found, tuple(ignored)


def _look(path: Path) -> VideoInfo:
    info = probe(path)
    if not info.has_video:
        raise MediaError(f"{path} holds no video", hint="give a file with a video stream")
    return info


def _misfits(name: str, info: VideoInfo, fps: Fraction) -> list[str]:
    """Say in which way a video is not five seconds at the common rate."""
    rate = plain_rate(info.fps)
    if rate != fps:
        return [f"{name}: {float(rate):g} fps, while most have {float(fps):g}"]
    if fps < 1:
        return [f"{name}: {float(fps):g} fps is less than 1"]
    # At 29.97 fps no whole number of frames lasts five seconds.
    allowed = {frame_count(fps), -int(-5 * fps // 1)}
    if info.num_frames not in allowed:
        wanted = " or ".join(str(count) for count in sorted(allowed))
        return [f"{name}: {info.num_frames} frames, expected {wanted} (5 s at {float(fps):g} fps)"]
    return []
