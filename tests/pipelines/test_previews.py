"""Pictures of latents in flight."""

from __future__ import annotations

import errno
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.models.magi_vae.preview import LatentColours
from onereel.pipelines import previews as module
from onereel.pipelines.previews import Previews, contact_sheet, thumbnails
from onereel.samplers.engine import FinishedChunk

BIAS = [0.0, 0.0, 0.0]


def make(sheet: Path | None, shown: list[Any]) -> Previews:
    factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    vae: Any = SimpleNamespace(
        config=SimpleNamespace(latent_rgb_factors=factors, latent_rgb_bias=BIAS)
    )
    return Previews(vae, 2, show=shown.append, sheet=sheet)


def call(chunks: tuple[int, ...], times: tuple[float, ...], after: tuple[float, ...]) -> Any:
    return SimpleNamespace(chunks=chunks, times=times, next_times=after)


def test_a_chunk_in_flight_is_shown_as_what_it_heads_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP_INTERVAL_S", 0.0)
    clean = torch.rand(1, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    shown: list[Any] = []
    previews = make(None, shown)
    older, newer = (0.2, 0.5, 0.6), (0.1, 0.2, 0.4)  # of the two chunks
    for step in range(2):
        t = torch.tensor([older[step + 1]] * 2 + [newer[step + 1]] * 2)[None, None, :, None, None]
        times = ((older[step], newer[step]), (older[step + 1], newer[step + 1]))
        previews.step_done(call((3, 4), *times), (1 - t) * noise + t * clean)
    (strip,) = shown  # one position tells no velocity
    assert np.array_equal(strip, LatentColours(np.eye(3).tolist(), BIAS)(clean).numpy())


def test_the_sheet_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHEET_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "SHEET_SHARE", 1.0)
    previews = make(tmp_path / "preview.jpg", [])
    sizes = []
    for chunk in range(6):
        previews.chunk_done(FinishedChunk(chunk, torch.zeros(1, 3, 2, 3, 4), 0))
        previews.close()
        with Image.open(tmp_path / "preview.jpg") as sheet:
            sizes.append(sheet.size)
    assert sizes[0] == (2 * 64, 48) and sizes[3] == (8 * 64, 48) and sizes[5] == (12 * 64, 48)


def test_the_sheet_of_a_long_video_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PICTURES", 24)
    previews = make(None, [])
    for chunk in range(100):
        latent = torch.full((1, 3, 2, 3, 4), chunk / 100)
        previews.chunk_done(FinishedChunk(chunk, latent, 0))
        assert len(previews._clean.pictures) <= 24
    shades = [int(picture[0, 0, 0]) for picture in previews._clean.pictures]
    # Every sixteenth of 200 pictures, from the first on.
    assert shades == [round(n * 16 // 2 / 100 * 127.5 + 127.5) for n in range(13)]


def test_the_sheet_holds_no_array_of_a_single_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    # Such arrays lie between the large buffers of decoding, and the heap grows (docs/log.md).
    made: list[weakref.ref[Any]] = []

    def record(pictures: Any) -> Any:
        small = thumbnails(pictures)
        made.extend((weakref.ref(small), weakref.ref(small.base)))
        return small

    monkeypatch.setattr(module, "thumbnails", record)
    monkeypatch.setattr(module, "MAX_PICTURES", 24)
    previews = make(None, [])
    for chunk in range(20):
        previews.chunk_done(FinishedChunk(chunk, torch.zeros(1, 3, 2, 3, 4), 0))
        assert all(ref() is None for ref in made)


def test_a_sheet_that_cannot_be_written_ends_no_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    previews = make(tmp_path / "preview.jpg", [])
    previews.chunk_done(FinishedChunk(0, torch.zeros(1, 3, 2, 3, 4), 0))
    previews.close()
    assert list(tmp_path.iterdir()) == [] and previews.sheet is None


def test_pictures_keep_their_places() -> None:
    pictures = [np.full((3, 4, 3), 10 * k, np.uint8) for k in range(25)]
    sheet = contact_sheet(pictures)
    assert sheet.shape == (6, 24 * 4, 3)
    assert [int(v) for v in sheet[0, ::4, 0]] == [10 * k for k in range(24)]
    assert int(sheet[-1, 0, 0]) == 240 and int(sheet[-1, -1, 0]) == 0
    assert thumbnails(np.stack(pictures)).shape == (25, 48, 64, 3)
    assert thumbnails(np.zeros((1, 90, 160, 3), np.uint8)).shape == (1, 36, 64, 3)
