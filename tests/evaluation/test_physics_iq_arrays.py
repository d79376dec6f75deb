"""Physics-IQ on arrays: masks, resizing, metrics, score and the official table."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from onereel.core.errors import ConfigError, MediaError, ShapeError
from onereel.evaluation.physics_iq import (
    MaskStream,
    PairMetrics,
    ScenarioRow,
    ViewMetrics,
    frozen_clip,
    make_clip,
    masks,
    moving_masks,
    pair_metrics,
    read_rows,
    resize,
    score,
    view_metrics,
    write_rows,
)
from onereel.evaluation.physics_iq.mask_files import mp4v_round_trip, pack, unpack


def walking_square(
    num_frames: int = 12, *, size: tuple[int, int] = (64, 96), speed: int = 3, seed: int = 0
) -> np.ndarray:
    """A bright square that walks over a noisy ground."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 100, (*size, 3), dtype=np.uint8)
    video = np.repeat(ground[None], num_frames, 0)
    for t, frame in enumerate(video):
        frame[20:40, 8 + speed * t : 28 + speed * t] = (230, 200, 180)
    return video


def _plain_masks(video: np.ndarray) -> np.ndarray:
    """The rule of the masks, written down step by step."""
    gray = (video @ np.array([9798, 19235, 3735]) + 16384) >> 15
    padded = np.pad(gray, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    blurred = ((windows * kernel).sum((-2, -1)) + 128) >> 8
    out, background = np.zeros(gray.shape, bool), blurred[0].astype(np.float64)
    for t in range(1, len(video)):
        background = 0.3 * blurred[t] + 0.7 * background
        mask = np.abs(blurred[t] - np.rint(background.astype(np.float32))) > 10
        for outside, pick in ((1, np.min), (0, np.max), (0, np.max), (1, np.min)):
            around = np.pad(mask, 2, constant_values=bool(outside))
            mask = pick(np.lib.stride_tricks.sliding_window_view(around, (5, 5)), axis=(-2, -1))
        out[t] = mask
    return out


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Blotches of many sizes, some of them at the border."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (shape[0], -(-shape[1] // 7), -(-shape[2] // 7), 3))
    fine = np.kron(coarse, np.ones((1, 7, 7, 1)))[:, : shape[1], : shape[2]]
    return np.clip(fine + rng.normal(0, 8, fine.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5, 33, 47), (4, 5, 64), (4, 40, 3)])
def test_masks_follow_the_rule_step_by_step(shape: tuple[int, ...]) -> None:
    video = _noise(shape, 1)
    found = moving_masks(video)
    assert np.array_equal(found, _plain_masks(video))
    assert not found[0].any()
    assert found[1:].any() and not found[1:].all()


def test_bands_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    video = _noise((4, 50, 60), 2)
    whole = moving_masks(video)
    monkeypatch.setattr(masks, "_BAND_PIXELS", 60 * 7)
    assert np.array_equal(moving_masks(video), whole)


def test_masks_want_rgb_frames_of_one_size() -> None:
    with pytest.raises(ShapeError, match="uint8 pixels"):
        moving_masks(np.zeros((2, 8, 8, 3), np.float32))
    stream = MaskStream()
    stream(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ShapeError, match="size"):
        stream(np.zeros((8, 10, 3), np.uint8))


