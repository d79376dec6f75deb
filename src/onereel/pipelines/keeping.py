"""Chunks that outlast the process that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from onereel.pipelines.watch import RunClock
from onereel.samplers.engine import ChunkEngine, FinishedChunk


class Keeper(Protocol):
    """Keeps what a run has finished, so that another process can go on with it."""

    @property
    def finished(self) -> range:
        """Chunks that are kept."""
        ...

    @property
    def path(self) -> Path:
        """Where they are kept."""
        ...

    @property
    def latents_only(self) -> bool:
        """Whether nothing is decoded."""
        ...

    @property
    def preview(self) -> Path:
        """Where a contact sheet of the latents shall lie."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether what follows the kept chunks begins anew, rather than from the last state."""
        ...

    def begin(self, record: Mapping[str, Any], *, vae_hash: str) -> None:
        """Take the run's record, and the hash of the VAE alone, before the first step."""

    def save(self, chunk: int, state: dict[str, torch.Tensor]) -> None:
        """Take what `ChunkEngine.latents_dict` gives when a chunk is finished."""

    def load(self, chunk: int) -> dict[str, torch.Tensor]:
        """Return what was saved."""
        ...

    def steered(self, next_chunk: int) -> Sequence[tuple[int, str]]:
        """Return prompts that came while the video is made.

        Args:
            next_chunk: absolute index of the first chunk that has not begun; may be past the end.

        Returns:
            Absolute chunk from which on each holds, and its text.

        Raises:
            KeyboardInterrupt: the run shall stop here.
        """
        ...

    def end(self, num_frames: int) -> None:
        """Be told that the video is complete."""


def kept_chunks(
    engine: ChunkEngine, keeper: Keeper, *, clock: RunClock, steer: Callable[[int, str], None]
) -> Iterator[FinishedChunk]:
    """Hand out the chunks that are kept, then keep and hand out those that follow.

    Args:
        engine: new, of the whole video.
        keeper: keeps the chunks.
        clock: counts those that need not be computed.
        steer: is told the prompts that come meanwhile, and from which chunk on each holds.

    Yields:
        All chunks of the video, in order.
    """
    done = keeper.finished
    for chunk in done:
        clock.skip_chunk()
        yield engine.restored(chunk, keeper.load(chunk))
    if done.stop == engine.task.num_chunks:
        return
    # After a cut, the next chunk must enter the window where it would have: the ones before it are
    # in flight then, and are computed along, but stay what they were.
    last = done.stop - (engine.config.window_size if keeper.is_cut else 1)
    if last >= done.start:
        engine.rebuild(last, keeper.load)
    for finished in engine.run():
        if finished.index in done:
            engine.pin(finished.index, keeper.load(finished.index))
            continue
        keeper.save(finished.index, engine.latents_dict())
        yield finished
        for chunk, text in keeper.steered(finished.index + engine.config.window_size):
            steer(chunk, text)
