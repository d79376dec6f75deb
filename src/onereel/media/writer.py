"""The output video, written while the model still runs and playable at any moment.

While it grows, the file is a fragmented MP4 under its final name, whatever the suffix (players go
by content). Closing it turns it, in one step, into an ordinary file with its index at the front.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import av

from onereel.core.errors import ConfigError, MediaError, OneReelError, OutOfMemory, ShapeError
from onereel.media.fragments import EncoderSettings, FragmentEncoder, remux
from onereel.media.gif import GifEncoder
from onereel.media.image import check_frames
from onereel.media.metadata import encode_metadata, write_metadata
from onereel.media.preflight import STDOUT, check_output
from onereel.media.rate import Rate, exact_fps
from onereel.media.scale import Pixels

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Encoder(Protocol):
    def encode(self, frames: Pixels) -> bytes: ...

    def finish(self) -> bytes: ...


class VideoWriter:
    """Writes chunks of frames to a video file, a pipe or any object with a `write` method.

    Use it as a context manager. When an exception or Ctrl-C leaves the block, the frames so far
    are finalised; after a hard kill the file on disk still plays up to the last `write`. Each
    `write` starts with a key frame, so give whole chunks, not single frames. An earlier file of
    that name survives until the first chunk is there.

    Args:
        path: a name ending in .mp4, .mov, .mkv or .gif; "-" for standard output; or a binary
            stream. Streams get fragmented MP4.
        width: columns, even (but for GIF).
        height: rows, even (but for GIF).
        fps: frames per second; 29.97 means 30000/1001.
        metadata: everything about the run, kept as JSON in the comment tag and in a file beside
            the video. Entries added to `writer.metadata` before closing reach the finished file.
        settings: compression.

    Raises:
        ConfigError: a size, the rate or the suffix is wrong.
        MediaError: the place cannot be written.
        BackendUnavailable: the encoder is missing.
    """

    def __init__(
        self,
        path: str | Path | BinaryIO,
        *,
        width: int,
        height: int,
        fps: Rate,
        metadata: Mapping[str, Any] | None = None,
        settings: EncoderSettings | None = None,
    ) -> None:
        self.metadata: dict[str, Any] | None = None if metadata is None else dict(metadata)
        self.fps = exact_fps(fps)
        self.frames_written = 0
        self._size = (height, width)
        self._settings = settings or EncoderSettings()
        self._closed = False
        self._safe_bytes = 0
        self._file: BinaryIO | None = None
        self.path: Path | None = None
        if isinstance(path, str | Path):
            check_output(path, settings=self._settings)
            if str(path) == STDOUT:
                self._file = sys.stdout.buffer
            else:
                self.path = Path(path)
        else:
            self._settings.require_encoder()
            self._file = path
        self._encoder = self._make_encoder(width, height)

    def _make_encoder(self, width: int, height: int) -> _Encoder:
        if width < 1 or height < 1:
            raise ConfigError("size", expected="positive", got=f"{width}x{height}")
        if self._is_gif:
            return GifEncoder(width=width, height=height, fps=self.fps)
        if width % 2 or height % 2:
            raise ConfigError(
                "size",
                expected="even width and height, as 4:2:0 video needs",
                got=f"{width}x{height}",
                hint=f"use {max(2, width & ~1)}x{max(2, height & ~1)}, or write a .gif",
            )
        comment = None if self.metadata is None else encode_metadata(self.metadata)
        return FragmentEncoder(
            width=width, height=height, fps=self.fps, settings=self._settings, comment=comment
        )

    @property
    def _is_gif(self) -> bool:
        return self.path is not None and self.path.suffix.lower() == ".gif"

    @property
    def seconds_written(self) -> float:
        """Seconds of video that are safe on disk.

        Returns:
            Seconds.
        """
        return float(self.frames_written / self.fps)

    def write(self, frames: Pixels) -> None:
        """Append a chunk; when this returns, it is on disk and playable.

        Args:
            frames: uint8 RGB [F, height, width, 3].

        Raises:
            ShapeError: the frames have another type or size.
            OutOfMemory: the disk is full; what is on disk still plays.
            MediaError: writing fails for another reason.
        """
        if self._closed:
            raise MediaError("the video is already closed", hint="open a new VideoWriter")
        check_frames(frames)
        if frames.shape[1:3] != self._size:
            raise ShapeError("frames", expected=f"[F, {self._size[0]}, {self._size[1]}, 3]",
                             got=list(frames.shape))  # fmt: skip
        if len(frames) == 0:
            return
        self._append(self._encoder.encode(frames))
        self.frames_written += len(frames)

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._create()
            rest = memoryview(data)
            while rest:  # an unbuffered file may take less than it is given
                rest = rest[self._file.write(rest) or len(rest) :]
            self._file.flush()
            if self.path is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            # After a failed write nothing more may follow: a hole would break playback.
            self._closed = True
            self._cut_to_safe()
            raise self._write_error(error) from error
        self._safe_bytes += len(data)

    def _create(self) -> BinaryIO:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("wb", buffering=0)

    def _cut_to_safe(self) -> None:
        """Remove the torn end of a chunk that did not fit."""
        if self.path is not None and self._file is not None:
            os.ftruncate(self._file.fileno(), self._safe_bytes)

    def _write_error(self, error: OSError) -> OneReelError:
        where = self.path or "the output stream"
        safe = f"{self.frames_written} frames ({self.seconds_written:.1f} s) are safe"
        if error.errno in _DISK_FULL:
            hint = "free some space and continue from there"
            return OutOfMemory(f"disk full while writing {where}; {safe}", hint=hint)
        if isinstance(error, BrokenPipeError):
            return MediaError(f"the reader of {where} went away; {safe}")
        return MediaError(f"cannot write {where} ({error.strerror}); {safe}")

    def close(self) -> None:
        """Finalise the file; a second call does nothing.

        Raises:
            OutOfMemory: the disk is too full to finalise; the fragmented file stays and plays.
            MediaError: finalising fails for another reason; the fragmented file stays and plays.
        """
        if not self._closed and self.frames_written:
            self._cut_to_safe()  # Ctrl-C may have come in the middle of a chunk
            self._append(self._encoder.finish())
        self._closed = True
        if self.path is None or self._file is None:
            return
        self._file.close()
        self._file = None
        if not self.frames_written:
            self.path.unlink()
            return
        if not self._is_gif:
            self._finalise(self.path)
        if self.metadata is not None:
            write_metadata(self.path, self.metadata)

    def _finalise(self, path: Path) -> None:
        comment = None if self.metadata is None else encode_metadata(self.metadata)
        draft = path.with_name(f".{path.stem}.final{path.suffix}")
        try:
            remux(path, draft, comment=comment)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        except (av.FFmpegError, OSError) as error:
            kind = OutOfMemory if error.errno in _DISK_FULL else MediaError
            raise kind(
                f"{path} could not be finalised ({error}); all {self.frames_written} frames are "
                "in it, as a fragmented MP4 that plays",
                hint="free some space; any tool that copies streams can finalise it later",
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        """Start writing.

        Returns:
            The writer itself.
        """
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finalise what has been written, keeping an exception on its way.

        Args:
            kind: type of the exception that leaves the block, if any.
            error: the exception.
            trace: its traceback.
        """
        try:
            self.close()
        except OneReelError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
