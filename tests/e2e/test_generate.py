"""`onereel generate` from arguments to files."""

from __future__ import annotations

import gc
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode, write_counting_video
from PIL import Image

import onereel
from onereel.apps.cli.main import main
from onereel.media import VideoWriter, probe, read_metadata, read_video, write_metadata

SOURCE = Path(onereel.__file__).parents[1]
PROMPT = "a red disc bounces"
ENV = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def save_picture(path: Path, size: tuple[int, int] = (32, 32)) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_text_to_video(generate: Any, tmp_path: Path) -> None:
    code, out, err = generate(PROMPT, "--seconds", 1.5, "--seed", 7)
    assert code == 0
    assert out == "onereel-7.mp4\n"
    assert decode(tmp_path / "onereel-7.mp4").shape == (36, 32, 32, 3)
    lines = err.splitlines()
    assert lines[0].startswith(f"onereel {onereel.__version__}")
    assert "seed 7" in err and "2 chunks of 4 steps" in err
    progress = next(line for line in lines if line.startswith("chunk "))
    assert "step 1/5" in progress and "s per s of video" in progress and "left" in progress
    assert lines[-1].startswith("done: 1.50 s of video")


def test_the_record_says_everything(generate: Any, tiny_checkpoint: Path) -> None:
    assert generate(PROMPT, "--seed", 7, "--steps", 8, "-o", "a.mp4")[0] == 0
    record = read_metadata("a.mp4")
    assert record == json.loads(Path("a.mp4.json").read_text())
    assert record["prompt"] == PROMPT and record["seed"] == 7 and record["complete"]
    assert (record["width"], record["height"], record["fps"]) == (32, 32, 24)
    assert record["num_frames"] == record["frames_written"] == 24
    assert record["sampling"]["num_steps"] == 8 and record["sampling"]["text_scales"][0] == 7.5
    assert record["model"] == tiny_checkpoint.name and len(record["model_hash"]) == 64
    assert set(record["versions"]) >= {"onereel", "torch", "diffusers"}
    words = shlex.split(record["command"])
    assert words[:3] == ["onereel", "generate", PROMPT]
    frames = decode(Path("a.mp4"))
    assert generate(*words[2:-2], "-o", "b.mp4")[0] == 0
    assert np.array_equal(decode(Path("b.mp4")), frames)


def test_a_seed_is_drawn_and_told(generate: Any) -> None:
    seeds = set()
    for _ in range(2):
        code, out, err = generate(PROMPT, "--num-frames", 4, "--plan", "--json")
        assert code == 0
        seeds.add(json.loads(out)["seed"])
    assert len(seeds) == 2


def test_json_and_quiet(generate: Any) -> None:
    code, out, err = generate(PROMPT, "--num-frames", 8, "--seed", 1, "--json", "--quiet")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["path"] == "onereel-1.mp4" and result["num_frames"] == 8
    assert result["record"]["model_hash"] and result["speed"] > 0


def test_image_to_video_starts_with_the_picture(generate: Any, tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "in.png", size=(50, 20))
    options = ("--image", picture, "--policy", "pad", "--seed", 1)
    assert generate(PROMPT, *options, "-o", "a.mp4")[0] == 0
    assert len(decode(tmp_path / "a.mp4")) == 24
    record = read_metadata("a.mp4")
    assert record["mode"] == "i2v" and record["settings"]["policy"] == "pad"
    assert record["inputs"]["image"]["name"] == "in.png"
    assert len(record["inputs"]["image"]["sha256"]) == 64


def test_video_to_video_goes_on_from_the_end(generate: Any, tmp_path: Path) -> None:
    write_counting_video(tmp_path / "in.mkv", 40)
    code, _, err = generate(PROMPT, "--video", "in.mkv", "--seconds", 1.25, "-o", "a.mp4")
    assert code == 0 and "30 frames after 24 given ones" in err
    frames = decode(tmp_path / "a.mp4").astype(float)
    assert len(frames) == 54
    given = read_video("in.mkv", height=32, width=32, num_frames=24, take="end")
    assert np.abs(frames[:24] - given).mean() < 3
    options = ("--video", "in.mkv", "--seconds", 1.25, "--no-keep-prefix", "--seed", 5)
    assert generate(PROMPT, *options, "-o", "b.mp4")[0] == 0
    assert len(decode(tmp_path / "b.mp4")) == 30
    assert generate(PROMPT, *options, "--prefix-from", "start", "-o", "c.mp4")[0] == 0
    assert not np.array_equal(decode(tmp_path / "b.mp4"), decode(tmp_path / "c.mp4"))


