"""Key map between the official MAGI-1 layout and ours, both ways, and strict accounting.

Four things change besides names: norm gains are stored zero-centred officially (effective gain =
stored + 1), cross-attention keys and values are interleaved per key head, SwiGLU halves are in the
other order, and float8 weights carry a leading axis of one.

Source: SandAI-org/MAGI-1 @6ff822e, inference/model/dit/dit_module.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from onereel.core.errors import CheckpointError

_TOP = {
    "x_embedder.weight": "patch_embedding.weight",
    "rope.bands": "rope.bands",
    "t_embedder.mlp.0.weight": "condition_embedder.time_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "condition_embedder.time_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "condition_embedder.time_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "condition_embedder.time_embedder.linear_2.bias",
    "y_embedder.null_caption_embedding": (
        "condition_embedder.text_embedder.null_caption_embedding"
    ),
    "y_embedder.y_proj_xattn.0.weight": "condition_embedder.text_embedder.y_proj_xattn.0.weight",
    "y_embedder.y_proj_xattn.0.bias": "condition_embedder.text_embedder.y_proj_xattn.0.bias",
    "y_embedder.y_proj_adaln.0.weight": "condition_embedder.text_embedder.y_proj_adaln.weight",
    "y_embedder.y_proj_adaln.0.bias": "condition_embedder.text_embedder.y_proj_adaln.bias",
    "videodit_blocks.final_layernorm.weight": "norm_out.weight",
    "videodit_blocks.final_layernorm.bias": "norm_out.bias",
    "final_linear.linear.weight": "proj_out.weight",
}
_BLOCK = {
    "ada_modulate_layer.proj.0": "ada_modulate_layer.1",
    "self_attention.linear_qkv.layer_norm": "norm1",
    "self_attention.linear_qkv.q": "attn1.to_q",
    "self_attention.linear_qkv.qx": "attn2.to_q",
    "self_attention.linear_qkv.k": "attn1.to_k",
    "self_attention.linear_qkv.v": "attn1.to_v",
    "self_attention.linear_proj": "attn_proj",
    "self_attention.q_layernorm": "attn1.norm_q",
    "self_attention.k_layernorm": "attn1.norm_k",
    "self_attention.q_layernorm_xattn": "attn2.norm_q",
    "self_attention.k_layernorm_xattn": "attn2.norm_k",
    "self_attn_post_norm": "norm2",
    "mlp.layer_norm": "norm3",
    "mlp.linear_fc1": "ffn.net.0.proj",
    "mlp.linear_fc2": "ffn.net.2",
    "mlp_post_norm": "norm4",
}
_BLOCK_BACK = {ours: theirs for theirs, ours in _BLOCK.items()}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}
_CENTRED = ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k", "norm2", "norm4")
_CROSS = "self_attention.linear_kv_xattn.weight"
_SUFFIXES = (".weight_scale", ".input_scale", ".smooth_scale", ".weight", ".bias")
_OFFICIAL_LAYER = re.compile(r"videodit_blocks\.layers\.(\d+)\.(.+)")
_OUR_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")

Tensors = dict[str, torch.Tensor]


def is_official(keys: Mapping[str, Any]) -> bool:
    """Tell whether the keys are those of an official MAGI-1 transformer."""
    return "x_embedder.weight" in keys


def _split_suffix(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    """Exchange the two halves of the rows, whatever the dtype."""
    raw = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
    first, second = raw.chunk(2, dim=0)
    return torch.cat((second, first), dim=0).view(tensor.dtype)


def _shift_gain(tensor: torch.Tensor, offset: float) -> torch.Tensor:
    """Add to a gain in float32, so that nothing is rounded before its use."""
    return tensor.float() + offset


def official_to_ours(
    state: Mapping[str, torch.Tensor], *, num_kv_heads: int, head_dim: int, gated: bool
) -> Tensors:
    """Rename and convert official tensors.

    Args:
        state: official names to tensors (meta tensors work).
        num_kv_heads: key heads G.
        head_dim: head dim E.
        gated: whether the MLP is SwiGLU.

    Returns:
        Our names to tensors.

    Raises:
        CheckpointError: a name is not known.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        match = _OFFICIAL_LAYER.fullmatch(name)
        if name in _TOP:
            is_gain = name == "videodit_blocks.final_layernorm.weight"
            out[_TOP[name]] = _shift_gain(tensor, 1.0) if is_gain else tensor
        elif match and match[2] == _CROSS:
            rows = tensor.unflatten(0, (num_kv_heads, 2, head_dim))
            out[f"blocks.{match[1]}.attn2.to_k.weight"] = rows[:, 0].flatten(0, 1)
            out[f"blocks.{match[1]}.attn2.to_v.weight"] = rows[:, 1].flatten(0, 1)
        else:
            stem, suffix = _split_suffix(match[2] if match else name)
            if match is None or stem not in _BLOCK:
                raise CheckpointError(
                    f"unknown tensor '{name}'", hint="this is not a MAGI-1 transformer"
                )
            ours = _BLOCK[stem]
            out[f"blocks.{match[1]}.{ours}{suffix}"] = _convert(ours, suffix, tensor, gated, 1.0)
    return out


