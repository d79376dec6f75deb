"""Latents and captions of many clips, stored once and read at random.

    onereel train cache --vae DIR --out DIR --clips 8000 --workers 2

A cache is a folder of shards: `shard-00000.safetensors` with the latents and `shard-00000.json`
with captions and seeds, the latter written last. A shard that is complete is not made again, so
the command can be stopped and repeated; a reader sees complete shards only and may run meanwhile.

Every chunk of 24 frames is encoded as the pipeline decodes it, in the VAE's own tiles; beside it
lies the latent of its first frame encoded as a picture, for image-to-video. With a VAE of
HunyuanVideo's shape a clip is encoded as a whole (`magic_cache.py`).
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from onereel.core.config import from_mapping
from onereel.core.device import computes_bfloat16
from onereel.core.errors import CheckpointError, ConfigError
from onereel.core.files import write_atomically
from onereel.core.seeds import derive_seed
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.training.data import ToyboxClips
from onereel.training.magic_cache import encode_clip, encode_pictures, load_magic_vae
from onereel.training.scene_maps import scene_maps
from onereel.world import MOTIONS, Clip

CHUNK_FRAMES = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """What a cache holds; stored in its `cache.json`.

    Args:
        vae: folder of the VAE.
        seed: seed of the stream of clips.
        height: canvas height in pixels.
        width: canvas width in pixels.
        min_chunks: fewest chunks of a clip.
        max_chunks: most chunks of a clip.
        timeline_share: share of clips whose prompt changes on the way.
        several_share: share of clips with two or three objects; None for the world's own.
        motions: the motions that clips are drawn from; all of them where empty.
        images_only: store one frame of every clip's first chunk, encoded as an image, and no video.
        shard_size: clips per shard.
    """

    vae: str
    seed: int = 0
    height: int = 64
    width: int = 64
    min_chunks: int = 4
    max_chunks: int = 10
    timeline_share: float = 0.25
    several_share: float | None = None
    motions: tuple[str, ...] = ()
    images_only: bool = False
    shard_size: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.min_chunks <= self.max_chunks:
            raise ConfigError(
                "min_chunks", expected=f"1 to max_chunks {self.max_chunks}", got=self.min_chunks
            )
        unknown = [name for name in self.motions if name not in MOTIONS]
        if unknown:
            raise ConfigError("motions", expected=f"of {', '.join(MOTIONS)}", got=unknown[0])

    def num_chunks(self, index: int) -> int:
        """Give the number of chunks of one clip."""
        if self.images_only:
            return 1
        rng = np.random.default_rng(derive_seed(self.seed, "chunks", index))
        return int(rng.integers(self.min_chunks, self.max_chunks + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedClip:
    """One clip of a cache.

    Args:
        latent: normalised, [C, T, h, w] with 6 latent frames per chunk.
        images: first frame of every chunk encoded as an image, normalised, [C, N, h, w].
        maps: what stands where in every latent frame, [M, T, h', w']; see `scene_maps`.
        image_maps: the same of the images, [M, N, h', w'].
        captions: one per chunk.
        seed: the world's seed, with which the clip can be rendered again.
        first: its first picture, uint8 [H, W, 3]; of the Magic 1-For-1 family only.
    """

    latent: Tensor
    images: Tensor
    maps: Tensor
    image_maps: Tensor
    captions: tuple[str, ...]
    seed: int
    first: Tensor | None = None


@torch.no_grad()
def encode_chunks(vae: AutoencoderKLMagi1, video: Tensor) -> tuple[Tensor, Tensor]:
    """Encode whole chunks, and the first frame of each as an image.

    Args:
        vae: the VAE, with its latents' statistics.
        video: uint8, [N, 24, H, W, 3], one row per chunk.

    Returns:
        Normalised posterior means: [N, C, 6, h, w] and [N, C, 1, h, w], float32.
    """
    return _encode(vae, video), encode_images(vae, video[:, :1])


@torch.no_grad()
def encode_images(vae: AutoencoderKLMagi1, frames: Tensor) -> Tensor:
    """Encode single frames as pictures.

    Args:
        vae: the VAE, with its latents' statistics.
        frames: uint8, [N, 1, H, W, 3].

    Returns:
        Normalised posterior means, [N, C, 1, h, w], float32.
    """
    return _encode(vae, frames)


def _encode(vae: AutoencoderKLMagi1, frames: Tensor) -> Tensor:
    """Encode uint8 frames [N, F, H, W, 3] through the pipeline's own call."""
    video = rearrange(frames, "n f h w c -> n c f h w")
    fast = computes_bfloat16(vae.device)
    with torch.autocast(vae.device.type, dtype=torch.bfloat16, enabled=fast):
        parts = [vae.encode_frames(part).cpu() for part in torch.split(video, 32)]
    return torch.cat(parts)


