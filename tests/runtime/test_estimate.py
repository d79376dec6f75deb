from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from onereel.apps.cli.plan import describe
from onereel.core.errors import ConfigError, OutOfMemory
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.runtime import estimate as estimate_module
from onereel.runtime.convert import convert
from onereel.runtime.cost import Forward, TransformerCost, VaeCost, plan_steps
from onereel.runtime.estimate import Estimate, Job, check_fits, estimate, estimate_job
from onereel.runtime.layout import complete
from onereel.runtime.machine import available_bytes, measure_tflops
from onereel.runtime.shapes import read_shapes, weight_bytes
from onereel.runtime.source import resolve_model
from onereel.samplers.engine import ChunkEngine, ChunkTask
from onereel.samplers.plan import ChunkSampleConfig

Make = Callable[..., Path]
GB = 10**9


@pytest.mark.parametrize(
    ("preset", "size", "tokens", "gigabytes"),
    [
        ("4.5B_base", (720, 720), 12150, 1.69),
        ("24B_base", (720, 1280), 21600, 4.25),
        ("4.5B_base", (480, 832), 9360, 1.30),
    ],
)
def test_size_facts_of_the_released_models(
    preset: str, size: tuple[int, int], tokens: int, gigabytes: float
) -> None:
    """Source: spec magi1-dit 7.4; 4096 bytes per token and layer in bfloat16."""
    found = estimate(preset, height=size[0], width=size[1], tflops=100.0)
    assert found.tokens_per_chunk == tokens
    layers = 34 if preset.startswith("4.5B") else 48
    per_chunk = found.kv_bytes // found.kv_chunks
    assert per_chunk == tokens * layers * 4096
    assert per_chunk / GB == pytest.approx(gigabytes, abs=0.01)


def test_parameters_of_the_released_models() -> None:
    # Source: spec magi1-dit 1.1 and magi1-vae-t5-io 1.
    for preset, parameters in (("4.5B_base", 4_459_898_128), ("24B_base", 23_899_281_936)):
        sizes = weight_bytes(read_shapes(preset), dtype=torch.float32, text_dtype=torch.float32)
        assert sizes["transformer"] == 4 * parameters
        assert sizes["vae"] == 4 * 613_755_239
        assert sizes["text_encoder"] / GB == pytest.approx(19, abs=0.1)
    small = weight_bytes(
        read_shapes("4.5B_distill_quant"), dtype=torch.bfloat16, text_dtype=torch.float32
    )
    assert 4.5 * GB < small["transformer"] < 5.5 * GB


def test_few_layers_stand_for_many() -> None:
    """The bytes extrapolated from four layers are those of the whole model."""
    shapes = read_shapes("4.5B_distill_quant")
    with torch.device("meta"):
        model = Magi1Transformer3DModel(**{**shapes.transformer, "num_layers": 7})
    seven = dataclasses.replace(shapes, transformer={**shapes.transformer, "num_layers": 7})
    whole = sum(
        t.numel() * (1 if t.dtype == torch.float8_e4m3fn else 4)
        for t in model.state_dict().values()
    )
    sizes = weight_bytes(seven, dtype=torch.float32, text_dtype=torch.float32)
    assert sizes["transformer"] == whole


def test_vae_tiles_of_the_worked_example() -> None:
    """Source: spec magi1-vae-t5-io 4: 56 tiles of a 720p chunk, 2.8 TFLOP a full tile."""
    assert estimate("24B_base", tflops=100.0).num_tiles == 56
    cost = VaeCost(read_shapes("24B_base").vae, itemsize=2)
    assert cost.flops((3, 32, 32)) / 1e12 == pytest.approx(2.8, rel=0.02)


CONFIG: dict[str, Any] = {
    "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32, "num_kv_heads": 2,
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 48, "ffn_dim": 320,
    "caption_max_length": 64,
}  # fmt: skip
CALLS = [
    pytest.param(Forward(rows=1, chunks=1, visible=1, text=50), id="one-chunk"),
    pytest.param(Forward(rows=2, chunks=3, visible=6, text=60, past=0, keep=1), id="window"),
    pytest.param(Forward(rows=1, chunks=2, visible=7, text=50, past=3), id="with-cache"),
]


