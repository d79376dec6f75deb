"""Official configs and checkpoints of the VAE; tensor names are diffusers' own.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d (the HunyuanVideo VAE "884-16c", unchanged).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.config import check_keys
from onereel.core.errors import ConfigError
from onereel.models.magi_dit.weights import account
from onereel.models.magic_vae.model import VaeTiles, set_tiles, use_frame_causal_attention

_PREFIX = "vae."
_OFFICIAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 256,
    "sample_tsize": 64,
    "scaling_factor": 0.476986,
    "spatial_compression_ratio": 8,
    "time_compression_ratio": 4,
    "mid_block_add_attention": True,
}
_SAME_NAME = (
    *("in_channels", "out_channels", "layers_per_block", "act_fn", "latent_channels"),
    *("norm_num_groups", "scaling_factor", "spatial_compression_ratio", "mid_block_add_attention"),
)


def config_from_official(config: Mapping[str, Any]) -> tuple[dict[str, Any], VaeTiles]:
    """Translate an official config.

    Args:
        config: the content of its `config.json`; keys left out have the released values.

    Returns:
        Arguments of `AutoencoderKLHunyuanVideo`, and the tiles that the config implies.

    Raises:
        ConfigError: a key is unknown (nearest name suggested), or a block type has no counterpart.
    """
    own = [key for key in config if key.startswith("_")]
    check_keys(config, [*_OFFICIAL, *own], where="VAE config")
    values = {**_OFFICIAL, **config}
    channels = tuple(values["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if set(values[key]) != set(_OFFICIAL[key]) or len(values[key]) != len(channels):
            expected = f"{len(channels)} x {_OFFICIAL[key][0]}"
            raise ConfigError(f"VAE config: {key}", expected=expected, got=values[key])
    arguments = {key: values[key] for key in _SAME_NAME} | {
        "block_out_channels": channels,
        "down_block_types": ("HunyuanVideoDownBlock3D",) * len(channels),
        "up_block_types": ("HunyuanVideoUpBlock3D",) * len(channels),
        "temporal_compression_ratio": values["time_compression_ratio"],
    }
    return arguments, VaeTiles(size=values["sample_size"], num_frames=values["sample_tsize"])


def strip_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the VAE's tensors out of a checkpoint of several networks.

    Args:
        state: names to tensors; where any begins with `vae.`, only those are taken.

    Returns:
        Names without the prefix to tensors.
    """
    inside = {name: value for name, value in state.items() if name.startswith(_PREFIX)}
    return {name.replace(_PREFIX, ""): value for name, value in (inside or state).items()}


def build_vae(
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    tiles: VaeTiles | None = None,
) -> AutoencoderKLHunyuanVideo:
    """Build a VAE that holds the given tensors themselves, every one accounted for.

    Args:
        state: tensors by diffusers' names, which are the official ones, `vae.` in front allowed.
        config: arguments of the class; None for the released VAE's.
        tiles: how it cuts its input; None for the official sizes.

    Returns:
        The VAE in evaluation mode, its attention without masks.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape.
    """
    released, official_tiles = config_from_official({})
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(**dict(released if config is None else config))
    tensors = strip_prefix(state)
    account(tensors, vae.state_dict(), where="VAE")
    vae.load_state_dict(tensors, strict=True, assign=True)
    use_frame_causal_attention(vae)
    set_tiles(vae, official_tiles if tiles is None else tiles)
    return vae.eval()