def write_shard(vae: Any, config: CacheConfig, *, folder: Path, shard: int) -> int:
    """Render, encode and store the clips of one shard.

    Args:
        vae: the VAE, of either family.
        config: what the cache holds.
        folder: the cache's folder.
        shard: number of the shard.

    Returns:
        The number of clips.
    """
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    first = shard * config.shard_size
    encode = _magi_clips if isinstance(vae, AutoencoderKLMagi1) else _magic_clips
    for start in range(first, first + config.shard_size, 8):
        indices = range(start, min(start + 8, first + config.shard_size))
        clips = [_clips(config, index)[index] for index in indices]
        for index, clip, values in zip(indices, clips, encode(vae, config, indices, clips=clips),
                                       strict=True):  # fmt: skip
            tensors |= {f"{index}.{name}": value.contiguous() for name, value in values.items()}
            seed = _clips(config, index).clip_seed(index)
            entries.append({"index": index, "seed": seed, "captions": clip.captions})
    write_atomically(_weights_file(folder, shard), lambda file: file.write(save(tensors)))
    text = json.dumps(entries).encode()
    write_atomically(_entries_file(folder, shard), lambda file: file.write(text))
    return len(entries)


def _clips(config: CacheConfig, index: int) -> ToyboxClips:
    """Give the stream of clips as long as one of them is."""
    return ToyboxClips(
        config.seed,
        num_frames=config.num_chunks(index) * CHUNK_FRAMES,
        height=config.height,
        width=config.width,
        timeline_share=config.timeline_share,
        several_share=config.several_share,
        motions=config.motions or None,
    )


