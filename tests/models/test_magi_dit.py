"""The MAGI-1 transformer: key map, calls, saving, and the ways others run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from onereel.core.errors import CheckpointError, ShapeError
from onereel.models.magi_dit.fp8 import Fp8Linear, set_input_quantization
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.weights import (
    account,
    is_official,
    official_to_ours,
    ours_to_official,
)

TINY: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_kv_heads": 2,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 8,
    "ffn_dim": 48,
    "num_layers": 3,
    "caption_max_length": 8,
}
LAYOUT = {"num_kv_heads": 2, "head_dim": 8}
FRAMES = 2  # latent frames per chunk


def build(seed: int = 0, **changes: Any) -> Magi1Transformer3DModel:
    """A tiny model in which every parameter matters."""
    model = Magi1Transformer3DModel(**TINY | changes)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name == "rope.bands":
            continue
        values = torch.randn(tensor.shape, generator=generator)
        if name.endswith("_scale"):
            values = 1 + 0.2 * values.abs()
        elif "norm" in name and name.endswith("weight"):
            values = (1 + 0.2 * values).clamp(0.5, 2)
        elif tensor.ndim > 1:
            values = values / tensor[0].numel() ** 0.5
        tensor.copy_(values)
    return model.eval()


def call_inputs(chunks: int = 3, batch: int = 1, channels: int = 4) -> tuple[Tensor, ...]:
    """Latent, times, text and its mask."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, channels, chunks * FRAMES, 4, 6, generator=generator)
    times = torch.rand(batch, chunks, generator=generator)
    text = torch.randn(batch, chunks, 5, 8, generator=generator)
    lengths = torch.randint(1, 6, (batch, chunks, 1), generator=generator)
    return latent, times, text, torch.arange(5) < lengths


@pytest.fixture(scope="module")
def model() -> Magi1Transformer3DModel:
    return build()


@pytest.fixture(scope="module")
def plain(model: Magi1Transformer3DModel) -> Tensor:
    with torch.no_grad():
        return model(*call_inputs()).sample


def close(got: Tensor, want: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)


# key map


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("fp8", [False, True], ids=["full", "fp8"])
def test_key_map_there_and_back_is_exact(gated: bool, fp8: bool) -> None:
    ours = build(gated_linear_unit=gated, fp8_quant=fp8).state_dict()
    official = ours_to_official(ours, **LAYOUT, gated=gated)
    back = official_to_ours(official, **LAYOUT, gated=gated)
    assert is_official(official)
    assert not is_official(ours)
    assert back.keys() == ours.keys()
    for name, tensor in ours.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float()), name


def test_key_map_changes_what_the_layouts_disagree_on() -> None:
    ours = build(gated_linear_unit=True, fp8_quant=True).state_dict()
    official = ours_to_official(ours, **LAYOUT, gated=True)
    layer = "videodit_blocks.layers.1."
    gain = official[layer + "self_attention.q_layernorm.weight"]
    assert torch.equal(gain + 1, ours["blocks.1.attn1.norm_q.weight"])
    plain_gain = official[layer + "mlp.layer_norm.weight"]
    assert torch.equal(plain_gain, ours["blocks.1.norm3.weight"])
    rows = official[layer + "self_attention.linear_kv_xattn.weight"]
    key, value = ours["blocks.1.attn2.to_k.weight"], ours["blocks.1.attn2.to_v.weight"]
    assert torch.equal(rows, torch.cat((key[:8], value[:8], key[8:], value[8:])))
    first = official[layer + "mlp.linear_fc1.weight"].float()
    mine = ours["blocks.1.ffn.net.0.proj.weight"].float()
    assert first.shape == (1, 96, 32)
    assert torch.equal(first[0], torch.cat((mine[48:], mine[:48])))


def test_unknown_official_tensor_is_refused() -> None:
    with pytest.raises(CheckpointError, match="unknown tensor 'decoder.weight'"):
        official_to_ours({"decoder.weight": torch.zeros(1)}, **LAYOUT, gated=False)
    with pytest.raises(CheckpointError, match="tensor 'blocks.0.other.weight' has no place"):
        ours_to_official({"blocks.0.other.weight": torch.zeros(1)}, **LAYOUT, gated=False)


