"""Streams: order and content depend on seed and index only."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from onereel.training.data import BatchStream, ToyboxClips, shuffled_index, to_video
from onereel.training.vae import ToyboxVaeRecipe
from onereel.training.vae_tiles import VaeBatches

SMALL = ToyboxVaeRecipe(height=32, width=32, batch_size=2, short_share=0.3)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same_with_and_without_workers_and_from_any_start(workers: int) -> None:
    reference = [VaeBatches(SMALL)[i] for i in range(6)]
    stream = BatchStream(VaeBatches(SMALL), workers=workers)
    for start in (0, 3):
        for index, batch in enumerate(itertools.islice(stream.batches(start), 3), start):
            assert torch.equal(batch, reference[index])


class _Numbers:
    def __getitem__(self, index: int) -> int:
        return index


def test_a_signal_to_all_processes_leaves_the_batches_coming() -> None:
    batches = iter(BatchStream(_Numbers(), workers=1, prefetch=1).batches(0))
    assert next(batches) == 0
    children = multiprocessing.active_children()
    assert children
    for child in children:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert [next(batches) for _ in range(4)] == [1, 2, 3, 4]
    begin = time.monotonic()
    del batches
    assert time.monotonic() - begin < 4 and not any(child.is_alive() for child in children)


def test_some_batches_are_short() -> None:
    lengths = {VaeBatches(SMALL)[i].shape[1] for i in range(24)}
    assert 12 in lengths and lengths - {12} and lengths <= {1, 4, 8, 12}


def test_clips_depend_on_seed_and_index() -> None:
    first, again, other = (ToyboxClips(s, num_frames=24, height=32, width=32) for s in (1, 1, 2))
    assert np.array_equal(first[3].video, again[3].video)
    assert not np.array_equal(first[3].video, first[4].video)
    assert first.clip_seed(3) != other.clip_seed(3)


def test_every_epoch_holds_every_item_once_in_a_new_order() -> None:
    orders = [[shuffled_index(p, 10, seed=5) for p in range(e * 10, e * 10 + 10)] for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]


def test_to_video_gives_the_networks_range_and_layout() -> None:
    frames = torch.zeros(2, 5, 4, 6, 3, dtype=torch.uint8)
    frames[0, 1, 2, 3, 0] = 255
    video = to_video(frames)
    assert video.shape == (2, 3, 5, 4, 6) and video.min() == -1
    assert video[0, 0, 1, 2, 3] == 1
