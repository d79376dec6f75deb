"""How far a run is."""

from __future__ import annotations

import time

from onereel.pipelines.listeners import RunListener, RunProgress
from onereel.pipelines.prepare import RunPlan
from onereel.samplers.plan import ChunkCall


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