def test_accounting_names_what_does_not_fit() -> None:
    expected = {name: torch.zeros(2) for name in "abcdef"}
    state = {"a": torch.zeros(2), "f": torch.zeros(3), "z": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        account(state, expected, where="weights")
    message = str(caught.value)
    assert "4 missing (b, c, d, ...)" in message
    assert "1 unexpected (z)" in message
    assert "1 of wrong shape (f (3,) instead of (2,))" in message
    account(expected, expected, where="weights")


# one call


@torch.no_grad()
def test_chunk_by_chunk_with_a_cache_equals_one_call(
    model: Magi1Transformer3DModel, plain: Tensor
) -> None:
    latent, times, text, mask = call_inputs()
    cache: list[tuple[Tensor, Tensor]] | None = None
    for i in range(3):
        part = slice(i * FRAMES, (i + 1) * FRAMES)
        output = model(
            latent[:, :, part],
            times[:, i : i + 1],
            text[:, i : i + 1],
            mask[:, i : i + 1],
            kv_range=[(0, i + 1)],
            slice_point=i,
            past_key_values=cache,
            keep_chunks=1,
        )
        close(output.sample, plain[:, :, part])
        old = cache or [(k[:, :, :0], v[:, :, :0]) for k, v in output.key_values]
        cache = [
            (torch.cat((a[0], b[0]), 2), torch.cat((a[1], b[1]), 2))
            for a, b in zip(old, output.key_values, strict=True)
        ]


@torch.no_grad()
@pytest.mark.parametrize("octaves", [0, 2])
def test_only_places_tell_equal_tokens_apart(octaves: int) -> None:
    _, times, text, mask = call_inputs(chunks=2)
    call = (times[:, :1].expand(-1, 2), text[:, :1].expand(-1, 2, -1, -1))
    blank = torch.ones(1, 4, 2 * FRAMES, 4, 6)
    model = build(place_octaves=octaves)
    output = model(blank, *call, kv_range=[(0, 1), (1, 2)]).sample
    tokens = rearrange(output, "1 c t (h p) (w q) -> (t h w) (c p q)", p=2, q=2)
    assert (tokens[1:] - tokens[:1]).abs().amax(1).gt(1e-3).any() == bool(octaves)
    close(tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :])  # every chunk alike


@torch.no_grad()
def test_places_do_not_mind_a_cache() -> None:
    latent, times, text, mask = call_inputs(chunks=2)
    model = build(place_octaves=2)
    whole = model(latent, times, text, mask, kv_range=[(0, 1), (0, 2)]).sample
    first, second = (
        (
            latent[:, :, FRAMES * i : FRAMES * (i + 1)],
            *(x[:, i : i + 1] for x in (times, text, mask)),
        )
        for i in range(2)
    )
    kept = model(*first, kv_range=[(0, 1)], keep_chunks=1).key_values
    later = model(*second, kv_range=[(0, 2)], slice_point=1, past_key_values=kept).sample
    close(later, whole[:, :, FRAMES:])


def test_the_official_layout_has_no_places() -> None:
    with pytest.raises(CheckpointError, match=r"place_embedder\.linear\.weight.*official"):
        ours_to_official(build(place_octaves=1).state_dict(), **LAYOUT, gated=False)


@torch.no_grad()
def test_range_hides_what_lies_outside(model: Magi1Transformer3DModel) -> None:
    latent, *rest = call_inputs()
    ranges = [(0, 1), (0, 2), (1, 3)]
    before = model(latent, *rest, kv_range=ranges).sample
    changed = latent.clone()
    changed[:, :, :FRAMES] += 1
    after = model(changed, *rest, kv_range=ranges).sample
    second, third = slice(FRAMES, 2 * FRAMES), slice(2 * FRAMES, None)
    assert not torch.allclose(before[:, :, second], after[:, :, second], atol=1e-3)
    # The middle chunk's keys of later layers depend on the first, so the third is reached by them.
    alone = [(0, 1), (1, 2), (1, 3)]
    before = model(latent, *rest, kv_range=alone).sample
    after = model(changed, *rest, kv_range=alone).sample
    assert torch.equal(before[:, :, third], after[:, :, third])


@torch.no_grad()
def test_masked_text_is_not_seen(model: Magi1Transformer3DModel, plain: Tensor) -> None:
    latent, times, text, mask = call_inputs()
    noisy = torch.where(mask[..., None], text, torch.full_like(text, 7.0))
    close(model(latent, times, noisy, mask).sample, plain)
    moved = model(latent, times, text.flip(1), mask.flip(1)).sample
    assert not torch.allclose(moved, plain, atol=1e-2)