def arguments(call: Forward, model: Any, side: int, device: str) -> dict[str, Any]:
    config, tokens = model.config, 6 * (side // 2) ** 2
    full = call.past + call.chunks
    # Spread the visible chunks over the window, as late as possible.
    left, ranges = call.visible, []
    for r in range(call.chunks):
        end = call.past + r + 1
        take = min(end, left - (call.chunks - r - 1))
        ranges.append((end - take, end))
        left -= take
    assert left == 0 and full >= call.chunks
    shape = (call.rows, config.in_channels, 6 * call.chunks, side, side)
    past = None
    if call.past:
        rows = (1, config.num_kv_heads, call.past * tokens, config.attention_head_dim)
        past = [(torch.zeros(rows, device=device, dtype=model.dtype),) * 2] * config.num_layers
    return {
        "hidden_states": torch.zeros(shape, device=device),
        "timestep": torch.zeros(call.rows, call.chunks, device=device),
        "encoder_hidden_states": torch.zeros(
            call.rows, call.chunks, call.text, config.cross_attention_dim, device=device
        ),
        "kv_range": ranges,
        "slice_point": call.past,
        "past_key_values": past,
        "keep_chunks": call.keep,
    }


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_operations_are_those_of_the_model(call: Forward, gated: bool) -> None:
    with torch.device("meta"):
        model = Magi1Transformer3DModel(**CONFIG, gated_linear_unit=gated)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**arguments(call, model, 8, "meta"))
    config = complete(Magi1Transformer3DModel, {**CONFIG, "gated_linear_unit": gated}, where="test")
    cost = TransformerCost(config, chunk_frames=6, latent_size=(8, 8), itemsize=4)
    # The patch and condition embedders run once per row; the rest is exact.
    assert cost.flops(call) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_operations_are_those_of_the_vae() -> None:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "z_dim": 4, "height": 32, "width": 32,
        "num_frames": 8, "ffn_dim": 64, "num_layers": 2, "use_final_proj": True,
    }  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKLMagi1(**config)
        latent = torch.zeros(1, 4, 3, 4, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(latent)
    cost = VaeCost(complete(AutoencoderKLMagi1, config, where="test"), itemsize=4)
    assert cost.flops((3, 4, 5)) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def peak_bytes(run: Callable[[], Any], folder: Path) -> int:
    """Measure what a function allocates on the CPU beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = [e["args"] for e in events if e.get("name") == "[memory]"]
    totals = [int(e["Total Allocated"]) for e in memory]
    return max(totals) - (totals[0] - int(memory[0]["Bytes"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("call", CALLS)
def test_intermediates_are_bounded(call: Forward, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Magi1Transformer3DModel(**CONFIG).to(dtype).eval()
    inputs = arguments(call, model, 16, "cpu")
    config = complete(Magi1Transformer3DModel, CONFIG, where="test")
    cost = TransformerCost(config, chunk_frames=6, latent_size=(16, 16), itemsize=dtype.itemsize)
    with torch.no_grad():
        measured = peak_bytes(lambda: model(**inputs), tmp_path)
    assert 0.8 < cost.activation_bytes(call) / measured < 1.5


@torch.no_grad()
def test_intermediates_of_the_vae_are_bounded(tmp_path: Path) -> None:
    config = {
        "num_attention_heads": 4, "attention_head_dim": 32, "z_dim": 8, "height": 64, "width": 64,
        "num_frames": 12, "ffn_dim": 512, "num_layers": 2, "use_final_proj": True,
    }  # fmt: skip
    vae = AutoencoderKLMagi1(**config).eval()
    latent = torch.zeros(1, 8, 3, 8, 8)
    measured = peak_bytes(lambda: vae.decode(latent), tmp_path)
    cost = VaeCost(complete(AutoencoderKLMagi1, config, where="test"), itemsize=4)
    assert 0.8 < cost.activation_bytes((3, 8, 8)) / measured < 1.3


class Recorder:
    """A velocity model that computes nothing and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Forward] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: Any,
                 **options: Any) -> Any:  # fmt: skip
        past = options["past_key_values"]
        self.calls.append(
            Forward(
                rows=x.shape[0], chunks=t.shape[1],
                visible=sum(end - start for start, end in options["kv_range"]),
                text=text.shape[2], past=0 if past is None else past[0][0].shape[2],
                keep=options["keep_chunks"],
            )
        )  # fmt: skip
        kept = torch.zeros(x.shape[0], 1, options["keep_chunks"], 1)  # a row per chunk
        key_values = ((kept, kept),) if options["keep_chunks"] else None
        return type("Output", (), {"sample": torch.zeros_like(x), "key_values": key_values})


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 8},
        {"num_steps": 8, "distilled": True},
        {"num_steps": 4, "window_size": 1},
        {"num_steps": 12, "distilled": True, "window_size": 2, "noise2clean_kvrange": ()},
        {"num_steps": 8, "clean_chunk_kvrange": 3},
    ],
)
@pytest.mark.parametrize("prefix", [0, 1, 14])
def test_the_plan_is_what_the_engine_does(settings: dict[str, Any], prefix: int) -> None:
    config = ChunkSampleConfig(chunk_width=2, **settings)
    text, null = torch.zeros(60, 8), torch.zeros(50, 8)
    task = ChunkTask(
        num_chunks=9, latent_shape=(1, 2, 2), condition=lambda _: text, null_caption=null,
        prefix=torch.zeros(1, 1, prefix, 2, 2) if prefix else None,
    )  # fmt: skip
    model = Recorder()
    most = 0

    def watch(call: Any, latent: torch.Tensor) -> None:
        nonlocal most
        most = max(most, engine._cached_chunks)

    engine = ChunkEngine(model, config, task=task, on_step=watch)
    assert len(list(engine.run())) == 9 - prefix // 2
    steps = list(plan_steps(config, num_chunks=9, num_prefix_chunks=prefix // 2, text=60))
    assert [call for step in steps for call in step.forwards] == model.calls
    assert max(step.cached for step in steps) >= most
    if not settings.get("distilled"):
        assert sum(step.passes for step in steps) < 3 * len(steps)


def test_memory_does_not_grow_with_length() -> None:
    short = estimate("4.5B_distill", num_frames=24 * 8, tflops=100.0)
    long = estimate("4.5B_distill", num_frames=24 * 200, tflops=100.0)
    assert long.resident_bytes == short.resident_bytes and long.kv_chunks == 2
    assert long.seconds > 15 * short.seconds


def test_an_estimate_of_a_checkpoint(make_official: Make, tmp_path: Path) -> None:
    source = resolve_model(make_official(distill=True))
    found = estimate(source, tflops=0.1)
    assert (found.height, found.width, found.num_frames, found.num_chunks) == (32, 48, 48, 2)
    assert found.num_passes == found.num_plain_passes == found.num_steps == 8 // 4 * (2 + 3)
    assert found.resident_bytes > found.in_turn_bytes > max(found.weights.values())
    ours = resolve_model(convert(source, tmp_path / "ours"))
    again = estimate(ours, tflops=0.1)
    assert dataclasses.replace(again, available=found.available) == found
    assert json.loads(json.dumps(found.to_dict()))["flops_per_step"] > 0
    assert source.official is not None
    assert estimate(source.official, tflops=0.1).weights == found.weights


def test_an_official_config_without_its_weights(make_official: Make) -> None:
    path = make_official()
    text = path.read_text().replace("./downloads/", "./not_there/")
    path.write_text(text)
    found = estimate(resolve_model(path), tflops=1.0)
    assert found.weights["vae"] > GB  # the released VAE stands in


def test_given_frames_and_settings() -> None:
    job = Job(height=64, width=64, num_frames=24 * 6, prefix_frames=48, num_steps=8)
    found = estimate_job("toybox", job, tflops=0.1)
    assert found.num_chunks == 6 and found.num_steps == 2 + 2 * (4 + 3)
    one = estimate_job("toybox", Job(num_frames=48, window_size=1), tflops=0.1)
    assert one.step_bytes < found.step_bytes
    with pytest.raises(ConfigError, match="more than the 48 given"):
        estimate_job("toybox", Job(num_frames=48, prefix_frames=48), tflops=0.1)
    with pytest.raises(ConfigError, match="width: expected a multiple of 16, got 100"):
        estimate("toybox", width=100, tflops=0.1)
    with pytest.raises(ConfigError, match="use 8"):
        estimate("toybox", num_steps=7, tflops=0.1)
    with pytest.raises(ConfigError, match="one of 4.5B_base"):
        estimate("4.5B", tflops=0.1)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(gigabytes: float | None, **options: Any) -> Estimate:
        free = None if gigabytes is None else int(gigabytes * GB)
        monkeypatch.setattr(estimate_module, "available_bytes", lambda device: free)
        return estimate("24B_base", tflops=100.0, **{"device": "mps", **options})

    found = of(None)
    check_fits(found)
    between = (found.in_turn_bytes + found.resident_bytes) / 2 / GB
    check_fits(of(found.resident_bytes / GB + 0.001))
    check_fits(of(between), turns="move")
    with pytest.raises(OutOfMemory, match=r"got \d+\.\d GB\. hint: move components in turn"):
        check_fits(of(between))
    with pytest.raises(OutOfMemory, match=r"of cpu: .*hint: make it smaller"):
        check_fits(of(between, device="cpu"), turns="block")  # which moves nothing there
    assert found.by_block_bytes < found.in_turn_bytes - found.weights["transformer"] / 2
    fewer = (found.by_block_bytes + found.in_turn_bytes) / 2 / GB
    tight = of(fewer)
    assert (tight.fits, tight.fits_with("move"), tight.fits_with("block")) == (False, False, True)
    assert of(fewer, device="cpu").fits_with("block") is None
    rows = "\n".join(describe(tight))
    assert "does not fit (--offload on a GPU)" in rows and ", fits (--low-memory on a GPU)" in rows
    check_fits(tight, turns="block")
    with pytest.raises(OutOfMemory, match=r"hint: move the transformer block by block \(--low-"):
        check_fits(of(fewer), turns="move")
    with pytest.raises(OutOfMemory, match="bfloat16.*--size 896x496.*--quantize int8"):
        check_fits(of(24.0, dtype=torch.float32), turns="move")


def test_the_machine() -> None:
    free = available_bytes("cpu")
    assert free is not None and 10**8 < free < 10**14
    speed = measure_tflops(torch.device("cpu"), torch.float32, width=256)
    assert 1e-4 < speed < 1e3
    assert measure_tflops(torch.device("cpu"), torch.float32, width=256) == speed
    found = estimate("toybox", dtype=torch.float32)
    assert found.given_tflops is None and found.tflops == speed and 0 < found.seconds < 3600
