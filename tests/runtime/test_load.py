from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from onereel.models.magi_dit.fp8 import Fp8Linear
from onereel.runtime.convert import convert
from onereel.runtime.load import load_components
from onereel.runtime.source import resolve_model
from onereel.runtime.verify import preflight, verify
from onereel.samplers.plan import ChunkSampleConfig

Make = Callable[..., Path]
KINDS = [
    pytest.param({}, id="base"),
    pytest.param({"distill": True, "shards": 3}, id="distill-sharded"),
    pytest.param({"distill": True, "fp8": True}, id="fp8"),
    pytest.param({"large": True, "shards": 2}, id="half-channel-gated"),
    pytest.param({"large": True, "distill": True, "fp8": True, "shards": 2}, id="large-fp8"),
]


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state.update(load_file(path))
    return state


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def raw(t: torch.Tensor) -> torch.Tensor:
        return t.contiguous().reshape(-1).view(torch.uint8)

    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(raw(a[k]), raw(b[k]))
        for k in a
    )


@pytest.mark.parametrize("options", KINDS)
def test_round_trip_is_bit_equal(make_official: Make, tmp_path: Path, options: dict) -> None:
    source = resolve_model(make_official(**options))
    ours = convert(source, tmp_path / "ours", max_shard_gb=1e-4)
    shards = list((ours / "transformer").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 250_000 for path in shards)
    back = convert(resolve_model(ours), tmp_path / "back", to="official")
    again = resolve_model(back)
    assert again.official is not None and source.official is not None
    assert again.official.model == source.official.model
    assert again.official.engine == source.official.engine
    for part in ("transformer", "vae"):
        assert same_bits(read_all(source.folder(part)), read_all(again.folder(part)))
    assert verify(again).model_hash == verify(source).model_hash is not None


@pytest.mark.parametrize("options", KINDS)
def test_both_layouts_load_the_same(make_official: Make, tmp_path: Path, options: dict) -> None:
    source = resolve_model(make_official(**options))
    ours = resolve_model(convert(source, tmp_path / "ours"))
    one, two = (load_components(s, device="cpu") for s in (source, ours))
    for name in ("transformer", "vae", "text_encoder"):
        assert same_bits(getattr(one, name).state_dict(), getattr(two, name).state_dict())
    assert one.vae.config.scaling_factor == two.vae.config.scaling_factor == 0.18215
    assert one.sampling == two.sampling
    assert one.sampling["distilled"] == bool(options.get("distill"))
    assert (one.sampling["height"], one.sampling["width"]) == (32, 48)
    assert len(one.tokenizer("a red disc").input_ids) > 1
    assert not one.transformer.training and not one.vae.training


def test_loaded_dtypes(make_official: Make) -> None:
    source = resolve_model(make_official(distill=True, fp8=True))
    model = load_components(source, device="cpu").transformer
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.blocks[0].norm1.weight.dtype == torch.bfloat16
    assert model.blocks[0].norm2.weight.dtype == torch.float32
    assert model.patch_embedding.weight.dtype == torch.float32
    middle = model.blocks[1].attn1.to_q
    assert isinstance(middle, Fp8Linear) and middle.weight.dtype == torch.float8_e4m3fn
    assert middle.weight_scale.dtype == torch.float32
    stored = load_file(next(source.folder("transformer").glob("*.safetensors")))
    official = stored["videodit_blocks.layers.1.self_attention.linear_qkv.q.weight"]
    assert torch.equal(middle.weight.float(), official[0].float())
    gain = stored["videodit_blocks.layers.0.self_attn_post_norm.weight"]
    assert torch.equal(model.blocks[0].norm2.weight, gain.float() + 1)
    wide = load_components(source, device="cpu", dtype=torch.float32).transformer
    assert wide.blocks[0].attn1.to_q.weight.dtype == torch.float32
    assert wide.blocks[1].attn1.to_q.weight.dtype == torch.float8_e4m3fn


def test_loaded_models_run(make_official: Make) -> None:
    parts = load_components(resolve_model(make_official(large=True)), device="cpu",
                            dtype=torch.float32)  # fmt: skip
    ids = parts.tokenizer("a red disc", return_tensors="pt").input_ids
    with torch.no_grad():
        text = parts.text_encoder(input_ids=ids).last_hidden_state[:, None]
        out = parts.transformer(torch.randn(1, 16, 6, 4, 6), torch.rand(1, 1), text).sample
        video = parts.vae.decode(out[:, :, :2]).sample
    assert out.shape == (1, 16, 6, 4, 6) and video.shape == (1, 3, 8, 32, 48)
    assert out.isfinite().all() and video.isfinite().all()


def test_tiny_gains_keep_their_effect(make_official: Make, tmp_path: Path) -> None:
    """What float32 cannot hold beside 1 may change in storage, never in effect."""
    path = make_official()
    source = resolve_model(path)
    file = next(source.folder("transformer").glob("*.safetensors"))
    state = load_file(file)
    name = "videodit_blocks.layers.0.mlp_post_norm.weight"
    state[name] = torch.logspace(-12, 0, 64, base=10).to(torch.bfloat16)
    from safetensors.torch import save_file

    save_file(state, file)
    ours = convert(source, tmp_path / "ours")
    back = resolve_model(convert(resolve_model(ours), tmp_path / "back", to="official"))
    again = read_all(back.folder("transformer"))[name]
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.float() + 1, state[name].float() + 1)


def test_dtype_and_shards_of_a_conversion(make_official: Make, tmp_path: Path) -> None:
    source = resolve_model(make_official())
    ours = convert(source, tmp_path / "ours", dtype=torch.float16)
    state = read_all(ours / "transformer")
    assert state["blocks.0.attn1.to_q.weight"].dtype == torch.float16
    assert state["proj_out.weight"].dtype == torch.bfloat16  # computes in float32: kept as stored
    with safe_open(ours / "vae" / "diffusion_pytorch_model.safetensors", "pt") as opened:
        assert opened.get_tensor("decoder.proj_in.weight").dtype == torch.float16
    index = json.loads((ours / "model_index.json").read_text())
    assert index["transformer"] == ["onereel.models.magi_dit.model", "Magi1Transformer3DModel"]
    known = ChunkSampleConfig.__dataclass_fields__
    assert set(index["sampling"]) - set(known) == {"height", "width", "fps", "num_frames", "seed"}
    assert preflight(resolve_model(ours)).ok
