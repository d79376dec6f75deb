"""Both folder layouts, seen as one: a component's config in our terms, and its tensors' headers.

Legend: *official* is SandAI-org/MAGI-1's layout, *ours* that of diffusers' `save_pretrained`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from onereel.core.config import check_keys
from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_dit import weights as dit_weights
from onereel.models.magi_dit.model import LAYOUT_VERSION, Magi1Transformer3DModel
from onereel.models.magi_dit.official import OfficialConfig, transformer_kwargs
from onereel.models.magi_vae import weights as vae_weights
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.runtime.quantize import QUANTIZATION, STORED, quantize
from onereel.runtime.shards import TensorFolder, open_tensors, read_json
from onereel.runtime.source import MAGI1, MODEL_INDEX, ModelSource
from onereel.samplers.plan import ChunkSampleConfig

CONFIG: Final = "config.json"
CLASSES: Final[dict[str, type[nn.Module]]] = {
    "Magi1Transformer3DModel": Magi1Transformer3DModel,
    "AutoencoderKLMagi1": AutoencoderKLMagi1,
}
OFFICIAL_VAE_CLASS: Final = "ViTVAE"
_NULL_CAPTION: Final = "condition_embedder.text_embedder.null_caption_embedding"
# Beside the fields of ChunkSampleConfig.
SIZE_KEYS: Final = ("height", "width", "fps", "num_frames", "seed")

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPart:
    """The transformer or the VAE of a checkpoint, nothing of it loaded.

    Args:
        model_class: our class.
        config: its arguments.
        tensors: what the files hold.
        official: whether names and values are in the official layout.
        quantization: level in which the weights are stored, see `quantize.py`; None for whole ones.
    """

    model_class: type[nn.Module]
    config: Mapping[str, Any]
    tensors: TensorFolder
    official: bool
    quantization: str | None = None

    def build(self) -> nn.Module:
        """Build the model on the meta device, in evaluation mode."""
        with torch.device("meta"):
            model = self.model_class(**self.config).eval()
        if self.quantization is not None:
            quantize(model, self.quantization)
        return model

    def to_ours(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename and convert tensors as they are stored to our names.

        Args:
            state: stored names to tensors, any subset.

        Returns:
            Our names to tensors.

        Raises:
            CheckpointError: a name is not known.
        """
        if not self.official:
            return dict(state)
        if self.model_class is AutoencoderKLMagi1:
            return vae_weights.official_to_ours(state)
        return dit_weights.official_to_ours(state, **key_map_arguments(self.config))

    def our_tensors(self) -> Iterator[Named]:
        """Read the tensors one by one under our names.

        Yields:
            Names and CPU tensors, some of them views.
        """
        for name, tensor in self.tensors.tensors():
            yield from self.to_ours({name: tensor}).items()

    def account(self) -> None:
        """Check that every tensor of the model is there, in its shape, and no other.

        Raises:
            CheckpointError: something is missing, left over or of another shape.
        """
        expected = self.build().state_dict()
        dit_weights.account(
            self.to_ours(self.tensors.meta()), expected, where=str(self.tensors.path)
        )


def key_map_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the transformer's key map has to know.

    Args:
        config: arguments of `Magi1Transformer3DModel`, complete.

    Returns:
        Keyword arguments of both directions.
    """
    return {
        "num_kv_heads": config["num_kv_heads"],
        "head_dim": config["attention_head_dim"],
        "gated": config["gated_linear_unit"],
    }


def our_part(folder: Path) -> ModelPart:
    """Read the config and the headers of one of our models.

    Args:
        folder: holds `config.json` and the weights; an official VAE folder is understood too.

    Returns:
        The part.

    Raises:
        CheckpointError: a file is missing or damaged, or diffusers' unmerged converter wrote it.
        ConfigError: the config has unknown keys.
    """
    path = folder / CONFIG
    config = read_json(path)
    name = config.get("_class_name")
    if name == OFFICIAL_VAE_CLASS:
        return _official_vae(folder)
    if name not in CLASSES:
        known = ", ".join((*CLASSES, OFFICIAL_VAE_CLASS))
        raise CheckpointError(f"{path}: _class_name", expected=f"one of {known}", got=name)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    level = given.pop(QUANTIZATION, None)
    if level is not None and level not in STORED:
        raise CheckpointError(
            f"{path}: {QUANTIZATION}", expected=f"one of {', '.join(STORED)}", got=level
        )
    tensors = open_tensors(folder)
    if CLASSES[name] is Magi1Transformer3DModel:
        _refuse_foreign_conversion(path, given, tensors)
    return ModelPart(
        model_class=CLASSES[name],
        config=complete(CLASSES[name], given, where=str(path)),
        tensors=tensors,
        official=False,
        quantization=level,
    )


def complete(
    model_class: type[nn.Module], given: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """Fill a model's config with its class's defaults, refusing unknown keys.

    Args:
        model_class: our class.
        given: some of its arguments.
        where: name of the config in messages.

    Returns:
        All arguments.

    Raises:
        ConfigError: a key is not known; the nearest is suggested.
    """
    parameters = inspect.signature(model_class).parameters
    check_keys(given, parameters, where=where)
    values = {name: parameter.default for name, parameter in parameters.items()}
    return {**values, **given}


def _refuse_foreign_conversion(
    path: Path, config: Mapping[str, Any], tensors: TensorFolder
) -> None:
    """Refuse what diffusers' unmerged MAGI-1 branch converted."""
    version = config.get("layout_version")
    if version == LAYOUT_VERSION and _NULL_CAPTION in tensors.infos:
        return
    if version not in (None, LAYOUT_VERSION):
        raise CheckpointError(
            f"{path}: layout_version", expected=str(LAYOUT_VERSION), got=version,
            hint="a newer onereel wrote it: update this one",
        )  # fmt: skip
    reasons = []
    if version is None:
        reasons.append(
            "without layout_version: norm gains lack the 1, cross-attention keys and values are "
            "mixed, GLU halves are swapped"
        )
    if _NULL_CAPTION not in tensors.infos:
        reasons.append("without null_caption_embedding, which guidance and modulation read")
    raise CheckpointError(
        f"{path}: converted by the unmerged diffusers script ({'; '.join(reasons)})",
        hint="convert the official weights again: onereel models convert CONFIG.json OUT",
    )


