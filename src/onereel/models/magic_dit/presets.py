"""Configs of the Magic 1-For-1 transformer, as arguments of `HunyuanVideoTransformer3DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onereel.core.config import check_keys
from onereel.core.errors import ConfigError

# 16 channels of the noisy latent, 16 of the image latent, one mask.
IN_CHANNELS = 33

_OFFICIAL: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "in_channels": IN_CHANNELS,
    "out_channels": 16,
    "hidden_size": 3072,
    "heads_num": 24,
    "mlp_width_ratio": 4.0,
    "mlp_act_type": "gelu_tanh",
    "mm_double_blocks_depth": 20,
    "mm_single_blocks_depth": 40,
    "rope_dim_list": (16, 56, 56),
    "qkv_bias": True,
    "qk_norm": True,
    "qk_norm_type": "rms",
    "guidance_embed": False,
    "text_projection": "single_refiner",
    "use_attention_mask": True,
    "text_states_dim": 4096,
    "text_states_dim_2": 768,
    "rope_theta": 256,
}
# What diffusers' class always does.
_FIXED = {
    "mlp_act_type": "gelu_tanh",
    "qkv_bias": True,
    "qk_norm": True,
    "qk_norm_type": "rms",
    "text_projection": "single_refiner",
    "use_attention_mask": True,
}


def config_from_official(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an official model config.

    Args:
        config: official names to values; those left out have the value of the 13B model.

    Returns:
        Arguments of `HunyuanVideoTransformer3DModel`.

    Raises:
        ConfigError: a key is unknown (nearest name suggested), or a value has no counterpart.

    Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/models/magic_141_video.
    """
    where = "model config"
    check_keys(config, _OFFICIAL, where=where)
    values = {**_OFFICIAL, **config}
    for name, wanted in _FIXED.items():
        if values[name] != wanted:
            raise ConfigError(f"{where}: {name}", expected=str(wanted), got=values[name])
    patch, heads = tuple(values["patch_size"]), values["heads_num"]
    head_dim, rest = divmod(values["hidden_size"], heads)
    if rest or sum(values["rope_dim_list"]) != head_dim:
        raise ConfigError(
            f"{where}: rope_dim_list",
            expected=f"a sum of hidden_size / heads_num = {values['hidden_size']} / {heads}",
            got=list(values["rope_dim_list"]),
        )
    if len(patch) != 3 or patch[1] != patch[2]:
        raise ConfigError(f"{where}: patch_size", expected="(T, P, P)", got=patch)
    return {
        "in_channels": values["in_channels"],
        "out_channels": values["out_channels"],
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "num_layers": values["mm_double_blocks_depth"],
        "num_single_layers": values["mm_single_blocks_depth"],
        "num_refiner_layers": 2,
        "mlp_ratio": values["mlp_width_ratio"],
        "patch_size": patch[1],
        "patch_size_t": patch[0],
        "qk_norm": "rms_norm",
        "guidance_embeds": values["guidance_embed"],
        "text_embed_dim": values["text_states_dim"],
        "pooled_projection_dim": values["text_states_dim_2"],
        "rope_theta": float(values["rope_theta"]),
        "rope_axes_dim": tuple(values["rope_dim_list"]),
        "image_condition_type": "latent_concat",
    }


MAGIC_DIT_PRESETS: dict[str, dict[str, Any]] = {
    "magic141": config_from_official({}),
    # 16 tokens per latent frame of 64 x 64 pixels.
    "toybox-magic": {
        **config_from_official(
            {
                "hidden_size": 192,
                "heads_num": 6,
                "rope_dim_list": (8, 12, 12),
                "mm_double_blocks_depth": 2,
                "mm_single_blocks_depth": 4,
                "text_states_dim": 128,
                "text_states_dim_2": 64,
            }
        ),
        "num_refiner_layers": 1,
    },
}
