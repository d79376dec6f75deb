"""Reading videos: what a file holds, and its frames at another size and frame rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from onereel.core.errors import ConfigError, MediaError, OutOfMemory
from onereel.media.image import require_file
from onereel.media.rate import Rate, exact_fps, resample_indices, round_half_up
from onereel.media.scale import Pixels, Policy, Scaler, rotated

__all__ = ["VideoInfo", "probe", "read_video", "resample_indices", "stream_video"]

MAX_BYTES = 8 << 30
_TOLERATED_GAP_S = Fraction(1, 2)
_SEEK_MARGIN_S = 1
_CONVERT = "play it to check it, or convert it again to H.264 in MP4"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file says about itself.

    Args:
        width: columns as shown, after any rotation.
        height: rows as shown, after any rotation.
        fps: average frame rate, exact; 0 without a video stream.
        num_frames: frames as declared, else estimated from the duration; 0 when unknown.
        duration_s: seconds; 0 when unknown, as in a file that is still growing.
        has_video: whether there is a video stream (cover art does not count).
        codec: the video codec's name, such as "h264"; empty without a video stream.
        rotation: degrees, clockwise, by which players turn the picture.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int
    duration_s: float
    has_video: bool
    codec: str
    rotation: int


def probe(path: str | Path) -> VideoInfo:
    """Look at a video file; a file with only sound is described, not refused.

    Args:
        path: a video file.

    Returns:
        What it holds.

    Raises:
        MediaError: the file is missing, empty or damaged.
    """
    with _opened(Path(path)) as container:
        stream = _video_stream(container)
        total = Fraction(container.duration or 0, av.time_base)
        if stream is None:
            return VideoInfo(
                width=0,
                height=0,
                fps=Fraction(0),
                num_frames=0,
                duration_s=float(total),
                has_video=False,
                codec="",
                rotation=0,
            )
        duration = _duration(container, stream) or total
        fps = _frame_rate(stream)
        _, first = next(_decoded(container, Path(path)), (None, None))
        if first is None:
            raise MediaError(f"video {path} holds no frames", hint=_CONVERT)
        turns = _quarter_turns(first)
        size = (first.height, first.width) if turns % 2 else (first.width, first.height)
        return VideoInfo(
            width=size[0],
            height=size[1],
            fps=fps,
            num_frames=stream.frames or round_half_up(duration * fps),
            duration_s=float(duration),
            has_video=True,
            codec=stream.codec_context.name,
            rotation=turns * 90,
        )


def read_video(
    path: str | Path,
    *,
    height: int,
    width: int,
    fps: Rate = 24,
    num_frames: int | None = None,
    take: Literal["start", "end"] = "start",
    policy: Policy = "fit",
    allow_short: bool = False,
) -> Pixels:
    """Read a video at a given size and frame rate; only the frames returned are held in memory.

    Args:
        path: a video file.
        height: rows wanted.
        width: columns wanted.
        fps: frames per second wanted; frames are repeated or left out, never blended.
        num_frames: frames wanted at that rate; None for all.
        take: from which end of the video they are taken.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" adds black bars.
        allow_short: return fewer frames when the video has fewer than `num_frames`.

    Returns:
        uint8 RGB frames [F, height, width, 3].

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, without video, or too short.
        ConfigError: an argument is wrong.
        OutOfMemory: all frames were asked for and would take more than 8 GiB.

    Source: the semantics of ffmpeg's fps and scale filters.
    """
    path, rate = Path(path), exact_fps(fps)
    if take not in ("start", "end"):
        raise ConfigError("take", expected="start or end", got=take)
    if num_frames is not None and num_frames < 1:
        raise ConfigError("num_frames", expected="at least 1", got=num_frames)
    scaler = Scaler(height=height, width=width, policy=policy)
    with _opened(path) as container:
        stream = _require_video(container, path)
        if num_frames is None:
            _check_memory(container, stream, rate * height * width * 3)
            frames = list(_resampled(container, path, rate, scaler))
        elif take == "start":
            frames = list(islice(_resampled(container, path, rate, scaler), num_frames))
        else:
            frames = _last(container, path, rate, scaler, num_frames)
    if not frames:
        raise MediaError(f"video {path} holds no frames", hint=_CONVERT)
    if num_frames is not None and len(frames) < num_frames and not allow_short:
        raise MediaError(
            f"video {path} is too short",
            expected=f"{num_frames} frames ({num_frames / float(rate):.2f} s at {fps} fps)",
            got=f"{len(frames)} frames",
            hint=f"ask for at most {len(frames)} frames or give a longer video",
        )
    return np.stack(frames)


def stream_video(
    path: str | Path, *, height: int, width: int, fps: Rate = 24, policy: Policy = "fit"
) -> Iterator[Pixels]:
    """Read a video frame by frame, in memory that does not grow with its length.

    Args:
        path: a video file.
        height: rows wanted.
        width: columns wanted.
        fps: frames per second wanted; frames are repeated or left out, never blended.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" adds black bars.

    Yields:
        uint8 RGB frames [height, width, 3]; those that repeat a frame are the same array.

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, or without video; what can be read
            before the damage is yielded first.
        ConfigError: an argument is wrong.
    """
    path, rate = Path(path), exact_fps(fps)
    scaler = Scaler(height=height, width=width, policy=policy)
    with _opened(path) as container:
        _require_video(container, path)
        yield from _resampled(container, path, rate, scaler)


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """Open a local file; playlists inside it may not reach out to the network."""
    require_file(path, "video")
    try:
        container = av.open(str(path), options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path} is not a video that can be read ({error})", hint=_CONVERT) from (
            error
        )
    with container:
        if not container.streams.video and not container.streams.audio:
            raise MediaError(
                f"video {path} is damaged or cut off: its index is missing",
                hint="copy or download it again",
            )
        yield container


def _video_stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not cover art."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _require_video(container: InputContainer, path: Path) -> VideoStream:
    stream = _video_stream(container)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise MediaError(
            f"{path} holds no video, only {kinds}", hint="give a file with a video stream"
        )
    return stream


def _frame_rate(stream: VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def _duration(container: InputContainer, stream: VideoStream) -> Fraction:
    """Seconds of video that the file declares; 0 when it does not."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return Fraction(0)


