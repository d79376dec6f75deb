"""The text of every chunk, made on demand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onereel.models.text import ConditioningFlags, SpecialTokens, build_captions
from onereel.models.text.special_tokens import OTHER_ROWS
from onereel.pipelines.captions import Captions
from onereel.pipelines.prompts import Prompts

WIDTH = 8


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def parts() -> Any:
    tokens = SpecialTokens.from_tensors(
        {
            "caption_token": rows(1, 0),
            "logo_token": rows(1, 1),
            "other_tokens": rows(max(OTHER_ROWS.values()) + 1, 2),
        }
    )
    transformer = SimpleNamespace(
        null_caption=rows(60, 3), config=SimpleNamespace(caption_max_length=20)
    )
    return SimpleNamespace(
        device=torch.device("cpu"), transformer=transformer, special_tokens=tokens
    )


def test_every_chunk_gets_what_the_list_of_all_would_say(parts: Any) -> None:
    features = (rows(5, 4), rows(30, 5))
    prompts = Prompts(features=features, per_chunk=(0, 0, 1, 0, 1), negative=rows(4, 6))
    flags = ConditioningFlags(hq=True, duration=True)
    captions = Captions(parts, prompts, num_chunks=14, num_given=2, flags=flags)
    every = build_captions(
        [features[prompts.index(chunk)] for chunk in range(12)],
        parts.transformer.null_caption,
        num_prefix_chunks=2,
        flags=flags,
        tokens=parts.special_tokens,
        max_length=20,
        negative_features=prompts.negative,
    )
    assert torch.equal(captions.null, every.null)
    for chunk in range(2, 14):
        assert torch.equal(captions.of_chunk(chunk), every.cond[chunk])


def test_memory_is_flat_in_the_length(parts: Any) -> None:
    features = tuple(rows(5, seed) for seed in range(40))
    prompts = Prompts(features=features, per_chunk=tuple(range(40)))
    flags = ConditioningFlags(duration=True)
    captions = Captions(parts, prompts, num_chunks=10_000, num_given=0, flags=flags)
    seen = {id(captions.of_chunk(chunk)) for chunk in range(50, 9_900)}
    assert len(seen) == 1  # one prompt, many chunks left
    for chunk in range(40):
        captions.of_chunk(chunk)
    assert len(captions._rows) <= 16