@pytest.mark.parametrize(("frames", "made"), [(24, 37), (96, 109)])
def test_official_lengths(generate: Any, tmp_path: Path, frames: int, made: int) -> None:
    write_counting_video(tmp_path / "in.mkv", 40)
    options = ("--video", "in.mkv", "--num-frames", frames, "--official-compat")
    assert generate(PROMPT, *options, "-o", "a.mp4")[0] == 0
    assert len(decode(tmp_path / "a.mp4")) == made
    assert read_metadata("a.mp4")["settings"]["prefix_frames"] == 32


def test_a_timeline(generate: Any, tmp_path: Path) -> None:
    Path("scenes.txt").write_text("0: a red disc\n1: a blue ring\n")
    options = ("--seconds", 2, "--seed", 3)
    assert generate("--prompts", "scenes.txt", *options, "-o", "a.mp4")[0] == 0
    assert generate("a red disc", *options, "-o", "b.mp4")[0] == 0
    first, second = decode(tmp_path / "a.mp4"), decode(tmp_path / "b.mp4")
    assert np.array_equal(first[:24], second[:24])
    assert not np.array_equal(first[24:], second[24:])
    assert read_metadata("a.mp4")["timeline"] == ["0: a red disc", "1: a blue ring"]
    Path("scenes.txt").unlink()
    assert generate("--like", "a.mp4", "-o", "c.mp4")[0] == 0
    assert np.array_equal(decode(tmp_path / "c.mp4"), first)


def test_like_repeats_and_flags_override(generate: Any, tmp_path: Path) -> None:
    write_counting_video(tmp_path / "in.mkv", 30)
    options = ("--video", "in.mkv", "--num-frames", 20, "--guidance", 3, "--negative", "a ring")
    assert generate(PROMPT, *options, "-o", "a.mp4")[0] == 0
    first = decode(tmp_path / "a.mp4")
    assert generate("--like", "a.mp4", "-o", "b.mp4")[0] == 0
    assert np.array_equal(decode(tmp_path / "b.mp4"), first)
    assert generate("--like", "a.mp4", "-o", "c.mp4", "--seconds", 1, "--seed", 99)[0] == 0
    changed = decode(tmp_path / "c.mp4")
    assert len(changed) == 48 and np.array_equal(changed[:24], first[:24])
    assert not np.array_equal(changed[24:44], first[24:])
    settings = read_metadata("c.mp4")["settings"]
    assert settings["seed"] == 99 and settings["guidance"] == 3 and settings["negative"] == "a ring"


def test_like_refuses_what_would_not_repeat(generate: Any, tmp_path: Path) -> None:
    save_picture(tmp_path / "in.png")
    assert generate(PROMPT, "--image", "in.png", "--num-frames", 4, "-o", "a.mp4")[0] == 0
    code, _, err = generate("--like", "a.mp4", "-o", "a.mp4")
    assert code == 2 and "set -o" in err
    save_picture(tmp_path / "in.png", size=(16, 16))
    code, _, err = generate("--like", "a.mp4", "-o", "b.mp4")
    assert code == 3 and "in.png has changed since a.mp4" in err and "--image" in err
    assert generate("--like", "a.mp4", "--image", "in.png", "-o", "b.mp4")[0] == 0
    Path("in.png").unlink()
    code, _, err = generate("--like", "a.mp4", "-o", "b.mp4")
    assert code == 3 and "is gone" in err and "put it beside a.mp4" in err
    code, _, err = generate("--like", "nothing.mp4")
    assert code == 3 and "does not exist" in err
    with VideoWriter("other.mp4", width=16, height=16, fps=24) as writer:
        writer.write(np.zeros((2, 16, 16, 3), np.uint8))
    code, _, err = generate("--like", "other.mp4")
    assert code == 3 and "only videos made by onereel do" in err
    save_picture(tmp_path / "in.png")
    record = read_metadata("a.mp4")
    write_metadata("other.mp4", {**record, "model_hash": "0" * 64})
    code, _, err = generate("--like", "other.mp4", "-o", "b.mp4")
    assert code == 3 and "have changed since" in err


