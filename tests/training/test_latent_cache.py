"""The latent cache: what is read is what was encoded; it can be interrupted and repeated."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.training.data import to_video
from onereel.training.latent_cache import (
    CacheConfig,
    LatentCache,
    build_cache,
    encode_chunks,
    encode_images,
    open_caches,
    write_shard,
)
from onereel.training.vae import ToyboxVaeRecipe, VaeMethod
from onereel.world import sample_clip


@pytest.fixture
def vae(tiny_recipe: ToyboxVaeRecipe, tmp_path: Path) -> AutoencoderKLMagi1:
    """An untrained VAE with its statistics, saved in `vae`."""
    VaeMethod(tiny_recipe).export(tmp_path / "vae")
    return AutoencoderKLMagi1.from_pretrained(tmp_path / "vae", torch_dtype=torch.float32).eval()


def _config(tmp_path: Path, **changes: object) -> CacheConfig:
    values = {"vae": str(tmp_path / "vae"), "height": 32, "width": 32, "min_chunks": 1,
              "max_chunks": 3, "shard_size": 6, "timeline_share": 0.5}  # fmt: skip
    return CacheConfig(**(values | changes))  # type: ignore[arg-type]


def test_what_is_read_is_what_was_encoded(vae: AutoencoderKLMagi1, tmp_path: Path) -> None:
    config, folder = _config(tmp_path), tmp_path / "cache"
    stages = list(build_cache(config, folder, clips=6, workers=1))
    assert stages == [(0, 6), (6, 6)]
    assert list(build_cache(config, folder, clips=6)) == [(6, 6)]
    cache = LatentCache(folder)
    clip = cache[4]
    chunks = config.num_chunks(4)
    assert len(clip.captions) == cache.num_chunks(4) == chunks
    truth = sample_clip(clip.seed, num_frames=24 * chunks, height=32, width=32, timeline_share=0.5)
    assert tuple(truth.captions) == clip.captions
    video = torch.from_numpy(np.asarray(truth.video))
    tiles = to_video(video.unflatten(0, (-1, 12)))
    images = to_video(video[::24, None]).expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        for stored, pixels in ((clip.latent, tiles), (clip.images, images)):
            mean = vae.normalize_latent(vae.encode(pixels).latent_dist.mode())
            expected = mean.transpose(0, 1).flatten(1, 2)  # [C, T, h, w]
            assert stored.shape == expected.shape
            assert (stored.float() - expected).abs().mean() < 0.02


def test_other_settings_are_refused_and_a_missing_cache_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    next(build_cache(_config(tmp_path), folder, clips=6))
    with pytest.raises(ConfigError, match="another folder"):
        next(build_cache(_config(tmp_path, seed=1), folder, clips=6))
    with pytest.raises(CheckpointError, match="no latent cache"):
        LatentCache(tmp_path / "nothing")


def test_a_cache_sees_later_shards_and_travels_to_workers(
    vae: AutoencoderKLMagi1, tmp_path: Path
) -> None:
    config, folder = _config(tmp_path, max_chunks=2), tmp_path / "cache"
    next(build_cache(config, folder, clips=6))
    cache = LatentCache(folder)
    assert len(cache) == 0
    write_shard(vae, config, folder=folder, shard=0)
    assert cache.refresh() == len(cache) == 6
    clip = cache[5]
    copied = pickle.loads(pickle.dumps(cache))
    assert torch.equal(clip.latent, copied[5].latent)
    assert {cache.num_chunks(i) for i in range(6)} <= {1, 2}
    for i in range(6):
        assert cache[i].latent.shape == (16, 6 * cache.num_chunks(i), 4, 4)
        assert len(cache[i].captions) == cache[i].images.shape[1] == cache.num_chunks(i)


def test_chunks_do_not_see_each_other(vae: AutoencoderKLMagi1) -> None:
    video = torch.randint(0, 256, (2, 24, 32, 32, 3), dtype=torch.uint8)
    latent, images = encode_chunks(vae, video)
    assert latent.shape == (2, 16, 6, 4, 4) and images.shape == (2, 16, 1, 4, 4)
    changed = video.clone()
    changed[1, 12:] = 0
    again, _ = encode_chunks(vae, changed)
    assert torch.equal(latent[0], again[0])
    assert torch.equal(latent[1, :, :3], again[1, :, :3])
    assert not torch.equal(latent[1, :, 3:], again[1, :, 3:])


def test_settings_draw_lengths_within_bounds() -> None:
    config = CacheConfig(vae="x")
    lengths = {config.num_chunks(i) for i in range(200)}
    assert lengths == set(range(4, 11))
    assert dataclasses.replace(config, seed=1).num_chunks(0) in lengths
    for bounds in ((3, 2), (0, 2)):
        with pytest.raises(ConfigError, match="min_chunks"):
            CacheConfig(vae="x", min_chunks=bounds[0], max_chunks=bounds[1])


def test_a_cache_of_images_holds_one_frame_per_clip(
    vae: AutoencoderKLMagi1, tmp_path: Path
) -> None:
    config, folder = _config(tmp_path, images_only=True), tmp_path / "cache"
    next(build_cache(config, folder, clips=6))
    write_shard(vae, config, folder=folder, shard=0)
    clip = LatentCache(folder)[2]
    assert clip.latent.shape == clip.images.shape == (16, 1, 4, 4) and len(clip.captions) == 1
    truth = sample_clip(clip.seed, num_frames=24, height=32, width=32, timeline_share=0.5)
    late = torch.from_numpy(np.asarray(truth.video))[12:, None]
    distances = (encode_images(vae, late) - clip.images.float()).abs().mean((1, 2, 3, 4))
    assert distances.min() < 0.02


def test_clips_are_drawn_from_chosen_motions(vae: AutoencoderKLMagi1, tmp_path: Path) -> None:
    settings = {"timeline_share": 0.0, "max_chunks": 1, "shard_size": 3, "motions": ("pan", "zoom")}
    config, folder = _config(tmp_path, **settings), tmp_path / "cache"
    next(build_cache(config, folder, clips=3))
    write_shard(vae, config, folder=folder, shard=0)
    cache = LatentCache(folder)
    for item in range(3):
        clip = sample_clip(cache[item].seed, num_frames=24, motions=("pan", "zoom"))
        assert clip.specs[0].motion in ("pan", "zoom") and cache[item].captions == clip.captions
    with pytest.raises(ConfigError, match="motions: expected of linear, .*, got fly"):
        _config(tmp_path, motions=("pan", "fly"))


def test_several_caches_are_read_as_one(vae: AutoencoderKLMagi1, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        config = _config(tmp_path, seed=seed, max_chunks=1, shard_size=3)
        assert write_shard(vae, config, folder=_claimed(folder, config), shard=0) == 3
    assert type(open_caches(str(folders[0]))) is LatentCache
    joined = pickle.loads(pickle.dumps(open_caches(f"{folders[0]}, {folders[1]}")))
    assert len(joined) == joined.refresh() == 6 and joined.num_chunks(5) == 1
    singles = [LatentCache(folder) for folder in folders]
    for item in range(6):
        clip = singles[item // 3][item % 3]
        assert torch.equal(joined[item].latent, clip.latent) and joined[item].seed == clip.seed
    other = _config(tmp_path, height=64)
    _claimed(tmp_path / "c", other)
    with pytest.raises(ConfigError, match=r"c: height: expected 32, got 64"):
        open_caches(f"{folders[0]},{tmp_path / 'c'}")


def _claimed(folder: Path, config: CacheConfig) -> Path:
    folder.mkdir()
    (folder / "cache.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder
