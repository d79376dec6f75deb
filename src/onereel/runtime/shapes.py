"""The configs of a checkpoint's components: all that an estimate needs, without any weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import OfficialConfig
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magi_vae import VAE_PRESETS
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.weights import config_from_official
from onereel.models.text import TEXT_PRESETS
from onereel.runtime.layout import (
    CONFIG,
    complete,
    official_kwargs,
    official_sampling,
    read_sampling,
    require_magi,
)
from onereel.runtime.load import target_dtype
from onereel.runtime.quantize import DYNAMIC, QUANTIZATION, quantize, stored_bytes
from onereel.runtime.shards import read_json
from onereel.runtime.source import ModelSource

_STORED_AS: Final = {DYNAMIC: "int8"}  # as large, and needs no torchao to be counted
# What the six released JSON configs ask for where they differ from the sampler's defaults.
_RELEASED: Final[dict[str, dict[str, Any]]] = {
    "4.5B_base": {"num_steps": 64, "height": 720, "width": 720},
    "4.5B_distill": {"num_steps": 64, "height": 720, "width": 720, "distilled": True},
    "4.5B_distill_quant": {"num_steps": 64, "height": 720, "width": 720, "distilled": True},
    "24B_base": {"num_steps": 32, "height": 720, "width": 1280},
    "24B_distill": {"num_steps": 16, "height": 720, "width": 1280, "distilled": True},
    "24B_distill_quant": {"num_steps": 16, "height": 720, "width": 1280, "distilled": True},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShapes:
    """The configs of a checkpoint's components.

    Args:
        transformer: complete config.
        vae: complete config.
        text_encoder: config.
        sampling: settings of the checkpoint.
        text_on_cpu: whether the text encoder stays on the CPU.
        quantization: level in which the transformer's weights are stored, or None.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: T5Config
    sampling: Mapping[str, Any]
    text_on_cpu: bool = False
    quantization: str | None = None


Shaped = ModelSource | OfficialConfig | ModelShapes | str


def weight_bytes(
    shapes: ModelShapes,
    *,
    dtype: torch.dtype,
    text_dtype: torch.dtype,
    level: str | None = None,
) -> dict[str, int]:
    """Count the bytes of all weights as they are loaded.

    Args:
        shapes: the configs.
        dtype: of the transformer and the VAE, whose float32 and float8 parts stay so.
        text_dtype: of the text encoder.
        level: of `quantize.py`, to which transformer and text encoder are rounded.

    Returns:
        Bytes per component.
    """

    def transformer(layers: int) -> int:
        return _transformer_bytes(shapes, layers, dtype, level)

    def vae(layers: int) -> int:
        model = _meta(AutoencoderKLMagi1, {**shapes.vae, "num_layers": layers})
        return _loaded_bytes(model, dtype, None)

    def text_encoder(layers: int) -> int:
        config = T5Config(**{**shapes.text_encoder.to_dict(), "num_layers": layers})
        with torch.device("meta"):
            encoder = T5EncoderModel(config)
        if level is not None:
            quantize(encoder, _STORED_AS.get(level, level))
        tied = encoder.shared.weight.numel() * text_dtype.itemsize  # its state names it twice
        return stored_bytes(encoder, dtype_of=lambda _name, _tensor: text_dtype) - tied

    return {
        "transformer": _extrapolated(transformer, shapes.transformer["num_layers"]),
        "vae": _extrapolated(vae, shapes.vae["num_layers"]),
        "text_encoder": _extrapolated(text_encoder, shapes.text_encoder.num_layers),
    }


def block_bytes(shapes: ModelShapes, *, dtype: torch.dtype, level: str | None = None) -> int:
    """Count the bytes of one block of the transformer as it is loaded.

    Args:
        shapes: the configs.
        dtype: of the weights.
        level: as in `weight_bytes`.

    Returns:
        Bytes; the first and the last block can be larger.
    """
    return _transformer_bytes(shapes, 4, dtype, level) - _transformer_bytes(shapes, 3, dtype, level)


def largest_matrix(shapes: ModelShapes) -> int:
    """Count the numbers of the transformer's largest matrix, which is restored to be used.

    Args:
        shapes: the configs.

    Returns:
        Numbers.
    """
    model = _meta(Magi1Transformer3DModel, {**shapes.transformer, "num_layers": 3})
    return max(tensor.numel() for tensor in model.state_dict().values() if tensor.ndim == 2)


def _transformer_bytes(
    shapes: ModelShapes, layers: int, dtype: torch.dtype, level: str | None
) -> int:
    model = _meta(Magi1Transformer3DModel, {**shapes.transformer, "num_layers": layers})
    return _loaded_bytes(model, dtype, level or shapes.quantization)


