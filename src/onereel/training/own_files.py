"""A folder of somebody's videos and pictures with captions: what is in it, what of it can be used.

Captions stand in text files beside (`clip.mp4`, `clip.txt`) or in one JSONL file, a line per video
or picture: `{"file": "clip.mp4", "caption": "a dog runs"}`. What cannot be used is listed and left
out; only data of which nothing can be used is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from onereel.core.errors import ConfigError, MediaError
from onereel.core.files import write_atomically
from onereel.media import check_input_image, check_input_video
from onereel.media.scale import Policy
from onereel.training.latent_cache import CHUNK_FRAMES

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
INDEX = "metadata.jsonl"
REPORT = "data-report.json"
_MIN_SIDE = 16
_CUT_SHARE, _ENLARGED = 0.1, 2.0  # from here on a size is worth a note
_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShape:
    """What all videos and pictures are brought to.

    Args:
        width: columns.
        height: rows.
        fps: frames per second.
        policy: `crop` fills and cuts the centre, `fit` stretches, `pad` adds black bars.
    """

    width: int
    height: int
    fps: int
    policy: Policy

    def __post_init__(self) -> None:
        for name, size in (("width", self.width), ("height", self.height)):
            if size < _MIN_SIDE or size % _MIN_SIDE:
                raise ConfigError(
                    name, expected="a multiple of 16", got=size,
                    hint=f"use {max(_MIN_SIDE, round(size / _MIN_SIDE) * _MIN_SIDE)}",
                )  # fmt: skip
        if self.policy not in ("crop", "fit", "pad"):
            raise ConfigError("policy", expected="crop, fit or pad", got=self.policy)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFile:
    """One usable video or picture.

    Args:
        name: path within the data folder.
        path: where it is.
        kind: `video` or `picture`.
        caption: what it shows.
        prior: it shows what the model makes already.
    """

    name: str
    path: Path
    kind: Literal["video", "picture"]
    caption: str
    prior: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to know about a file: why it is left out, or what happens to it."""

    file: str
    text: str