@torch.no_grad()
def test_keep_chunks_returns_the_leading_chunks(model: Magi1Transformer3DModel) -> None:
    tokens = FRAMES * 2 * 3
    output = model(*call_inputs(), keep_chunks=2)
    assert len(output.key_values) == 3
    assert {k.shape for pair in output.key_values for k in pair} == {(1, 2, 2 * tokens, 8)}
    sample, kept = model(*call_inputs(), return_dict=False)
    assert kept is None
    assert sample.dtype == torch.float32


@pytest.mark.parametrize(
    ("ranges", "past_chunks", "message"),
    [
        ([(0, 1)], 0, "expected 3 ranges, got 1"),
        ([(1, 2), (1, 3), (1, 4)], 0, r"chunks within \[2, 5\)"),
        ([(0, 3), (1, 4), (2, 5)], 1, r"chunks within \[1, 5\)"),
        ([(2, 3), (2, 4), (2, 6)], 1, r"chunks within \[1, 5\)"),
        ([(2, 2), (2, 4), (2, 5)], 1, r"got \(2, 2\)"),
    ],
)
def test_ranges_that_do_not_fit(
    model: Magi1Transformer3DModel,
    ranges: Sequence[tuple[int, int]],
    past_chunks: int,
    message: str,
) -> None:
    rows = torch.zeros(1, 2, past_chunks * FRAMES * 6, 8)
    past = [(rows, rows)] * 3 if past_chunks else None
    with pytest.raises(ShapeError, match=message):
        model(*call_inputs(), kv_range=ranges, slice_point=2, past_key_values=past)


def test_shapes_that_do_not_fit(model: Magi1Transformer3DModel) -> None:
    latent, times, text, mask = call_inputs()
    with pytest.raises(ShapeError, match="multiples of"):
        model(latent[..., :5], times, text, mask)
    with pytest.raises(ShapeError, match="latent frames: expected a multiple of 3"):
        model(latent[:, :, :5], times, text, mask)
    with pytest.raises(ShapeError, match="latent channels: expected 4, got 3"):
        model(latent[:, :3], times, text, mask)
    with pytest.raises(ShapeError, match=r"text: expected \[B, R, S, K\]"):
        model(latent, times, text[:, :1], mask[:, :1])
    with pytest.raises(ShapeError, match="attention heads"):
        Magi1Transformer3DModel(**TINY | {"num_kv_heads": 3})


@torch.no_grad()
def test_caption_dropout_per_video_and_per_chunk(model: Magi1Transformer3DModel) -> None:
    inputs = call_inputs(batch=2)
    off = model(*inputs).sample
    on = model(*inputs, caption_dropout=True).sample
    assert not torch.allclose(on, off, atol=1e-3)
    per_video = model(*inputs, caption_dropout=torch.tensor([True, False])).sample
    assert torch.equal(per_video, torch.stack((on[0], off[1])))
    every = torch.tensor([[True] * 3, [False] * 3])
    assert torch.equal(model(*inputs, caption_dropout=every).sample, per_video)
    last_only = torch.tensor([[False, False, True]] * 2)
    mixed = model(*inputs, caption_dropout=last_only).sample
    last = slice(2 * FRAMES, None)
    assert torch.equal(mixed[:, :, : 2 * FRAMES], off[:, :, : 2 * FRAMES])
    assert not torch.allclose(mixed[:, :, last], off[:, :, last], atol=1e-3)


@torch.no_grad()
def test_step_size_and_time_matter_per_chunk(model: Magi1Transformer3DModel, plain: Tensor) -> None:
    latent, times, text, mask = call_inputs()
    sized = model(latent, times, text, mask, step_size=8.0).sample
    assert not torch.allclose(sized, plain, atol=1e-3)
    later = times + torch.tensor([[0.0, 0.0, 0.1]])
    moved = model(latent, later, text, mask).sample
    assert torch.equal(moved[:, :, : 2 * FRAMES], plain[:, :, : 2 * FRAMES])
    assert not torch.allclose(moved, plain, atol=1e-3)


@torch.no_grad()
def test_half_channel_model_takes_and_returns_half() -> None:
    model = build(in_channels=8, out_channels=8, half_channel_vae=True, x_rescale_factor=0.1)
    assert model.latent_channels == 4
    assert model(*call_inputs()).sample.shape == call_inputs()[0].shape


