"""LoRA loading for the MAGI-1 pipelines: diffusers' transformer-only loader, bound to our model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from diffusers.loaders.lora_pipeline import Mochi1LoraLoaderMixin

# Linear layers that an adapter usually targets.
LORA_TARGETS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn_proj",
    "ffn.net.0.proj",
    "ffn.net.2",
    "ada_modulate_layer.1",
)


class Magi1LoraLoaderMixin(Mochi1LoraLoaderMixin):
    """Load, scale, fuse and unload LoRA adapters of `Magi1Transformer3DModel`.

    `load_lora_weights`, `set_adapters`, `fuse_lora`, `unfuse_lora`, `unload_lora_weights` and
    `save_lora_weights` are diffusers'; nothing in them depends on the architecture.
    """

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def load_lora_into_transformer(cls, state_dict: Any, transformer: Any, **kwargs: Any) -> None:
        """Add an adapter to a transformer.

        Args:
            state_dict: the adapter's tensors by name.
            transformer: the network.
            **kwargs: as of diffusers.

        Raises:
            ValueError: the tensors do not fit the network.
        """
        with warnings.catch_warnings():
            # Several adapters at once are what is wanted; peft warns of the second one.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            super().load_lora_into_transformer(state_dict, transformer, **kwargs)


def add_loras(loader: Any, transformer: Any, *, loras: Sequence[tuple[str, float]]) -> None:
    """Load adapters from files, each with its strength.

    Args:
        loader: the family's loader, such as `Magi1LoraLoaderMixin`.
        transformer: the network.
        loras: files and strengths; none change nothing.
    """
    names = []
    for index, (path, _) in enumerate(loras):
        names.append(f"lora{index}")
        state = loader.lora_state_dict(path)
        loader.load_lora_into_transformer(state, transformer=transformer, adapter_name=names[-1])
    if names:
        transformer.set_adapters(names, [scale for _, scale in loras])
