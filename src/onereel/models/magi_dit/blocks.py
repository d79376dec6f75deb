"""The MAGI-1 transformer block: parallel self and cross attention, gated sandwich norms.

Legend: B batch, R chunks of the call, L tokens, S text tokens, D width, N heads, G key heads,
E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import nn

from onereel.nn.attention import attend, attend_ranges
from onereel.nn.layers import LayerNorm, LinearFp32
from onereel.nn.rope import rotate

# The official output projection interleaves self and cross heads in 8 blocks, whatever G is.
_INTERLEAVE = 8

KeyValue = tuple[torch.Tensor, torch.Tensor]


class BlockContext(NamedTuple):
    """What every block of one call shares."""

    text: torch.Tensor  # [B*R, S, D]
    text_mask: torch.Tensor | None  # [B*R, 1, 1, S]
    condition: torch.Tensor  # [B, R, D/4]
    rope: tuple[torch.Tensor, torch.Tensor]  # each [L, P]
    ranges: Sequence[tuple[int, int]]  # visible key rows per chunk
    keep_tokens: int  # leading tokens whose keys and values are returned


class _Projections(nn.Module):
    """Linear layers of queries, keys and values, with fp32 norms on q and k."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, *, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_k = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.to_v = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.norm_q = LayerNorm(head_dim, eps=eps)
        self.norm_k = LayerNorm(head_dim, eps=eps)


class Magi1SelfProjection(_Projections):
    """Queries, keys and values of block-causal self attention."""

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project [B, L, D] to q [B, N, L, E], k and v [B, G, L, E]."""
        query = rearrange(self.to_q(x), "b l (n e) -> b n l e", e=self.head_dim)
        key = rearrange(self.to_k(x), "b l (g e) -> b g l e", e=self.head_dim)
        value = rearrange(self.to_v(x), "b l (g e) -> b g l e", e=self.head_dim)
        query = rotate(self.norm_q(query, torch.float32), rope).to(value.dtype)
        key = rotate(self.norm_k(key, torch.float32), rope).to(value.dtype)
        return query, key, value


class Magi1CrossProjection(_Projections):
    """Queries from video tokens, keys and values from the text; no positions."""

    def forward(self, x: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Let each chunk of x [B, L, D] read its own row of text; returns [B, L, N*E]."""
        batch, rows = x.shape[0], context.text.shape[0]
        chunks = rows // batch
        query = rearrange(self.to_q(x), "b (r l) (n e) -> (b r) n l e", r=chunks, e=self.head_dim)
        key = rearrange(self.to_k(context.text), "b s (g e) -> b g s e", e=self.head_dim)
        value = rearrange(self.to_v(context.text), "b s (g e) -> b g s e", e=self.head_dim)
        query = self.norm_q(query, value.dtype)
        key = self.norm_k(key, value.dtype)
        out = attend(query, key, value=value, mask=context.text_mask)
        return rearrange(out, "(b r) n l e -> b (r l) (n e)", b=batch)


class Magi1TransformerBlock(nn.Module):
    """One layer: parallel attentions, then an MLP, each gated and normalised before the residual.

    Source: MAGI-1 report (arXiv 2505.13211) section 2.2; SandAI-org/MAGI-1 @6ff822e,
    inference/model/dit/dit_module.py.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        condition_dim: int,
        gated: bool,
        eps: float,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.ada_modulate_layer = nn.Sequential(nn.SiLU(), nn.Linear(condition_dim, 2 * dim))
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn1 = Magi1SelfProjection(dim, heads, kv_heads, head_dim, eps=eps)
        self.attn2 = Magi1CrossProjection(dim, heads, kv_heads, head_dim, eps=eps)
        self.attn_proj = LinearFp32(2 * inner, dim, bias=False)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.norm3 = LayerNorm(dim, eps=eps)
        activation = "swiglu" if gated else "gelu"
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn=activation, bias=False)
        self.norm4 = LayerNorm(dim, eps=eps)

    def forward(
        self, x: torch.Tensor, context: BlockContext, past: KeyValue | None = None
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """Run the layer.

        Args:
            x: tokens [B, L, D].
            context: what all blocks of the call share.
            past: keys and values [B, G, P, E] of earlier clean chunks.

        Returns:
            Tokens [B, L, D], and the keys and values of the first `keep_tokens` tokens.
        """
        gates = torch.tanh(self.ada_modulate_layer(context.condition).float()).to(x.dtype)
        attention_gate, mlp_gate = gates.chunk(2, dim=-1)  # [B, R, D]
        attended, kept = self.attend(x, context, past=past)
        x = self.gated_residual(attended, attention_gate, norm=self.norm2, residual=x)
        hidden = self.ffn(self.norm3(x, x.dtype))
        return self.gated_residual(hidden, mlp_gate, norm=self.norm4, residual=x), kept

    def attend(
        self, x: torch.Tensor, context: BlockContext, *, past: KeyValue | None
    ) -> tuple[torch.Tensor, KeyValue | None]:
        """Run both attentions on the same normalised input and mix them."""
        normed = self.norm1(x, x.dtype)
        query, key, value = self.attn1(normed, context.rope)
        kept = None
        if context.keep_tokens:
            # Copies: a view would keep every layer's keys of the whole call alive.
            count = context.keep_tokens
            kept = (key[:, :, :count].clone(), value[:, :, :count].clone())
        if past is not None:
            key = torch.cat((past[0].expand(key.shape[0], -1, -1, -1), key), dim=2)
            value = torch.cat((past[1].expand(value.shape[0], -1, -1, -1), value), dim=2)
        own = attend_ranges(query, key, value=value, ranges=context.ranges)
        own = rearrange(own, "b n l e -> b l (n e)")
        cross = self.attn2(normed, context)
        mixed = torch.stack(
            (own.unflatten(-1, (_INTERLEAVE, -1)), cross.unflatten(-1, (_INTERLEAVE, -1))), dim=-2
        ).flatten(2)  # [B, L, 2*N*E], eight [self, cross] pairs
        return self.attn_proj(mixed), kept

    @staticmethod
    def gated_residual(
        update: torch.Tensor, gate: torch.Tensor, *, norm: LayerNorm, residual: torch.Tensor
    ) -> torch.Tensor:
        """Gate per chunk, normalise in fp32, add the residual, round once."""
        gated = update.float().unflatten(1, (gate.shape[1], -1)) * gate.float()[:, :, None]
        normed = norm(gated.flatten(1, 2), torch.float32)
        return (normed + residual.float()).to(residual.dtype)
