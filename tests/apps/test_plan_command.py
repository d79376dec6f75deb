from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onereel.apps.cli.main import main
from onereel.apps.cli.plan import frames_of, parse_size, size_text, time_text
from onereel.apps.cli.plan_magic import describe as describe_magic
from onereel.core.errors import ConfigError
from onereel.runtime import estimate as estimate_module
from onereel.runtime.magic_estimate import estimate_magic
from onereel.runtime.magic_shapes import released_shapes

Captured = pytest.CaptureFixture[str]


def test_a_table(tiny_checkpoint: Path, capsys: Captured) -> None:
    assert main(["plan", "--model", str(tiny_checkpoint), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for row in ("transformer", "key/value cache", "guidance passes", "moved in turn", "time"):
        assert f"\n{row}" in out
    assert out.startswith("video") and "32x32, 24 frames, 1 chunks of 24 tokens" in out


def test_settings(tiny_checkpoint: Path, capsys: Captured) -> None:
    arguments = ["plan", "--model", str(tiny_checkpoint), "--device", "cpu", "--tflops", "0.5",
                 "--size", "64x48", "--seconds", "5", "--steps", "8", "--json"]  # fmt: skip
    assert main(arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["width"], data["height"], data["num_frames"]) == (64, 48, 120)
    assert data["num_chunks"] == 5 and data["num_steps"] == 2 * (5 + 3)
    assert data["num_passes"] < data["num_plain_passes"] == 3 * data["num_steps"]
    assert data["tflops"] == 0.5 and data["fits"] is True


def test_a_released_model_that_is_not_here(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "available_bytes", lambda device: 16 * 10**9)
    arguments = ["plan", "--model", "4.5B_distill_quant", "--device", "cpu", "--tflops", "100"]
    assert main(arguments) == 4
    out, err = capsys.readouterr()
    assert "does not fit" in out and "720x720" in out  # the table comes first
    assert "error: memory of cpu" in err and "hint: " in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "64"], "WIDTHxHEIGHT"),
        (["--size", "100x64"], "use 96"),
        (["--seconds", "1", "--num-frames", "24"], "one of them"),
        (["--seconds", "-1"], "more than 0"),
        (["--seconds", "nan"], "more than 0"),
        (["--steps", "7"], "use 8"),
        (["--dtype", "int3"], "one of float32"),
        (["--model", "4.5B_bas"], "model '4.5B_bas'"),
    ],
)
def test_usage_errors(
    tiny_checkpoint: Path, capsys: Captured, arguments: list[str], text: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(tiny_checkpoint)]
    assert main(["plan", "--device", "cpu", *model, *arguments]) == 2
    assert text in capsys.readouterr().err


def test_texts() -> None:
    assert parse_size(" 1280X720 ") == (720, 1280)
    assert frames_of(0.01, fps=24) == 1 and frames_of(2.5, fps=24) == 60
    assert [size_text(n) for n in (5, 5e3, 1.69e9)] == ["5 bytes", "5 kB", "1.69 GB"]
    assert [time_text(s) for s in (7.53, 600, 36000)] == ["7.5 s", "10 min", "10 h"]
    with pytest.raises(ConfigError):
        parse_size("720p")


def test_the_released_magic_model_needs_half_in_int8(capsys: Captured) -> None:
    """The report's 32 GB and 16 GB (arXiv 2502.07701), at 960x544 with networks in turn."""
    needed = {}
    for level in (None, "int8", "int4"):
        more = [] if level is None else ["--quantize", level]
        arguments = ["plan", "--model", "magic141", "--size", "960x544", "--num-frames", "81"]
        main([*arguments, "--steps", "4", "--tflops", "400", "--device", "cpu", "--json", *more])
        found = json.loads(capsys.readouterr().out)
        needed[level] = found["in_turn_bytes"] / 1e9
        assert found["num_calls"] == 4 and found["num_segments"] == 1
    assert needed[None] == pytest.approx(30, abs=2)
    assert needed["int8"] == pytest.approx(16, abs=1)
    assert needed["int4"] < 12


def test_the_released_magic_model_has_the_public_sizes() -> None:
    sizes = released_shapes().sizes
    billions = {part: (size.matrices + size.rest) / 1e9 for part, size in sizes.items()}
    assert billions["text_encoder"] == pytest.approx(8.36, abs=0.01)
    assert billions["text_encoder_2"] == pytest.approx(0.123, abs=0.001)
    assert billions["transformer"] == pytest.approx(12.81, abs=0.01)
    assert billions["vae"] == pytest.approx(0.246, abs=0.001)


def test_a_table_of_a_magic_checkpoint(capsys: Captured) -> None:
    arguments = ["plan", "--model", "toybox-magic", "--device", "cpu", "--tflops", "0.2"]
    assert main([*arguments, "--seconds", "60", "--dtype", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "64x64, 1440 frames, 17 segments" in out and "in turn" in out and "about " in out


def test_what_helps_on_a_gpu_and_on_a_cpu() -> None:
    place = (torch.device("cpu"), torch.bfloat16, None)
    found = estimate_magic(
        released_shapes(), size=(544, 960), segments=[21], calls_per_segment=4, place=place
    )
    assert found.by_block_bytes < found.in_turn_bytes < found.resident_bytes
    between = (found.by_block_bytes + found.in_turn_bytes) // 2
    video: Any = SimpleNamespace(
        width=960, height=544, num_frames=81, config=SimpleNamespace(segments=lambda: [21])
    )

    def rows(device: str) -> str:
        seen = dataclasses.replace(found, device=device, available=between)
        return "\n".join(describe_magic(seen, video=video, seconds=1.0))

    assert "does not fit (--offload)" in rows("cuda")
    assert ", fits (--low-memory on a GPU)" in rows("cuda")
    assert "does not fit (--low-memory)" in rows("cpu")
    assert "GB (--low-memory on a GPU)" in rows("cpu")


def test_what_a_magic_checkpoint_does_not_have(capsys: Captured) -> None:
    assert main(["plan", "--model", "magic141", "--window", "2"]) == 2
    assert "--window of a Magic 1-For-1 checkpoint" in capsys.readouterr().err
