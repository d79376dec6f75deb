"""The inputs of every evaluation: folders of videos, read one video at a time.

A video is a file (MP4, GIF, WebM, ...), a folder of numbered images, or an `.npz` with an array
`frames` (also `video` or `arr_0`) of uint8 [F, H, W, 3] or floats in [0, 1], and `fps` if known.
Nothing here ever writes to, renames or moves an input.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError, MediaError, OneReelError
from onereel.media.image import image_size, load_image, require_file
from onereel.media.rate import exact_fps
from onereel.media.scale import Pixels
from onereel.media.video import probe, read_video

Progress = Callable[[int, int], None]

FILE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_ARRAY_NAMES = ("frames", "video", "arr_0")
_MAX_LISTED = 10
_GIF_TRAILER = b";"
# Rounding of times to milliseconds, and a last frame whose length is not stored.
_TOLERATED_FRAMES = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFile:
    """A video on disk, not read yet.

    Args:
        name: file name without suffix, or the image folder's name; pairs are made by it.
        path: the file or the folder of images.
        kind: how it is read.
    """

    name: str
    path: Path
    kind: Literal["file", "images", "array"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """A video in memory.

    Args:
        name: as in `VideoFile`.
        path: where it came from.
        frames: uint8 RGB [F, H, W, 3], F at least 1.
        fps: exact frame rate; None where the input does not tell.
    """

    name: str
    path: Path
    frames: Pixels
    fps: Fraction | None

    @property
    def resolution(self) -> str:
        """Name the size.

        Returns:
            Width x height, such as "64x48".
        """
        return f"{self.frames.shape[2]}x{self.frames.shape[1]}"


def list_videos(folder: str | Path) -> list[VideoFile]:
    """List the videos of a folder, sorted by name with numbers in counting order.

    Other files beside them are left alone, and so are saved episodes of the world.

    Args:
        folder: holds the videos; sub-folders count when images lie directly in them.

    Returns:
        The videos, at least one.

    Raises:
        MediaError: there is no such folder, no video in it, or two of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder", hint="check the path's spelling")
    entries = (p for p in folder.iterdir() if not p.name.startswith("."))
    found = sorted(
        (file for path in entries if (file := _as_video(path)) is not None),
        key=lambda file: (_counting_order(file.name), file.path.name),
    )
    if not found:
        hint = f"videos end in {', '.join(FILE_SUFFIXES)} or .npz; images of one video need a "
        raise MediaError(f"{folder} holds no videos", hint=f"{hint}folder of their own in it")
    names = [file.name for file in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MediaError(f"{folder}: several videos of one name", got=_listed(twice))
    return found


def load_video(source: VideoFile | str | Path) -> Video:
    """Read a whole video with every frame it has, at its own size and rate.

    Files go through ffmpeg's scaler to RGB; one with uneven frame times is laid out at its average
    rate. GIFs keep each stored frame once, and their rate is frames per total duration.

    Args:
        source: an entry of `list_videos`, or a path.

    Returns:
        The video.

    Raises:
        MediaError: it is missing, damaged, cut off, empty, of mixed sizes, or holds NaN.
    """
    if not isinstance(source, VideoFile):
        path = Path(source)
        file = _as_video(path)
        if file is None:
            require_file(path, "video")
            raise MediaError(f"{path} is not a video that can be read")
        source = file
    reader = {"file": _read_file, "images": _read_images, "array": _read_array}[source.kind]
    try:
        frames, fps = reader(source.path)
    except MediaError:
        raise
    except OneReelError as error:
        raise MediaError(f"video {source.path}: {error}") from error
    return Video(name=source.name, path=source.path, frames=frames, fps=fps)


def iterate_videos(
    files: Sequence[VideoFile],
    *,
    check: Callable[[Video], object] | None = None,
    progress: Progress | None = None,
) -> Iterator[Video]:
    """Read videos one after another, holding one at a time.

    After the first broken one the others are only checked, so that all are named at once.

    Args:
        files: what to read.
        check: called with each video; raises MediaError for one that cannot be scored.
        progress: called with (videos read, videos in all) after each.

    Yields:
        The videos in the given order.

    Raises:
        MediaError: at the end, naming every file that could not be read.
    """
    problems: list[str] = []
    for i, file in enumerate(files):
        try:
            video = load_video(file)
            if check is not None:
                check(video)
        except MediaError as error:
            problems.append(str(error))
        else:
            if not problems:
                yield video
        if progress is not None:
            progress(i + 1, len(files))
    refuse_problems(problems, num_files=len(files))


def refuse_problems(problems: Sequence[str], *, num_files: int) -> None:
    """Raise one error for all broken files.

    Args:
        problems: messages, one per broken file; empty is fine.
        num_files: how many files there were in all.

    Raises:
        MediaError: there are problems.
    """
    if problems:
        shown = "".join(f"\n  {text}" for text in problems[:_MAX_LISTED])
        more = len(problems) - _MAX_LISTED
        rest = f"\n  and {more} more" if more > 0 else ""
        raise MediaError(f"{len(problems)} of {num_files} videos cannot be scored{shown}{rest}")


def pair_videos(a: str | Path, b: str | Path) -> list[tuple[VideoFile, VideoFile]]:
    """Pair two folders by name, without regard to suffixes.

    Args:
        a: a folder of videos.
        b: another.

    Returns:
        Pairs, sorted as in `list_videos`.

    Raises:
        MediaError: a video has no partner, or a folder cannot be listed.
    """
    first, second = list_videos(a), list_videos(b)
    partners = {file.name: file for file in second}
    names = {file.name for file in first}
    absent = [
        f"{len(lost)} missing in {folder}: {_listed(lost)}"
        for folder, lost in (
            (b, [file.name for file in first if file.name not in partners]),
            (a, [file.name for file in second if file.name not in names]),
        )
        if lost
    ]
    if absent:
        raise MediaError(
            "the folders do not hold the same videos",
            expected="every name in both",
            got="; ".join(absent),
        )
    return [(file, partners[file.name]) for file in first]


def hash_input(path: str | Path) -> str:
    """Hash a file's bytes, or the names and hashes of all files of a folder.

    Args:
        path: a file, or a folder with files directly in it.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        MediaError: there is nothing to read.
    """
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            digest.update(f"{file.name}\0{hash_input(file)}\n".encode())
        return digest.hexdigest()
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error})") from error


