"""The four numbers between two videos of one scene, frame by frame or from whole arrays.

A `Clip` is a video at the size at which it is compared, with its masks. `view_metrics` compares
three clips; `PairMeter` does the same while the frames stream by. Sums are whole numbers, so the
results do not depend on the order of the frames or on the processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onereel.core.errors import ShapeError
from onereel.evaluation.physics_iq.masks import Frame, Mask, Video, moving_masks
from onereel.evaluation.physics_iq.resizing import resize

SHRINK = 4
_ON = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMetrics:
    """How two videos of one view differ.

    Args:
        mse: mean squared difference of every frame, pixels in [0, 1].
        spatiotemporal: overlap (IoU) of the masks of every frame.
        spatial: overlap of where anything ever moved.
        weighted_spatial: overlap of where it moved, weighted by how long.
    """

    mse: tuple[float, ...]
    spatiotemporal: tuple[float, ...]
    spatial: float
    weighted_spatial: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMetrics:
    """One view of a scenario: the generated video against both takes, and these to each other.

    Args:
        take1: the generated video against the first take; only this enters the score.
        take2: the generated video against the second take.
        variance: the takes against each other: what physics itself leaves open.
    """

    take1: PairMetrics
    take2: PairMetrics
    variance: PairMetrics


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A video as it is compared.

    Args:
        frames: uint8 RGB [T, h, w, 3].
        masks: bool [T, h, w], what moves.
    """

    frames: Video
    masks: Mask


def compared_size(height: int, width: int) -> tuple[int, int]:
    """Find the size at which videos are compared: a quarter of the first take's.

    Args:
        height: rows of the first take.
        width: columns of the first take.

    Returns:
        Rows and columns, at least 1.
    """
    return max(1, height // SHRINK), max(1, width // SHRINK)


def shrink_mask(mask: Mask, *, height: int, width: int) -> Mask:
    """Resize a mask; a pixel stays on when at least half of it is.

    Args:
        mask: bool [H, W].
        height: rows wanted.
        width: columns wanted.

    Returns:
        bool [height, width].
    """
    if not mask.any():
        return np.zeros((height, width), np.bool_)
    return shrink_levels(mask.astype(np.uint8) * np.uint8(255), height=height, width=width)


def shrink_levels(levels: Frame, *, height: int, width: int) -> Mask:
    """Resize a mask that is stored as black and white.

    Args:
        levels: uint8 [H, W], 0 and 255, or what a codec made of them.
        height: rows wanted.
        width: columns wanted.

    Returns:
        bool [height, width].

    Source:
        spec/evaluation.md 1.4.
    """
    return resize(levels, height=height, width=width) > _ON


def make_clip(video: Video, *, size: tuple[int, int] | None = None) -> Clip:
    """Find what moves in a video, then shrink both.

    Args:
        video: uint8 RGB [T, H, W, 3] at its own size.
        size: rows and columns of the comparison, which are those of the first take; None takes a
            quarter of this video's.

    Returns:
        The clip.
    """
    height, width = compared_size(*video.shape[1:3]) if size is None else size
    masks = [shrink_mask(mask, height=height, width=width) for mask in moving_masks(video)]
    frames = [resize(frame, height=height, width=width) for frame in video]
    return Clip(np.stack(frames), np.stack(masks))


def frozen_clip(frame: Frame, num_frames: int, *, size: tuple[int, int]) -> Clip:
    """Repeat one picture: the baseline in which nothing ever moves.

    Args:
        frame: uint8 RGB [H, W, 3], the switch frame.
        num_frames: length.
        size: rows and columns of the comparison.

    Returns:
        The clip, with empty masks.
    """
    small = resize(frame, height=size[0], width=size[1])
    return Clip(
        np.broadcast_to(small, (num_frames, *small.shape)), np.zeros((num_frames, *size), np.bool_)
    )


class PairMeter:
    """Compares two videos while their frames come in.

    Args:
        size: rows and columns of the frames.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._mse: list[float] = []
        self._overlap: list[float] = []
        self._times = (np.zeros(size, np.int32), np.zeros(size, np.int32))

    def add(self, first: tuple[Frame, Mask], second: tuple[Frame, Mask]) -> None:
        """Take the next frame of both videos.

        Args:
            first: uint8 RGB [h, w, 3] and bool [h, w].
            second: the same of the other video.

        Raises:
            ShapeError: a frame has another size.
        """
        for frame, mask in (first, second):
            if frame.shape != (*self._size, 3) or mask.shape != self._size:
                got = f"{frame.shape[:2]} with a mask of {mask.shape}"
                raise ShapeError("frame", expected=f"size {self._size}", got=got)
        self._mse.append(_squared_error(first[0], second[0]))
        common = np.count_nonzero(first[1] & second[1])
        union = np.count_nonzero(first[1]) + np.count_nonzero(second[1]) - common
        self._overlap.append(_ratio(common, union))
        for times, (_, mask) in zip(self._times, (first, second), strict=True):
            times += mask

    def result(self) -> PairMetrics:
        """Give the numbers of all frames so far.

        Returns:
            The metrics.

        Source:
            spec/evaluation.md 1.5.
        """
        first, second = self._times
        ever = first > 0, second > 0
        common, union = np.count_nonzero(ever[0] & ever[1]), np.count_nonzero(ever[0] | ever[1])
        shared, total = np.minimum(first, second).sum(), np.maximum(first, second).sum()
        return PairMetrics(
            mse=tuple(self._mse),
            spatiotemporal=tuple(self._overlap),
            spatial=_ratio(common, union),
            weighted_spatial=_ratio(shared, total),
        )


def pair_metrics(first: Clip, second: Clip) -> PairMetrics:
    """Compare two clips.

    Args:
        first: a clip.
        second: another of the same size and length.

    Returns:
        The metrics.

    Raises:
        ShapeError: they differ in size or length.
    """
    if len(first.frames) != len(second.frames):
        got = f"{len(first.frames)} and {len(second.frames)}"
        raise ShapeError("clips", expected="the same number of frames", got=got)
    height, width = first.masks.shape[1:]
    meter = PairMeter((height, width))
    for one, other in zip(
        zip(first.frames, first.masks, strict=True),
        zip(second.frames, second.masks, strict=True),
        strict=True,
    ):
        meter.add(one, other)
    return meter.result()


def view_metrics(take1: Clip, take2: Clip, *, generated: Clip) -> ViewMetrics:
    """Compare a generated clip with both takes, and these with each other.

    Args:
        take1: the first take.
        take2: the second take.
        generated: the video to judge.

    Returns:
        The metrics of one view.

    Raises:
        ShapeError: the clips differ in size or length.
    """
    return ViewMetrics(
        take1=pair_metrics(take1, generated),
        take2=pair_metrics(take2, generated),
        variance=pair_metrics(take1, take2),
    )


def _squared_error(first: Frame, second: Frame) -> float:
    difference = np.subtract(first, second, dtype=np.int32)
    difference *= difference
    return float(difference.sum(dtype=np.int64)) / (255.0**2 * difference.size)


def _ratio(common: int | np.integer[Any], union: int | np.integer[Any]) -> float:
    """Overlap; two empty masks agree."""
    return int(common) / int(union) if union else 1.0
