from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError
from onereel.models.magi_dit.fp8 import Fp8Linear
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.runtime import source as source_module
from onereel.runtime.auto_model import AutoModel
from onereel.runtime.convert import convert
from onereel.runtime.source import resolve_model

Make = Callable[..., Path]


def test_our_classes(make_official: Make, tmp_path: Path) -> None:
    ours = convert(resolve_model(make_official()), tmp_path / "ours")
    model = AutoModel.from_pretrained(ours, subfolder="transformer", torch_dtype=torch.bfloat16)
    assert isinstance(model, Magi1Transformer3DModel)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.norm_out.weight.dtype == torch.float32
    vae = AutoModel.from_pretrained(str(ours / "vae"))
    assert isinstance(vae, AutoencoderKLMagi1) and vae.dtype == torch.float32
    assert AutoModel.from_pretrained(ours / "vae", torch_dtype="auto").dtype == torch.bfloat16
    plain = AutoencoderKLMagi1.from_pretrained(ours / "vae")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, vae.state_dict()[name])


def test_arguments_of_diffusers_still_work(make_official: Make, tmp_path: Path) -> None:
    ours = convert(resolve_model(make_official()), tmp_path / "ours")
    model = AutoModel.from_pretrained(ours, subfolder="transformer", low_cpu_mem_usage=True)
    assert isinstance(model, Magi1Transformer3DModel) and model.dtype == torch.float32


def test_float8_stays_float8(make_official: Make, tmp_path: Path) -> None:
    ours = convert(resolve_model(make_official(distill=True, fp8=True)), tmp_path / "ours")
    model = AutoModel.from_pretrained(ours, subfolder="transformer", torch_dtype=torch.bfloat16)
    layer = model.blocks[1].attn1.to_q
    assert isinstance(layer, Fp8Linear) and layer.weight.dtype == torch.float8_e4m3fn
    with pytest.raises(TypeError, match="low_cpu_mem_usage"):
        AutoModel.from_pretrained(ours, subfolder="transformer", low_cpu_mem_usage=True)


def test_the_official_vae(make_official: Make) -> None:
    folder = resolve_model(make_official()).folder("vae")
    vae = AutoModel.from_pretrained(folder)
    assert isinstance(vae, AutoencoderKLMagi1) and vae.config.use_final_proj


def test_shipped_names(
    make_official: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(resolve_model(make_official()), tmp_path / "shipped" / "toybox-magi")
    monkeypatch.setattr(source_module, "shipped_folder", lambda: tmp_path / "shipped")
    vae = AutoModel.from_pretrained("toybox-magi", subfolder="vae")
    assert isinstance(vae, AutoencoderKLMagi1)


def test_other_classes_are_for_diffusers(tmp_path: Path) -> None:
    model = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), diffusers.UNet2DModel)


def test_missing_tensors_are_noticed(make_official: Make, tmp_path: Path) -> None:
    ours = convert(resolve_model(make_official()), tmp_path / "ours")
    path = ours / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state.pop("decoder.norm_out.bias")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder\.norm_out\.bias\)"):
        AutoModel.from_pretrained(ours, subfolder="vae")
    config = json.loads((ours / "vae" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLMagi1"
