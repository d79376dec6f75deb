"""Weights of linear layers in 8 or 4 bits: less memory, applied from outside to any network.

Only weights are rounded (`int8`, `fp8`, `int4`): each is restored in the input's dtype when it is
used, on every device, and the layers are plain tensors that any safetensors file holds.
`int8-dynamic` rounds inputs, too, with torchao's kernels.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/utils/quant.py (Optimum-Quanto's qint8)
for int8; groups of 32 for int4, as its README has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from onereel.core.config import nearest_name
from onereel.core.errors import BackendUnavailable, ConfigError
from onereel.nn.layers import LinearFp32

GROUP: Final = 32  # columns that share a scale in 4 bits
DYNAMIC: Final = "int8-dynamic"
_FP8: Final = torch.float8_e4m3fn
_LARGEST: Final = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
STORED: Final = tuple(_LARGEST)  # levels that files can hold
LEVELS: Final = (*STORED, DYNAMIC)
QUANTIZATION: Final = "quantization"  # key of a config whose weights are stored so

Tensors = dict[str, torch.Tensor]


def check_level(level: str) -> None:
    """Refuse an unknown level.

    Args:
        level: one of `LEVELS`.

    Raises:
        ConfigError: it is none.
        BackendUnavailable: it needs torchao, which is not installed.
    """
    if level not in LEVELS:
        near = nearest_name(level, LEVELS)
        raise ConfigError(
            "--quantize", expected=f"one of {', '.join(LEVELS)}", got=level,
            hint=f"did you mean {near}?" if near else None,
        )  # fmt: skip
    if level == DYNAMIC:
        try:
            import torchao  # noqa: F401
        except ImportError as error:
            raise BackendUnavailable(
                f"--quantize {DYNAMIC} needs torchao",
                hint="pip install 'onereel[quant]', or use --quantize int8",
            ) from error


def check_stored(level: str | None, *, stored: str | None) -> None:
    """Refuse to round what is rounded already in another way.

    Args:
        level: that is asked for.
        stored: of the weights.

    Raises:
        ConfigError: they differ.
    """
    if level is not None and stored not in (None, level):
        raise ConfigError(
            "--quantize", expected=f"{stored}, in which the weights are stored", got=level,
            hint="leave it out, or take the checkpoint with whole weights",
        )  # fmt: skip


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is stored in few bits.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        level: `int8`, `int4` or `fp8`.
        bias: taken over, or None.
        device: of the stored weight.
        in_float32: compute in it whatever the input is, as the layer that it replaces did.
    """

    packed: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        level: str,
        bias: nn.Parameter | None,
        device: torch.device,
        in_float32: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # a whole weight is never made
        self.in_features, self.out_features, self.level = in_features, out_features, level
        self.in_float32 = in_float32
        columns, groups, dtype = in_features, 1, torch.int8
        if level == "int4":
            columns, groups, dtype = in_features // 2, in_features // GROUP, torch.uint8
        if level == "fp8":
            dtype = _FP8
        packed = torch.empty(out_features, columns, dtype=dtype, device=device)
        scale = torch.empty(out_features, groups, dtype=_scale_dtype(level), device=device)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear, level: str) -> QuantizedLinear:
        """Round a layer; on the meta device, only shapes.

        Args:
            linear: the layer; its bias is taken over.
            level: `int8`, `int4` or `fp8`.

        Returns:
            The layer that takes its place.
        """
        weight = linear.weight
        rows, columns = weight.shape
        layer = cls(
            columns, rows, level=level, bias=linear.bias, device=weight.device,
            in_float32=isinstance(linear, LinearFp32),
        )  # fmt: skip
        if not weight.is_meta:
            layer.load_state_dict(pack(weight.detach(), level), strict=False)
        return layer

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight in float32, restored."""
        return self.restored(torch.float32)

    def restored(self, dtype: torch.dtype) -> torch.Tensor:
        """Restore the weight.

        Args:
            dtype: of the result.

        Returns:
            [out_features, in_features].
        """
        scale = self.scale.to(dtype)
        if self.level != "int4":
            return self.packed.to(dtype) * scale
        low, high = self.packed & 15, self.packed >> 4
        levels = torch.stack((low, high), dim=-1).flatten(1).to(dtype) - 8
        return (levels.unflatten(1, (-1, GROUP)) * scale[..., None]).flatten(1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move to another device, but let no cast reach the weight or the scale."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            stored = tensor is self.packed or tensor is self.scale
            return tensor.to(moved.device) if stored and moved.dtype != tensor.dtype else moved

        return super()._apply(keep_dtype, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply [..., in_features]; the weight is restored in the input's dtype."""
        x = x.float() if self.in_float32 else x
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.restored(x.dtype), bias)

    def extra_repr(self) -> str:
        """Say what it is."""
        return f"{self.in_features}, {self.out_features}, {self.level}"


