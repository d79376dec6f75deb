"""Videos as streams of frames at their own size, and the rule for other frame rates.

No video is held in memory: a second of 4K is 750 MB.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.physics_iq.dataset import SECONDS, SOURCE_FPS
from onereel.evaluation.physics_iq.masks import Frame
from onereel.media.image import require_file
from onereel.media.scale import Scaler, rotated
from onereel.media.video import probe

_HINT = "copy or make it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFile:
    """A video file and which frames of it count.

    Args:
        path: the file.
        num_frames: frames to yield, from its start.
        fps: rate that its frames are resampled to, from 30; None takes them as they are.
    """

    path: Path
    num_frames: int
    fps: Fraction | None = None


def frame_count(fps: Fraction) -> int:
    """Count the frames that are compared: five seconds.

    Args:
        fps: frames per second, at least 1.

    Returns:
        Frames; a started one does not count at rates such as 29.97.

    Raises:
        ConfigError: the rate is too low.
    """
    if fps < 1:
        raise ConfigError("fps", expected="at least 1", got=float(fps))
    return int(SECONDS * fps)


def plain_rate(fps: Fraction) -> Fraction:
    """Take a rate for the whole number it stands for, as with files that count in milliseconds.

    Args:
        fps: as a file says.

    Returns:
        The nearest whole number when it is less than 0.005 away, else the rate itself.
    """
    whole = Fraction(round(fps))
    return whole if abs(fps - whole) < Fraction(1, 200) else fps


def stream_frames(clip: ClipFile, *, threads: int = 0) -> Iterator[Frame]:
    """Decode a clip.

    Args:
        clip: what to read.
        threads: of the decoder; 0 lets it choose.

    Yields:
        Exactly `num_frames` frames, uint8 RGB [H, W, 3].

    Raises:
        MediaError: the file is missing, damaged, cut off, too short, or changes its size.
    """
    frames: Iterator[Frame] = decode(clip.path, threads=threads)
    if clip.fps is not None:
        frames = _at_rate(frames, probe(clip.path).num_frames, clip.fps)
    count = 0
    for frame in islice(frames, clip.num_frames):
        count += 1
        yield frame
    if count < clip.num_frames:
        raise MediaError(
            f"video {clip.path} is too short",
            expected=f"{clip.num_frames} frames", got=count, hint=_HINT,
        )  # fmt: skip


def decode(path: Path, *, threads: int = 0) -> Iterator[Frame]:
    """Decode every frame of a video.

    Args:
        path: a video file.
        threads: of the decoder; 0 lets it choose.

    Yields:
        uint8 RGB [H, W, 3], all of one size.

    Raises:
        MediaError: the file is missing, damaged or cut off, or its frames change their size.
    """
    require_file(path, "video")
    count, size, scaler = 0, (0, 0), None
    for frame in _decoded(path, threads):
        frame = rotated(frame, round(-frame.rotation / 90) % 4)
        if scaler is None:
            size = frame.height, frame.width
            scaler = Scaler(height=size[0], width=size[1])
        if (frame.height, frame.width) != size:
            got = f"{frame.width}x{frame.height} in frame {count}"
            raise MediaError(f"video {path}", expected=f"{size[1]}x{size[0]}", got=got)
        count += 1
        yield scaler(frame)
    if not count:
        raise MediaError(f"video {path} holds no frames", hint=_HINT)


def _decoded(path: Path, threads: int) -> Iterator[av.VideoFrame]:
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise MediaError(f"{path} holds no video", hint="give a file with a video stream")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise MediaError(f"video {path} is cut off or damaged", hint=_HINT)
                yield from packet.decode()
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"video {path} is damaged ({error})", hint=_HINT) from error


def resample(frames: Iterator[Frame], num_frames: int, *, fps: Fraction) -> Iterator[Frame]:
    """Blend 30 fps video to another rate; the first and the last frame stay where they are.

    Args:
        frames: uint8 RGB [H, W, 3] at 30 fps.
        num_frames: how many there are.
        fps: rate wanted.

    Yields:
        At most five seconds, with even width and height.

    Source:
        spec/evaluation.md 1.2.
    """
    seconds = min(Fraction(SECONDS), Fraction(num_frames, SOURCE_FPS))
    source, target = int(seconds * SOURCE_FPS), int(seconds * fps)
    held: deque[Frame] = deque(maxlen=2)
    last = -1
    for j in range(target):
        place = Fraction(j * (source - 1), max(1, target - 1))
        low = int(place)
        for frame in islice(frames, max(0, min(low + 1, source - 1) - last)):
            held.append(frame)
            last += 1
        if last < low:
            return  # the file ended early
        share = np.float32(float(place - low))
        first, after = held[-1] if last == low else held[0], held[-1]
        blend = (1 - share) * first.astype(np.float32) + share * after.astype(np.float32)
        height, width = (size & ~1 for size in blend.shape[:2])
        yield blend[:height, :width].astype(np.uint8)


def _at_rate(frames: Iterator[Frame], num_frames: int, fps: Fraction) -> Iterator[Frame]:
    return frames if fps == SOURCE_FPS else resample(frames, num_frames, fps=fps)


def file_sha256(path: Path) -> str:
    """Hash a file.

    Args:
        path: of the file.

    Returns:
        SHA-256 in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
