"""Masks that are kept or read: a cache by content, and the official tool's compressed files.

Masks at the size of the comparison go into the cache under a hash of everything that they follow
from, the video's bytes first; so a changed video never meets old masks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import av
import numpy as np
from av.video.stream import VideoStream

from onereel.core.errors import BackendUnavailable, MediaError
from onereel.evaluation.physics_iq.clips import ClipFile, stream_frames
from onereel.evaluation.physics_iq.masks import Frame, Mask, MaskStream
from onereel.evaluation.physics_iq.metrics import shrink_levels

MaskCodec = Literal["none", "mp4v"]
Packed = np.ndarray[Any, np.dtype[np.uint8]]

_RULE = 1  # raise it when a mask of the same video would come out different
_GOP, _QMIN = 12, 3  # what OpenCV gives the encoder
_BITS_PER_PIXEL = Fraction(3, 2)


class MaskCache:
    """A folder of masks.

    Args:
        folder: made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Packed | None:
        """Find masks.

        Args:
            key: from `mask_key`.

        Returns:
            uint8 [T, h, ceil(w / 8)], eight pixels in a byte; None when there are none, or the file
            is damaged and they have to be made again.
        """
        try:
            with self._path(key).open("rb") as file, np.load(file) as archive:
                return np.asarray(archive["masks"], np.uint8)
        except (OSError, KeyError, ValueError, EOFError, BadZipFile):
            return None

    def store(self, key: str, masks: Packed) -> None:
        """Keep masks; other processes see all of them or none.

        Args:
            key: from `mask_key`.
            masks: as `load` gives them.

        Raises:
            MediaError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as draft:
                np.savez_compressed(draft, masks=masks)
            os.replace(draft.name, self._path(key))
        except OSError as error:
            raise MediaError(f"cannot write masks to {self._folder} ({error})") from error

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"


def mask_key(sha256: str, clip: ClipFile, *, size: tuple[int, int], codec: MaskCodec) -> str:
    """Hash everything that the masks of a clip follow from.

    Args:
        sha256: of the video file.
        clip: which frames of it count.
        size: rows and columns of the comparison.
        codec: that the masks went through.

    Returns:
        64 hexadecimal digits.
    """
    parts = [_RULE, sha256, clip.num_frames, str(clip.fps), *size, codec]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_codec(codec: MaskCodec) -> None:
    """Check that masks can be compressed as wished.

    Args:
        codec: "none", or "mp4v".

    Raises:
        BackendUnavailable: this build of PyAV has no MPEG-4 encoder.
    """
    if codec == "mp4v" and "mpeg4" not in av.codecs_available:
        raise BackendUnavailable(
            "mask codec 'mp4v' needs the encoder 'mpeg4', which this build of PyAV lacks",
            hint="install PyAV from its wheels, or leave the masks uncompressed",
        )


def read_mask_file(path: Path, num_frames: int, *, size: tuple[int, int]) -> Packed:
    """Read a mask video as the official tool does.

    Args:
        path: an official mask video.
        num_frames: masks wanted.
        size: rows and columns of the comparison.

    Returns:
        uint8 [T, h, ceil(w / 8)], packed.

    Raises:
        MediaError: the file is damaged or too short.
    """
    frames = stream_frames(ClipFile(path=path, num_frames=num_frames))
    return pack(shrink_levels(frame[..., 0], height=size[0], width=size[1]) for frame in frames)


def compressed_masks(frames: Iterable[Frame], fps: Fraction, *, size: tuple[int, int]) -> Packed:
    """Make masks and send them through the lossy file that the official tool writes.

    Args:
        frames: uint8 RGB at the video's own size.
        fps: of the file; a whole number of it, as officially.
        size: rows and columns of the comparison.

    Returns:
        uint8 [T, h, ceil(w / 8)], packed.

    Source:
        spec/evaluation.md 1.3 and 1.7; the encoder's settings are those of OpenCV's writer.
    """
    stream = MaskStream()
    levels = mp4v_round_trip((stream(frame) for frame in frames), fps)
    return pack(shrink_levels(level, height=size[0], width=size[1]) for level in levels)


def mp4v_round_trip(masks: Iterable[Mask], fps: Fraction) -> Iterator[Frame]:
    """Compress masks with MPEG-4 part 2 and read them back.

    Args:
        masks: bool [H, W]; an odd last row or column is cut off.
        fps: of the file.

    Yields:
        uint8 [H, W], black and white with the codec's noise.

    Raises:
        BackendUnavailable: there is no such encoder.
    """
    require_codec("mp4v")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: VideoStream | None = None
        for index, mask in enumerate(masks):
            height, width = (size & ~1 for size in mask.shape)
            if stream is None:
                stream = container.add_stream("mpeg4", rate=fps, options={"threads": "1"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                context = stream.codec_context
                context.bit_rate = int(fps * width * height * _BITS_PER_PIXEL)
                context.gop_size, context.qmin = _GOP, _QMIN
            level = np.ascontiguousarray(mask[:height, :width]).astype(np.uint8) * np.uint8(255)
            frame = av.VideoFrame.from_ndarray(level, "gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        for decoded in container.decode(video=0):
            yield np.asarray(decoded.to_ndarray(format="rgb24"), np.uint8)[..., 0]


def pack(masks: Iterable[Mask]) -> Packed:
    """Put eight pixels into a byte.

    Args:
        masks: bool [h, w], at least one.

    Returns:
        uint8 [T, h, ceil(w / 8)].
    """
    return np.stack([np.packbits(mask, axis=-1) for mask in masks])


def unpack(masks: Packed, width: int) -> Iterator[Mask]:
    """Undo `pack`.

    Args:
        masks: uint8 [T, h, ceil(w / 8)].
        width: columns.

    Yields:
        bool [h, width].
    """
    for packed in masks:
        yield np.unpackbits(packed, axis=-1, count=width).view(np.bool_)