def _convert(
    ours: str, suffix: str, tensor: torch.Tensor, gated: bool, gain_offset: float
) -> torch.Tensor:
    """Apply the value changes of one block tensor, in either direction."""
    if suffix != ".weight":
        return tensor
    if ours in _CENTRED:
        return _shift_gain(tensor, gain_offset)
    if tensor.dtype == torch.float8_e4m3fn:
        tensor = tensor[0] if gain_offset > 0 else tensor[None]
        if gated and ours == "ffn.net.0.proj":
            rows = tensor if gain_offset > 0 else tensor[0]
            rows = _swap_halves(rows)
            tensor = rows if gain_offset > 0 else rows[None]
        return tensor
    return _swap_halves(tensor) if gated and ours == "ffn.net.0.proj" else tensor


def ours_to_official(
    state: Mapping[str, torch.Tensor], *, num_kv_heads: int, head_dim: int, gated: bool
) -> Tensors:
    """Rename and convert our tensors to the official layout; the inverse of `official_to_ours`.

    Args:
        state: our names to tensors (meta tensors work).
        num_kv_heads: key heads G.
        head_dim: head dim E.
        gated: whether the MLP is SwiGLU.

    Returns:
        Official names to tensors.

    Raises:
        CheckpointError: a name is not known.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        match = _OUR_BLOCK.fullmatch(name)
        if name in _TOP_BACK:
            out[_TOP_BACK[name]] = (
                _shift_gain(tensor, -1.0) if name == "norm_out.weight" else tensor
            )
            continue
        stem, suffix = _split_suffix(match[2] if match else name)
        layer = f"videodit_blocks.layers.{match[1]}." if match else ""
        if stem == "attn2.to_k":
            value = state[name.replace("to_k", "to_v")]
            rows = torch.stack(
                [t.unflatten(0, (num_kv_heads, head_dim)) for t in (tensor, value)], dim=1
            )
            out[layer + _CROSS] = rows.flatten(0, 2)
        elif stem in _BLOCK_BACK:
            theirs = layer + _BLOCK_BACK[stem] + suffix
            out[theirs] = _convert(stem, suffix, tensor, gated, -1.0)
        elif stem != "attn2.to_v":
            raise CheckpointError(f"tensor '{name}' has no place in the official layout")
    return out


def account(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, where: str
) -> None:
    """Check that names and shapes agree exactly.

    Args:
        state: tensors found.
        expected: tensors that the model has (meta tensors work).
        where: name of the checkpoint in the message.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; all are counted, the
            first few named.
    """
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", extra), ("of wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where}: tensors do not fit the config: {'; '.join(problems)}",
            hint="use the config that belongs to these weights",
        )
