"""A tiny real transformer and tasks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.samplers.engine import ChunkTask

CHANNELS, HEIGHT, WIDTH, TEXT = 4, 4, 4, 8


@pytest.fixture(scope="session")
def tiny_model() -> Magi1Transformer3DModel:
    """Random weights under which history, text and time all matter."""
    model = Magi1Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_kv_heads=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        cross_attention_dim=TEXT,
        ffn_dim=32,
        num_layers=2,
        caption_max_length=8,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_task(tiny_model: Magi1Transformer3DModel) -> Callable[..., ChunkTask]:
    """Build a task; `prefix` is a number of random given latent frames."""

    def make(num_chunks: int, prefix: int = 0, **changes: Any) -> ChunkTask:
        generator = torch.Generator().manual_seed(5)
        rows = [torch.randn(3 + i % 3, TEXT, generator=generator) for i in range(64)]
        given = torch.randn(1, CHANNELS, prefix, HEIGHT, WIDTH, generator=generator)
        values: dict[str, Any] = {
            "latent_shape": (CHANNELS, HEIGHT, WIDTH),
            "condition": lambda chunk: rows[chunk],
            "null_caption": tiny_model.null_caption[:5],
            "seed": 3,
            "prefix": given if prefix else None,
        }
        return ChunkTask(num_chunks=num_chunks, **values | changes)

    return make
