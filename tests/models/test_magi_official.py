"""The reader of the official MAGI-1 JSON configs."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import parse_official, read_official, transformer_kwargs
from onereel.models.magi_dit.presets import DIT_PRESETS

COMMON_MODEL = {
    "model_name": "videodit_ardf",
    "layernorm_epsilon": 1e-6,
    "apply_layernorm_1p": True,
    "params_dtype": "torch.bfloat16",
    "patch_size": 2,
    "t_patch_size": 1,
    "cond_hidden_ratio": 0.25,
    "caption_channels": 4096,
    "caption_max_length": 800,
    "xattn_cond_hidden_ratio": 1.0,
    "cond_gating_ratio": 1.0,
    "num_query_groups": 8,
    "kv_channels": 128,
}
SIZES = {
    "4.5B": {
        "num_layers": 34, "hidden_size": 3072, "ffn_hidden_size": 12288,
        "num_attention_heads": 24, "x_rescale_factor": 1, "half_channel_vae": False,
        "in_channels": 16, "out_channels": 16, "gated_linear_unit": False,
    },
    "24B": {
        "num_layers": 48, "hidden_size": 6144, "ffn_hidden_size": 16384,
        "num_attention_heads": 48, "x_rescale_factor": 0.1, "half_channel_vae": True,
        "in_channels": 32, "out_channels": 32, "gated_linear_unit": True,
    },
}  # fmt: skip
RUNTIME = {
    "cfg_t_range": [0, 0.0217, 0.1, 0.3, 0.999],
    "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
    "text_scales": [7.5, 7.5, 7.5, 0, 0],
    "noise2clean_kvrange": [5, 4, 3, 2],
    "clean_chunk_kvrange": 1,
    "clean_t": 0.9999,
    "seed": 1234,
    "num_frames": 96,
    "video_size_h": 720,
    "video_size_w": 720,
    "num_steps": 64,
    "window_size": 4,
    "fps": 24,
    "chunk_width": 6,
    "t5_pretrained": "./downloads/t5_pretrained",
    "t5_device": "cpu",
    "vae_pretrained": "./downloads/vae",
    "scale_factor": 0.18215,
    "temporal_downsample_factor": 4,
}
ENGINE = {
    "distributed_backend": "nccl",
    "distributed_timeout_minutes": 15,
    "pp_size": 1,
    "cp_size": 1,
    "cp_strategy": "cp_ulysses",
    "ulysses_overlap_degree": 1,
    "distill_nearly_clean_chunk_threshold": 0.3,
    "shortcut_mode": "8,16,16",
    "kv_offload": True,
    "enable_cuda_graph": False,
}
VARIANTS = [name for name in DIT_PRESETS if name != "toybox"]
FOLDERS = {
    "base": "inference_weight",
    "distill": "inference_weight.distill",
    "distill_quant": "inference_weight.fp8.distill",
}


def official_json(variant: str) -> dict[str, Any]:
    """The official config of a released variant."""
    size, kind = variant.split("_", 1)
    distill, quant = kind != "base", kind == "distill_quant"
    return copy.deepcopy(
        {
            "model_config": COMMON_MODEL | SIZES[size],
            "runtime_config": RUNTIME
            | {"cfg_number": 1 if distill else 3, "load": f"./downloads/{variant}"},
            "engine_config": ENGINE | {"distill": distill, "fp8_quant": quant},
        }
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_config_equals_the_preset(variant: str) -> None:
    config = parse_official(official_json(variant))
    kwargs = transformer_kwargs(
        config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant
    )
    parameters = inspect.signature(Magi1Transformer3DModel.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if n != "self"}
    assert defaults | kwargs == defaults | DIT_PRESETS[variant]
    kind = variant.split("_", 1)[1]
    assert config.weights_folder == Path("downloads") / variant / FOLDERS[kind]
    assert config.text_folder == Path("downloads/t5_pretrained/t5-v1_1-xxl")
    assert config.runtime.noise2clean_kvrange == (5, 4, 3, 2)


@pytest.mark.parametrize(
    ("section", "typo", "right"),
    [
        ("model_config", "num_layer", "num_layers"),
        ("runtime_config", "window_sizes", "window_size"),
        ("engine_config", "kv_ofload", "kv_offload"),
    ],
)
def test_typo_names_the_nearest_key(section: str, typo: str, right: str) -> None:
    data = official_json("4.5B_base")
    data[section][typo] = data[section].pop(right)
    with pytest.raises(ConfigError, match=f"{section}: unknown key '{typo}'.*'{right}'"):
        parse_official(data)


def test_missing_keys_and_sections_are_named() -> None:
    data = official_json("24B_base")
    del data["model_config"]["kv_channels"], data["model_config"]["hidden_size"]
    with pytest.raises(ConfigError, match="model_config: missing keys hidden_size, kv_channels"):
        parse_official(data)
    del data["engine_config"]
    with pytest.raises(ConfigError, match="section 'engine_config' is missing"):
        parse_official(data)


@pytest.mark.parametrize("wrong", [None, 3, [], "text"])
def test_section_of_another_type(wrong: object) -> None:
    data = official_json("24B_base") | {"runtime_config": wrong}
    with pytest.raises(ConfigError, match="runtime_config: expected a mapping"):
        parse_official(data)


@pytest.mark.parametrize(("variant", "number"), [("4.5B_base", 1), ("24B_distill", 3)])
def test_guidance_must_fit_the_weights(variant: str, number: int) -> None:
    data = official_json(variant)
    data["runtime_config"]["cfg_number"] = number
    with pytest.raises(ConfigError, match=f"cfg_number.*expected {4 - number}, got {number}"):
        parse_official(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("apply_layernorm_1p", False),
        ("xattn_cond_hidden_ratio", 0.5),
        ("cond_gating_ratio", 2.0),
        ("hidden_size", 3000),
    ],
)
def test_what_the_model_does_not_compute_is_refused(key: str, value: object) -> None:
    data = official_json("4.5B_base")
    data["model_config"][key] = value
    with pytest.raises(ConfigError, match=f"model_config.{key}: expected"):
        parse_official(data)


def test_reading_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="no such file"):
        read_official(path)
    path.write_text("{not json")
    with pytest.raises(CheckpointError, match="not a JSON file"):
        read_official(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not a JSON file"):
        read_official(path)
    path.write_text(json.dumps(official_json("24B_distill_quant")))
    assert read_official(path) == parse_official(official_json("24B_distill_quant"), path=path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_official(path)
