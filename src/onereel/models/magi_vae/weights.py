"""Official VAE checkpoints: key map both ways, config translation, strict loading.

Values are unchanged; the fused q/k/v projection is split into three.

Source: SandAI-org/MAGI-1 @6ff822e, inference/model/vae.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from onereel.core.config import check_keys
from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1

Tensors = dict[str, torch.Tensor]
CONFIG_FILE = "config.json"

# Official module names to ours, inside a block and outside.
_BLOCK = {
    "norm1": "norm1",
    "attn.proj": "attn.to_out.0",
    "norm2": "norm",
    "mlp.fc1": "proj_out.net.0.proj",
    "mlp.fc2": "proj_out.net.2",
}
_TOP = {
    "encoder.patch_embed.proj": "encoder.patch_embedding",
    "encoder.norm": "encoder.norm_out",
    "encoder.last_layer": "encoder.linear_out",
    "decoder.proj_in": "decoder.proj_in",
    "decoder.norm": "decoder.norm_out",
    "decoder.final_proj": "decoder.final_proj",
    "decoder.final_norm": "decoder.final_norm",
    "decoder.last_layer": "decoder.conv_out",
}
_BLOCK_BACK = {ours: theirs for theirs, ours in _BLOCK.items()}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}
_PLAIN = re.compile(r"(encoder|decoder)\.(pos_embed|cls_token)")
_IN_BLOCK = re.compile(r"((?:encoder|decoder)\.blocks\.\d+)\.(.+)\.(weight|bias)")
_IN_TOP = re.compile(r"(.+)\.(weight|bias)")
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")

# The official constructor's defaults for keys that a config may leave out.
_DDCONFIG: dict[str, Any] = {
    "video_size": 256,
    "video_length": 16,
    "patch_size": 8,
    "patch_length": 4,
    "in_chans": 3,
    "z_chans": 4,
    "double_z": True,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": False,
    "qk_scale": None,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "norm_layer": None,
    "with_cls_token": True,
    "norm_code": False,
    "ln_in_attn": False,
    "conv_last_layer": False,
    "use_rope": False,
    "use_final_proj": False,
}


def is_official(keys: Mapping[str, Any]) -> bool:
    """Tell whether the keys are those of an official VAE."""
    return "encoder.patch_embed.proj.weight" in keys


def official_to_ours(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Rename official tensors.

    Args:
        state: official names to tensors.

    Returns:
        Our names to tensors; parts of the fused projection are views.

    Raises:
        CheckpointError: a name is not known, or a fused projection is not three equal parts.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        block, top = _IN_BLOCK.fullmatch(name), _IN_TOP.fullmatch(name)
        if _PLAIN.fullmatch(name):
            out[name] = tensor
        elif block and block[2] == "attn.qkv":
            if tensor.shape[0] % 3:
                raise CheckpointError(
                    name, expected="a row count divisible by 3", got=tuple(tensor.shape)
                )
            for ours, part in zip(_QKV, tensor.chunk(3), strict=True):
                out[f"{block[1]}.{ours}.{block[3]}"] = part
        elif block and block[2] in _BLOCK:
            out[f"{block[1]}.{_BLOCK[block[2]]}.{block[3]}"] = tensor
        elif top and top[1] in _TOP:
            out[f"{_TOP[top[1]]}.{top[2]}"] = tensor
        else:
            raise CheckpointError(f"unknown tensor '{name}'", hint="this is not a MAGI-1 VAE")
    return out


def ours_to_official(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Rename our tensors to the official layout; the inverse of `official_to_ours`.

    Args:
        state: our names to tensors.

    Returns:
        Official names to tensors.

    Raises:
        CheckpointError: a name is not known, or a part of q, k and v is missing.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        block, top = _IN_BLOCK.fullmatch(name), _IN_TOP.fullmatch(name)
        if _PLAIN.fullmatch(name):
            out[name] = tensor
        elif block and block[2] in _QKV:
            parts = [f"{block[1]}.{part}.{block[3]}" for part in _QKV]
            absent = [part for part in parts if part not in state]
            if absent:
                raise CheckpointError(f"missing tensor '{absent[0]}' beside '{name}'")
            if name == parts[0]:
                fused = f"{block[1]}.attn.qkv.{block[3]}"
                out[fused] = torch.cat([state[part] for part in parts])
        elif block and block[2] in _BLOCK_BACK:
            out[f"{block[1]}.{_BLOCK_BACK[block[2]]}.{block[3]}"] = tensor
        elif top and top[1] in _TOP_BACK:
            out[f"{_TOP_BACK[top[1]]}.{top[2]}"] = tensor
        else:
            raise CheckpointError(f"unknown tensor '{name}'", hint="this is not a MAGI-1 VAE")
    return out


def config_from_official(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an official config to arguments of `AutoencoderKLMagi1`.

    Args:
        config: the whole `config.json`, or its `ddconfig` alone.

    Returns:
        Keyword arguments.

    Raises:
        ConfigError: a key is unknown (nearest name suggested), or asks for what the official code
            cannot do either.
    """
    if "ddconfig" in config:
        own = [key for key in config if key.startswith("_")]
        check_keys(config, ["ddconfig", "model_type", *own], where=CONFIG_FILE)
        kind = config.get("model_type", "vit")
        if kind != "vit":
            raise ConfigError(
                "model_type", expected="vit", got=kind, hint="the code of others is not public"
            )
        config = config["ddconfig"]
    check_keys(config, _DDCONFIG, where="ddconfig")
    values = {**_DDCONFIG, **config}
    _refuse_unsupported(values)
    return {
        "patch_size": (values["patch_length"], values["patch_size"], values["patch_size"]),
        "num_attention_heads": values["num_heads"],
        "attention_head_dim": values["embed_dim"] // values["num_heads"],
        "z_dim": values["z_chans"],
        "height": values["video_size"],
        "width": values["video_size"],
        "num_frames": values["video_length"],
        "ffn_dim": int(values["embed_dim"] * values["mlp_ratio"]),
        "num_layers": values["depth"],
        "temporal_compression_ratio": values["patch_length"],
        "spatial_compression_ratio": values["patch_size"],
        "in_channels": values["in_chans"],
        **{
            key: values[key]
            for key in (
                "qkv_bias",
                "ln_in_attn",
                "with_cls_token",
                "norm_code",
                "use_final_proj",
                "double_z",
                "conv_last_layer",
            )
        },
    }


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Refuse what the official code cannot run, and dropout, which only training would notice."""
    if values["use_rope"]:
        raise ConfigError(
            "ddconfig.use_rope", expected="False", got=True, hint="it does not run officially"
        )
    if not values["conv_last_layer"]:
        raise ConfigError("ddconfig.conv_last_layer", expected="True", got=False)
    for key in ("drop_rate", "attn_drop_rate"):
        if values[key]:
            raise ConfigError(
                f"ddconfig.{key}", expected="0", got=values[key], hint="set it to 0 for inference"
            )
    if values["norm_layer"] not in (None, "LayerNorm"):
        raise ConfigError("ddconfig.norm_layer", expected="LayerNorm", got=values["norm_layer"])
    if values["embed_dim"] % values["num_heads"]:
        raise ConfigError(
            "ddconfig.embed_dim",
            expected=f"a multiple of num_heads = {values['num_heads']}",
            got=values["embed_dim"],
        )


def load_weights(model: AutoencoderKLMagi1, state: Mapping[str, torch.Tensor]) -> None:
    """Put tensors into a model, every one accounted for.

    Args:
        model: the VAE; on the meta device it takes the tensors themselves.
        state: tensors in the official or in our layout, told apart by their names.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape; all are listed.
    """
    tensors = official_to_ours(state) if is_official(state) else dict(state)
    expected = model.state_dict()
    problems = {
        "missing": sorted(set(expected) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": [
            f"{name} ({tuple(tensors[name].shape)} instead of {tuple(tensor.shape)})"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    found = [
        f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
    ]
    if found:
        raise CheckpointError(
            f"tensors do not fit the VAE's config; {'; '.join(found)}",
            hint="use the config.json that belongs to these weights",
        )
    on_meta = any(tensor.is_meta for tensor in expected.values())
    model.load_state_dict(tensors, strict=True, assign=on_meta)
