"""Named configs of the MAGI-1 transformer: the six released ones and the tiny shipped one."""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "num_layers": 34,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_kv_heads": 8,
    "ffn_dim": 12288,
}
_LARGE: dict[str, Any] = {
    "num_layers": 48,
    "num_attention_heads": 48,
    "attention_head_dim": 128,
    "num_kv_heads": 8,
    "ffn_dim": 16384,
    "in_channels": 32,
    "out_channels": 32,
    "x_rescale_factor": 0.1,
    "half_channel_vae": True,
    "gated_linear_unit": True,
}
_KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "distill": {"enable_distillation": True},
    "distill_quant": {"enable_distillation": True, "fp8_quant": True},
}
_TOYBOX: dict[str, Any] = {
    "num_layers": 6,
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_kv_heads": 2,
    "in_channels": 16,
    "out_channels": 16,
    "cross_attention_dim": 128,
    "ffn_dim": 384,
    "caption_max_length": 128,
    "place_octaves": 3,
}

DIT_PRESETS: dict[str, dict[str, Any]] = {
    **{
        f"{size}_{kind}": {**values, **extra}
        for size, values in (("4.5B", _SMALL), ("24B", _LARGE))
        for kind, extra in _KINDS.items()
    },
    "toybox": _TOYBOX,
}