def _official_vae(folder: Path) -> ModelPart:
    """Read an official VAE folder."""
    config = vae_weights.config_from_official(read_json(folder / CONFIG))
    return ModelPart(
        model_class=AutoencoderKLMagi1,
        config=complete(AutoencoderKLMagi1, config, where=str(folder / CONFIG)),
        tensors=open_tensors(folder),
        official=True,
    )


def transformer_part(source: ModelSource) -> ModelPart:
    """Read the config and the headers of a checkpoint's transformer.

    Args:
        source: the checkpoint.

    Returns:
        The part.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the config is wrong.
    """
    if source.official is None:
        return our_part(source.folder("transformer"))
    official = source.official
    return ModelPart(
        model_class=Magi1Transformer3DModel,
        config=complete(Magi1Transformer3DModel, official_kwargs(official), where=str(source.path)),
        tensors=open_tensors(source.folder("transformer")),
        official=True,
    )


def vae_part(source: ModelSource) -> ModelPart:
    """Read the config and the headers of a checkpoint's VAE.

    Args:
        source: the checkpoint.

    Returns:
        The part.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the config is wrong, or contradicts the official JSON.
    """
    part = our_part(source.folder("vae"))
    if source.official is None:
        return part
    runtime = source.official.runtime
    factor = part.config["patch_size"][0]
    if factor != runtime.temporal_downsample_factor:
        raise ConfigError(
            f"{source.path}: runtime_config.temporal_downsample_factor",
            expected=f"the VAE's {factor}",
            got=runtime.temporal_downsample_factor,
        )
    config = {**part.config, "scaling_factor": runtime.scale_factor}
    return ModelPart(
        model_class=part.model_class, config=config, tensors=part.tensors, official=part.official
    )


def official_kwargs(config: OfficialConfig) -> dict[str, Any]:
    """Translate an official config to arguments of the transformer.

    Args:
        config: the JSON's content.

    Returns:
        Keyword arguments.
    """
    return transformer_kwargs(
        config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant
    )


def official_sampling(config: OfficialConfig) -> dict[str, Any]:
    """Translate an official config to sampling settings.

    Args:
        config: the JSON's content.

    Returns:
        Fields of `ChunkSampleConfig`, and height, width, fps, num_frames and seed.
    """
    runtime, engine = config.runtime, config.engine
    same = (
        "num_steps", "window_size", "chunk_width", "noise2clean_kvrange", "clean_chunk_kvrange",
        "clean_t", "cfg_t_range", "prev_chunk_scales", "text_scales", "fps", "num_frames", "seed",
    )  # fmt: skip
    values = {name: getattr(runtime, name) for name in same}
    return {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
        "distilled": engine.distill,
        "shortcut_mode": engine.shortcut_mode,
        "near_clean_threshold": engine.distill_nearly_clean_chunk_threshold,
        "height": runtime.video_size_h,
        "width": runtime.video_size_w,
    }


def require_magi(source: ModelSource) -> None:
    """Refuse a checkpoint of another family.

    Args:
        source: the checkpoint.

    Raises:
        ConfigError: it is not MAGI-1's.
    """
    if source.family != MAGI1:
        raise ConfigError(
            f"model '{source.name}'", expected="a MAGI-1 checkpoint", got=source.pipeline_class,
            hint="`onereel generate` makes videos with it, and --plan says what they take",
        )  # fmt: skip


def read_sampling(source: ModelSource) -> dict[str, Any]:
    """Read a checkpoint's sampling settings.

    Args:
        source: the checkpoint.

    Returns:
        Some fields of `ChunkSampleConfig`, and some of height, width, fps, num_frames and seed.

    Raises:
        ConfigError: a key is unknown, or the checkpoint is of another family.
        CheckpointError: the entry is not a mapping.
    """
    require_magi(source)
    if source.official is not None:
        return official_sampling(source.official)
    path = source.path / MODEL_INDEX
    sampling = read_json(path).get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(f"{path}: sampling", expected="an object", got=sampling)
    check_keys(
        sampling, (*inspect.signature(ChunkSampleConfig).parameters, *SIZE_KEYS), where=str(path)
    )
    return sampling


def sample_config(sampling: Mapping[str, Any], **changes: Any) -> ChunkSampleConfig:
    """Build the sampler's settings from a checkpoint's.

    Args:
        sampling: what `read_sampling` returned.
        **changes: fields to replace.

    Returns:
        The settings.

    Raises:
        ConfigError: they do not fit together.
    """
    known = inspect.signature(ChunkSampleConfig).parameters
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**sampling, **changes}.items()
        if key in known
    }
    return ChunkSampleConfig(**values)


def keeps_fp32(model_class: type[nn.Module], name: str) -> bool:
    """Tell whether a tensor stays in float32 when its model is loaded in a smaller dtype.

    Args:
        model_class: our class.
        name: our name of the tensor.

    Returns:
        Whether a module of `_keep_in_fp32_modules` holds it, or it is a scale of a float8 linear.
    """
    parts = name.split(".")
    islands: Iterable[str] = getattr(model_class, "_keep_in_fp32_modules", None) or ()
    return parts[-1].endswith("_scale") or any(island in parts for island in islands)
