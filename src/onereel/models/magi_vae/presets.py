"""Named configs of the VAE: the released one and the tiny one that ships with Toybox."""

from __future__ import annotations

from typing import Any

VAE_PRESETS: dict[str, dict[str, Any]] = {
    "magi1": {
        "patch_size": (4, 8, 8),
        "num_attention_heads": 16,
        "attention_head_dim": 64,
        "z_dim": 16,
        "height": 256,
        "width": 256,
        "num_frames": 16,
        "ffn_dim": 4096,
        "num_layers": 24,
        "scaling_factor": 0.18215,
    },
    "toybox": {
        "patch_size": (4, 8, 8),
        "num_attention_heads": 7,
        "attention_head_dim": 32,
        "z_dim": 16,
        "height": 64,
        "width": 64,
        "num_frames": 12,
        "ffn_dim": 448,
        "num_layers": 2,
        "ln_in_attn": False,
        "with_cls_token": False,
        "use_final_proj": True,
        # The export records every channel's mean and deviation, so no further factor is needed.
        "scaling_factor": 1.0,
    },
}
