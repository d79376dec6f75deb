"""Pictures of videos: the sheet of the worst, and pictures inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.report.result import Result, VideoRow
from onereel.media import frame_sheet, probe, read_video
from onereel.media.scale import Pixels

_LABEL = 110  # letters that fit above a row
_SHOWN_PIXELS = 96  # frames are enlarged to about this height
_ORDER = ("given", "truth", "made")


def video_sheet(
    result: Result, rows: Sequence[VideoRow], *, path: str | Path, columns: int = 8
) -> Path:
    """Draw videos of a result, each with what it should have been where that is known.

    Args:
        result: whose folder holds the videos.
        rows: the videos to draw.
        path: the PNG to write.
        columns: frames per video.

    Returns:
        The path written.

    Raises:
        ConfigError: the result's videos were not kept, or there is nothing to draw.
        MediaError: a video is missing or damaged.
    """
    if not result.folder:
        raise ConfigError("videos", expected="a run whose videos were kept",
                          hint="run with --out FOLDER")  # fmt: skip
    videos: list[Pixels] = []
    labels = []
    size: tuple[int, int] | None = None
    for row in rows:
        for kind in sorted(row.files, key=_place):
            file = Path(result.folder) / row.files[kind]
            if size is None:
                info = probe(file)
                size = info.height, info.width
            videos.append(_frames(file, size))
            labels.append(_label(row, kind))
    if size is None:
        raise ConfigError("sheet", expected="at least one video", got="none")
    scale = max(1, _SHOWN_PIXELS // size[0])
    return frame_sheet(videos, columns=columns, labels=labels, scale=scale, path=path)


def _place(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _frames(file: Path, size: tuple[int, int]) -> Pixels:
    rate = probe(file).fps
    return read_video(file, height=size[0], width=size[1], fps=rate)


def _label(row: VideoRow, kind: str) -> str:
    text = row.problem or row.prompt
    label = f"{row.name} {kind}: {text}" if kind != "made" or len(row.files) > 1 else (
        f"{row.name}: {text}"
    )  # fmt: skip
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 3]}..."


def embed_picture(path: str | Path, *, text: str) -> str:
    """Put a PNG into a page.

    Args:
        path: the file.
        text: what it shows, for readers that see no picture.

    Returns:
        An `img` element that holds the picture itself.

    Raises:
        MediaError: the file cannot be read.
    """
    try:
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    except OSError as error:
        raise MediaError(f"cannot read {path}", got=error.strerror) from error
    alt = text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'