@torch.no_grad()
def test_bf16_stays_close(tmp_path: Path, model: Magi1Transformer3DModel, plain: Tensor) -> None:
    model.save_pretrained(tmp_path)
    low = Magi1Transformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert low.blocks[1].attn1.to_q.weight.dtype == torch.bfloat16
    assert low.blocks[1].attn1.norm_q.weight.dtype == torch.float32
    got = low(*call_inputs()).sample
    assert got.dtype == torch.float32
    assert (got - plain).abs().mean() < 0.02 * plain.std()


# training, saving and running


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enabled in (False, True):
        model = build().train()
        if enabled:
            model.enable_gradient_checkpointing()
        sample = model(*call_inputs()).sample
        sample.square().mean().backward()
        gradients.append((sample.detach(), model.blocks[0].attn1.to_q.weight.grad))
    close(gradients[1][0], gradients[0][0])
    close(gradients[1][1], gradients[0][1])


def test_gradients_reach_every_parameter() -> None:
    model = build(place_octaves=1).train()
    dropped = torch.tensor([[True, False, False]])
    model(*call_inputs(), caption_dropout=dropped).sample.square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@torch.no_grad()
def test_save_and_load(tmp_path: Path, model: Magi1Transformer3DModel, plain: Tensor) -> None:
    model.save_pretrained(tmp_path)
    loaded, report = Magi1Transformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(loaded(*call_inputs()).sample, plain)
    assert loaded.config.layout_version == 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_weights_survive_loading_and_casts(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build(fp8_quant=True)
    model.save_pretrained(tmp_path)
    loaded = Magi1Transformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    loaded.blocks.to(torch.float16)
    layers = [m for m in loaded.modules() if isinstance(m, Fp8Linear)]
    assert len(layers) == 7
    for old, new in zip(
        (m for m in model.modules() if isinstance(m, Fp8Linear)), layers, strict=True
    ):
        assert new.weight.dtype == torch.float8_e4m3fn
        assert torch.equal(new.weight.float(), old.weight.float())
        assert torch.equal(new.weight_scale, old.weight_scale)
        assert torch.equal(new.input_scale, old.input_scale)


@torch.no_grad()
def test_float8_stays_close_to_its_dequantised_self() -> None:
    model = build(fp8_quant=True)
    for layer in (m for m in model.modules() if isinstance(m, Fp8Linear)):
        layer.input_scale.fill_(0.02)  # one repeated value, as in released weights
    weight_only = model(*call_inputs()).sample
    set_input_quantization(model, True)
    rounded = model(*call_inputs()).sample
    error = (rounded - weight_only).abs().mean() / weight_only.std()
    assert 0 < error < 0.1
    set_input_quantization(model, False)
    assert torch.equal(model(*call_inputs()).sample, weight_only)


@torch.no_grad()
def test_group_offload_per_leaf_equals_plain(plain: Tensor) -> None:
    model = build()
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(model(*call_inputs()).sample, plain)


@torch.no_grad()
def test_compiled_as_one_graph_equals_plain() -> None:
    model = build(num_layers=1)
    options = {"kv_range": [(0, 1), (0, 2), (1, 3)], "keep_chunks": 1, "return_dict": False}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    sample, kept = compiled(*call_inputs(), **options)
    want, want_kept = model(*call_inputs(), **options)
    close(sample, want)
    close(kept[0][0], want_kept[0][0])
    torch.compiler.reset()


@torch.no_grad()
def test_lora_changes_the_output_and_scale_zero_restores_it(plain: Tensor) -> None:
    from peft import LoraConfig

    model = build()
    targets = ["to_q", "to_k", "to_v", "attn_proj", "ffn.net.0.proj", "ffn.net.2"]
    config = LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=[*targets, "ada_modulate_layer.1"],
        init_lora_weights=False,
    )
    model.add_adapter(config)
    adapted = {n.removesuffix(".lora_A.default.weight") for n, _ in model.named_parameters()}
    adapted = {n for n in adapted if not n.endswith(("weight", "bias", "bands", "embedding"))}
    assert len(adapted) == 3 * 10
    assert not torch.allclose(model(*call_inputs()).sample, plain, atol=1e-3)
    off = model(*call_inputs(), attention_kwargs={"scale": 0.0}).sample
    close(off, plain)
    model.disable_lora()
    close(model(*call_inputs()).sample, plain)