def _picture_frame(config: CacheConfig, index: int) -> int:
    """Choose the frame of a picture: objects that appear are there in the second half."""
    rng = np.random.default_rng(derive_seed(config.seed, "frame", index))
    return int(rng.integers(CHUNK_FRAMES // 2, CHUNK_FRAMES))


def _magic_clips(
    vae: Any, config: CacheConfig, _indices: Sequence[int], *, clips: Sequence[Clip]
) -> list[dict[str, Tensor]]:
    if config.images_only:
        return encode_pictures(vae, clips)
    return [encode_clip(vae, clip) for clip in clips]


def _magi_clips(
    vae: AutoencoderKLMagi1, config: CacheConfig, indices: Sequence[int], *, clips: Sequence[Clip]
) -> list[dict[str, Tensor]]:
    """Encode the chunks of several clips at once."""
    rendered = [
        _magi_chunks(config, index, clip) for index, clip in zip(indices, clips, strict=True)
    ]
    chunks = torch.cat([video for video, _, _ in rendered])
    if config.images_only:
        latent = images = encode_images(vae, chunks)
    else:
        latent, images = encode_chunks(vae, chunks)
    sizes = [len(video) for video, _, _ in rendered]
    parts = zip(torch.split(latent, sizes), torch.split(images, sizes), rendered, strict=True)
    return [
        {
            "latent": rearrange(z, "n c t h w -> c (n t) h w").half(),
            "images": rearrange(z_image, "n c 1 h w -> c n h w").half(),
            "maps": maps,
            "image_maps": image_maps,
        }
        for z, z_image, (_, maps, image_maps) in parts
    ]


def _magi_chunks(config: CacheConfig, index: int, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a clip to chunks [N, 24, H, W, 3], or take one frame [1, 1, H, W, 3]; and their maps."""
    video = torch.from_numpy(np.asarray(clip.video))
    if config.images_only:
        frame = _picture_frame(config, index)
        maps = scene_maps(clip.episode, [frame])
        return video[None, frame : frame + 1], maps, maps.clone()  # a file holds no tensor twice
    maps = scene_maps(clip.episode, range(2, len(video), 4))  # the third of four frames
    image_maps = scene_maps(clip.episode, range(0, len(video), CHUNK_FRAMES))
    return rearrange(video, "(n f) h w c -> n f h w c", f=CHUNK_FRAMES), maps, image_maps


def _weights_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _entries_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.json"


_worker_vae: Any = None


def _start_worker(vae_folder: str) -> None:
    global _worker_vae
    torch.set_num_threads(1)
    config = json.loads((Path(vae_folder) / "config.json").read_text("utf-8"))
    if config["_class_name"] == AutoencoderKLMagi1.__name__:
        _worker_vae = AutoencoderKLMagi1.from_pretrained(vae_folder).eval()
    else:
        _worker_vae = load_magic_vae(vae_folder)


def _work(config: CacheConfig, folder: Path, shard: int) -> int:
    assert _worker_vae is not None
    return write_shard(_worker_vae, config, folder=folder, shard=shard)


def build_cache(
    config: CacheConfig, folder: str | Path, *, clips: int, workers: int = 1
) -> Iterator[tuple[int, int]]:
    """Write the shards that are missing until the cache holds `clips` clips.

    Args:
        config: what the cache holds.
        folder: the cache's folder; created when missing.
        clips: number of clips, rounded up to whole shards.
        workers: processes that render and encode, one thread each.

    Yields:
        After every shard: clips stored by now, clips wanted.

    Raises:
        ConfigError: the folder holds a cache with other settings.
        CheckpointError: clips are missing and there is no VAE to make them with.
    """
    folder = Path(folder)
    _claim(config, folder)
    shards = -(-clips // config.shard_size)
    missing = [shard for shard in range(shards) if not _entries_file(folder, shard).is_file()]
    done = (shards - len(missing)) * config.shard_size
    yield done, shards * config.shard_size
    if missing and not (Path(config.vae) / "config.json").is_file():
        raise CheckpointError(
            f"{config.vae} holds no VAE", hint="train one with `onereel train toybox-vae`"
        )
    with concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(config.vae,),
    ) as pool:
        jobs = [pool.submit(_work, config, folder, shard) for shard in missing]
        for job in concurrent.futures.as_completed(jobs):
            done += job.result()
            yield done, shards * config.shard_size


def _claim(config: CacheConfig, folder: Path) -> None:
    """Write `cache.json`, or check that the one there is the same."""
    path = folder / "cache.json"
    if not path.is_file():
        text = json.dumps(asdict(config), indent=2).encode()
        write_atomically(path, lambda file: file.write(text))
    stored = read_config(folder)
    if stored != config:
        raise ConfigError(str(path), expected=str(stored), got=config, hint="use another folder")


def read_config(folder: str | Path) -> CacheConfig:
    """Read what a cache holds.

    Args:
        folder: the cache's folder.

    Returns:
        Its settings.

    Raises:
        CheckpointError: the folder holds no cache.
    """
    path = Path(folder) / "cache.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no latent cache",
            hint=f"make one with `onereel train cache --vae DIR --out {folder} --clips N`",
        )
    return from_mapping(CacheConfig, json.loads(path.read_text("utf-8")), where=str(path))


class LatentCache:
    """Reads a cache by memory map, in any order.

    Args:
        folder: the cache's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(folder)
        self.entries: list[dict[str, Any]] = []
        self._shards: list[int] = []
        self._open: dict[tuple[int, int], Any] = {}
        self.refresh()

    def refresh(self) -> int:
        """Look for shards that were completed meanwhile.

        Returns:
            The number of clips.
        """
        for path in sorted(self.folder.glob("shard-*.json")):
            shard = int(path.stem.removeprefix("shard-"))
            if shard not in self._shards:
                self._shards.append(shard)
                self.entries += json.loads(path.read_text("utf-8"))
        return len(self.entries)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.entries)

    def num_chunks(self, item: int) -> int:
        """Give the number of chunks of clip `item`."""
        return len(self.entries[item]["captions"])

    def __getitem__(self, item: int) -> CachedClip:
        """Read clip `item`."""
        entry = self.entries[item]
        index = entry["index"]
        file, names = self._file(index // self.config.shard_size)
        return CachedClip(
            latent=file.get_tensor(f"{index}.latent"),
            images=file.get_tensor(f"{index}.images"),
            maps=file.get_tensor(f"{index}.maps"),
            image_maps=file.get_tensor(f"{index}.image_maps"),
            captions=tuple(entry["captions"]),
            seed=entry["seed"],
            first=file.get_tensor(f"{index}.first") if f"{index}.first" in names else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out, so that workers open their own."""
        return self.__dict__ | {"_open": {}}

    def _file(self, shard: int) -> tuple[Any, frozenset[str]]:
        # Keyed by process: a forked worker must not share the parent's handle.
        key = (os.getpid(), shard)
        if key not in self._open:
            file = safe_open(_weights_file(self.folder, shard), "pt")
            self._open[key] = file, frozenset(file.keys())  # a list of all, made anew by each call
        return self._open[key]


class JoinedCaches(LatentCache):
    """Several caches as one, their clips after one another.

    Args:
        folders: of the caches; the first one's settings stand for all.

    Raises:
        ConfigError: latents of different VAEs or sizes.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.caches = [LatentCache(folder) for folder in folders]
        self.folder, self.config = self.caches[0].folder, self.caches[0].config
        for cache in self.caches[1:]:
            check_alike(self.caches[0], cache, images_only=self.config.images_only)
        self.entries = [entry for cache in self.caches for entry in cache.entries]

    def refresh(self) -> int:
        """Return the number of clips; clips that come later are not taken."""
        return len(self.entries)

    def __getitem__(self, item: int) -> CachedClip:
        """Read clip `item`."""
        for cache in self.caches:
            if item < len(cache):
                return cache[item]
            item -= len(cache)
        raise IndexError(item)

    def __getstate__(self) -> dict[str, Any]:
        """Be copied with the caches."""
        return self.__dict__


def check_alike(cache: LatentCache, other: LatentCache, *, images_only: bool) -> None:
    """Check that two caches can be trained on together.

    Args:
        cache: the one.
        other: the other one.
        images_only: whether the other one shall hold images rather than clips.

    Raises:
        ConfigError: its latents are of another VAE or size, or it holds the other kind.
    """
    wanted = {name: getattr(cache.config, name) for name in ("vae", "height", "width")}
    for name, value in (wanted | {"images_only": images_only}).items():
        got = getattr(other.config, name)
        if got != value:
            raise ConfigError(f"{other.folder}: {name}", expected=str(value), got=got)


def open_caches(text: str) -> LatentCache:
    """Open a cache, or several.

    Args:
        text: folders, separated by commas.

    Returns:
        The cache.

    Raises:
        CheckpointError: a folder holds none.
        ConfigError: they do not fit together.
    """
    folders = [part.strip() for part in text.split(",")]
    return LatentCache(folders[0]) if len(folders) == 1 else JoinedCaches(folders)
