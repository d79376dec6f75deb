"""Batches of somebody's clips."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onereel.models.text.special_tokens import OTHER_ROWS, SpecialTokens
from onereel.training.data import BatchStream
from onereel.training.magi_layout import Layout, sample_layout
from onereel.training.own_base import OwnDataRecipe
from onereel.training.own_cache import OwnClip
from onereel.training.own_data import WIDTH, OwnBatches
from onereel.training.own_run import _batches

LENGTHS = (1, 2, 5, 1, 9)
RECIPE = OwnDataRecipe(data="none", batch_size=3, image_batch_size=4, image_share=0.3)


def write_clip(folder: Path, number: int, *, chunks: int, kind: str = "video") -> OwnClip:
    """A clip whose latent frames count from 100 * number, and whose caption says the number."""
    frames = chunks * WIDTH if kind == "video" else 1
    latent = torch.arange(frames, dtype=torch.float16) + 100 * number
    latent = latent[None, :, None, None].expand(2, -1, 4, 4).contiguous()
    files = [folder / f"{number}-{what}.safetensors" for what in ("latent", "text")]
    save_file({"latent": latent, "images": latent[:, ::WIDTH].contiguous() + 0.5}, files[0])
    save_file({"hidden": torch.full((number + 1, 8), float(number))}, files[1])
    return OwnClip(name=str(number), kind=kind, num_chunks=chunks, latents=files[0], text=files[1])


@pytest.fixture
def clips(tmp_path: Path) -> list[OwnClip]:
    return [write_clip(tmp_path, number, chunks=n) for number, n in enumerate(LENGTHS)]


def first_values(latent: Tensor) -> list[int]:
    return [int(value) for value in latent[:, 0, 0, 0, 0]]


def test_a_batch_depends_on_its_index_only(clips: list[OwnClip]) -> None:
    batches = OwnBatches(clips, RECIPE, shift=1.5)
    assert batches.fixed()["video"]["layout"].shift == 1.5
    stream = BatchStream(OwnBatches(clips, RECIPE, shift=1.5))
    for index, batch in enumerate(itertools.islice(stream.batches(5), 6), 5):
        again = batches[index]
        assert batch["layout"] == again["layout"]
        assert batch["layout"] is None or batch["layout"].shift == 1.5
        for name in ("latent", "given", "hidden", "mask", "numbers"):
            assert torch.equal(batch[name], again[name])


def test_pieces_are_cut_at_chunks_and_never_longer_than_their_clip(clips: list[OwnClip]) -> None:
    batches, layouts, seen = OwnBatches(clips, RECIPE), [], set()
    for index in range(60):
        batch = batches[index]
        if batch["layout"] is None:
            assert batch["latent"].shape == (4, 2, 1, 4, 4)
            continue
        layout = batch["layout"]
        layouts.append(layout)
        chunks = layout.num_chunks
        assert batch["latent"].shape == (3, 2, WIDTH * chunks, 4, 4)
        assert batch["numbers"].shape == (3, chunks)
        for item, value in enumerate(first_values(batch["latent"])):
            number, frame = divmod(value, 100)
            seen.add(number)
            assert frame % WIDTH == 0 and frame // WIDTH + chunks <= LENGTHS[number]
            assert layout.num_clean or frame == 0
            steps = batch["latent"][item, 0, :, 0, 0] - value
            assert torch.equal(steps, torch.arange(WIDTH * chunks).float())
            assert float(batch["given"][item, 0, 0, 0, 0]) == value + 0.5
            row = batch["numbers"][item, 0]
            assert batch["hidden"][row, 0].unique().item() == number
            assert int(batch["mask"][row].sum()) == number + 1
    assert seen == set(range(len(LENGTHS)))
    assert {layout.num_chunks for layout in layouts} >= {1, 2, 5}


def test_layouts_are_limited_and_otherwise_as_before() -> None:
    plain, limited = ([], [])
    for found, limit in ((plain, None), (limited, 6)):
        rng = np.random.default_rng(3)
        found += [sample_layout(rng, max_chunks=limit) for _ in range(50)]
    assert plain == limited  # six chunks are the longest there is in a window of four
    rng = np.random.default_rng(0)
    for most in (1, 2, 3):
        drawn = {sample_layout(rng, t2v_share=0.0, max_chunks=most).num_chunks for _ in range(40)}
        assert max(drawn) == most


def test_fewer_clips_than_a_batch_holds_fill_it_several_times(tmp_path: Path) -> None:
    batches = OwnBatches([write_clip(tmp_path, 0, chunks=1)], RECIPE)
    for index in range(8):
        batch = batches[index]
        layout = batch["layout"]
        assert len(batch["latent"]) == (4 if layout is None else 3)
        assert set(first_values(batch["latent"])) == {0}
        assert layout is None or (layout.num_clean, layout.num_chunks) == (0, 1)


def test_pictures_alone_give_single_frames_alone(tmp_path: Path) -> None:
    clips = [write_clip(tmp_path, number, chunks=1, kind="picture") for number in range(3)]
    batches = OwnBatches(clips, RECIPE)
    for index in range(10):
        batch = batches[index]
        assert batch["layout"] is None and batch["latent"].shape == (4, 2, 1, 4, 4)
        numbers = [int(batch["hidden"][row, 0, 0]) for row in batch["numbers"][:, 0]]
        assert [value // 100 for value in first_values(batch["latent"])] == numbers
    assert list(batches.fixed()) == ["image"]


def test_pieces_are_those_of_the_checkpoints_window(clips: list[OwnClip]) -> None:
    batches = OwnBatches(clips, RECIPE, window=1)
    layouts = [batch["layout"] for batch in map(batches.__getitem__, range(20))]
    assert {layout.num_chunks for layout in layouts if layout} == {1, 2}
    assert all(layout.window == 1 for layout in layouts if layout)
    assert batches.fixed()["video"]["layout"].num_chunks == 1


def test_the_fixed_batches_show_the_longest_pieces(clips: list[OwnClip]) -> None:
    fixed = OwnBatches(clips, RECIPE).fixed()
    assert fixed["image"]["latent"].shape[0] == 4
    assert fixed["video"]["layout"] == Layout(num_clean=0, ages=(3, 2, 1, 0), aligned=True)
    assert first_values(fixed["video"]["latent"]) == [200, 200, 200]


def test_special_tokens_stand_where_generation_puts_them(tmp_path: Path) -> None:
    rows = torch.arange(17.0)[:, None].expand(-1, 8) + 1000
    tokens = SpecialTokens(torch.zeros(1, 8), torch.zeros(1, 8), rows)
    clips = [write_clip(tmp_path, 4, chunks=9)]
    batches = OwnBatches(clips, RECIPE, tokens=tokens, max_length=6)
    layout = Layout(num_clean=1, ages=(2, 1), aligned=True)
    hq = 1000 + OTHER_ROWS["HQ"]
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        batch = batches.pieces(clips, layout, rng=rng)
        start = first_values(batch["latent"])[0] - 400
        for chunk, row in enumerate(batch["numbers"][0]):
            shown = batch["hidden"][row][batch["mask"][row]][:, 0].tolist()
            left = min(9 - (start // WIDTH + chunk), 8)
            duration = 1000 + OTHER_ROWS[f"DURATION_{left}"]
            front = [value for value in shown if value >= 1000]
            assert front in ([], [hq], [duration], [duration, hq])
            assert shown == (front + [4.0] * 5)[:6]
            seen.add(tuple(value == hq for value in front))
    assert len(seen) == 4


def test_pieces_are_noised_as_the_checkpoint_samples(clips: list[OwnClip]) -> None:
    sampling = {"num_steps": 4, "window_size": 1, "noise2clean_kvrange": (2,), "shift": 1.5}
    parts = SimpleNamespace(sampling=sampling)
    base: Any = SimpleNamespace(parts=parts, tokens=None, config={"caption_max_length": 128})
    batches = _batches(clips, RECIPE, base)
    assert isinstance(batches, OwnBatches) and (batches.window, batches.shift) == (1, 1.5)
