"""Contact sheets: videos as rows of frames in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onereel.core.errors import ShapeError
from onereel.media.image import check_frames
from onereel.media.scale import Pixels

_GAP = 2
_TEXT_SIZE = 12
_TEXT_ROW = _TEXT_SIZE + 6


def frame_sheet(
    videos: Sequence[Pixels],
    *,
    columns: int,
    labels: Sequence[str] | None = None,
    scale: int = 1,
    path: str | Path,
) -> Path:
    """Draw frames of several videos, one video per row, evenly spread over time.

    Args:
        videos: uint8 RGB [F, H, W, 3] each, all of one height and width.
        columns: frames per row; the first and the last frame are among them.
        labels: a line of text above each row.
        scale: whole-number enlargement.
        path: the PNG to write.

    Returns:
        The path written.

    Raises:
        ShapeError: there is nothing to draw, or sizes or the number of labels do not match.
    """
    if not videos or columns < 1 or scale < 1:
        raise ShapeError("frame sheet", expected="a video, a column and a scale of at least 1")
    if labels is not None and len(labels) != len(videos):
        raise ShapeError("labels", expected=f"{len(videos)}, one per video", got=len(labels))
    for video in videos:
        check_frames(video)
        if len(video) == 0 or video.shape[1:] != videos[0].shape[1:]:
            raise ShapeError(
                "videos", expected=f"frames of {list(videos[0].shape[1:])}", got=list(video.shape)
            )
    height, width = (size * scale for size in videos[0].shape[1:3])
    top = _TEXT_ROW if labels is not None else 0
    size = (columns * (width + _GAP) - _GAP, len(videos) * (top + height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_SIZE)
    for row, video in enumerate(videos):
        y = row * (top + height + _GAP)
        if labels is not None:
            pen.text((2, y + 2), labels[row], fill="black", font=font)
        for column, index in enumerate(np.linspace(0, len(video) - 1, columns).round()):
            picture = Image.fromarray(video[int(index)])
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (width + _GAP), y + top))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)
    return path
