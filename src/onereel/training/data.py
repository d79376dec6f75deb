"""Deterministic streams: item i of a stream depends on (seed, i) alone.

A stream is a map-style dataset of *batches* read in order from any start, so that a resume needs
one number and the count of background workers changes nothing but speed.
"""

from __future__ import annotations

import functools
import itertools
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from onereel.core.seeds import derive_seed
from onereel.world import Clip, sample_clip


class Indexed(Protocol):
    """Anything with items by index, such as batches computed on demand."""

    def __getitem__(self, index: int) -> Any:
        """Return the item, which depends on the index only."""
        ...


class ToyboxClips(Dataset[Clip]):
    """Clips of the toybox world; clip i depends on (seed, i) and the settings only.

    Args:
        seed: seed of the stream.
        num_frames: frames per clip, a multiple of 24.
        height: canvas height in pixels.
        width: canvas width in pixels.
        held_out: draw the combinations that are held out from training.
        timeline_share: share of clips whose prompt changes on the way, in [0, 1].
        several_share: share of clips with several objects, in [0, 1]; None for the world's own.
        motions: the motions to choose from; None means all.
    """

    def __init__(
        self,
        seed: int,
        *,
        num_frames: int = 96,
        height: int = 64,
        width: int = 64,
        held_out: bool = False,
        timeline_share: float = 0.0,
        several_share: float | None = None,
        motions: Sequence[str] | None = None,
    ) -> None:
        self.seed = seed
        self._draw = functools.partial(
            sample_clip,
            num_frames=num_frames,
            height=height,
            width=width,
            held_out=held_out,
            timeline_share=timeline_share,
            several_share=several_share,
            motions=motions,
        )

    def clip_seed(self, index: int) -> int:
        """Give the world's seed of one clip, with which it can be rendered again."""
        return derive_seed(self.seed, "toybox", index)

    def __getitem__(self, index: int) -> Clip:
        """Render clip `index`."""
        return self._draw(self.clip_seed(index))


class _From(Sampler[int]):
    """All indices from `start` on, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class _Endless(Dataset[Any]):
    """Gives any indexed object the type that torch's loader asks for."""

    def __init__(self, items: Indexed) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _prepare_worker(worker: int) -> None:
    """Leave Ctrl-C to the main process, and the cores to the other processes.

    torchrun sends SIGTERM to whole process groups: the main process still needs its batches then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


class BatchStream:
    """Batches in index order, computed by background processes.

    Args:
        batches: item i is batch i.
        workers: number of background processes; 0 computes in the main process.
        prefetch: batches each worker holds ready.
        start_method: how workers start: `fork`, `forkserver` or `spawn`; None for the platform's.
    """

    def __init__(
        self,
        batches: Indexed,
        *,
        workers: int = 0,
        prefetch: int = 3,
        start_method: str | None = None,
    ) -> None:
        self.items, self.workers = batches, workers
        self.prefetch, self.start_method = prefetch, start_method

    def batches(self, start: int) -> Iterator[Any]:
        """Yield batch `start` and all that follow it.

        Args:
            start: index of the first batch.
        """
        yield from DataLoader(
            _Endless(self.items),
            batch_size=None,
            sampler=_From(start),
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            multiprocessing_context=self.start_method if self.workers else None,
            worker_init_fn=_prepare_worker,
            # A loader draws a seed for its workers when it starts. From torch's global generator
            # that draw would make a resumed run another one than an unbroken run.
            generator=torch.Generator(),
        )


def to_video(frames: np.ndarray | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn stored frames into a network's input.

    Args:
        frames: uint8, [B, F, H, W, 3].
        dtype: dtype of the result.

    Returns:
        Video [B, 3, F, H, W] in [-1, 1].
    """
    tensor = torch.as_tensor(frames).permute(0, 4, 1, 2, 3)  # [B, 3, F, H, W]
    return tensor.to(dtype) / 127.5 - 1.0


def shuffled_index(position: int, count: int, *, seed: int) -> int:
    """Give the item at a position of an endless stream that shuffles anew in every epoch.

    Args:
        position: position in the stream.
        count: number of items of an epoch.
        seed: seed of the shuffling.

    Returns:
        An index below `count`; every epoch holds each index once.
    """
    epoch, place = divmod(position, count)
    return int(_permutation(count, derive_seed(seed, "epoch", epoch))[place])


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int) -> np.ndarray:
    """Compute a permutation, keeping the last few: positions come in order."""
    return np.random.default_rng(seed).permutation(count)
