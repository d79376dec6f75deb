"""Text encoders by name: the official T5-v1.1-XXL, and the small one of the shipped checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from transformers import T5Config, T5EncoderModel

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError

_COMMON: Final[dict[str, Any]] = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "is_encoder_decoder": False,
    "use_cache": False,
}

TEXT_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "t5-v1_1-xxl": {
            **_COMMON,
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "dropout_rate": 0.1,
            "tie_word_embeddings": False,
        },
        # Its vocabulary is that of the tokenizer trained with it.
        "toybox": {
            **_COMMON,
            "d_model": 128,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 4,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "tie_word_embeddings": False,
        },
    }
)


def build_text_encoder(preset: str, vocab_size: int | None = None) -> T5EncoderModel:
    """Build a text encoder with fresh weights, in evaluation mode.

    Args:
        preset: a name in `TEXT_PRESETS`.
        vocab_size: number of token ids; None takes the preset's.

    Returns:
        The encoder. "t5-v1_1-xxl" holds 4.8 billion float32 weights: build it on the meta device.

    Raises:
        ConfigError: the preset is unknown, or no vocabulary size is known.
    """
    if preset not in TEXT_PRESETS:
        near = nearest_name(preset, TEXT_PRESETS) or ", ".join(TEXT_PRESETS)
        raise ConfigError(f"text encoder '{preset}'", hint=f"did you mean '{near}'?")
    values = dict(TEXT_PRESETS[preset])
    if vocab_size is not None:
        values["vocab_size"] = vocab_size
    if "vocab_size" not in values:
        raise ConfigError(
            "vocab_size",
            expected="the number of token ids",
            got=None,
            hint=f"preset '{preset}' needs it: pass len(tokenizer)",
        )
    encoder = T5EncoderModel(T5Config(**values))
    encoder.train(False)
    return encoder
