"""`onereel train lora` and `finetune` from a folder of files to videos that look different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode, write_counting_video
from PIL import Image

from onereel import Magi1Pipeline
from onereel.apps.cli.main import main

PROMPT = "a red disc bounces"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One video and one picture that can be used, and three files that cannot."""
    folder = tmp_path / "my clips"
    folder.mkdir()
    write_counting_video(folder / "good.mp4", 50)
    Image.new("RGB", (64, 32), (250, 250, 250)).save(folder / "wide.jpg")
    write_counting_video(folder / "short.mp4", 12)
    (folder / "broken.mp4").write_bytes(b"no video")
    Image.new("RGB", (32, 32)).save(folder / "mute.png")
    for name in ("good", "wide", "short", "broken"):
        (folder / f"{name}.txt").write_text("a red disc on white")
    return folder


@pytest.fixture
def train(tiny_checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a training command on the tiny checkpoint; returns exit code, stdout and stderr."""

    def run(kind: str, *words: object) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        given += [] if "--data" in given else ["--data", str(data)]
        given += [] if "--model" in given else ["--model", str(tiny_checkpoint)]
        capsys.readouterr()
        code = main(["train", kind, *given])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_lora_from_a_folder_changes_the_video(train: Any, generate: Any, tmp_path: Path) -> None:
    words = ("--steps", 6, "--lr", 0.05, "--rank", 4, "--alpha", 8, "--batch-size", 2, "--set",
             "image_batch_size=2")  # fmt: skip
    code, out, err = train("lora", *words, "--out", "run")
    assert code == 0
    lines = err.splitlines()
    assert lines[0].startswith("left out: broken.mp4: ")
    assert lines[1] == "left out: mute.png: no caption: expected mute.txt beside it"
    assert lines[2].startswith("left out: short.mp4: too short: expected 24 frames (1.00 s at 24")
    assert lines[3].startswith("note: wide.jpg: 64x32 is of another shape than 32x32: 50%")
    assert "1 videos and 1 pictures can be used, 3 left out" in lines[4]
    report = json.loads(Path("run/data-report.json").read_text())
    assert [entry["file"] for entry in report["skipped"]] == [
        "broken.mp4",
        "mute.png",
        "short.mp4",
    ]
    summary = json.loads(out)
    assert summary["reason"] == "steps" and summary["steps"] == 6
    weights = summary["export"]
    assert weights == "run/export/pytorch_lora_weights.safetensors"
    videos = {}
    for name, lora in (("plain", ()), ("full", (weights,)), ("none", (f"{weights}:0",))):
        flags = [word for path in lora for word in ("--lora", path)]
        assert generate(PROMPT, "--seed", 3, "-o", f"{name}.mp4", *flags)[0] == 0
        videos[name] = decode(tmp_path / f"{name}.mp4")
    assert np.array_equal(videos["none"], videos["plain"])
    assert np.abs(videos["full"].astype(int) - videos["plain"]).max() > 8
    code, _, err = train("lora", *words, "--out", "run")
    assert code == 2 and "hint: use --resume" in err
    code, out, err = train("lora", *words, "--out", "run", "--resume", "--steps", 7)
    assert code == 0 and json.loads(out)["steps"] == 7 and "encoded" not in err


def test_strength_zero_gives_the_bits_of_the_base(
    train: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import torch

    assert train("lora", "--steps", 3, "--lr", 0.05, "--out", "run")[0] == 0
    pipe = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)

    def latent() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        found: torch.Tensor = pipe(
            PROMPT, num_frames=24, generator=generator, output_type="latent"
        ).frames
        return found

    plain = latent()
    pipe.load_lora_weights("run/export", adapter_name="own")
    changed = latent()
    pipe.set_adapters("own", 0.0)
    assert torch.equal(latent(), plain)
    assert not torch.allclose(changed, plain, atol=1e-2)


def test_a_finetuned_folder_is_a_model(train: Any, generate: Any, tmp_path: Path) -> None:
    code, out, _ = train("finetune", "--steps", 4, "--lr", 0.01, "--out", "run")
    assert code == 0 and json.loads(out)["export"] == "run/export"
    for name, model in (("plain", ()), ("own", ("--model", "run/export"))):
        assert generate(PROMPT, "--seed", 3, "-o", f"{name}.mp4", *model)[0] == 0
    plain, own = (decode(tmp_path / f"{name}.mp4") for name in ("plain", "own"))
    assert np.abs(own.astype(int) - plain).max() > 8


def test_a_look_at_the_data_writes_nothing(train: Any, data: Path) -> None:
    code, out, err = train("lora", "--dry-run", "--size", "48x32", "--max-minutes", 3)
    assert code == 0 and "left out: broken.mp4" in err
    found = json.loads(out)
    assert found["data"]["videos"] == found["data"]["pictures"] == 1
    assert found["size"] == {"width": 48, "height": 32, "fps": 24, "policy": "crop"}
    assert found["networks"]["lora"]["parameters"] == found["networks"]["lora"]["trained"] > 1000
    assert (found["max_steps"], found["max_minutes"], found["schedule"]) == (None, 3.0, "time")
    assert [path.name for path in Path.cwd().iterdir()] == [data.name]


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (("--data", "nowhere"), 2, "data nowhere: expected a folder", "spelling"),
        (("--size", "50x32"), 2, "width: expected a multiple of 16, got 50", "48"),
        (("--size", "big"), 2, "--size: expected WxH", "1280x720"),
        (("--policy", "melt"), 2, "policy: expected crop, fit or pad", None),
        (("--model", "toybox-magie"), 2, "model 'toybox-magie'", "toybox-magi"),
        (("--set", "ranks=3"), 2, "unknown key 'ranks'", "rank"),
        (("--lr", "-1"), 2, "lr: expected more than 0, got -1.0", None),
        (("--device", "tpu"), 2, "device: expected auto, cpu, cuda or mps", None),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    train: Any, data: Path, words: tuple[str, ...], code: int, error: str, hint: str | None
) -> None:
    found, out, err = train("lora", *words)
    lines = err.splitlines()
    assert (found, out) == (code, "") and any(
        line.startswith("error: ") and error in line for line in lines
    )
    assert hint is None or (lines[-1].startswith("hint: ") and hint in lines[-1])
    assert [path.name for path in Path.cwd().iterdir()] == [data.name]


def test_data_of_which_nothing_can_be_used(train: Any, data: Path) -> None:
    for name in ("good.mp4", "wide.jpg"):
        (data / name).unlink()
    code, out, err = train("lora", "--out", "run")
    assert (code, out) == (2, "")
    *_, error, hint = err.splitlines()
    assert error.startswith(f"error: data {data}: expected at least one usable video or picture")
    assert hint == "hint: data-report.json in the run's folder lists them all"
    assert len(json.loads(Path("run/data-report.json").read_text())["skipped"]) == 3
