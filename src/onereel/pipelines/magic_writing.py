"""Finished segments of Magic 1-For-1 on their way to a file."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from onereel.media import VideoWriter
from onereel.models.magic_vae.model import to_uint8
from onereel.pipelines.listeners import RunListener, RunProgress
from onereel.pipelines.magic_prepare import MagicVideo
from onereel.pipelines.magic_sampling import MagicSegment
from onereel.pipelines.run import RunResult, noting
from onereel.pipelines.stream import VideoChunk


def write_segments(
    parts: Iterable[MagicSegment],
    *,
    video: MagicVideo,
    output: str,
    record: Mapping[str, Any],
    clock: MagicClock,
    changes: Mapping[str, Any] | None = None,
    official_compat: bool = False,
) -> Generator[VideoChunk, None, RunResult]:
    """Write segments as they come; frames beyond the wanted ones are dropped.

    Args:
        parts: of the video, in order; when some are missing at the end, it is incomplete.
        video: what is made.
        output: the file, or "-".
        record: goes into the file.
        clock: is told what is on disk.
        changes: entries of the record that become known while it is written.
        official_compat: truncate to bytes as the official code does.

    Yields:
        What is on disk.

    Returns:
        What was made.

    Raises:
        MediaError: the output cannot be written any longer; what is on disk plays.
        KeyboardInterrupt: with a note that says how much is safe; the file is finished.
    """
    writer = VideoWriter(
        output, width=video.width, height=video.height, fps=video.fps, metadata=record
    )
    assert writer.metadata is not None
    record = writer.metadata  # entries added until the end reach the finished file
    with noting(writer), writer:
        try:
            for part in parts:
                clock.segment = part.index
                frames = part.frames[: video.num_frames - writer.frames_written]
                pixels = frames.permute(0, 2, 3, 1) / 2 + 0.5  # [F, H, W, 3]
                writer.write(to_uint8(pixels, official_compat=official_compat).cpu().numpy())
                clock.written(writer.seconds_written)
                yield VideoChunk(part.index, frames, part.latent)
        finally:  # before the writer finishes the file, whatever ended the loop
            record.update(changes or {}, frames_written=writer.frames_written)
        complete = writer.frames_written == video.num_frames
        record.update(complete=complete, elapsed_s=round(clock.elapsed_s, 3))
    return result_of(video, output, num_frames=writer.frames_written, clock=clock, record=record)


def result_of(
    video: MagicVideo, path: str, *, num_frames: int, clock: MagicClock, record: dict[str, Any]
) -> RunResult:
    """Say what was made.

    Args:
        video: what was wanted.
        path: of the file or folder.
        num_frames: that are there.
        clock: of the run.
        record: of the run.

    Returns:
        The result.
    """
    return RunResult(
        path=path,
        seed=video.seed,
        num_frames=num_frames,
        seconds=num_frames / video.fps,
        elapsed_s=clock.elapsed_s,
        record=record,
    )


class MagicClock:
    """Measures the work of a run; all steps count alike.

    Args:
        video: what is made.
        listener: is told how far it is.
    """

    def __init__(self, video: MagicVideo, listener: RunListener) -> None:
        self.video, self.listener = video, listener
        self.num_segments = len(video.config.segments())
        self.num_steps = self.num_segments * video.config.num_steps
        self.step, self.segment, self.seconds_done = 0, 0, 0.0
        self.start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.start

    def step_done(self) -> None:
        """Count a step."""
        self.step += 1
        per_segment = self.video.config.num_steps
        self.segment = (self.step - 1) // per_segment
        self.tell()

    def skip_segment(self) -> None:
        """Count the steps of a segment that need not be computed."""
        self.step += self.video.config.num_steps

    def written(self, seconds: float) -> None:
        """Count what is on disk.

        Args:
            seconds: of video.
        """
        self.seconds_done = seconds
        self.tell()

    def tell(self) -> None:
        """Tell the listener how far the run is."""
        video, elapsed = self.video, self.elapsed_s
        total = video.num_frames / video.fps
        # Half of the work is sampling, half decoding, roughly.
        share = (self.step / self.num_steps + self.seconds_done / total) / 2
        self.listener.progress(
            RunProgress(
                chunk=self.segment + 1,
                num_chunks=self.num_segments,
                step=self.step,
                num_steps=self.num_steps,
                share=min(share, 1.0),
                seconds_done=self.seconds_done,
                seconds_total=total,
                elapsed_s=elapsed,
                speed=elapsed / max(share * total, 1e-6),
            )
        )