def _plain_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rule of resizing, one pixel at a time."""
    rows, columns = pixels.shape
    out = np.zeros((height, width), np.uint8)
    for y in range(height):
        v = np.float32((y + 0.5) * (rows / height) - 0.5)
        top = math.floor(v)
        v1 = round(float(np.float32(2048) * (v - np.float32(top))))
        v0 = round(float(np.float32(2048) * (np.float32(1) - (v - np.float32(top)))))
        for x in range(width):
            h = np.float32((x + 0.5) * (columns / width) - 0.5)
            left = math.floor(h)
            w = h - np.float32(left)
            if left < 0 or left >= columns - 1:
                left, w = min(max(left, 0), columns - 1), np.float32(0)
            a1 = round(float(np.float32(2048) * w))
            a0 = round(float(np.float32(2048) * (np.float32(1) - w)))
            sums = []
            for row in (top, top + 1):
                line = pixels[min(max(row, 0), rows - 1)]
                right = int(line[min(left + 1, columns - 1)])
                sums.append((a0 * int(line[left]) + a1 * right) >> 4)
            out[y, x] = ((v0 * sums[0] >> 16) + (v1 * sums[1] >> 16) + 2) >> 2
    return out


@pytest.mark.parametrize(
    ("source", "target"),
    [((50, 66), (12, 16)), ((48, 64), (12, 16)), ((9, 7), (12, 16)), ((12, 40), (12, 16))],
)
def test_resizing_follows_the_rule_pixel_by_pixel(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    got = resize(pixels, height=target[0], width=target[1])
    for c in range(3):
        assert np.array_equal(got[..., c], _plain_resize(pixels[..., c], *target))
    assert np.array_equal(resize(pixels[..., 0], height=target[0], width=target[1]), got[..., 0])


def test_resizing_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ShapeError, match="pixels"):
        resize(np.zeros((4, 4), np.float32), height=2, width=2)
    with pytest.raises(ConfigError, match="size"):
        resize(np.zeros((4, 4), np.uint8), height=0, width=2)


def test_a_clip_agrees_with_itself_and_not_with_a_still() -> None:
    video = walking_square()
    clip = make_clip(video)
    assert clip.frames.shape == (12, 16, 24, 3) and clip.masks.any()
    same = pair_metrics(clip, clip)
    assert same == PairMetrics(
        mse=(0.0,) * 12, spatiotemporal=(1.0,) * 12, spatial=1.0, weighted_spatial=1.0
    )
    still = frozen_clip(video[0], 12, size=(16, 24))
    frozen = pair_metrics(clip, still)
    assert frozen.spatial == frozen.weighted_spatial == 0.0
    assert frozen.spatiotemporal[0] == 1.0  # nothing moves in any first frame
    assert frozen.mse[0] == 0.0 < frozen.mse[-1]


def test_metrics_are_what_their_definitions_say() -> None:
    a, b = make_clip(walking_square()), make_clip(walking_square(speed=2, seed=1))
    got = pair_metrics(a, b)
    x, y = a.frames / 255.0, b.frames / 255.0
    assert np.allclose(got.mse, ((x - y) ** 2).mean((1, 2, 3)), atol=1e-12)
    union = (a.masks | b.masks).sum((1, 2))
    overlap = np.where(union == 0, 1.0, (a.masks & b.masks).sum((1, 2)) / np.maximum(union, 1))
    assert np.allclose(got.spatiotemporal, overlap)
    ever = a.masks.any(0), b.masks.any(0)
    assert got.spatial == pytest.approx((ever[0] & ever[1]).sum() / (ever[0] | ever[1]).sum())
    weights = a.masks.mean(0), b.masks.mean(0)
    want = np.minimum(*weights).sum() / np.maximum(*weights).sum()
    assert got.weighted_spatial == pytest.approx(want)
    assert 0 < got.weighted_spatial < got.spatial < 1


def test_clips_of_another_length_or_size_are_refused() -> None:
    clip = make_clip(walking_square())
    with pytest.raises(ShapeError, match="number of frames"):
        pair_metrics(clip, make_clip(walking_square(11)))
    with pytest.raises(ShapeError, match="size"):
        pair_metrics(clip, make_clip(walking_square(), size=(8, 8)))


def _pair(mse: float, st: float, sp: float, ws: float) -> PairMetrics:
    return PairMetrics(mse=(mse, mse), spatiotemporal=(st, st), spatial=sp, weighted_spatial=ws)


def _row(name: str, model: PairMetrics, variance: PairMetrics) -> ScenarioRow:
    view = ViewMetrics(take1=model, take2=model, variance=variance)
    return ScenarioRow(scenario=name, views={"perspective-left": view, "perspective-right": view})


def test_the_score_by_hand() -> None:
    rows = [
        _row("one", _pair(0.01, 0.2, 0.4, 0.3), _pair(0.002, 0.5, 0.8, 0.6)),
        _row("two", _pair(0.03, 0.4, 0.4, 0.3), _pair(0.002, 0.7, 0.8, 0.6)),
    ]
    got = score(rows)
    want = 100 * ((0.3 / 0.6 + 0.4 / 0.8 + 0.3 / 0.6) / 3 - (0.02 - 0.002))
    assert got.unclipped == pytest.approx(want)
    assert got.score == 48.2
    assert got.variance_sum == pytest.approx(0.6 + 0.8 + 0.6 - 0.002)


def test_frames_are_rounded_before_they_are_averaged() -> None:
    row = _row("one", _pair(0.00004, 1.0, 1.0, 1.0), _pair(0.0, 1.0, 1 / 3, 1 / 3))
    got = score([row])
    assert got.means.mse == 0.0  # the official tool loses errors below 0.00005
    assert got.variance.spatial == 0.33333 and got.variance.weighted_spatial == 0.3333


def test_nearer_to_the_first_take_than_the_second_take_is() -> None:
    got = score([_row("one", _pair(0.0, 0.9, 0.9, 0.9), _pair(0.0, 0.6, 0.6, 0.6))])
    assert got.score == 100.0 and got.unclipped == pytest.approx(150)


def test_takes_that_never_overlap_give_no_score() -> None:
    got = score([_row("one", _pair(0.0, 0.9, 0.9, 0.9), _pair(0.0, 0.6, 0.0, 0.0))])
    assert got.score is None and got.unclipped is None
    assert "spatial, weighted_spatial" in got.note


def test_rows_must_agree() -> None:
    with pytest.raises(ConfigError, match="at least one scenario"):
        score([])
    row = _row("one", _pair(0, 1, 1, 1), _pair(0, 1, 1, 1))
    other = ScenarioRow(scenario="two", views={"perspective-left": row.views["perspective-left"]})
    with pytest.raises(ConfigError, match="scenario two"):
        score([row, other])


def test_the_official_table_comes_back(tmp_path: Path) -> None:
    clips = [make_clip(walking_square(speed=speed, seed=speed)) for speed in (1, 2, 3)]
    view = view_metrics(clips[0], clips[1], generated=clips[2])
    row = ScenarioRow(scenario="trimmed-walk", views={"perspective-left": view})
    path = write_rows(tmp_path / "results" / "m.csv", [row])
    head = path.read_text(encoding="utf-8").split("\n")[0].split(",")
    assert head[:4] == ["scenario", "v1_mse_perspective-left", "v2_mse_perspective-left",
                        "variance_spatial_perspective-left"]  # fmt: skip
    assert read_rows(path, views=["perspective-left"]) == [row]
    with pytest.raises(ConfigError, match="v1_mse_perspective-center"):
        read_rows(path)


@pytest.mark.parametrize("cell", ["nan", "[nan]", "'x'", "", "[1.0]"])
def test_a_broken_table_is_refused(tmp_path: Path, cell: str) -> None:
    clip = make_clip(walking_square(2))
    view = view_metrics(clip, clip, generated=clip)
    row = ScenarioRow(scenario="a", views={"perspective-left": view})
    path = write_rows(tmp_path / "m.csv", [row])
    lines = path.read_text().split("\n")
    lines[1] = lines[1].replace(",1.0,", f",{cell},", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="column"):
        read_rows(path, views=["perspective-left"])


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.csv"):
        read_rows(tmp_path / "none.csv")


def test_packed_masks_come_back() -> None:
    found = moving_masks(walking_square(5, size=(64, 90)))
    assert np.array_equal(np.stack(list(unpack(pack(found), 90))), found)


def test_the_codec_adds_noise_to_masks() -> None:
    found = moving_masks(walking_square(6, size=(49, 65), speed=2))
    levels = np.stack(list(mp4v_round_trip(found, Fraction(8))))
    assert levels.shape == (6, 48, 64)  # odd sizes lose a row and a column
    assert ((levels > 127) != found[:, :48, :64]).mean() < 0.05
    assert len(np.unique(levels)) > 2
