"""From our configs to the official JSON files; the inverse of `magi_dit/official.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from onereel.core.errors import ConfigError
from onereel.runtime.layout import OFFICIAL_VAE_CLASS, sample_config

_SHIFT = 3.0  # of the official time grid, written into the official code
_FREQ_DIM = 256  # the official network has no setting for it
_SIZE_DEFAULTS = {"height": 720, "width": 720, "fps": 24, "num_frames": 96, "seed": 1234}


def _refuse(what: str, got: object, expected: str) -> ConfigError:
    return ConfigError(
        what, expected=f"{expected}, for the official layout says nothing else", got=got
    )


def official_json(
    transformer: Mapping[str, Any],
    *,
    vae: Mapping[str, Any],
    sampling: Mapping[str, Any],
    dtype: torch.dtype,
    name: str,
) -> dict[str, Any]:
    """Write an official config for a checkpoint of ours.

    Args:
        transformer: complete config of the transformer.
        vae: complete config of the VAE.
        sampling: the checkpoint's sampling settings.
        dtype: of the weights.
        name: of the folder under `ckpt/magi`.

    Returns:
        The three sections, with paths relative to the JSON's folder.

    Raises:
        ConfigError: the official layout cannot say what ours does.
    """
    distill, fp8 = transformer["enable_distillation"], transformer["fp8_quant"]
    return {
        "model_config": _model_section(transformer, dtype),
        "runtime_config": {
            **_sampling_section(sampling),
            "cfg_number": 1 if distill or fp8 else 3,
            "load": f"./ckpt/magi/{name}",
            "t5_pretrained": "./ckpt/t5",
            "t5_device": "cpu",
            "vae_pretrained": "./ckpt/vae",
            "scale_factor": vae["scaling_factor"],
            "temporal_downsample_factor": vae["patch_size"][0],
        },
        "engine_config": {
            "distributed_backend": "nccl",
            "distributed_timeout_minutes": 15,
            "pp_size": 1,
            "cp_size": 1,
            "cp_strategy": "cp_ulysses",
            "ulysses_overlap_degree": 1,
            "fp8_quant": fp8,
            "distill_nearly_clean_chunk_threshold": sample_config(sampling).near_clean_threshold,
            "shortcut_mode": sample_config(sampling).shortcut_mode,
            "distill": distill,
            "kv_offload": True,
            "enable_cuda_graph": False,
        },
    }


def _model_section(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    patch = tuple(config["patch_size"])
    if patch[1] != patch[2]:
        raise _refuse("patch_size", patch, "square patches")
    if config["freq_dim"] != _FREQ_DIM:
        raise _refuse("freq_dim", config["freq_dim"], str(_FREQ_DIM))
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    return {
        "model_name": "videodit_ardf",
        "num_layers": config["num_layers"],
        "hidden_size": heads * head_dim,
        "ffn_hidden_size": config["ffn_dim"],
        "num_attention_heads": heads,
        "num_query_groups": config["num_kv_heads"],
        "kv_channels": head_dim,
        "layernorm_epsilon": config["eps"],
        "apply_layernorm_1p": True,
        "x_rescale_factor": config["x_rescale_factor"],
        "half_channel_vae": config["half_channel_vae"],
        "params_dtype": str(dtype),
        "patch_size": patch[1],
        "t_patch_size": patch[0],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "cond_hidden_ratio": config["cond_hidden_ratio"],
        "caption_channels": config["cross_attention_dim"],
        "caption_max_length": config["caption_max_length"],
        "xattn_cond_hidden_ratio": 1.0,
        "cond_gating_ratio": 1.0,
        "gated_linear_unit": config["gated_linear_unit"],
    }


def _sampling_section(sampling: Mapping[str, Any]) -> dict[str, Any]:
    config = sample_config(sampling)
    if config.shift != _SHIFT:
        raise _refuse("shift", config.shift, str(_SHIFT))
    same = (
        "num_steps", "window_size", "chunk_width", "noise2clean_kvrange", "clean_chunk_kvrange",
        "clean_t", "cfg_t_range", "prev_chunk_scales", "text_scales",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in same}
    sizes = {key: sampling.get(key, default) for key, default in _SIZE_DEFAULTS.items()}
    return {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
        "seed": sizes["seed"],
        "num_frames": sizes["num_frames"],
        "fps": sizes["fps"],
        "video_size_h": sizes["height"],
        "video_size_w": sizes["width"],
    }


def official_vae_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Write an official VAE config for a VAE of ours.

    Args:
        config: complete config of the VAE.

    Returns:
        The content of its `config.json`.

    Raises:
        ConfigError: the official layout cannot say what ours does.
    """
    for key in ("latents_mean", "latents_std"):
        if config[key] is not None:
            raise _refuse(f"VAE {key}", "one number per channel", "none")
    length, size, other = config["patch_size"]
    if size != other or config["height"] != config["width"]:
        raise _refuse("VAE patch and native size", (size, other), "squares")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    ratio = config["ffn_dim"] / width
    if int(width * ratio) != config["ffn_dim"]:
        raise _refuse("VAE ffn_dim", config["ffn_dim"], f"a multiple of {width}")
    same = (
        "qkv_bias", "ln_in_attn", "with_cls_token", "norm_code", "use_final_proj", "double_z",
        "conv_last_layer",
    )  # fmt: skip
    return {
        "_class_name": OFFICIAL_VAE_CLASS,
        "model_type": "vit",
        "ddconfig": {
            "video_size": config["height"],
            "video_length": config["num_frames"],
            "patch_size": size,
            "patch_length": length,
            "in_chans": config["in_channels"],
            "z_chans": config["z_dim"],
            "embed_dim": width,
            "depth": config["num_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_ratio": ratio,
            **{key: config[key] for key in same},
        },
    }