def test_official_names(generate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "in.png")
    write_counting_video(tmp_path / "in.mp4", 30)
    config = ("--config_file", tiny_checkpoint, "--prompt", PROMPT)
    common = (*config, "--output_path", "a.mp4", "--num-frames", 4)
    assert generate(*common, "--mode", "t2v")[:2] == (0, "a.mp4\n")
    assert generate(*common, "--mode", "i2v", "--image_path", "in.png")[0] == 0
    assert read_metadata("a.mp4")["mode"] == "i2v"
    assert generate(*common, "--mode", "v2v", "--prefix_video_path", "in.mp4")[0] == 0
    assert read_metadata("a.mp4")["mode"] == "v2v"
    for words, message in (
        ((*common, "--mode", "i2v"), "--mode i2v: expected --image FILE"),
        ((*common, "--mode", "t2v", "--image", "in.png"), "--mode t2v: expected no --image"),
        ((*common, "--mode", "x2v"), "--mode: expected t2v, i2v, v2v, got x2v"),
        ((*common, "-o", "b.mp4"), "--output and --output_path: expected the same value"),
        ((*common, "another prompt"), "the prompt and --prompt: expected the same"),
        ((*common, "--model", "other"), "--model and --config_file: expected the same"),
    ):
        code, _, err = generate(*words)
        assert code == 2 and message in err