def _loaded_bytes(model: nn.Module, dtype: torch.dtype, level: str | None) -> int:
    if level is not None:
        quantize(model, _STORED_AS.get(level, level))
    return stored_bytes(
        model,
        dtype_of=lambda name, tensor: target_dtype(type(model), name, tensor=tensor, dtype=dtype),
    )


def _extrapolated(count: Callable[[int], int], layers: int) -> int:
    """Count the bytes of many equal layers from few; only the first and the last are different."""
    if layers <= 4:
        return count(layers)
    few = count(4)
    return few + (layers - 4) * (few - count(3))


def meta_vae(shapes: ModelShapes) -> AutoencoderKLMagi1:
    """Build a VAE of one layer on the meta device, which has the tiles of the whole one.

    Args:
        shapes: the configs.

    Returns:
        The VAE without storage.
    """
    vae = _meta(AutoencoderKLMagi1, {**shapes.vae, "num_layers": 1})
    assert isinstance(vae, AutoencoderKLMagi1)
    return vae


def _meta(model_class: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return model_class(**config)


def read_shapes(source: Shaped) -> ModelShapes:
    """Read the configs of a checkpoint; its weights need not be there.

    Args:
        source: a checkpoint, an official config, the name of a preset, or shapes.

    Returns:
        The configs. An official config whose VAE or text encoder is not on this machine gets the
        released ones.

    Raises:
        ConfigError: the preset is unknown, or a config is wrong.
        CheckpointError: a config of a folder is missing or damaged.
    """
    if isinstance(source, ModelShapes):
        return source
    if isinstance(source, str):
        return _preset(source)
    if isinstance(source, OfficialConfig):
        return _official(source)
    if source.official is not None:
        return _official(source.official)
    require_magi(source)
    transformer, vae = (
        {k: v for k, v in read_json(source.folder(part) / CONFIG).items() if not k.startswith("_")}
        for part in ("transformer", "vae")
    )
    level = transformer.pop(QUANTIZATION, None)
    return ModelShapes(
        transformer=complete(Magi1Transformer3DModel, transformer, where="transformer"),
        vae=complete(AutoencoderKLMagi1, vae, where="vae"),
        text_encoder=T5Config(**read_json(source.folder("text_encoder") / CONFIG)),
        sampling={
            "distilled": bool(transformer.get("enable_distillation")), **read_sampling(source)
        },
        quantization=level,
    )  # fmt: skip


def _official(config: OfficialConfig) -> ModelShapes:
    kwargs = official_kwargs(config)
    text = {**TEXT_PRESETS["t5-v1_1-xxl"], "d_model": kwargs["cross_attention_dim"]}
    return ModelShapes(
        transformer=complete(Magi1Transformer3DModel, kwargs, where="model_config"),
        vae=complete(AutoencoderKLMagi1, _official_vae(config), where="vae"),
        text_encoder=_official_text(config) or T5Config(**text),
        sampling=official_sampling(config),
        text_on_cpu=config.runtime.t5_device == "cpu",
    )


def _official_vae(config: OfficialConfig) -> dict[str, Any]:
    """Read the VAE's config where it is, else take the released one."""
    source = _source_of(config)
    try:
        folder = source.folder("vae")
    except CheckpointError:
        return dict(VAE_PRESETS["magi1"])
    values = read_json(folder / CONFIG)
    if "ddconfig" in values:
        return config_from_official(values)
    return {key: value for key, value in values.items() if not key.startswith("_")}


def _official_text(config: OfficialConfig) -> T5Config | None:
    """Read the text encoder's config where it is."""
    try:
        folder = _source_of(config).folder("text_encoder")
    except CheckpointError:
        return None
    return T5Config(**read_json(folder / CONFIG))


def _source_of(config: OfficialConfig) -> ModelSource:
    path = config.path or Path("config.json")
    return ModelSource(kind="official", path=path, name=path.stem, official=config)


def _preset(name: str) -> ModelShapes:
    if name not in DIT_PRESETS:
        raise ConfigError(f"preset '{name}'", expected=f"one of {', '.join(DIT_PRESETS)}")
    tiny = name not in _RELEASED
    vae = VAE_PRESETS["toybox" if tiny else "magi1"]
    text = {"vocab_size": 1024, **TEXT_PRESETS["toybox" if tiny else "t5-v1_1-xxl"]}
    return ModelShapes(
        transformer=complete(Magi1Transformer3DModel, DIT_PRESETS[name], where=name),
        vae=complete(AutoencoderKLMagi1, vae, where=name),
        text_encoder=T5Config(**text),
        sampling=_RELEASED.get(name, {"height": 64, "width": 64}),
        text_on_cpu=name.startswith("4.5B"),
    )
