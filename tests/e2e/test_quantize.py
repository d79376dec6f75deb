"""Weights in few bits, from the command line: as they are loaded, and stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import decode
from safetensors.torch import save_file

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.runtime.estimate import Job, estimate_job
from onereel.runtime.layout import transformer_part
from onereel.runtime.load import load_part
from onereel.runtime.quantize import quantized_layers
from onereel.runtime.source import resolve_model

WORDS = ("a red disc", "--seconds", 1, "--seed", 5)
LEVELS = ("int8", "int4", "fp8")


def difference(name: str, whole: np.ndarray) -> float:
    return float(np.abs(decode(Path(name)).astype(int) - whole).mean())


def test_levels_change_pixels_little_and_are_recorded(generate: Any) -> None:
    assert generate(*WORDS, "-o", "whole.mp4")[0] == 0
    whole = decode(Path("whole.mp4"))
    errors = {}
    for level in LEVELS:
        assert generate(*WORDS, "-o", f"{level}.mp4", "--quantize", level)[0] == 0
        errors[level] = difference(f"{level}.mp4", whole)
        assert read_metadata(f"{level}.mp4")["settings"]["quantize"] == level
    assert 0 < errors["int8"] < errors["int4"] and errors["int8"] < errors["fp8"] < 40
    assert generate("--like", "int8.mp4", "-o", "again.mp4")[0] == 0
    assert np.array_equal(decode(Path("again.mp4")), decode(Path("int8.mp4")))


@pytest.mark.parametrize("level", LEVELS)
def test_a_stored_level_gives_the_same_video(
    generate: Any, tiny_checkpoint: Path, level: str
) -> None:
    assert main(["models", "convert", str(tiny_checkpoint), "small", "--quantize", level]) == 0
    assert main(["models", "verify", "small"]) == 0
    assert json.loads(Path("small/transformer/config.json").read_text())["quantization"] == level
    large, small = (
        sum(f.stat().st_size for f in (folder / "transformer").glob("*.safetensors"))
        for folder in (tiny_checkpoint, Path("small"))
    )
    assert small < large
    assert generate(*WORDS, "-o", "loaded.mp4", "--quantize", level)[0] == 0
    assert generate(*WORDS, "-o", "stored.mp4", "--quantize", level, "--model", "small")[0] == 0
    assert np.array_equal(decode(Path("loaded.mp4")), decode(Path("stored.mp4")))
    other = next(name for name in LEVELS if name != level)
    code, _, err = generate(*WORDS, "--quantize", other, "--model", "small")
    assert code == 2 and f"{level}, in which the weights are stored" in err
    assert main(["models", "convert", "small", "back", "--to", "official"]) == 2
    # Written again with another dtype, the rounded weights stay what they are.
    assert main(["models", "convert", "small", "again", "--dtype", "fp32"]) == 0
    states = [
        load_part(transformer_part(resolve_model(name)), dtype=torch.float32).state_dict()
        for name in ("small", "again")
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor.float(), states[1][name].float()), name


def test_adapters_load_onto_few_bits(generate: Any, tmp_path: Path) -> None:
    lora_file, key = tmp_path / "l.safetensors", "transformer.blocks.0.attn1.to_q"
    down, up = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)).unbind()
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up.T.contiguous()}, lora_file)
    words = (*WORDS, "--quantize", "int8")
    assert generate(*words, "-o", "plain.mp4")[0] == 0
    assert generate(*words, "-o", "lora.mp4", "--lora", lora_file)[0] == 0
    assert difference("lora.mp4", decode(Path("plain.mp4"))) > 0
    code, _, err = generate(*WORDS, "--quantize", "int8-dynamic", "--lora", lora_file)
    assert code in (2, 4) and "int8" in err


def test_inputs_are_rounded_with_torchao(generate: Any) -> None:
    pytest.importorskip("torchao")
    assert generate(*WORDS, "-o", "whole.mp4")[0] == 0
    assert generate(*WORDS, "-o", "a.mp4", "--quantize", "int8-dynamic")[0] == 0
    assert 0 < difference("a.mp4", decode(Path("whole.mp4"))) < 40


def test_bad_levels(generate: Any, tiny_checkpoint: Path) -> None:
    code, _, err = generate(*WORDS, "--quantize", "int9")
    assert code == 2 and "did you mean int8?" in err
    convert = ["models", "convert", str(tiny_checkpoint), "x", "--quantize"]
    assert main([*convert, "int8-dynamic"]) in (2, 4) and main([*convert, "no"]) == 2
    assert main([*convert, "int8", "--to", "official"]) == 2 and not Path("x").exists()
    assert main(["plan", "--model", "4.5B_base", "--quantize", "int3"]) == 2


def test_the_plan_counts_what_is_loaded(tiny_checkpoint: Path) -> None:
    source = resolve_model(str(tiny_checkpoint))
    for level in LEVELS:
        model = load_part(transformer_part(source), dtype=torch.bfloat16, level=level)
        assert isinstance(model, Magi1Transformer3DModel) and quantized_layers(model)
        loaded = sum(tensor.nbytes for tensor in model.state_dict().values())
        found = estimate_job(source, Job(), level=level, tflops=1.0)
        assert found.weights["transformer"] == loaded, level


def test_released_sizes_shrink_as_they_say() -> None:
    whole, int8, int4 = (
        estimate_job("24B_base", Job(), device="cpu", level=level, tflops=1.0).weights
        for level in (None, "int8", "int4")
    )
    assert int8["transformer"] < 0.52 * whole["transformer"]
    assert int4["transformer"] < 0.35 * whole["transformer"]
    assert int8["vae"] == whole["vae"]