def _decoded(container: InputContainer, path: Path) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield (start in seconds, frame) until the end of the file, which must be its declared end.

    Ends with the last frame's end in seconds and that frame once more, so that the caller knows
    how long it is shown.
    """
    stream = _require_video(container, path)
    stream.thread_type = "AUTO"
    rate, base = _frame_rate(stream), stream.time_base or Fraction(1, 1000)
    origin = (stream.start_time or 0) * base
    end, frame = Fraction(0), None
    try:
        for frame in container.decode(stream):
            start = end if frame.pts is None else frame.pts * base - origin
            yield start, frame
            end = start + (frame.duration * base if frame.duration else 1 / rate)
    except av.FFmpegError as error:
        raise MediaError(
            f"video {path} is damaged after {float(end):.2f} s ({error})", hint=_CONVERT
        ) from error
    if end < _duration(container, stream) - _TOLERATED_GAP_S - 2 / rate:
        raise MediaError(
            f"video {path} is cut off",
            expected=f"{float(_duration(container, stream)):.2f} s",
            got=f"{float(end):.2f} s",
            hint="copy or download it again",
        )
    if frame is not None:
        yield end, frame


def _resampled(
    container: InputContainer, path: Path, rate: Fraction, scaler: Scaler
) -> Iterator[Pixels]:
    """Yield one scaled RGB frame per output slot, from the container's position on."""
    shown: tuple[int, av.VideoFrame] | None = None
    for start, frame in _decoded(container, path):
        slot = round_half_up(start * rate)
        if shown is None:
            shown = slot, frame
            continue
        first, previous = shown
        if slot > first:
            pixels = scaler(rotated(previous, _quarter_turns(previous)))
            yield from (pixels for _ in range(first, slot))
        shown = max(first, slot), frame


def _last(
    container: InputContainer, path: Path, rate: Fraction, scaler: Scaler, num_frames: int
) -> list[Pixels]:
    """The last frames, jumping over what comes before them where the file allows it."""
    stream = _require_video(container, path)
    base = stream.time_base or Fraction(1, 1000)
    target = _duration(container, stream) - num_frames / rate - _SEEK_MARGIN_S
    if target > 0:
        _seek(container, stream, path, (stream.start_time or 0) + int(target / base))
    frames = deque(_resampled(container, path, rate, scaler), maxlen=num_frames)
    if target > 0 and len(frames) < num_frames:
        # A wrong duration or an inexact index: the jump landed too late, so read everything.
        _seek(container, stream, path, stream.start_time or 0)
        frames = deque(_resampled(container, path, rate, scaler), maxlen=num_frames)
    return list(frames)


def _seek(container: InputContainer, stream: VideoStream, path: Path, offset: int) -> None:
    try:
        container.seek(offset, stream=stream, backward=True)
    except av.FFmpegError as error:
        raise MediaError(f"video {path} cannot be searched ({error})", hint=_CONVERT) from error


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Clockwise quarter turns that a player applies."""
    return round(-frame.rotation / 90) % 4


def _check_memory(
    container: InputContainer, stream: VideoStream, bytes_per_second: Fraction
) -> None:
    needed = _duration(container, stream) * bytes_per_second
    if needed > MAX_BYTES:
        raise OutOfMemory(
            "all frames of this video would not fit in memory",
            expected=f"at most {MAX_BYTES / 1e9:.1f} GB of frames",
            got=f"{float(needed) / 1e9:.1f} GB",
            hint="ask for num_frames, or a smaller size",
        )
