"""One view of one scenario, from files: three videos decoded side by side, compared on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from onereel.core.errors import OneReelError
from onereel.evaluation.physics_iq.clips import ClipFile, file_sha256, stream_frames
from onereel.evaluation.physics_iq.mask_files import (
    MaskCache,
    MaskCodec,
    Packed,
    compressed_masks,
    mask_key,
    read_mask_file,
    unpack,
)
from onereel.evaluation.physics_iq.masks import Frame, Mask, MaskStream
from onereel.evaluation.physics_iq.metrics import (
    PairMeter,
    ViewMetrics,
    compared_size,
    shrink_mask,
)
from onereel.evaluation.physics_iq.resizing import resize
from onereel.media.image import image_size, load_image


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTask:
    """What a process needs to score one view.

    Args:
        scenario: its name.
        view: its name.
        clips: the first take, the second take, the generated video.
        real_masks: published mask files of both takes; None finds the masks anew.
        switch_frame: the picture that the freeze baseline repeats.
        fps: of the frames that are compared.
        codec: that masks go through.
        cache: folder of masks; None keeps none.
        threads: of each decoder; 0 lets it choose.
    """

    scenario: str
    view: str
    clips: tuple[ClipFile, ClipFile, ClipFile]
    real_masks: tuple[Path, Path] | None
    switch_frame: Path
    fps: Fraction
    codec: MaskCodec = "none"
    cache: Path | None = None
    threads: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOutcome:
    """What came of a view.

    Args:
        scenario: its name.
        view: its name.
        model: metrics of the generated video; None when there is a problem.
        freeze: metrics of the repeated switch frame.
        sha256: of the files that were read, by path.
        problem: what is wrong with a file; empty when nothing is.
    """

    scenario: str
    view: str
    model: ViewMetrics | None = None
    freeze: ViewMetrics | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    problem: str = ""


class _Clip:
    """Frames and masks at the size of the comparison, made while the clip is decoded."""

    def __init__(self, task: ViewTask, index: int, size: tuple[int, int]) -> None:
        self._clip, self._size, self._task = task.clips[index], size, task
        self.sha256 = file_sha256(self._clip.path)
        self._cache = None if task.cache is None else MaskCache(task.cache)
        published = task.real_masks[index] if task.real_masks and index < 2 else None
        self._key = mask_key(self.sha256, self._clip, size=size, codec=task.codec)
        self._known = self._known_masks(published)

    def _known_masks(self, published: Path | None) -> Packed | None:
        if published is not None:
            return read_mask_file(published, self._clip.num_frames, size=self._size)
        known = None if self._cache is None else self._cache.load(self._key)
        if known is None and self._task.codec == "mp4v":
            frames = stream_frames(self._clip, threads=self._task.threads)
            known = compressed_masks(frames, self._task.fps, size=self._size)
            self._store(known)
        return known

    def __iter__(self) -> Iterator[tuple[Frame, Mask]]:
        height, width = self._size
        frames = stream_frames(self._clip, threads=self._task.threads)
        if self._known is not None:
            for frame, mask in zip(frames, unpack(self._known, width), strict=True):
                yield resize(frame, height=height, width=width), mask
            return
        found, stream = [], MaskStream()
        for frame in frames:
            mask = shrink_mask(stream(frame), height=height, width=width)
            if self._cache is not None:
                found.append(np.packbits(mask, axis=-1))
            yield resize(frame, height=height, width=width), mask
        if found:
            self._store(np.stack(found))

    def _store(self, masks: Packed) -> None:
        if self._cache is not None:
            self._cache.store(self._key, masks)


def score_view(task: ViewTask) -> ViewOutcome:
    """Score one view; runs in a process of its own.

    Args:
        task: names the files.

    Returns:
        The metrics, or the problem that forbids them.
    """
    try:
        return _score(task)
    except OneReelError as error:
        return ViewOutcome(scenario=task.scenario, view=task.view, problem=str(error))


def _score(task: ViewTask) -> ViewOutcome:
    height, width = next(stream_frames(task.clips[0], threads=1)).shape[:2]
    size = compared_size(height, width)
    still = _switch_frame(task.switch_frame, size), np.zeros(size, np.bool_)
    clips = [_Clip(task, index, size) for index in range(3)]
    model1, model2, variance, freeze1, freeze2 = (PairMeter(size) for _ in range(5))
    for first, second, generated in zip(*clips, strict=True):
        model1.add(first, generated)
        model2.add(second, generated)
        variance.add(first, second)
        freeze1.add(first, still)
        freeze2.add(second, still)
    real = variance.result()
    return ViewOutcome(
        scenario=task.scenario,
        view=task.view,
        model=ViewMetrics(take1=model1.result(), take2=model2.result(), variance=real),
        freeze=ViewMetrics(take1=freeze1.result(), take2=freeze2.result(), variance=real),
        sha256={str(clip.path): made.sha256 for clip, made in zip(task.clips, clips, strict=True)},
    )


def _switch_frame(path: Path, size: tuple[int, int]) -> Frame:
    columns, rows = image_size(path)
    picture = load_image(path, height=rows, width=columns, apply_orientation=False)
    return resize(picture, height=size[0], width=size[1])
