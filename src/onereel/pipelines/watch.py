"""How far a run is, and who is told."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onereel.pipelines.prepare import RunPlan
from onereel.samplers.plan import ChunkCall

Frames = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """How far a run is.

    Args:
        chunk: the oldest chunk in flight, counted from 1, given ones included.
        num_chunks: chunks of the video.
        step: model steps done.
        num_steps: model steps of the video.
        share: part of the work that is done, 0 to 1.
        seconds_done: video that is on disk.
        seconds_total: video when all is done.
        elapsed_s: since sampling began.
        speed: seconds of computing per second of new video.
    """

    chunk: int
    num_chunks: int
    step: int
    num_steps: int
    share: float
    seconds_done: float
    seconds_total: float
    elapsed_s: float
    speed: float

    @property
    def eta_s(self) -> float:
        """Seconds until all is done."""
        return self.elapsed_s * (1 - self.share) / max(self.share, 1e-6)


class RunListener(Protocol):
    """Is told how a run goes."""

    def say(self, text: str) -> None:
        """Take a line of text."""

    def progress(self, state: RunProgress) -> None:
        """Take the state after a step or a written chunk."""

    def preview(self, pictures: Frames) -> None:
        """Take what the chunks in flight will look like, uint8 [T, h, w, 3], a few times a second.

        Args:
            pictures: one per latent frame, at the latent's size.
        """


class SilentListener:
    """Drops everything."""

    def say(self, text: str) -> None:
        """Drop a line of text.

        Args:
            text: the line.
        """

    def progress(self, state: RunProgress) -> None:
        """Drop a state.

        Args:
            state: how far the run is.
        """

    def preview(self, pictures: Frames) -> None:
        """Drop pictures.

        Args:
            pictures: uint8 [T, h, w, 3].
        """


class RunClock:
    """Measures the work of a run; a step's work is the number of chunks it moves.

    Args:
        plan: the run.
        listener: is told how far it is.
    """

    def __init__(self, plan: RunPlan, listener: RunListener) -> None:
        self.plan, self.listener = plan, listener
        new_chunks = plan.num_chunks - plan.num_given_chunks
        self.total = new_chunks * plan.request.config.num_steps
        self.work, self.step, self.chunk = 0, 0, plan.num_given_chunks
        self.seconds_done = 0.0
        self.start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.start

    def step_done(self, call: ChunkCall) -> None:
        """Count a step.

        Args:
            call: the step.
        """
        self.work += len(call.chunks)
        self.step, self.chunk = call.step + 1, call.chunks[0]
        self.tell()

    def skip_chunk(self) -> None:
        """Count the steps of a chunk that need not be computed."""
        self.work += self.plan.request.config.num_steps

    def chunk_done(self, seconds: float) -> None:
        """Count a chunk that is on disk.

        Args:
            seconds: of video that are on disk.
        """
        self.seconds_done = seconds
        self.tell()

    def tell(self) -> None:
        """Tell the listener how far the run is."""
        plan, elapsed = self.plan, self.elapsed_s
        share = self.work / self.total
        fps = plan.request.fps
        self.listener.progress(
            RunProgress(
                chunk=self.chunk + 1,
                num_chunks=plan.num_chunks,
                step=self.step,
                num_steps=plan.num_steps,
                share=share,
                seconds_done=self.seconds_done,
                seconds_total=plan.request.num_frames / fps,
                elapsed_s=elapsed,
                speed=elapsed / max(share * plan.new_frames / fps, 1e-6),
            )
        )
