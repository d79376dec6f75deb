"""Prompts of a call, encoded: the text of every chunk of every video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onereel.core.errors import ConfigError
from onereel.pipelines.pictures import visible_rows

Encode = Callable[[Sequence[str], int], list[torch.Tensor]]


@dataclass(kw_only=True, slots=True)
class Prompts:
    """Text of one video: encoded prompts, one per generated chunk.

    Args:
        features: distinct visible text tokens [S, K].
        per_chunk: index into `features` per generated chunk; the last one goes on.
        negative: visible tokens of the negative prompt, or None.
    """

    features: tuple[torch.Tensor, ...]
    per_chunk: tuple[int, ...] = (0,)
    negative: torch.Tensor | None = None

    def index(self, chunk: int) -> int:
        """Find the text of a chunk.

        Args:
            chunk: index from the first generated one.

        Returns:
            Its place in `features`.
        """
        return self.per_chunk[min(chunk, len(self.per_chunk) - 1)]

    def change_from(self, chunk: int, row: torch.Tensor) -> None:
        """Give all chunks from one on another text, while the video is made.

        Args:
            chunk: index from the first generated one.
            row: visible text tokens [S, K].
        """
        before = tuple(self.index(earlier) for earlier in range(chunk))
        self.features, self.per_chunk = (*self.features, row), (*before, len(self.features))


def encode_chunks(
    texts: Sequence[str],
    encode: Callable[[list[str]], list[torch.Tensor]],
    *,
    negative: str | None = None,
) -> Prompts:
    """Encode the text of every chunk, and the negative prompt, each distinct text once.

    Args:
        texts: one per generated chunk; the last one goes on.
        encode: the text encoder.
        negative: what shall not be seen; None or blank means the learned null caption.

    Returns:
        The prompts of one video.
    """
    distinct = list(dict.fromkeys(texts))
    wanted = negative is not None and bool(negative.strip())
    features = encode([*distinct, *([str(negative)] if wanted else [])])
    return Prompts(
        features=tuple(features[: len(distinct)]),
        per_chunk=tuple(distinct.index(text) for text in texts),
        negative=features[-1] if wanted else None,
    )


def prompts_of_call(options: Mapping[str, Any], encode: Encode) -> list[Prompts]:
    """Encode the texts of a pipeline call.

    Args:
        options: the arguments of `__call__`.
        encode: the text encoder, given texts and the number of tokens at most.

    Returns:
        One entry per video.

    Raises:
        ConfigError: the texts do not fit together.
    """
    length, repeats = options["max_sequence_length"], options["num_videos_per_prompt"]
    negative = _negative(options, encode)
    if options["chunk_prompts"] is not None:
        texts = list(options["chunk_prompts"])
        prompts = encode_chunks(texts, lambda distinct: encode(distinct, length))
        return [Prompts(features=prompts.features, per_chunk=prompts.per_chunk,
                        negative=negative)] * repeats  # fmt: skip
    if options["prompt_embeds"] is not None:
        rows = visible_rows(options["prompt_embeds"], options["prompt_attention_mask"])
    else:
        prompt = options["prompt"]
        rows = encode([prompt] if isinstance(prompt, str) else list(prompt), length)
    return [Prompts(features=(row,), negative=negative) for row in rows for _ in range(repeats)]


def _negative(options: Mapping[str, Any], encode: Encode) -> torch.Tensor | None:
    """Encode the negative prompt; None and the empty string mean the learned null caption."""
    if options["negative_prompt_embeds"] is not None:
        return visible_rows(options["negative_prompt_embeds"], None)[0]
    text = options["negative_prompt"]
    if isinstance(text, list | tuple):
        if len(set(text)) > 1:
            raise ConfigError("negative_prompt", expected="one text for all videos")
        text = text[0] if text else None
    if text is None or not text.strip():
        return None
    return encode([text], options["max_sequence_length"])[0]