def _scale_dtype(level: str) -> torch.dtype:
    """A scale per few numbers is stored in few bits, too."""
    return torch.bfloat16 if level == "int4" else torch.float32


def pack(weight: torch.Tensor, level: str) -> Tensors:
    """Round a weight.

    Args:
        weight: [out_features, in_features].
        level: `int8`, `int4` or `fp8`.

    Returns:
        `packed` and `scale` of a `QuantizedLinear`.
    """
    weight = weight.float()
    groups = weight.unflatten(1, (-1, GROUP)) if level == "int4" else weight[:, None]
    scale = groups.abs().amax(dim=2, keepdim=True) / _LARGEST[level]
    scale = scale.to(_scale_dtype(level))
    # A row of zeros has no scale of its own.
    levels = groups / torch.where(scale == 0, 1.0, scale).float()
    levels = levels.flatten(1)
    if level == "fp8":
        packed = levels.clamp(-_LARGEST[level], _LARGEST[level]).to(_FP8)
    elif level == "int8":
        packed = levels.round().clamp(-127, 127).to(torch.int8)
    else:
        numbers = (levels.round().clamp(-8, 7) + 8).to(torch.uint8)
        packed = numbers[:, ::2] | (numbers[:, 1::2] << 4)
    return {"packed": packed, "scale": scale.flatten(1)}


def quantizable(model: nn.Module, level: str) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """List the linear layers that can be stored in few bits.

    Args:
        model: a network.
        level: one of `LEVELS`.

    Yields:
        A layer's parent, its name there, and the layer. Layers that the network computes in
        float32, such as embeddings of time, stay, and so do those of odd sizes.
    """
    # torchao's kernels would not compute in float32.
    kinds = (nn.Linear,) if level == DYNAMIC else (nn.Linear, LinearFp32)
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            names = (*path.split("."), name)
            plain = type(child) in kinds and not set(kept) & set(names)
            if plain and (level != "int4" or child.in_features % GROUP == 0):
                yield parent, name, child


def quantize(model: nn.Module, level: str) -> int:
    """Store the weights of a network's linear layers in few bits.

    Args:
        model: changed in place; layers of other kinds, convolutions among them, stay.
        level: one of `LEVELS`.

    Returns:
        Number of layers changed.

    Raises:
        ConfigError: the level is not known.
        BackendUnavailable: it needs torchao, which is not installed.
    """
    check_level(level)
    found = list(quantizable(model, level))
    if level == DYNAMIC:
        _quantize_dynamic(model, {id(child) for _, _, child in found})
        return len(found)
    for parent, name, child in found:
        setattr(parent, name, QuantizedLinear.of(child, level))
    return len(found)


def _quantize_dynamic(model: nn.Module, chosen: set[int]) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(
        model, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda m, _: id(m) in chosen
    )


def packed_tensors(
    model: nn.Module, tensors: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Round weights on their way into a network, so that they are never all there in full.

    Args:
        model: with `QuantizedLinear` layers.
        tensors: names and values of the network as it was.

    Yields:
        Names and values of the network as it is.
    """
    layers = quantized_layers(model)
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and owner in layers:
            for key, value in pack(tensor, layers[owner].level).items():
                yield f"{owner}.{key}", value
        else:
            yield name, tensor


def stored_bytes(model: nn.Module, *, dtype_of: Callable[[str, torch.Tensor], torch.dtype]) -> int:
    """Count a network's bytes.

    Args:
        model: a network, on any device.
        dtype_of: gives the dtype that a tensor will have, by its name; not asked of rounded ones.

    Returns:
        Bytes of all tensors of its state.
    """
    rounded = {f"{name}.{leaf}" for name in quantized_layers(model) for leaf in ("packed", "scale")}
    return sum(
        tensor.nbytes if name in rounded else tensor.numel() * dtype_of(name, tensor).itemsize
        for name, tensor in model.state_dict().items()
    )


def quantized_layers(model: nn.Module) -> Mapping[str, QuantizedLinear]:
    """List a network's quantized layers by their names."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
