"""LoRA adapters on the transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel import Magi1Pipeline
from onereel.pipelines.lora import LORA_TARGETS

WIDTH = 64


@pytest.fixture
def pipe(tiny_checkpoint: Path) -> Any:
    pipeline = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def adapter(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q"):
        down, up = (torch.randn(size, generator=generator) for size in ((4, WIDTH), (WIDTH, 4)))
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    return tensors


def latent(pipeline: Any, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "a red disc", num_frames=8, generator=generator, output_type="latent", **options
    ).frames


def test_from_a_dict_and_from_a_file(pipe: Any, tmp_path: Path) -> None:
    plain = latent(pipe)
    pipe.load_lora_weights(adapter(1), adapter_name="first")
    changed = latent(pipe)
    assert not torch.allclose(changed, plain, atol=1e-4)
    pipe.unload_lora_weights()
    assert torch.equal(latent(pipe), plain)
    save_file(adapter(1), tmp_path / "pytorch_lora_weights.safetensors")
    pipe.load_lora_weights(tmp_path, adapter_name="first")
    assert torch.equal(latent(pipe), changed)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(tmp_path / "pytorch_lora_weights.safetensors"))
    assert torch.equal(latent(pipe), changed)


def test_two_adapters_and_their_scales(pipe: Any) -> None:
    plain = latent(pipe)
    pipe.load_lora_weights(adapter(1), adapter_name="first")
    first = latent(pipe)
    pipe.load_lora_weights(adapter(2), adapter_name="second")
    pipe.set_adapters(["first", "second"], [1.0, 0.5])
    both = latent(pipe)
    pipe.set_adapters(["first", "second"], [1.0, 0.0])
    assert torch.allclose(latent(pipe), first, atol=1e-5)
    assert not torch.allclose(both, first, atol=1e-4)
    pipe.set_adapters("first", 0.0)
    assert torch.allclose(latent(pipe), plain, atol=1e-5)
    assert pipe.get_active_adapters() == ["first"]


def test_the_scale_of_a_call(pipe: Any) -> None:
    plain = latent(pipe)
    pipe.load_lora_weights(adapter(1), adapter_name="first")
    full = latent(pipe)
    assert torch.allclose(latent(pipe, attention_kwargs={"scale": 0.0}), plain, atol=1e-5)
    half = latent(pipe, attention_kwargs={"scale": 0.5})
    assert not torch.allclose(half, full, atol=1e-4)
    assert torch.equal(latent(pipe), full)
    pipe.set_adapters("first", 0.5)
    assert torch.allclose(latent(pipe), half, atol=1e-5)


def test_fuse_and_unfuse(pipe: Any) -> None:
    plain = latent(pipe)
    pipe.load_lora_weights(adapter(1), adapter_name="first")
    loaded = latent(pipe)
    pipe.fuse_lora(components=["transformer"])
    assert pipe.num_fused_loras == 1
    assert torch.allclose(latent(pipe), loaded, atol=1e-4)
    pipe.unfuse_lora(components=["transformer"])
    assert torch.allclose(latent(pipe), loaded, atol=1e-4)
    pipe.unload_lora_weights()
    assert torch.allclose(latent(pipe), plain, atol=1e-4)


def test_save_and_load(pipe: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    targets = list(LORA_TARGETS)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    hit = [name for name, _ in pipe.transformer.named_parameters() if "lora_A" in name]
    assert len(hit) == 2 * len(targets)  # every target in both blocks
    changed = latent(pipe)
    layers = get_peft_model_state_dict(pipe.transformer)
    Magi1Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    stored = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("transformer.") for name in stored)
    pipe.unload_lora_weights()
    assert not torch.allclose(latent(pipe), changed, atol=1e-4)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(latent(pipe), changed, atol=1e-5)


def test_wrong_keys_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights({"transformer.blocks.0.attn1.to_q.weight": torch.zeros(2, 2)})