def test_a_lora_changes_the_video(generate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    key = "transformer.blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(4, 64, generator=generator)
    up = torch.randn(64, 4, generator=generator)
    save_file(
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path / "l.safetensors"
    )
    options = (PROMPT, "--num-frames", 8, "--seed", 2)
    videos = {}
    for name, words in (
        ("none", ()),
        ("full", ("--lora", "l.safetensors")),
        ("half", ("--lora", "l.safetensors:0.5")),
        ("zero", ("--lora", "l.safetensors:0")),
    ):
        assert generate(*options, *words, "-o", f"{name}.mp4")[0] == 0
        videos[name] = decode(tmp_path / f"{name}.mp4")
    assert np.array_equal(videos["zero"], videos["none"])
    assert not np.array_equal(videos["full"], videos["none"])
    assert not np.array_equal(videos["full"], videos["half"])
    assert read_metadata("half.mp4")["settings"]["loras"] == [["l.safetensors", 0.5]]


def test_distilled_weights(generate: Any, tiny_distilled: Path) -> None:
    options = (PROMPT, "--model", tiny_distilled, "--num-frames", 4)
    assert generate(*options)[0] == 0
    for words in (("--guidance", 5), ("--prev-scale", 2), ("--negative", "fog")):
        code, _, err = generate(*options, *words)
        assert code == 2 and "leave it out, for this checkpoint is distilled" in err
    code, _, err = generate(PROMPT, "--guidance", 1, "--negative", "fog")
    assert code == 2 and "single pass" in err


def test_the_plan_runs_nothing(generate: Any, tmp_path: Path) -> None:
    options = (PROMPT, "--seconds", 10, "--seed", 4)
    code, out, _ = generate(*options, "--plan")
    assert code == 0 and "10 chunks" in out and "memory about" in out and "time about" in out
    values = json.loads(generate(*options, "--plan", "--json")[1])
    assert values["num_chunks"] == 10 and values["num_steps"] == 13
    assert values["estimate"]["num_calls"] > 0
    assert list(tmp_path.iterdir()) == []


def test_standard_output(
    tmp_path: Path, tiny_checkpoint: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["generate", PROMPT, "--model", str(tiny_checkpoint), "--num-frames", "8", "-o", "-"]
    assert main(words) == 0
    out, err = capsysbinary.readouterr()
    (tmp_path / "piped.mp4").write_bytes(out)
    assert len(decode(tmp_path / "piped.mp4")) == 8
    assert b"done: 0.33 s" in err
    assert main([*words, "--json"]) == 2
    assert b"both write to standard output" in capsysbinary.readouterr().err


def test_less_memory_changes_nothing(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onereel.pipelines import run

    save_picture(tmp_path / "in.png")
    options = (PROMPT, "--image", "in.png", "--seed", 6, "--seconds", 2)
    assert generate(*options, "-o", "a.mp4")[0] == 0
    for way, apart in (("--offload", False), ("--low-memory", False), ("--low-memory", True)):
        # Blocks take turns as they do where the device has a memory of its own.
        monkeypatch.setattr(run, "has_own_memory", lambda device, apart=apart: apart)
        code, _, err = generate(*options, way, "-o", "b.mp4")
        assert code == 0, err
        assert np.array_equal(decode(tmp_path / "a.mp4"), decode(tmp_path / "b.mp4"))


def test_the_text_encoder_is_gone_before_the_transformer_comes(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onereel.pipelines import run

    seen: list[Any] = []
    load_text, load_networks = run.load_text, run.load_networks

    def watched_text(*args: Any, **options: Any) -> Any:
        tokenizer, encoder = load_text(*args, **options)
        seen.append(weakref.ref(encoder))
        return tokenizer, encoder

    def watched_networks(*args: Any, **options: Any) -> Any:
        gc.collect()
        seen.append(seen[0]())
        return load_networks(*args, **options)

    monkeypatch.setattr(run, "load_text", watched_text)
    monkeypatch.setattr(run, "load_networks", watched_networks)
    assert generate(PROMPT, "--num-frames", 8, "-o", "a.mp4")[0] == 0
    assert len(seen) == 2 and seen[1] is None


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_of_talk(generate: Any) -> None:
    Path("scenes.txt").write_text("0: a red disc\n5: a blue ring\n")
    code, _, err = generate("--prompts", "scenes.txt", "--seconds", 2, "--plan")
    assert code == 0 and "warning: timeline: the prompts from 5 s are never shown" in err


def _signal_after_chunks(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, chunks: int
) -> None:
    """Send this process a signal once so many chunks are written."""
    write, written = VideoWriter.write, []

    def write_then_signal(self: VideoWriter, frames: Any) -> None:
        write(self, frames)
        written.append(len(frames))
        if len(written) == chunks:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(VideoWriter, "write", write_then_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_is_finished(
    generate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    _signal_after_chunks(monkeypatch, number, 2)
    code, out, err = generate(PROMPT, "--seconds", 5, "-o", "a.mp4")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: 2.00 s (48 frames) are safe in a.mp4"
    assert len(decode(tmp_path / "a.mp4")) == 48
    assert probe("a.mp4").num_frames == 48  # an ordinary file with an index
    record = read_metadata("a.mp4")
    assert record["complete"] is False and record["frames_written"] == 48
    assert signal.getsignal(number) == before


def test_a_signal_before_the_first_chunk(
    generate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from onereel.samplers.engine import ChunkEngine

    def interrupt(self: Any, call: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ChunkEngine, "_step", interrupt)
    code, _, err = generate(PROMPT, "-o", "a.mp4")
    assert code == 130 and "no chunk was finished, so nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def _start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onereel", "generate", *words]
    return subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_chunks(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until the file has grown a few times, and so holds some chunks."""
    deadline, sizes = time.monotonic() + 100, set()
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file():
            sizes.add(path.stat().st_size)
        if len(sizes - {0}) >= 4:
            return
        time.sleep(0.01)
    raise AssertionError(f"no chunk was written: {process.communicate()}")


def test_ctrl_c_and_a_hard_kill_leave_files_that_play(tiny_checkpoint: Path) -> None:
    common = [PROMPT, "--model", str(tiny_checkpoint), "--seconds", "3600"]
    with _start([*common, "-o", "soft.mp4"]) as soft, _start([*common, "-o", "hard.mp4"]) as hard:
        _wait_for_chunks(hard, Path("hard.mp4"))
        hard.kill()
        _wait_for_chunks(soft, Path("soft.mp4"))
        soft.send_signal(signal.SIGINT)
        out, err = soft.communicate(timeout=60)
    assert soft.returncode == 130 and out == ""
    assert "are safe in soft.mp4" in err.splitlines()[-1]
    for name in ("soft.mp4", "hard.mp4"):
        frames = len(decode(Path(name)))
        assert frames >= 48 and frames % 24 == 0
        assert read_metadata(name)["prompt"] == PROMPT


def test_the_first_line_comes_at_once() -> None:
    """Before torch is imported; the command then fails on a size, which needs no model."""
    start = time.perf_counter()
    with _start([PROMPT, "--size", "33x32"]) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        seconds = time.perf_counter() - start
        rest = process.stderr.read()
    assert first.startswith("onereel") and seconds < 1
    assert process.returncode == 2 and "use 32 or 48" in rest


def test_a_full_disk_leaves_a_file_that_plays(generate: Any, tmp_path: Path) -> None:
    options = (PROMPT, "--seconds", 4, "--seed", 1)
    assert generate(*options, "-o", "whole.mp4")[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = int((tmp_path / "whole.mp4").stat().st_size * 0.7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, _, err = generate(*options, "-o", "a.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and "disk full while writing a.mp4" in err and "are safe" in err
    frames = decode(tmp_path / "a.mp4")
    assert 0 < len(frames) < 96
    assert np.array_equal(frames, decode(tmp_path / "whole.mp4")[: len(frames)])
