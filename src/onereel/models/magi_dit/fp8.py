"""Linear layers with float8 (e4m3) weights, as in the official distill+quant checkpoints.

Two kinds: *per tensor* (input_scale of length in_features) and *smooth* (a scalar input_scale and
a smooth_scale of length in_features that already contains it).

Source: SandAI-org/MAGI-1 @6ff822e, inference/model/dit/dit_module.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

_LIMIT = 448.0
_PER_TENSOR = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ffn.net.0.proj")
_SMOOTH = ("attn_proj", "ffn.net.2")


class Fp8Linear(nn.Module):
    """A linear layer with a float8 weight.

    By default the weight is dequantised and the input keeps its precision, which runs anywhere.
    With `quantize_input` the input is rounded to float8 too, exactly as the official kernel does;
    on hardware without float8 that is emulated with a float32 product.

    Args:
        in_features: input width.
        out_features: output width.
        smooth: whether the layer is of the smooth kind.
    """

    weight_scale: torch.Tensor
    input_scale: torch.Tensor
    smooth_scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int, *, smooth: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.quantize_input = False
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(1))
        self.register_buffer("input_scale", torch.ones(1 if smooth else in_features))
        if smooth:
            self.register_buffer("smooth_scale", torch.ones(1, in_features))
        self.smooth = smooth

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move to another device, but let no cast reach the weight or the scales."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def restore_weight(self) -> None:
        """Round the weight back to float8, exactly, after a loader has cast it up."""
        if self.weight.dtype != torch.float8_e4m3fn:
            self.weight.data = self.weight.data.to(torch.float8_e4m3fn)

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Round x / divisor to float8; it passes through bfloat16 first, as officially."""
        divisor = (self.smooth_scale if self.smooth else self.input_scale).float()
        scaled = (x.float() / divisor).clamp(-_LIMIT, _LIMIT)
        return scaled.to(torch.bfloat16).to(torch.float8_e4m3fn)

    def dequantized_weight(self) -> torch.Tensor:
        """Return the weight as a float32 matrix [out, in]."""
        weight = self.weight.float() * self.weight_scale.float()
        if self.smooth:
            weight = weight * self.input_scale.float() / self.smooth_scale.float()
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out] in x's dtype."""
        if not self.quantize_input:
            return F.linear(x, self.dequantized_weight().to(x.dtype))
        product = F.linear(self.quantized_input(x).float(), self.weight.float())
        scale = self.input_scale.flatten()[0].float() * self.weight_scale.float()
        return (product * scale).to(x.dtype)


def quantize_blocks(blocks: nn.ModuleList) -> None:
    """Replace the seven big linears of all blocks but the first and last by `Fp8Linear`, in place.

    Args:
        blocks: the transformer's blocks.
    """
    for block in list(blocks)[1:-1]:
        for name in (*_PER_TENSOR, *_SMOOTH):
            parent_name, _, leaf = name.rpartition(".")
            parent = block.get_submodule(parent_name)
            old: nn.Linear = getattr(parent, leaf)
            new = Fp8Linear(old.in_features, old.out_features, smooth=name in _SMOOTH)
            setattr(parent, leaf, new.to(old.weight.device))


def set_input_quantization(module: nn.Module, enabled: bool) -> None:
    """Choose for all float8 layers below whether inputs are rounded to float8 too.

    Args:
        module: any module.
        enabled: True reproduces the official kernel's rounding.
    """
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            layer.quantize_input = enabled
