"""What the VAE's training is shown: rendered tiles, many of them crowded with objects."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onereel.core.seeds import derive_seed
from onereel.training.data import ToyboxClips
from onereel.world import Episode, render, sample_spec, simulate

if TYPE_CHECKING:
    from onereel.training.vae import ToyboxVaeRecipe

_CAMERA_MOVES = ("pan", "zoom")


class VaeBatches:
    """Batches of rendered tiles; batch i depends on the recipe's seed and i only.

    Args:
        recipe: sizes and the seed.
    """

    def __init__(self, recipe: ToyboxVaeRecipe) -> None:
        self.recipe = recipe
        seed = derive_seed(recipe.trainer.seed, "vae")
        clips = functools.partial(
            ToyboxClips, num_frames=24 * recipe.reuse, height=recipe.height, width=recipe.width
        )
        self.clips, self.camera_clips = clips(seed), clips(seed, motions=_CAMERA_MOVES)
        self._rendered: tuple[int, list[np.ndarray]] | None = None

    def __getitem__(self, index: int) -> Tensor:
        """Render batch `index`: uint8, [B, F, H, W, 3]."""
        recipe = self.recipe
        rng = np.random.default_rng(derive_seed(recipe.trainer.seed, "vae-batch", index))
        frames = recipe.frames
        if rng.random() < recipe.short_share:
            frames = int(rng.choice(recipe.short_frames))
        group, part = divmod(index, recipe.reuse)
        tiles = []
        for item, video in enumerate(self._group(group)):
            second = (part + item) % recipe.reuse
            start = 24 * second + int(rng.integers(0, 24 - frames + 1))
            tiles.append(self._cropped(video[start : start + frames], rng))
        return torch.from_numpy(np.stack(tiles))

    def _cropped(self, video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = self.recipe.crop
        if size is None:
            return video
        y, x = (int(rng.integers(0, side - size + 1)) for side in video.shape[1:3])
        return video[:, y : y + size, x : x + size]

    def _group(self, group: int) -> list[np.ndarray]:
        """Render the clips that `reuse` batches in a row share, one second each."""
        if self._rendered is None or self._rendered[0] != group:
            size = self.recipe.batch_size
            clips = [self._video(group * size + i) for i in range(size)]
            self._rendered = (group, clips)
        return self._rendered[1]

    def _video(self, index: int) -> np.ndarray:
        """Render clip `index`: every fourth as the world has it, the others crowded."""
        rng = np.random.default_rng(derive_seed(self.clips.seed, "camera", index))
        if rng.random() < self.recipe.camera_share:
            return self.camera_clips[index].video
        if self.recipe.crowd == 1 or index % 4 == 0:
            return self.clips[index].video
        rng = np.random.default_rng(derive_seed(self.clips.seed, "crowd", index))
        return render(crowded_episode(rng, self.recipe))


def crowded_episode(rng: np.random.Generator, recipe: ToyboxVaeRecipe) -> Episode:
    """Put the objects of several scenes into one, each scene shifted by some pixels.

    Objects cover a few per cent of a lawful scene; what is hard to learn are their edges.

    Args:
        rng: source of randomness.
        recipe: sizes, and the number of scenes.

    Returns:
        An episode that obeys no law, to be rendered and not to be believed.
    """
    size = {"height": recipe.height, "width": recipe.width, "num_frames": 24 * recipe.reuse}
    scenes: list[Episode] = []
    for _ in range(recipe.crowd):
        episode = simulate(sample_spec(rng), int(rng.integers(2**31)), **size)
        shift = rng.uniform(-0.25, 0.25, 2) * (recipe.width, recipe.height) if scenes else (0, 0)
        episode.state[..., :2] += np.asarray(shift, dtype=np.float32)
        scenes.append(episode)
    return dataclasses.replace(
        scenes[0],
        state=np.concatenate([scene.state for scene in scenes], axis=1),
        opacity=np.concatenate([scene.opacity for scene in scenes], axis=1),
        rgb=np.concatenate([scene.rgb for scene in scenes], axis=1),
    )


def fixed_tiles(recipe: ToyboxVaeRecipe, tag: str, *, count: int) -> Tensor:
    """Render a fixed set of tiles that training never sees.

    Args:
        recipe: sizes and the seed.
        tag: name of the set.
        count: number of tiles.

    Returns:
        uint8, [count, F, H, W, 3].
    """
    clips = ToyboxClips(
        derive_seed(recipe.trainer.seed, "vae-fixed", tag),
        num_frames=48,
        height=recipe.height,
        width=recipe.width,
    )
    starts = [(i % (48 // recipe.frames)) * recipe.frames for i in range(count)]
    tiles = [clips[i].video[start : start + recipe.frames] for i, start in enumerate(starts)]
    return torch.from_numpy(np.stack(tiles))
