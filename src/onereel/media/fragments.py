"""H.264 in fragmented MP4: a chunk of frames becomes bytes that play once they are on disk.

Each chunk gets an encoder of its own, which is flushed at the chunk's end. Nothing is held back,
look-ahead and frame threads stay on, a chunk's bytes depend on its frames alone, and a seek lands
on any chunk. Only B-frames are off. On a moving gradient this is a third smaller and twice as fast
as one endless encoder tuned for zero latency, which has to give up all of that.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from av.video.stream import VideoStream

from onereel.core.config import nearest_name
from onereel.core.errors import BackendUnavailable, ConfigError, MediaError
from onereel.media.scale import Pixels

PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
ENCODERS = ("libx264", "libx265", "mpeg4")
# Below this x264's macroblock tree makes other bytes of the same frames now and then: 20 of 534
# times at 32x32 on a busy machine, never from 62x62 on, never without it (docs/log.md).
_MACROBLOCK_TREE_MIN = 64
_GROWING = {
    "movflags": "empty_moov+default_base_moof+frag_discont+skip_trailer",
    "avoid_negative_ts": "disabled",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """How the video is compressed; it never changes what the model makes.

    Args:
        encoder: "libx264" (H.264, plays everywhere), "libx265" (smaller, plays less widely) or
            "mpeg4" (larger; present in every build of the ffmpeg libraries).
        crf: 0 (lossless) to 51 (worst); 18 is hard to tell from the original. For mpeg4 the
            quantiser is crf / 6, at least 2.
        preset: speed against size, one of `PRESETS`; mpeg4 ignores it.
    """

    encoder: str = "libx264"
    crf: int = 18
    preset: str = "medium"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: a value is not known or out of range.
        """
        for name, value, known in (
            ("encoder", self.encoder, ENCODERS),
            ("preset", self.preset, PRESETS),
        ):
            if value not in known:
                near = nearest_name(value, known)
                hint = f"did you mean '{near}'?" if near else None
                raise ConfigError(name, expected=f"one of {', '.join(known)}", got=value, hint=hint)
        if not 0 <= self.crf <= 51:
            raise ConfigError("crf", expected="0 to 51", got=self.crf)

    def require_encoder(self) -> None:
        """Check that the encoder is part of the installed libraries.

        Raises:
            BackendUnavailable: it is not.
        """
        if self.encoder not in av.codecs_available:
            present = [name for name in ENCODERS if name in av.codecs_available]
            raise BackendUnavailable(
                f"video encoder '{self.encoder}' is not in this build of PyAV",
                hint=f"install PyAV from its wheels, or choose one of: {', '.join(present)}",
            )

    def options(self, width: int, height: int) -> dict[str, str]:
        """Encoder options in ffmpeg's spelling.

        Args:
            width: columns of the video.
            height: rows.

        Returns:
            Option names and values.
        """
        if self.encoder == "mpeg4":
            quantiser = max(2, round(self.crf / 6))
            return {"flags": "+qscale", "global_quality": str(quantiser * 118), "bf": "0"}
        options = {"crf": str(self.crf), "preset": self.preset, "bf": "0"}
        if self.encoder == "libx264" and min(width, height) < _MACROBLOCK_TREE_MIN:
            options["x264-params"] = "mbtree=0"
        if self.encoder == "libx265":
            options["x265-params"] = "log-level=error:bframes=0"
        return options


class FragmentEncoder:
    """Encodes chunks of frames to pieces of one fragmented MP4 file.

    Args:
        width: columns, even.
        height: rows, even.
        fps: exact frame rate.
        settings: compression.
        comment: text for the file's comment tag.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        fps: Fraction,
        settings: EncoderSettings,
        comment: str | None = None,
    ) -> None:
        self._size = (width, height)
        self._fps = fps
        self._settings = settings
        self._comment = comment
        self._head: bytes | None = None
        self._num_chunks = 0
        self._num_frames = 0
        self._reformatter = VideoReformatter()

    def encode(self, frames: Pixels) -> bytes:
        """Encode one chunk.

        Args:
            frames: uint8 RGB [F, H, W, 3], at least one frame.

        Returns:
            Bytes to append to the file; the first call's include the file's head.

        Raises:
            MediaError: the encoder refuses.
        """
        buffer = io.BytesIO()
        options = _GROWING | {"fragment_index": str(self._num_chunks + 1)}
        try:
            with av.open(buffer, "w", format="mp4", options=options) as container:
                if self._comment is not None:
                    container.metadata["comment"] = self._comment
                self._mux(container, frames)
        except av.FFmpegError as error:
            raise MediaError(
                f"{self._settings.encoder} cannot encode {self._size[0]}x{self._size[1]} ({error})",
                hint="try another size or encoder",
            ) from error
        self._num_chunks += 1
        self._num_frames += len(frames)
        return self._strip_head(buffer.getvalue())

    def finish(self) -> bytes:
        """End the file; fragments need no ending.

        Returns:
            No bytes.
        """
        return b""

    def _mux(self, container: OutputContainer, frames: Pixels) -> None:
        stream = self._add_stream(container)
        for i, pixels in enumerate(frames):
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BILINEAR,  # nearest to the mean of 2x2 chroma
            )
            frame.pts = self._num_frames + i
            frame.time_base = 1 / self._fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        settings = self._settings
        stream = container.add_stream(
            settings.encoder, rate=self._fps, options=settings.options(*self._size)
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        if settings.encoder == "libx265":
            context.codec_tag = "hvc1"  # the tag that Apple's players want
        return stream

    def _strip_head(self, data: bytes) -> bytes:
        """Drop the file head from all chunks but the first; it must be the same in all."""
        start = next(offset for name, offset in _boxes(data) if name == b"moof")
        if self._head is None:
            self._head = data[:start]
            return data
        if self._head != data[:start]:
            raise RuntimeError("internal: the encoder's header changed between chunks")
        return data[start:]


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and offset of the top-level boxes of an MP4."""
    offset = 0
    while offset < len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        yield name, offset
        offset += size


def remux(source: Path, target: Path, *, comment: str | None = None) -> None:
    """Copy a fragmented file's video to an ordinary file without encoding it again.

    Args:
        source: the fragmented MP4.
        target: the file to write; its suffix names the container. MP4 and MOV get their index at
            the front.
        comment: text for the comment tag.

    Raises:
        av.FFmpegError: reading or writing fails.
    """
    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "faststart"}
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        if comment is not None:
            writer.metadata["comment"] = comment
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.dts is not None:  # the demuxer's end mark has none
                packet.stream = copy
                writer.mux(packet)
