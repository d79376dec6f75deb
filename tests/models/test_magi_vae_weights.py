from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.weights import (
    config_from_official,
    is_official,
    load_official_vae,
    load_weights,
    official_to_ours,
    ours_to_official,
)

DDCONFIG: dict[str, Any] = {
    "video_size": 16,
    "video_length": 8,
    "patch_size": 8,
    "patch_length": 4,
    "z_chans": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "qkv_bias": True,
    "conv_last_layer": True,
    "use_final_proj": True,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae() -> AutoencoderKLMagi1:
    torch.manual_seed(0)
    return AutoencoderKLMagi1(**config_from_official(DDCONFIG)).eval()


@pytest.fixture
def folder(vae: AutoencoderKLMagi1, tmp_path: Path) -> Path:
    config = {"_class_name": "ViTVAE", "ddconfig": DDCONFIG, "model_type": "vit"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(ours_to_official(vae.state_dict()), tmp_path / WEIGHTS)
    return tmp_path


def test_keys_go_there_and_back(vae: AutoencoderKLMagi1) -> None:
    ours = vae.state_dict()
    official = ours_to_official(ours)
    assert is_official(official)
    assert not is_official(ours)
    assert len(official) == len(ours) - 2 * 2 * 2 * 2  # halves, blocks, weight and bias, 3 -> 1
    qkv = official["encoder.blocks.1.attn.qkv.weight"]
    assert torch.equal(qkv[64:], ours["encoder.blocks.1.attn.to_v.weight"])
    again = official_to_ours(official)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_every_official_key_is_honoured() -> None:
    got = config_from_official({"ddconfig": DDCONFIG, "model_type": "vit", "_class_name": "ViTVAE"})
    assert got["patch_size"] == (4, 8, 8)
    assert (got["num_attention_heads"], got["attention_head_dim"]) == (2, 16)
    assert got["ffn_dim"] == 48
    assert got["ln_in_attn"] is False  # the official default, not ours
    for key in ("with_cls_token", "norm_code", "ln_in_attn", "double_z", "qkv_bias"):
        for value in (True, False):
            assert config_from_official(DDCONFIG | {key: value})[key] is value
    shape = {"in_chans": 1, "video_size": 24, "video_length": 12, "depth": 5}
    got = config_from_official(DDCONFIG | shape)
    assert (got["in_channels"], got["height"], got["num_frames"], got["num_layers"]) == (
        1,
        24,
        12,
        5,
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DDCONFIG | {"num_head": 2}, "did you mean 'num_heads'"),
        (DDCONFIG | {"use_rope": True}, "use_rope"),
        (DDCONFIG | {"drop_rate": 0.1}, "drop_rate"),
        (DDCONFIG | {"norm_layer": "RMSNorm"}, "norm_layer"),
        (DDCONFIG | {"embed_dim": 33}, "embed_dim"),
        (DDCONFIG | {"conv_last_layer": False}, "conv_last_layer"),
        ({"ddconfig": DDCONFIG, "model_type": "vit_ncthw"}, "vit_ncthw"),
        ({"ddconfig": DDCONFIG, "modeltype": "vit"}, "did you mean 'model_type'"),
    ],
)
def test_what_cannot_be_run_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_official(config)


def test_official_and_own_folders_load(
    vae: AutoencoderKLMagi1, folder: Path, tmp_path: Path
) -> None:
    video = torch.rand(1, 3, 8, 16, 24)
    vae.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        want = vae(video, sample_posterior=False).sample
        for path in (folder, tmp_path / "ours"):
            loaded = load_official_vae(path)
            assert not loaded.training
            torch.testing.assert_close(loaded(video, sample_posterior=False).sample, want)
    assert load_official_vae(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_shards_load(vae: AutoencoderKLMagi1, folder: Path) -> None:
    tensors = ours_to_official(vae.state_dict())
    names = sorted(tensors)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    loaded = load_official_vae(folder)
    assert torch.equal(loaded.decoder.pos_embed, vae.decoder.pos_embed)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="b.safetensors: no such file"):
        load_official_vae(folder)


def test_misfits_are_all_listed(vae: AutoencoderKLMagi1) -> None:
    state = ours_to_official(vae.state_dict())
    del state["encoder.norm.bias"]
    state["decoder.blocks.7.norm2.weight"] = torch.zeros(32)
    state["decoder.proj_in.weight"] = torch.zeros(32, 5)
    with pytest.raises(CheckpointError) as caught:
        load_weights(vae, state)
    text = str(caught.value)
    assert "1 missing: encoder.norm_out.bias" in text
    assert "1 unexpected: decoder.blocks.7.norm.weight" in text
    assert "decoder.proj_in.weight ((32, 5) instead of (32, 4))" in text


def test_foreign_tensors_are_refused(vae: AutoencoderKLMagi1) -> None:
    state = ours_to_official(vae.state_dict())
    with pytest.raises(CheckpointError, match="unknown tensor 'encoder.conv.weight'"):
        official_to_ours(state | {"encoder.conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="divisible by 3"):
        official_to_ours({"encoder.blocks.0.attn.qkv.weight": torch.zeros(4, 4)})
    with pytest.raises(CheckpointError, match="unknown tensor"):
        ours_to_official({"encoder.last_layer.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="missing tensor"):
        ours_to_official({"encoder.blocks.0.attn.to_k.weight": torch.zeros(4, 4)})


def test_damaged_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json: no such file"):
        load_official_vae(tmp_path / "absent")
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_official_vae(folder)
    (folder / "config.json").write_text('{"_class_name": "UNet"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="UNet"):
        load_official_vae(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON file"):
        load_official_vae(folder)
