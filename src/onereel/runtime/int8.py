"""Weights of linear layers in 8 bits: half the memory of bfloat16, applied from outside.

Each output row is stored as integers from -127 to 127 and one scale; inputs are not quantized.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/utils/quant.py (Optimum-Quanto's qint8).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_LEVELS = 127


class Int8Linear(nn.Module):
    """A linear layer whose weight is stored in 8 bits.

    Args:
        linear: the layer whose weight is rounded; its bias is taken over.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True) / _LEVELS
        # A row of zeros has no scale of its own.
        levels = weight / torch.where(scale == 0, 1.0, scale)
        self.weight: torch.Tensor
        self.register_buffer("weight", levels.round().clamp(-_LEVELS, _LEVELS).to(torch.int8))
        self.weight_scale: torch.Tensor
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features]; the weight is restored in the input's dtype."""
        weight = self.weight.to(x.dtype) * self.weight_scale.to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def quantize_int8(model: nn.Module) -> int:
    """Store the weights of all linear layers in 8 bits.

    Cast the model before: casting afterwards rounds the scales too.

    Args:
        model: changed in place; layers of other kinds, convolutions among them, stay.

    Returns:
        Number of layers changed.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
                count += 1
    return count
