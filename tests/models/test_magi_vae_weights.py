from __future__ import annotations

from typing import Any

import pytest
import torch

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.weights import (
    config_from_official,
    is_official,
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


@pytest.fixture
def vae() -> AutoencoderKLMagi1:
    torch.manual_seed(0)
    return AutoencoderKLMagi1(**config_from_official(DDCONFIG)).eval()


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
