"""Batches of somebody's own clips: batch i depends on the seed, i and the clips only.

Pieces are no longer than the clip that a batch begins with, so that short clips are used as they
are; a data set smaller than a batch fills it several times over, each time with other noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onereel.core.seeds import derive_seed
from onereel.models.text.special_tokens import (
    MAX_DURATION,
    ConditioningFlags,
    SpecialTokens,
    build_captions,
    stack_captions,
)
from onereel.training.data import shuffled_index
from onereel.training.magi_layout import Layout, sample_layout
from onereel.training.own_base import OwnDataRecipe
from onereel.training.own_cache import OwnClip

WIDTH = 6  # latent frames per chunk
_TOKEN_SHARE = 0.5  # of the items, for each kind of special token


class OwnBatches:
    """Batches of cached clips.

    Args:
        clips: the clips, at least one.
        recipe: sizes, shares and the seed.
        tokens: the checkpoint's special tokens, which generation puts in front of captions: half
            of the items see "high quality", half are told how many chunks are left.
        max_length: rows of text at most, special tokens included.
        window: chunks in flight when the checkpoint makes videos.
        shift: of the time grid with which it makes them.
    """

    def __init__(
        self,
        clips: Sequence[OwnClip],
        recipe: OwnDataRecipe,
        *,
        tokens: SpecialTokens | None = None,
        max_length: int = 800,
        window: int = 4,
        shift: float = 3.0,
    ) -> None:
        self.clips, self.recipe = list(clips), recipe
        self.videos = [clip for clip in clips if clip.kind == "video"]
        self.seed = derive_seed(recipe.trainer.seed, "own-pieces")
        self.tokens, self.max_length = tokens, max_length
        self.window, self.shift = window, shift

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`.

        Returns:
            `latent` [B, C, T, h, w]; `given` [B, C, 1, h, w] with the first frame as a picture;
            `hidden` [P, S, K] and `mask` [P, S], the captions' tokens; `numbers` [B, R], the
            caption of every chunk; the `layout`, None for single frames.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "batch", index))
        if not self.videos or rng.random() < self.recipe.image_share:
            size = self.recipe.image_batch_size
            return self.images(self._draw(index, size, self.clips), rng)
        clips = self._draw(index, self.recipe.batch_size, self.videos)
        layout = sample_layout(
            rng,
            t2v_share=self.recipe.t2v_share,
            window=self.window,
            shift=self.shift,
            max_chunks=clips[0].num_chunks,
        )
        return self.pieces([self.long_enough(c, layout.num_chunks) for c in clips], layout, rng=rng)

    def images(self, clips: Sequence[OwnClip], rng: np.random.Generator) -> dict[str, Any]:
        """Gather single frames: pictures, and the first frame of one of a video's first two chunks.

        Args:
            clips: one per item.
            rng: source of randomness.

        Returns:
            The batch.
        """
        frames = [clip.image(int(rng.integers(0, min(2, clip.num_chunks)))) for clip in clips]
        latent = torch.stack(frames)
        flags = [self._flags(rng, has_duration=False) for _ in clips]
        rows = [[(clip, 1, flag)] for clip, flag in zip(clips, flags, strict=True)]
        return {"latent": latent, "given": latent, **self._text(rows), "layout": None}

    def pieces(
        self, clips: Sequence[OwnClip], layout: Layout, *, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Gather pieces of one layout; those without clean chunks start where their clip does.

        Args:
            clips: one per item, each long enough.
            layout: of the pieces.
            rng: source of randomness.

        Returns:
            The batch.
        """
        latents, given, rows = [], [], []
        for clip in clips:
            spare = clip.num_chunks - layout.num_chunks
            start = int(rng.integers(0, spare + 1)) if layout.num_clean else 0
            stop = start + layout.num_chunks
            latents.append(clip.latent(WIDTH * start, WIDTH * stop))
            given.append(clip.image(start))
            flags = self._flags(rng, has_duration=True)
            rows.append([(clip, clip.num_chunks - chunk, flags) for chunk in range(start, stop)])
        return {
            "latent": torch.stack(latents),
            "given": torch.stack(given),
            **self._text(rows),
            "layout": layout,
        }

    def fixed(self) -> dict[str, dict[str, Any]]:
        """Gather the batches on which a run is measured: the first clips, always the same."""
        rng = np.random.default_rng(derive_seed(self.seed, "fixed"))
        found = {"image": self.images(self.clips[: self.recipe.image_batch_size], rng)}
        if self.videos:
            longest = max(self.videos, key=lambda clip: clip.num_chunks)
            ages = tuple(range(min(self.window, longest.num_chunks)))[::-1]
            layout = Layout(
                num_clean=0, ages=ages, aligned=True, window=self.window, shift=self.shift
            )
            clips = self.videos[: self.recipe.batch_size]
            clips = [self.long_enough(clip, layout.num_chunks) for clip in clips]
            found["video"] = self.pieces(clips, layout, rng=rng)
        return found

    def long_enough(self, clip: OwnClip, num_chunks: int) -> OwnClip:
        """Return a clip, or the next one that has enough chunks.

        Args:
            clip: a video.
            num_chunks: no more than the longest video has.

        Returns:
            The clip.
        """
        if clip.num_chunks >= num_chunks:
            return clip
        place = self.videos.index(clip)
        order = (*self.videos[place:], *self.videos[:place])
        return next(other for other in order if other.num_chunks >= num_chunks)

    def _draw(self, index: int, size: int, clips: Sequence[OwnClip]) -> list[OwnClip]:
        """Take the clips of a batch from an endless stream that shuffles anew in every epoch."""
        places = range(index * size, (index + 1) * size)
        seed = self.seed + (clips is self.videos)
        return [clips[shuffled_index(place, len(clips), seed=seed)] for place in places]

    def _flags(self, rng: np.random.Generator, *, has_duration: bool) -> ConditioningFlags:
        if self.tokens is None:
            return ConditioningFlags()
        hq, duration = (bool(x) for x in rng.random(2) < _TOKEN_SHARE)
        return ConditioningFlags(hq=hq, duration=duration and has_duration)

    def _text(
        self, rows: Sequence[Sequence[tuple[OwnClip, int, ConditioningFlags]]]
    ) -> dict[str, Tensor]:
        """Look up the text of every chunk, given the clip, the chunks left and the flags."""
        texts: dict[tuple[Any, ...], Tensor] = {}
        numbers = []
        for item in rows:
            keys = []
            for clip, left, flags in item:
                shown = min(left, MAX_DURATION) if flags.duration else 1
                key = (clip.text, shown, flags)
                if key not in texts:
                    texts[key] = self._row(clip.caption(), shown, flags)
                keys.append(list(texts).index(key))
            numbers.append(keys)
        hidden, mask = stack_captions(list(texts.values()))
        return {"hidden": hidden, "mask": mask, "numbers": torch.tensor(numbers)}

    def _row(self, caption: Tensor, left: int, flags: ConditioningFlags) -> Tensor:
        """Put special tokens in front of a caption, as generation does."""
        if not flags.needs_tokens:
            return caption[: self.max_length]
        null = caption.new_zeros(self.max_length, caption.shape[1])
        captions = build_captions(
            [caption] * left,
            null,
            num_prefix_chunks=0,
            flags=flags,
            tokens=self.tokens,
            max_length=self.max_length,
        )
        return captions.cond[0]


class PriorBatches:
    """Batches of own clips and, in a share of the steps, of what the model makes already.

    Args:
        own: batches of own clips.
        prior: those of what the model makes already.
        share: of the steps, of the prior.
    """

    def __init__(self, own: OwnBatches, prior: OwnBatches, *, share: float) -> None:
        self.own, self.prior, self.share = own, prior, share

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`; `prior` says which kind it is."""
        rng = np.random.default_rng(derive_seed(self.own.seed, "prior", index))
        is_prior = bool(rng.random() < self.share)
        return {**(self.prior if is_prior else self.own)[index], "prior": is_prior}

    def fixed(self) -> dict[str, dict[str, Any]]:
        """Gather the batches on which a run is measured: of both kinds."""
        prior = {f"prior_{k}": {**batch, "prior": True} for k, batch in self.prior.fixed().items()}
        return self.own.fixed() | prior
