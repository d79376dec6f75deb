"""Blocks that take turns: nothing changes, and the estimate counts the right ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS
from onereel.runtime import magic_estimate
from onereel.runtime.block_groups import bring_by_block, has_own_memory
from onereel.runtime.estimate import estimate
from onereel.runtime.magic_shapes import released_shapes
from onereel.runtime.quantize import quantize
from onereel.runtime.shapes import block_bytes, read_shapes

CPU = torch.device("cpu")


def test_who_has_a_memory_of_its_own() -> None:
    assert [has_own_memory(torch.device(d)) for d in ("cpu", "cuda", "mps")] == [False, True, True]


@pytest.mark.parametrize("level", [None, "int8", "int4"])
@torch.no_grad()
def test_blocks_in_turn_equal_all_at_once(level: str | None) -> None:
    torch.manual_seed(0)
    whole = Magi1Transformer3DModel(**DIT_PRESETS["toybox"]).eval()
    torch.nn.init.normal_(whole.proj_out.weight, std=0.1)
    if level is not None:
        quantize(whole, level)
    grouped = copy.deepcopy(whole)
    bring_by_block(grouped, CPU)
    assert all(hasattr(block, "_diffusers_hook") for block in grouped.blocks)
    config = whole.config
    inputs = (
        torch.randn(1, config.in_channels, 12, 4, 4),
        torch.rand(1, 2),
        torch.randn(1, 2, 5, config.cross_attention_dim),
        torch.ones(1, 2, 5, dtype=torch.bool),
    )
    options: dict[str, Any] = {"kv_range": [(0, 1), (0, 2)], "keep_chunks": 1, "return_dict": False}
    for got, want in zip(grouped(*inputs, **options), whole(*inputs, **options), strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_the_share_of_a_block_is_that_of_the_network() -> None:
    config = MAGIC_DIT_PRESETS["magic141"]
    with torch.device("meta"):
        network = HunyuanVideoTransformer3DModel(**config)
    total = sum(p.numel() for p in network.parameters())
    lists = (network.transformer_blocks, network.single_transformer_blocks)
    blocks = [sum(p.numel() for p in block.parameters()) for part in lists for block in part]
    size = released_shapes().sizes["transformer"]
    share = magic_estimate._share_by_block({**config, "mlp_ratio": 4.0}, size)
    assert share == pytest.approx((total - sum(blocks) + 2 * max(blocks)) / total, rel=0.01)


def test_the_bytes_of_a_block() -> None:
    shapes = read_shapes("4.5B_base")
    with torch.device("meta"):
        network = Magi1Transformer3DModel(**{**shapes.transformer, "num_layers": 3})
    numbers = sum(p.numel() for p in network.blocks[1].parameters())
    one = block_bytes(shapes, dtype=torch.bfloat16)
    assert 2 * numbers <= one < 2.05 * numbers  # norms stay in float32
    found = estimate("4.5B_base", device="cuda", tflops=1.0)
    layers = shapes.transformer["num_layers"]
    saved = found.resident_bytes - found.by_block_bytes
    assert saved == (layers - 2) * one and found.needed_bytes("block") == found.by_block_bytes
