from __future__ import annotations

import json
from pathlib import Path

import pytest

from onereel.apps.cli.main import main
from onereel.apps.cli.plan import frames_of, parse_size, size_text, time_text
from onereel.core.errors import ConfigError
from onereel.runtime import estimate as estimate_module

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
