"""The tiny VAE of Toybox, in HunyuanVideo's shape."""

from __future__ import annotations

from typing import Any

MAGIC_VAE_PRESETS: dict[str, dict[str, Any]] = {
    "toybox-magic": {
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 16,
        # The export measures it.
        "scaling_factor": 1.0,
    },
}
