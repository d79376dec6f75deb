"""Attention against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import onereel.nn.attention as module
from onereel.nn.attention import BlockedAttention, attend, attend_ranges, blocked_attention


def tensors(queries: int = 6, keys: int = 9, heads: int = 4, groups: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 8), (2, groups, keys, 8), (2, groups, keys, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Loops over batch and heads; query head a reads key head a // (N / G)."""
    out = torch.empty_like(query)
    share = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for a in range(query.shape[1]):
            scores = query[b, a] @ key[b, a // share].T / query.shape[-1] ** 0.5
            if mask is not None:
                scores[~mask.expand(*query.shape[:3], key.shape[2])[b, a]] = -torch.inf
            out[b, a] = scores.softmax(-1) @ value[b, a // share]
    return out


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_attention_follows_its_formula(groups: int, masked: bool, gradients: bool) -> None:
    query, key, value = tensors(groups=groups)
    mask = torch.arange(9) < torch.tensor([4, 9])[:, None]
    visible = mask[:, None, None] if masked else None
    with torch.set_grad_enabled(gradients):
        got = attend(query, key, value=value, mask=visible)
    torch.testing.assert_close(got, by_hand(query, key, value, visible))


@pytest.mark.parametrize("masked", [None, 1, 2])
@pytest.mark.parametrize("cached", [1, 10**6])
def test_blocks_agree_with_the_kernel_in_value_and_gradient(
    masked: int | None, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHED", cached)  # one row at a time, or all of them
    query, key, value = (t.requires_grad_() for t in tensors(groups=4))
    mask = None
    if masked:
        generator = torch.Generator().manual_seed(1)
        mask = torch.rand(masked, 1, 6, 9, generator=generator) < 0.7
    gradients = []
    for function in (blocked_attention, F.scaled_dot_product_attention):
        name = "mask" if function is blocked_attention else "attn_mask"
        out = function(query, key, value=value, **{name: mask})
        torch.testing.assert_close(out, by_hand(query, key, value, mask))
        gradients.append(torch.autograd.grad(out.square().sum(), (query, key, value)))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_blocks_take_over_in_bfloat16_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def watched(query: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        seen.append(query.dtype)
        return blocked_attention(query, *rest, **named)

    monkeypatch.setattr(module, "blocked_attention", watched)
    query, key, value = (t.float() for t in tensors(groups=4))
    want = F.scaled_dot_product_attention(query, key, value)
    with BlockedAttention():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value), want)
        F.scaled_dot_product_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(),
                                       is_causal=True)  # fmt: skip
        assert seen == []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = F.scaled_dot_product_attention(query, key, value)
        low = F.scaled_dot_product_attention(
            query.bfloat16(), key=key.bfloat16(), value=value.bfloat16()
        )
    assert seen == [torch.bfloat16] * 2
    assert out.dtype == torch.bfloat16 and torch.equal(out, low)
    torch.testing.assert_close(out.float(), want, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 9)],
        [(0, 3), (0, 6), (0, 9)],
        [(0, 6), (3, 9), (6, 9)],
        [(2, 3), (5, 9)],
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (8, 9)],
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_ranges_equal_a_mask(ranges: list[tuple[int, int]], gradients: bool) -> None:
    query, key, value = tensors()
    mask = torch.zeros(6, 9, dtype=torch.bool)
    block = 6 // len(ranges)
    for i, (start, end) in enumerate(ranges):
        mask[i * block : (i + 1) * block, start:end] = True
    with torch.set_grad_enabled(gradients):
        got = attend_ranges(query, key, value=value, ranges=ranges)
    torch.testing.assert_close(got, by_hand(query, key, value, mask))


def test_low_precision_stays_close() -> None:
    query, key, value = tensors()
    with torch.no_grad():
        low = attend(query.bfloat16(), key.bfloat16(), value=value.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), attend(query, key, value=value), atol=0.03, rtol=0.03)
