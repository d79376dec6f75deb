"""The six official MAGI-1 JSON configs: strict reading, and what they mean in our terms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onereel.core.config import check_keys, from_mapping
from onereel.core.errors import CheckpointError, ConfigError

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialModelConfig:
    """The section `model_config`; names are official."""

    model_name: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    layernorm_epsilon: float
    apply_layernorm_1p: bool
    x_rescale_factor: float
    half_channel_vae: bool
    params_dtype: str
    patch_size: int
    t_patch_size: int
    in_channels: int
    out_channels: int
    cond_hidden_ratio: float
    caption_channels: int
    caption_max_length: int
    xattn_cond_hidden_ratio: float
    cond_gating_ratio: float
    gated_linear_unit: bool

    def __post_init__(self) -> None:
        """Refuse what no released checkpoint has and our model does not compute."""
        wanted = {
            "apply_layernorm_1p": True,
            "xattn_cond_hidden_ratio": 1.0,
            "cond_gating_ratio": 1.0,
            "hidden_size": self.num_attention_heads * self.kv_channels,
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"model_config.{name}", expected=str(value), got=getattr(self, name)
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialRuntimeConfig:
    """The section `runtime_config`; names are official."""

    cfg_number: int
    cfg_t_range: tuple[float, ...]
    prev_chunk_scales: tuple[float, ...]
    text_scales: tuple[float, ...]
    noise2clean_kvrange: tuple[int, ...]
    clean_chunk_kvrange: int
    clean_t: float
    seed: int
    num_frames: int
    video_size_h: int
    video_size_w: int
    num_steps: int
    window_size: int
    fps: int
    chunk_width: int
    t5_pretrained: str
    t5_device: str
    vae_pretrained: str
    scale_factor: float
    temporal_downsample_factor: int
    load: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialEngineConfig:
    """The section `engine_config`; names are official."""

    distributed_backend: str
    distributed_timeout_minutes: int
    pp_size: int
    cp_size: int
    cp_strategy: str
    ulysses_overlap_degree: int
    fp8_quant: bool
    distill_nearly_clean_chunk_threshold: float
    shortcut_mode: str
    distill: bool
    kv_offload: bool
    enable_cuda_graph: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialConfig:
    """One official JSON file."""

    model: OfficialModelConfig
    runtime: OfficialRuntimeConfig
    engine: OfficialEngineConfig
    path: Path | None = field(default=None)

    def __post_init__(self) -> None:
        """Check that the guidance passes fit the kind of weights, as the official loader does."""
        distilled = self.engine.fp8_quant or self.engine.distill
        wanted = 1 if distilled else 3
        if self.runtime.cfg_number != wanted:
            kind = "distilled or fp8" if distilled else "base"
            raise ConfigError(
                f"runtime_config.cfg_number of {kind} weights",
                expected=str(wanted),
                got=self.runtime.cfg_number,
                hint=f"set cfg_number to {wanted}, or fix engine_config.distill / fp8_quant",
            )

    @property
    def weights_folder(self) -> Path:
        """Folder of the transformer's weights, relative paths counted from the working folder."""
        name = "inference_weight"
        name += ".fp8" * self.engine.fp8_quant + ".distill" * self.engine.distill
        return Path(self.runtime.load) / name

    @property
    def vae_folder(self) -> Path:
        """Folder of the VAE."""
        return Path(self.runtime.vae_pretrained)

    @property
    def text_folder(self) -> Path:
        """Folder of the T5 encoder; the configured path is its parent."""
        return Path(self.runtime.t5_pretrained) / "t5-v1_1-xxl"


def transformer_kwargs(config: OfficialModelConfig, *, distill: bool, fp8: bool) -> dict[str, Any]:
    """Translate an official model config to arguments of `Magi1Transformer3DModel`.

    Args:
        config: the official section.
        distill: whether the weights expect the step-size embedding.
        fp8: whether the inner blocks hold float8 weights.

    Returns:
        Keyword arguments.
    """
    return {
        "patch_size": (config.t_patch_size, config.patch_size, config.patch_size),
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.kv_channels,
        "num_kv_heads": config.num_query_groups,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "cross_attention_dim": config.caption_channels,
        "ffn_dim": config.ffn_hidden_size,
        "num_layers": config.num_layers,
        "eps": config.layernorm_epsilon,
        "x_rescale_factor": config.x_rescale_factor,
        "half_channel_vae": config.half_channel_vae,
        "enable_distillation": distill,
        "gated_linear_unit": config.gated_linear_unit,
        "caption_max_length": config.caption_max_length,
        "cond_hidden_ratio": config.cond_hidden_ratio,
        "fp8_quant": fp8,
    }


def parse_official(data: Json, *, path: Path | None = None) -> OfficialConfig:
    """Read an official config, every field required and no other allowed.

    Args:
        data: the parsed JSON.
        path: where it came from, for messages.

    Returns:
        The config.

    Raises:
        ConfigError: a key is unknown (nearest name suggested) or missing, or values contradict.
    """
    where = str(path or "config")
    sections = ("model_config", "runtime_config", "engine_config")
    check_keys(data, sections, where=where)
    for section in sections:
        if section not in data:
            raise ConfigError(f"{where}: section '{section}' is missing")
    return OfficialConfig(
        model=from_mapping(
            OfficialModelConfig, data["model_config"], where=f"{where}: model_config"
        ),
        runtime=from_mapping(
            OfficialRuntimeConfig, data["runtime_config"], where=f"{where}: runtime_config"
        ),
        engine=from_mapping(
            OfficialEngineConfig, data["engine_config"], where=f"{where}: engine_config"
        ),
        path=path,
    )


def read_official(path: Path) -> OfficialConfig:
    """Read an official JSON file.

    Args:
        path: the file.

    Returns:
        The config.

    Raises:
        CheckpointError: the file is missing or not JSON.
        ConfigError: its content is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file", hint="check --config_file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from error
    return parse_official(data, path=path)
