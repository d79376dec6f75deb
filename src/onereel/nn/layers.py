"""Layers that state the precision they compute in.

They are modules rather than functions so that hooks (offloading, LoRA) see every call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose caller chooses the precision of input, parameters and result."""

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:  # type: ignore[override]
        """Normalise the last axis.

        Args:
            x: [..., D].
            dtype: precision of everything.

        Returns:
            [..., D] in `dtype`.
        """
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


class LinearFp32(nn.Linear):
    """Linear layer with float32 operands and result, whatever its storage dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to float32 [..., out] (autocast may still lower it in training)."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


class PatchEmbeddingFp32(nn.Conv3d):
    """Convolution over non-overlapping patches with float32 operands and result."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, T, H, W] to float32 [B, D, T/p, H/q, W/r]."""
        return F.conv3d(x.float(), self.weight.float(), stride=self.stride)
