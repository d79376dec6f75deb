"""Tiny random checkpoints in the official layout: complete, a few hundred kB, made in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import parse_official, transformer_kwargs
from onereel.models.magi_dit.weights import ours_to_official
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.weights import config_from_official
from onereel.models.magi_vae.weights import ours_to_official as vae_to_official
from onereel.models.text import build_text_encoder, train_tokenizer

CAPTIONS = ["a red disc bounces", "a blue ring falls to the left", "two green squares meet"]
DDCONFIG = {
    "video_size": 16, "video_length": 8, "patch_size": 8, "patch_length": 4, "in_chans": 3,
    "z_chans": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "qkv_bias": True,
    "ln_in_attn": True, "conv_last_layer": True, "use_final_proj": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What kind of tiny checkpoint to make."""

    distill: bool = False
    fp8: bool = False
    large: bool = False  # half-channel and gated, as the 24B models
    shards: int = 1
    name: str = "tiny"


def official_json(kind: Kind) -> dict[str, Any]:
    single = kind.distill or kind.fp8
    channels = 32 if kind.large else 16
    return {
        "model_config": {
            "model_name": "videodit_ardf", "num_layers": 3, "hidden_size": 64,
            "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2,
            "kv_channels": 16, "layernorm_epsilon": 1e-6, "apply_layernorm_1p": True,
            "x_rescale_factor": 0.1 if kind.large else 1, "half_channel_vae": kind.large,
            "params_dtype": "torch.bfloat16", "patch_size": 2, "t_patch_size": 1,
            "in_channels": channels, "out_channels": channels, "cond_hidden_ratio": 0.25,
            "caption_channels": 128, "caption_max_length": 64, "xattn_cond_hidden_ratio": 1.0,
            "cond_gating_ratio": 1.0, "gated_linear_unit": kind.large,
        },
        "runtime_config": {
            "cfg_number": 1 if single else 3,
            "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
            "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
            "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
            "noise2clean_kvrange": [5, 4, 3, 2], "clean_chunk_kvrange": 1, "clean_t": 0.9999,
            "seed": 1234, "num_frames": 48, "video_size_h": 32, "video_size_w": 48,
            "num_steps": 8, "window_size": 4, "fps": 24, "chunk_width": 6,
            "load": "./downloads/magi", "t5_pretrained": "./downloads/t5", "t5_device": "cpu",
            "vae_pretrained": "./downloads/vae", "scale_factor": 0.18215,
            "temporal_downsample_factor": 4,
        },
        "engine_config": {
            "distributed_backend": "nccl", "distributed_timeout_minutes": 15, "pp_size": 1,
            "cp_size": 1, "cp_strategy": "cp_ulysses", "ulysses_overlap_degree": 1,
            "fp8_quant": kind.fp8, "distill_nearly_clean_chunk_threshold": 0.3,
            "shortcut_mode": "8,16,16", "distill": kind.distill, "kv_offload": True,
            "enable_cuda_graph": False,
        },
    }  # fmt: skip


def random_like(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Fill names and shapes with values as a trained checkpoint stores them."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for name, tensor in state.items():
        values = torch.randn(tensor.shape, generator=generator) * 0.1
        # Float32 cannot hold 1 + gain for gains much smaller than these.
        values = torch.where(values.abs() < 2**-10, torch.full_like(values, 2**-10), values)
        if name.endswith("_scale"):
            filled[name] = values.abs() + 0.5
        elif tensor.dtype == torch.float8_e4m3fn:
            filled[name] = (values * 100).to(torch.float8_e4m3fn)
        else:
            filled[name] = values.to(torch.bfloat16)
    return filled


def official_transformer(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    official = parse_official(config)
    kwargs = transformer_kwargs(
        official.model, distill=official.engine.distill, fp8=official.engine.fp8_quant
    )
    with torch.device("meta"):
        model = Magi1Transformer3DModel(**kwargs)
    state = ours_to_official(
        model.state_dict(), num_kv_heads=kwargs["num_kv_heads"],
        head_dim=kwargs["attention_head_dim"], gated=kwargs["gated_linear_unit"],
    )  # fmt: skip
    return random_like(state, 1)


def official_vae() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = AutoencoderKLMagi1(**config_from_official({"ddconfig": DDCONFIG}))
    return random_like(vae_to_official(model.state_dict()), 2)


def write_shards(state: dict[str, torch.Tensor], folder: Path, stem: str, count: int) -> None:
    folder.mkdir(parents=True)
    if count == 1:
        save_file(state, folder / f"{stem}.safetensors")
        return
    names, weight_map = list(state), {}
    for i in range(count):
        file = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name] for name in names[i::count]}
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 encoder as `.bin` shards with an index, and its tokenizer, in one folder."""
    folder = tmp_path_factory.mktemp("t5") / "t5-v1_1-xxl"
    tokenizer = train_tokenizer(CAPTIONS, folder, vocab_size=200)
    torch.manual_seed(0)
    encoder = build_text_encoder("toybox", len(tokenizer))
    encoder.config.save_pretrained(folder)
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    weight_map, names = {}, list(state)
    for i in range(2):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: state[name] for name in names[i::2]}, folder / file)
        weight_map.update(dict.fromkeys(names[i::2], file))
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


MakeOfficial = Callable[..., Path]


@pytest.fixture
def make_official(tmp_path: Path, text_folder: Path) -> MakeOfficial:
    """Return a function that writes a checkpoint and returns its JSON."""

    def make(**options: Any) -> Path:
        kind = Kind(**options)
        root = tmp_path / kind.name
        config = official_json(kind)
        weights = "inference_weight" + ".fp8" * kind.fp8 + ".distill" * kind.distill
        load = root / "downloads" / "magi" / weights
        write_shards(official_transformer(config), load, "model", kind.shards)
        vae = root / "downloads" / "vae"
        write_shards(official_vae(), vae, "diffusion_pytorch_model", 1)
        entries = {"_class_name": "ViTVAE", "ddconfig": DDCONFIG, "model_type": "vit"}
        (vae / "config.json").write_text(json.dumps(entries))
        (root / "downloads" / "t5").mkdir()
        (root / "downloads" / "t5" / "t5-v1_1-xxl").symlink_to(text_folder)
        path = root / "example" / "tiny_config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(config))
        return path

    return make
