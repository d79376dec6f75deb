"""One attention function over ranges of chunks; no mask is ever built for block-causal attention.

Legend: B batch, N query heads, G key heads, L query tokens, S key tokens, E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with grouped key heads.

    Args:
        query: [B, N, L, E].
        key: [B, G, S, E]; query head a uses key head a // (N / G).
        value: [B, G, S, E].
        mask: boolean, broadcastable to [B, N, L, S]; True means visible.

    Returns:
        [B, N, L, E], scaled by 1 / sqrt(E) inside.
    """
    grouped = key.shape[1] != query.shape[1]
    if grouped and query.device.type == "cpu":
        # The CPU kernel wants equal head counts; repeating is cheap beside the matmuls.
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
        grouped = False
    if query.dtype is torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled():
        # In bfloat16 the CPU kernel's backward is 2.6 times slower than plain products at training
        # sizes; in float32 it is faster.
        return plain_attention(query, key, value=value, mask=mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend as the formula says; the reference of every backend.

    Args:
        query: [B, N, L, E].
        key: [B, N, S, E].
        value: [B, N, S, E].
        mask: boolean, broadcastable to [B, N, L, S]; True means visible.

    Returns:
        [B, N, L, E].
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


def attend_ranges(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    value: torch.Tensor,
    ranges: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """Attend block by block, each block of queries to one interval of keys.

    Args:
        query: [B, N, L, E]; L is split into len(ranges) equal blocks.
        key: [B, G, S, E].
        value: [B, G, S, E].
        ranges: per block the visible key rows [start, end).

    Returns:
        [B, N, L, E].
    """
    blocks = query.chunk(len(ranges), dim=2)
    parts = [
        attend(block, key[:, :, start:end], value=value[:, :, start:end])
        for block, (start, end) in zip(blocks, ranges, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