def hash_videos(files: Sequence[VideoFile]) -> str:
    """Hash a set of videos: their names and contents.

    Args:
        files: the videos, in any order.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        MediaError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.path.name}\0{hash_input(file.path)}\n".encode())
    return digest.hexdigest()


def _as_video(path: Path) -> VideoFile | None:
    """What `path` is as a video; None when it is none."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return VideoFile(name=path.name, path=path, kind="images") if _images(path) else None
    if suffix in FILE_SUFFIXES:
        return VideoFile(name=path.stem, path=path, kind="file")
    if suffix == ".npz" and not _is_episode(path):
        return VideoFile(name=path.stem, path=path, kind="array")
    return None


def _is_episode(path: Path) -> bool:
    """Whether this is the simulator's record of a video rather than a video."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
    return {"state.npy", "meta.npy"} <= members and not _array_members(members)


def _array_members(members: set[str]) -> list[str]:
    return [name for name in _ARRAY_NAMES if f"{name}.npy" in members]


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((p for p in found if p.name[0] != "."), key=lambda p: _counting_order(p.name))


def _counting_order(name: str) -> list[tuple[int, str]]:
    """Key by which frame_2 comes before frame_10."""
    return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d+)", name)]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _read_file(path: Path) -> tuple[Pixels, Fraction | None]:
    if path.suffix.lower() == ".gif":
        return _read_gif(path)
    info = probe(path)
    if not info.has_video:
        raise MediaError(f"{path} holds no video", hint="give a file with a video stream")
    frames = read_video(path, height=info.height, width=info.width, fps=info.fps)
    declared = info.duration_s * float(info.fps)
    if _tells_duration(path) and len(frames) < declared - _TOLERATED_FRAMES:
        raise MediaError(
            f"video {path} is cut off",
            expected=f"{round(declared)} frames as it declares",
            got=f"{len(frames)} frames",
            hint="copy or download it again",
        )
    return frames, info.fps


def _tells_duration(path: Path) -> bool:
    """Whether the declared duration is the video's: some containers give only that of all streams.

    `read_video` itself accepts half a second less, which is a lot for a short video.
    """
    with av.open(str(path)) as container:
        return len(container.streams) == 1 or bool(container.streams.video[0].duration)


def _read_gif(path: Path) -> tuple[Pixels, Fraction | None]:
    """Decode a GIF frame by frame: its delays are hundredths, so no constant rate fits them."""
    require_file(path, "video")
    if path.read_bytes()[-1:] != _GIF_TRAILER:
        raise MediaError(f"video {path} is cut off", hint="copy or download it again")
    frames: list[Pixels] = []
    end = Fraction(0)
    try:
        with path.open("rb") as file, av.open(file, mode="r") as container:
            for frame in container.decode(video=0):
                base = frame.time_base or Fraction(1, 100)
                end = ((frame.pts or 0) + (frame.duration or 0)) * base
                frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"video {path} is damaged ({error})") from error
    if not frames:
        raise MediaError(f"video {path} holds no frames")
    return np.stack(frames), Fraction(len(frames)) / end if end > 0 else None


def _read_images(folder: Path) -> tuple[Pixels, Fraction | None]:
    paths = _images(folder)
    width, height = image_size(paths[0])
    frames = []
    for path in paths:
        # EXIF turns would make the header's size wrong, and frames of a video carry none.
        size = image_size(path)
        if size != (width, height):
            got = f"{size[0]}x{size[1]} in {path.name}"
            raise MediaError(f"images of {folder}", expected=f"{width}x{height}", got=got)
        frames.append(load_image(path, height=height, width=width, apply_orientation=False))
    return np.stack(frames), None


def _read_array(path: Path) -> tuple[Pixels, Fraction | None]:
    require_file(path, "video")
    try:
        # A file of our own: numpy leaves its own open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            names = [name for name in _ARRAY_NAMES if name in data.files]
            if len(names) != 1:
                got = ", ".join(data.files) or "nothing"
                raise MediaError(str(path), expected=f"one of {', '.join(_ARRAY_NAMES)}", got=got)
            frames, rate = data[names[0]], data["fps"] if "fps" in data.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise MediaError(f"video {path} is damaged ({error})") from error
    fps = None if rate is None else _rate(path, np.asarray(rate).ravel())
    return as_pixels(frames, name=str(path)), fps


def _rate(path: Path, values: npt.NDArray[Any]) -> Fraction:
    """A rate given as one number or as numerator and denominator."""
    numbers = [float(v) for v in values]
    if len(numbers) == 2 and numbers[1] > 0:
        return exact_fps(Fraction(numbers[0]) / Fraction(numbers[1]))
    if len(numbers) != 1:
        raise MediaError(f"{path}: fps", expected="one number or two", got=str(numbers))
    return exact_fps(numbers[0])


def as_pixels(frames: npt.NDArray[Any], *, name: str = "frames") -> Pixels:
    """Turn an array of frames into uint8, refusing what is no picture.

    Args:
        frames: uint8, or floats in [0, 1] which are rounded to 255 steps, [F, H, W, 3], F >= 1.
        name: of the video, for the message.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        MediaError: another shape or dtype, NaN, or values outside the range.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        got = str(list(frames.shape))
        raise MediaError(name, expected="frames of shape [F, H, W, 3]", got=got)
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind != "f":
        raise MediaError(name, expected="uint8 or float frames", got=str(frames.dtype))
    bad = [i for i, frame in enumerate(frames) if not np.isfinite(frame).all()]
    if bad:
        got = f"NaN or infinity in {len(bad)} of {len(frames)} frames, first {bad[0]}"
        raise MediaError(name, expected="finite values", got=got)
    low, high = float(frames.min()), float(frames.max())
    if low < 0 or high > 1:
        raise MediaError(name, expected="floats in [0, 1]", got=f"{low:g} to {high:g}")
    return np.floor(frames * 255.0 + 0.5).astype(np.uint8)


def choose_frames(video: Video, *, num_frames: int | None, stride: int = 1) -> Pixels:
    """Take the first frames of a video at a stride.

    Args:
        video: the video.
        num_frames: how many frames; None for all there are.
        stride: every how many-th frame, at least 1.

    Returns:
        uint8 [num_frames, H, W, 3].

    Raises:
        ConfigError: a number is below 1.
        MediaError: the video is too short.
    """
    if stride < 1 or (num_frames is not None and num_frames < 1):
        got = f"{num_frames} frames at stride {stride}"
        raise ConfigError("num_frames, stride", expected="at least 1", got=got)
    chosen = video.frames[::stride][:num_frames]
    if num_frames is not None and len(chosen) < num_frames:
        raise MediaError(
            f"video {video.path} is too short",
            expected=f"{num_frames} frames at stride {stride}",
            got=f"{len(video.frames)} frames",
        )
    return chosen
