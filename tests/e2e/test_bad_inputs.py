"""Whatever is wrong is said before a model is loaded, with its mending; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_counting_video, write_sound
from PIL import Image

PROMPT = "a red disc bounces"


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.pipelines import run

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load_text", refuse)


@pytest.mark.parametrize(
    ("words", "code", "what", "mending"),
    [
        ([], 2, "prompt: expected a text, got none", "onereel generate 'a red disc bounces'"),
        ([""], 2, "prompt: expected a text, got ''", "say what the video shows"),
        ([" \n"], 2, "prompt: expected a text", "say what the video shows"),
        (["word " * 10_000], 2, "got 10000 words", "shorten it, or give scenes their own times"),
        ([PROMPT, "--negative", ""], 2, "negative: expected a text", "leave --negative out"),
        ([PROMPT, "--size", "33x32"], 2, "size: width: expected a multiple", "use 32 or 48"),
        ([PROMPT, "--size", "32x40"], 2, "size: height: expected a multiple", "use 32 or 48"),
        ([PROMPT, "--size", "0x0"], 2, "at least 16, got 0", "use 16"),
        ([PROMPT, "--size", "16384x32"], 2, "at most 8192, got 16384", "use 1280x720"),
        ([PROMPT, "--size", "32"], 2, "--size: expected WxH, got 32", "write it as 1280x720"),
        ([PROMPT, "--size=-32x32"], 2, "--size: expected WxH, got -32x32", "1280x720"),
        ([PROMPT, "--seconds", "-1"], 2, "seconds: expected more than 0", "use 4"),
        ([PROMPT, "--seconds", "0"], 2, "seconds: expected more than 0", "use 4"),
        ([PROMPT, "--seconds", "nan"], 2, "seconds: expected more than 0", "use 4"),
        ([PROMPT, "--seconds", "inf"], 2, "at most 24 hours", "use 4"),
        ([PROMPT, "--seconds", "90000"], 2, "at most 24 hours, got 90000", "use 4"),
        ([PROMPT, "--seconds", "0.01"], 2, "at least one frame at 24 fps", "use 0.042 or more"),
        ([PROMPT, "--num-frames", "0"], 2, "num_frames: expected at least 1", "use 96"),
        ([PROMPT, "--num-frames", "9999999"], 2, "at most 24 hours", "use 96"),
        ([PROMPT, "--seconds", "1", "--num-frames", "24"], 2, "--seconds and --num-frames", "both"),
        ([PROMPT, "--fps", "0"], 2, "fps: expected 1 to 240", "use 24"),
        ([PROMPT, "--fps", "6", "--official-compat"], 2, "tiles are half a second", "use 24"),
        ([PROMPT, "--steps", "6"], 2, "steps: expected a multiple of 4", "use 4 or 8"),
        ([PROMPT, "--steps", "0"], 2, "steps: expected 1 to 1000", "use 64"),
        ([PROMPT, "--seed", "-1"], 2, "seed: expected 0 to", "use 1234"),
        ([PROMPT, "--guidance", "nan"], 2, "--guidance: expected 0 to 100", "use 7.5"),
        ([PROMPT, "--device", "gpu"], 2, "device: expected auto, cpu, cuda or mps", ""),
        ([PROMPT, "--dtype", "fp12"], 2, "dtype: expected one of float32", ""),
        ([PROMPT, "--policy", "zoom"], 2, "policy: expected fit or crop or pad, got zoom", ""),
        ([PROMPT, "--style", "oil"], 2, "style: expected 3d or anime, got oil", ""),
        ([PROMPT, "--hq"], 2, "expected a checkpoint with special tokens", "--special-tokens FILE"),
        ([PROMPT, "--special-tokens", "t.npz"], 3, "special tokens t.npz", "special_tokens.npz of"),
        ([PROMPT, "--prefix-frames", "8"], 2, "--prefix-frames", "it needs --video FILE"),
        ([PROMPT, "--prompts", "t.txt"], 2, "timeline t.txt", ""),
        ([PROMPT, "--lora", "l.safetensors:0.5"], 3, "lora l.safetensors: no such file", "give a"),
        ([PROMPT, "--guidence", "5"], 2, "--guidence", "--guidance"),
        ([PROMPT, "--model", "toybox-magic1"], 2, "model 'toybox-magic1'", "onereel models list"),
        ([PROMPT, "--model", "c.json"], 3, "c.json: no such file", "check"),
        ([PROMPT, "-o", "a.avi"], 2, "output a.avi: expected a name ending in .mp4", ""),
        ([PROMPT, "-o", "a.mp"], 2, "output a.mp", "did you mean a.mp4?"),
        ([PROMPT, "--image", "no.png"], 3, "image no.png does not exist", "check the path"),
        ([PROMPT, "--video", "no.mp4"], 3, "video no.mp4 does not exist", "check the path"),
        ([PROMPT, "--image", "a", "--video", "b"], 2, "--image and --video", "continues"),
    ],
)
def test_bad_arguments(
    generate: Any, tmp_path: Path, words: list[str], code: int, what: str, mending: str
) -> None:
    found, out, err = generate(*words)
    assert (found, out) == (code, "")
    assert what in err and mending in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_model_name_is_suggested(
    generate: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onereel.runtime import source

    monkeypatch.setattr(source, "shipped_models", lambda: {"toybox-magi": tiny_checkpoint})
    code, _, err = generate(PROMPT, "--model", "toybox-mag")
    assert code == 2 and "did you mean 'toybox-magi'?" in err


def _broken(kind: str, path: Path) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no picture\n" * 50)
    elif kind == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:4000])
    elif kind == "huge":
        Image.new("1", (12_000, 9_000)).save(path)
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "what", "mending"),
    [
        ("empty", "is empty (0 bytes)", "copy or download it again"),
        ("text", "is not an image that can be read", "convert it to PNG or JPEG"),
        ("cut", "is damaged", "convert it to PNG or JPEG"),
        ("huge", "is too large: expected at most 80 megapixels", "scale it down first"),
        ("folder", "is a folder", "name a file inside it"),
    ],
)
def test_bad_pictures(generate: Any, tmp_path: Path, kind: str, what: str, mending: str) -> None:
    _broken(kind, tmp_path / "in.png")
    code, _, err = generate(PROMPT, "--image", "in.png")
    assert code == 3 and what in err and mending in err


@pytest.mark.parametrize(
    ("frames", "mending"),
    [
        (10, "or continue fewer frames with --prefix-frames 8"),
        (2, "or give one picture with --image"),
    ],
)
def test_a_video_shorter_than_a_chunk(
    generate: Any, tmp_path: Path, frames: int, mending: str
) -> None:
    write_counting_video(tmp_path / "in.mkv", frames)
    code, _, err = generate(PROMPT, "--video", "in.mkv")
    assert code == 3
    assert f"expected 24 frames (1.00 s at 24 fps), got {frames} frames" in err
    assert "give a longer video" in err and mending in err
    code, _, err = generate(PROMPT, "--video", "in.mkv", "--prefix-frames", 3)
    assert code == 2 and "--prefix-frames: expected at least 4" in err


def test_bad_videos(generate: Any, tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4")
    code, _, err = generate(PROMPT, "--video", "sound.mp4")
    assert code == 3 and "holds no video" in err and "give a file with a video stream" in err
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    code, _, err = generate(PROMPT, "--video", "text.mp4")
    assert code == 3 and "is not a video that can be read" in err and "H.264" in err
    write_counting_video(tmp_path / "in.mp4", 30)
    code, _, err = generate(PROMPT, "--video", "in.mp4", "-o", "in.mp4")
    assert code == 2 and "it is the input; choose another name with -o" in err


def test_unwritable_outputs(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.mp4").mkdir()
    code, _, err = generate(PROMPT, "-o", "folder.mp4")
    assert code == 3 and "is a folder" in err and "name a file inside it" in err
    (tmp_path / "file").touch()
    code, _, err = generate(PROMPT, "-o", "file/a.mp4")
    assert code == 3 and "cannot write to" in err and "choose another place" in err
    code, _, err = generate(PROMPT, "-o", "/proc/a.mp4")
    assert code == 3 and "cannot write to" in err and "choose another place" in err
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    code, _, err = generate(PROMPT, "-o", "a.mp4")
    assert code == 4 and "is too full" in err and "free some space" in err


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def _edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def _edit_tensors(path: Path, *, drop: bool) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(iter(tensors))
    if drop:
        del tensors[name]
    else:
        tensors["another.weight"] = tensors[name].clone()
    save_file(tensors, path)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_damaged_weights(generate: Any, copy: Path, component: str) -> None:
    file = next((copy / component).glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 3 and file.name in err and "truncated" in err and "download it again" in err
    for drop, word in ((True, "missing"), (False, "unexpected")):
        file.write_bytes(whole)
        _edit_tensors(file, drop=drop)
        code, _, err = generate(PROMPT, "--model", copy)
        assert code == 3 and word in err
    file.unlink()
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 3 and component in err


def test_a_missing_shard(generate: Any, copy: Path) -> None:
    from onereel import Magi1Transformer3DModel

    folder = copy / "transformer"
    model = Magi1Transformer3DModel.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 3 and f"{shards[1].name}: shard is missing" in err and "download" in err


def test_a_wrong_config(generate: Any, copy: Path) -> None:
    _edit(copy / "transformer" / "config.json", num_layer=3)
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 2 and "unknown key 'num_layer'" in err and "did you mean 'num_layers'?" in err
    _edit(copy / "transformer" / "config.json", num_layer=None)
    _edit(copy / "model_index.json", sampling={"num_stepz": 4})
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 2 and "did you mean 'num_steps'?" in err
    _edit(copy / "model_index.json", sampling={"distilled": True})
    code, _, err = generate(PROMPT, "--model", copy)
    assert code == 2 and "sampling.distilled: expected False for base weights" in err


def test_an_official_config_with_a_typo(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"model_confg": {}}))
    code, _, err = generate(PROMPT, "--config_file", "c.json")
    assert code == 2 and "did you mean 'model_config'?" in err
    (tmp_path / "c.json").write_text("{")
    code, _, err = generate(PROMPT, "--config_file", "c.json")
    assert code == 3 and "not a JSON file" in err


def test_files_that_are_no_lora(generate: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = next((tiny_checkpoint / "transformer").glob("*.safetensors"))
    code, _, err = generate(PROMPT, "--lora", weights)
    assert code == 3 and "expected tensors with 'lora' in their names" in err
    (tmp_path / "l.safetensors").write_bytes(os.urandom(200))
    code, _, err = generate(PROMPT, "--lora", "l.safetensors")
    assert code == 3 and "safetensors" in err


def test_too_little_memory(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.runtime import estimate

    monkeypatch.setattr(estimate, "available_bytes", lambda device: 1000)
    code, _, err = generate(PROMPT, "--size", "512x512")
    assert code == 4 and "memory of cpu" in err and "--size" in err
