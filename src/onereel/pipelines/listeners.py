"""Who is told how a run goes; without torch, so that the command line can start talking early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from onereel.media.scale import Pixels


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

    def preview(self, pictures: Pixels) -> None:
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

    def preview(self, pictures: Pixels) -> None:
        """Drop pictures.

        Args:
            pictures: uint8 [T, h, w, 3].
        """
