"""Distribution distances: zero on equal sets, growing with noise, and not blind to time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError, ShapeError
from onereel.evaluation.distances import frechet_distance
from onereel.evaluation.toybox.distribution import ftd, trajectory_features, wvd
from onereel.evaluation.toybox.tracks import Track, Tracking, truth
from onereel.evaluation.toybox.world_features import (
    CHECKPOINT,
    MIN_FRAMES,
    NUM_FEATURES,
    WorldClassifier,
    classifier_sha256,
    label_accuracy,
    load_world_classifier,
    prepare,
    save_world_classifier,
    train_world_classifier,
    world_features,
)
from onereel.world import COLOURS, PALETTE, sample_clip, sample_spec, simulate

FRAMES = 48
NUM_TRACKED = 64
NUM_SEEN = 16


@functools.cache
def trackings() -> tuple[Tracking, ...]:
    specs = [sample_spec(np.random.default_rng((seed, 1))) for seed in range(NUM_TRACKED)]
    return tuple(truth(simulate(s, i, num_frames=FRAMES)) for i, s in enumerate(specs))


@functools.cache
def videos() -> tuple[np.ndarray, ...]:
    return tuple(sample_clip(seed, num_frames=FRAMES).video for seed in range(NUM_SEEN))


@functools.cache
def classifier() -> WorldClassifier:
    return load_world_classifier()


@functools.cache
def clean_features() -> np.ndarray:
    return world_features(videos(), model=classifier())


def reordered(tracking: Tracking, order: np.ndarray) -> Tracking:
    """Show the frames in another order, some several times or not at all."""

    def moved(track: Track) -> Track | None:
        rows = np.full(tracking.num_frames, -1)
        rows[track.frames] = np.arange(len(track.frames))
        frames = np.flatnonzero(rows[order] >= 0)
        arrays = {n: getattr(track, n)[rows[order][frames]] for n in ("x", "y", "r", "cut", "rgb")}
        return dataclasses.replace(track, frames=frames, **arrays) if len(frames) else None

    tracks = [track for track in map(moved, tracking.tracks) if track is not None]
    return dataclasses.replace(tracking, tracks=tuple(tracks), camera=tracking.camera[order])


def jittered(tracking: Tracking, sigma: float, rng: np.random.Generator) -> Tracking:
    def moved(track: Track) -> Track:
        dx, dy = rng.normal(0.0, sigma, (2, len(track.x)))
        return dataclasses.replace(track, x=track.x + dx, y=track.y + dy)

    return dataclasses.replace(tracking, tracks=tuple(map(moved, tracking.tracks)))


def recoloured(tracking: Tracking) -> Tracking:
    """Name every object by the palette colour nearest to its own with red and blue swapped."""
    palette = np.array([PALETTE[name] for name in COLOURS], dtype=float)

    def named(track: Track) -> Track:
        swapped = np.array(PALETTE[track.colour], dtype=float)[::-1]
        nearest = int(np.linalg.norm(palette - swapped, axis=1).argmin())
        return dataclasses.replace(track, colour=COLOURS[nearest])

    return dataclasses.replace(tracking, tracks=tuple(map(named, tracking.tracks)))


def trajectory_distance(corrupt: Callable[[Tracking], Tracking]) -> float:
    clean = np.array([trajectory_features(t) for t in trackings()])
    measured = ftd(np.array([trajectory_features(corrupt(t)) for t in trackings()]), clean)
    assert measured.mean is not None
    return measured.mean


def video_distance(corrupt: Callable[[np.ndarray], np.ndarray]) -> float:
    clean = clean_features()
    spoilt = world_features([corrupt(v) for v in videos()], model=classifier())
    measured = wvd(spoilt, clean)
    assert measured.mean is not None
    return measured.mean


def test_ftd_of_equal_sets_is_zero_and_grows_with_jitter() -> None:
    rng = np.random.default_rng(0)
    found = [trajectory_distance(lambda t, s=s: jittered(t, s, rng)) for s in (0, 0.25, 0.5, 1, 2)]
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert all(later > 1.2 * before for before, later in zip(found[1:], found[2:], strict=False))
    assert found[1] > 1.0


@pytest.mark.parametrize(
    ("name", "least"), [("reverse", 3.0), ("shuffle", 100.0), ("freeze", 5.0), ("colours", 3.0)]
)
def test_ftd_sees(name: str, least: float) -> None:
    rng = np.random.default_rng(0)
    order = np.arange(FRAMES)
    corrupt: dict[str, Callable[[Tracking], Tracking]] = {
        "reverse": lambda t: reordered(t, order[::-1]),
        "shuffle": lambda t: reordered(t, rng.permutation(FRAMES)),
        "freeze": lambda t: reordered(t, np.zeros(FRAMES, dtype=int)),
        "colours": recoloured,
    }
    assert trajectory_distance(corrupt[name]) > least


def test_trajectory_features_of_no_objects_and_many() -> None:
    one = trackings()[0]
    nothing = trajectory_features(dataclasses.replace(one, tracks=()))
    assert nothing.shape == (121,)
    assert not nothing.any()
    many = dataclasses.replace(one, tracks=one.tracks[:1] * 5)
    assert np.isfinite(trajectory_features(many)).all()
    still = dataclasses.replace(one, camera=one.camera[:1], tracks=())
    assert trajectory_features(still).shape == (121,)


def test_the_order_of_tracks_does_not_matter() -> None:
    both = next(t for t in trackings() if len(t.tracks) == 2)
    turned = dataclasses.replace(both, tracks=both.tracks[::-1])
    np.testing.assert_array_equal(trajectory_features(both), trajectory_features(turned))


def test_wvd_grows_with_noise() -> None:
    def noisy(video: np.ndarray, sigma: float) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0.0, sigma, video.shape)
        return (video + noise).round().clip(0, 255).astype(np.uint8)

    found = [video_distance(lambda v, s=s: noisy(v, s)) for s in (0, 4, 8, 16, 32)]
    assert found[0] == pytest.approx(0.0, abs=1e-4)
    assert all(later > 1.5 * before for before, later in zip(found[1:], found[2:], strict=False))
    assert found[1] > 1e-3


@pytest.mark.parametrize("name", ["reverse", "shuffle", "freeze", "colours"])
def test_wvd_sees(name: str) -> None:
    rng = np.random.default_rng(0)
    corrupt: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "reverse": lambda v: v[::-1],
        "shuffle": lambda v: v[rng.permutation(len(v))],
        "freeze": lambda v: np.repeat(v[:1], len(v), axis=0),
        "colours": lambda v: v[..., ::-1],
    }
    assert video_distance(corrupt[name]) > 5.0


def test_what_the_numbers_are_of_is_said() -> None:
    features = np.random.default_rng(0).normal(size=(20, NUM_FEATURES))
    measured = wvd(features[:8], features[8:])
    assert measured.mean == frechet_distance(features[:8], features[8:])
    assert measured.num == 8
    assert "8 videos against 12, 64 features, too large for fewer than 512" in measured.note
    assert classifier_sha256() in measured.note
    assert "classifier" not in ftd(features[:8], features[8:]).note
    with pytest.raises(ShapeError, match="at least 2 videos"):
        ftd(features[:1], features)


def test_the_classifier_knows_its_world() -> None:
    right = label_accuracy(classifier(), num_clips=32)
    assert right["colours"] > 0.7
    assert right["count"] > 0.7
    assert right["direction"] > 0.6
    assert right["event"] > 0.6
    assert CHECKPOINT.stat().st_size < 300_000


def test_features_are_in_units_of_their_spread() -> None:
    found = clean_features()
    assert found.shape == (NUM_SEEN, NUM_FEATURES)
    assert abs(found.mean()) < 0.3
    assert 0.6 < found.std(axis=0).mean() < 1.4


def test_features_do_not_depend_on_what_else_is_asked() -> None:
    both = world_features(videos()[:2], model=classifier())
    alone = world_features(videos()[1:2], model=classifier())
    np.testing.assert_array_equal(both[1:], alone)


def test_other_sizes_are_scaled_and_short_videos_refused() -> None:
    large = videos()[0].repeat(2, axis=1).repeat(2, axis=2)
    assert prepare(large).shape == (3, 16, 64, 64)
    assert torch.allclose(prepare(large), prepare(videos()[0]), atol=0.5)
    with pytest.raises(ShapeError, match=f"at least {MIN_FRAMES} frames"):
        prepare(videos()[0][:45])
    with pytest.raises(ShapeError, match="at least one"):
        world_features([], model=classifier())


def test_training_learns_and_is_repeatable(tmp_path: Path) -> None:
    losses: list[float] = []
    counts = {"num_clips": 32, "num_stills": 32}
    first = train_world_classifier(**counts, on_batch=lambda *told: losses.append(told[2]))
    again = train_world_classifier(**counts)
    losses = losses[2:]  # those of the clips
    assert len(losses) == 4
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert min(losses[1:]) < losses[0]
    save_world_classifier(first, tmp_path / "c.safetensors")
    loaded = load_world_classifier(tmp_path / "c.safetensors")
    clip = prepare(videos()[0])[None]
    assert torch.allclose(loaded.features(clip), first.features(clip), atol=0.2)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="world classifier"):
        load_world_classifier(path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="world classifier"):
        load_world_classifier(path)
    weights = load_file(CHECKPOINT)
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, path)
    with pytest.raises(CheckpointError, match="head.bias"):
        load_world_classifier(path)
