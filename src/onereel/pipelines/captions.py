"""The text of every chunk, made when it is asked for: memory stays flat in the video's length."""

from __future__ import annotations

import torch

from onereel.models.text.special_tokens import (
    MAX_DURATION,
    ConditioningFlags,
    build_captions,
)
from onereel.pipelines.parts import MagiParts
from onereel.pipelines.prompts import Prompts

_KEPT = 16  # a window needs its chunks' rows again at every step


class Captions:
    """Text rows of the chunks of one video.

    A row depends on the chunk's prompt and on how many chunks are left, up to eight, so that most
    chunks of a long video share one.

    Args:
        parts: the networks.
        prompts: encoded text.
        num_chunks: of the video, given ones included.
        num_given: chunks given whole, which have no text.
        flags: special tokens.

    Raises:
        ConfigError: a flag is set without a table of special tokens.
    """

    def __init__(
        self,
        parts: MagiParts,
        prompts: Prompts,
        *,
        num_chunks: int,
        num_given: int,
        flags: ConditioningFlags,
    ) -> None:
        self._parts, self._prompts, self._flags = parts, prompts, flags
        self._num_chunks, self._num_given = num_chunks, num_given
        self._rows: dict[tuple[int, int], torch.Tensor] = {}
        self.null = self._build(prompts.features[0], 1)[1]

    def of_chunk(self, chunk: int) -> torch.Tensor:
        """Return the text of a chunk.

        Args:
            chunk: absolute index of a chunk that is not given whole.

        Returns:
            Visible tokens [S, K].
        """
        index = self._prompts.index(chunk - self._num_given)
        key = index, min(self._num_chunks - chunk, MAX_DURATION)
        if key not in self._rows:
            if len(self._rows) >= _KEPT:
                self._rows.pop(next(iter(self._rows)))
            self._rows[key] = self._build(self._prompts.features[index], key[1])[0]
        return self._rows[key]

    def _build(self, features: torch.Tensor, chunks_left: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Build a chunk's row and the null row."""
        parts, negative = self._parts, self._prompts.negative
        captions = build_captions(
            [features.to(parts.device)] * chunks_left,
            parts.transformer.null_caption.detach().to(parts.device, torch.float32),
            num_prefix_chunks=0,
            flags=self._flags,
            tokens=parts.special_tokens,
            max_length=int(parts.transformer.config.caption_max_length),
            negative_features=None if negative is None else negative.to(parts.device),
        )
        return captions.cond[0], captions.null