@dataclass(kw_only=True, slots=True)
class DataReport:
    """What a data folder holds.

    Args:
        data: the folder or JSONL file.
        files: what can be used.
        skipped: what cannot, and why.
        notes: what is used though there is something to know about it.
        ignored: files that no caption names, or that are neither video, picture nor text.
        told: findings that `lines` has yielded: left out, notes.
    """

    data: Path
    files: list[OwnFile] = field(default_factory=list)
    skipped: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    told: tuple[int, int] = (0, 0)

    def skip(self, file: str, text: str) -> None:
        """Leave a file out.

        Args:
            file: its name.
            text: why.
        """
        self.skipped.append(Finding(file=file, text=text))
        self.files = [other for other in self.files if other.name != file]

    def add_prior(self, other: DataReport) -> None:
        """Take in what the model makes already; its names begin with `prior/`.

        Args:
            other: the report of that folder, whose findings have been told.
        """

        def named(found: list[Finding]) -> list[Finding]:
            return [replace(finding, file=f"prior/{finding.file}") for finding in found]

        files = (replace(file, name=f"prior/{file.name}", prior=True) for file in other.files)
        self.files += files
        self.skipped += named(other.skipped)
        self.notes += named(other.notes)
        self.ignored += [f"prior/{name}" for name in other.ignored]
        self.told = len(self.skipped), len(self.notes)

    def count(self, kind: str) -> int:
        """Count the usable files of a kind."""
        return sum(file.kind == kind for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "data": str(self.data),
            "videos": self.count("video"),
            "pictures": self.count("picture"),
            "skipped": [asdict(finding) for finding in self.skipped],
            "notes": [asdict(finding) for finding in self.notes],
            "ignored": self.ignored,
        }

    def save(self, folder: Path) -> None:
        """Write `data-report.json`.

        Args:
            folder: where to.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False).encode()
        write_atomically(folder / REPORT, lambda file: file.write(text))

    def lines(self) -> Iterator[str]:
        """Say what was found since the last call, a line each; long lists are cut.

        Yields:
            Lines for the screen; none when there is nothing new.
        """
        findings = (self.skipped[self.told[0] :], self.notes[self.told[1] :])
        self.told = len(self.skipped), len(self.notes)
        for word, found in zip(("left out", "note"), findings, strict=True):
            for finding in found[:_SHOWN]:
                yield f"{word}: {finding.file}: {finding.text}"
            if len(found) > _SHOWN:
                yield f"{word}: {len(found) - _SHOWN} more, listed in {REPORT}"

    def summary(self) -> str:
        """Say in a line how much can be used."""
        text = f"{self.count('video')} videos and {self.count('picture')} pictures can be used"
        for findings, words in ((self.skipped, "left out"), (self.ignored, "other files ignored")):
            text += f", {len(findings)} {words}" if findings else ""
        return f"data {self.data}: {text}"

    def require_usable(self) -> None:
        """Refuse data of which nothing can be used.

        Raises:
            ConfigError: there is no usable file but those of the prior.
        """
        if all(file.prior for file in self.files):
            first = self.skipped[0] if self.skipped else Finding(file="", text="no file")
            raise ConfigError(
                f"data {self.data}",
                expected="at least one usable video or picture with a caption",
                got=f"{len(self.skipped)} that cannot be used, such as {first.file}: {first.text}",
                hint=f"{REPORT} in the run's folder lists them all",
            )


def scan_data(data: Path, shape: DataShape) -> DataReport:
    """Find the videos and pictures of a folder, open each, and say what can be used.

    Args:
        data: a folder, or a JSONL file.
        shape: what they will be brought to.

    Returns:
        The report, possibly without a usable file.

    Raises:
        ConfigError: there is no such folder, nothing in it, or its JSONL has a broken line.
    """
    report = DataReport(data=data)
    for name, path, caption in _entries(data, report):
        kind = _kind(path)
        try:
            if kind is None:
                known = ", ".join(suffix[1:] for suffix in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))
                raise MediaError("unknown kind of file", expected=known, got=path.suffix or "none")
            size = check_input_image(path) if kind == "picture" else _video_size(path, shape.fps)
            if min(size) < _MIN_SIDE:
                raise MediaError(
                    "too small", expected=f"at least {_MIN_SIDE}x{_MIN_SIDE} pixels",
                    got=f"{size[0]}x{size[1]}",
                )  # fmt: skip
            text = " ".join(_read_caption(caption, name).split())
        except MediaError as error:
            report.skipped.append(Finding(file=name, text=str(error)))
            continue
        report.files.append(OwnFile(name=name, path=path, kind=kind, caption=text))
        note = _note_on_size(size, shape)
        if note:
            report.notes.append(Finding(file=name, text=note))
    return report


Entry = tuple[str, Path, "str | Path | None"]


def _entries(data: Path, report: DataReport) -> Iterator[Entry]:
    """List name, path, and the caption: its text, the file it stands in, or None."""
    if data.is_file() and data.suffix == ".jsonl":
        yield from _from_index(data, report)
        return
    if not data.is_dir():
        raise ConfigError(
            f"data {data}", expected="a folder with videos or pictures, or a .jsonl file",
            got="a file of another kind" if data.exists() else "nothing of that name",
            hint="check the path's spelling",
        )  # fmt: skip
    index = _find_index(data)
    if index is not None:
        yield from _from_index(index, report)
        return
    files = _listing(data)
    media = [path for path in files if _kind(path) is not None]
    if not media:
        raise ConfigError(
            f"data {data}",
            expected=f"videos ({', '.join(VIDEO_SUFFIXES)}) or pictures"
            f" ({', '.join(PICTURE_SUFFIXES)})",
            got=f"{len(files)} other files" if files else "an empty folder",
            hint="put clip.txt with a caption beside every clip.mp4",
        )
    texts = {path.with_suffix(".txt") for path in media}
    used = {*media, *texts}
    report.ignored += [str(path.relative_to(data)) for path in files if path not in used]
    for path in media:
        yield str(path.relative_to(data)), path, path.with_suffix(".txt")


def _listing(folder: Path) -> list[Path]:
    """List the files of a folder and those below it, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _find_index(folder: Path) -> Path | None:
    """Find the JSONL file of a folder: `metadata.jsonl`, or the only one."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    found = sorted(folder.glob("*.jsonl"))
    if len(found) > 1:
        raise ConfigError(
            f"data {folder}", expected="one .jsonl file",
            got=", ".join(path.name for path in found),
            hint=f"name one {INDEX}, or give it with --data",
        )  # fmt: skip
    return found[0] if found else None


def _from_index(index: Path, report: DataReport) -> Iterator[Entry]:
    """Read a JSONL file strictly: a line that is not understood is an error with its number."""
    names = set()
    with index.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            entry = _parse_line(line, f"{index} line {number}", first=number == 1)
            if entry is not None:
                names.add(entry[0])
                yield entry[0], index.parent / entry[0], entry[1]
    if not names:
        raise ConfigError(
            str(index), expected="a line for every video or picture", got="an empty file",
            hint='write lines such as {"file": "clip.mp4", "caption": "a dog runs"}',
        )  # fmt: skip
    others = (path for path in _listing(index.parent) if path != index)
    unnamed = (str(path.relative_to(index.parent)) for path in others)
    report.ignored += [name for name in unnamed if name not in names]


def _parse_line(line: bytes, where: str, *, first: bool) -> tuple[str, str | None] | None:
    """Read file and caption; None of an empty line."""
    hint = 'write lines such as {"file": "clip.mp4", "caption": "a dog runs"}'
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        data = json.loads(text) if text else None
    except ValueError as error:  # of both kinds
        got = f"{error}"
        raise ConfigError(where, expected="one JSON object", got=got, hint=hint) from error
    if not text:
        return None
    if not isinstance(data, dict):
        raise ConfigError(where, expected="a JSON object", got=type(data).__name__, hint=hint)
    name, caption = data.get("file"), data.get("caption")
    if not isinstance(name, str) or not name:
        got = "no 'file'" if name is None else repr(name)
        raise ConfigError(where, expected="the name of a file under 'file'", got=got, hint=hint)
    if not isinstance(caption, str | None):
        raise ConfigError(
            where, expected="text under 'caption'", got=type(caption).__name__, hint=hint
        )
    return name, caption


def _kind(path: Path) -> Literal["video", "picture"] | None:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "picture" if suffix in PICTURE_SUFFIXES else None


def _video_size(path: Path, fps: int) -> tuple[int, int]:
    """Open a video and give its width and height."""
    info = check_input_video(path)
    frames = round(info.duration_s * fps)
    if 0 < frames < CHUNK_FRAMES:  # where no length is declared, encoding will tell
        raise too_short(frames, fps)
    return info.width, info.height


def too_short(frames: int, fps: int) -> MediaError:
    """Say that a video does not fill a chunk.

    Args:
        frames: it has, at the wanted rate.
        fps: the wanted rate.

    Returns:
        The error.
    """
    return MediaError(
        "too short",
        expected=f"{CHUNK_FRAMES} frames ({CHUNK_FRAMES / fps:.2f} s at {fps} fps)",
        got=f"{frames} frames",
    )


def _read_caption(caption: str | Path | None, name: str) -> str:
    """Read a caption, from its file where it stands in one."""
    if isinstance(caption, Path):
        if not caption.is_file():
            raise MediaError("no caption", expected=f"{Path(name).with_suffix('.txt')} beside it")
        try:
            caption = caption.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise MediaError("caption", expected="UTF-8 text", got=str(error)) from error
    if caption is None:
        raise MediaError("no caption", expected="text under 'caption'")
    if not caption.strip():
        raise MediaError("the caption is empty")
    return caption


def _note_on_size(size: tuple[int, int], shape: DataShape) -> str:
    """Say what becomes of a size that is far from the wanted one; nothing of others."""
    ratios = (shape.width / size[0], shape.height / size[1])
    wanted, got = f"{shape.width}x{shape.height}", f"{size[0]}x{size[1]}"
    share = 1 - min(ratios) / max(ratios)  # of the picture, or of the canvas
    parts = []
    if share > _CUT_SHARE:
        what = {
            "crop": f"{share:.0%} of the picture is cut off",
            "fit": f"stretched by {1 / (1 - share):.2f}",
            "pad": f"{share:.0%} of the canvas stays black",
        }[shape.policy]
        parts.append(f"{got} is of another shape than {wanted}: {what}")
    scale = min(ratios) if shape.policy == "pad" else max(ratios)
    if scale > _ENLARGED:
        parts.append(f"{got} is small: enlarged {scale:.1f} times to {wanted}")
    return "; ".join(parts)
