"""`onereel generate` with a Magic 1-For-1 checkpoint."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode
from PIL import Image

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.runtime.convert import convert
from onereel.runtime.source import resolve_model

PROMPT = "a red disc"


@pytest.fixture
def magic(tiny_magic: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on the tiny checkpoint; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        given = any(str(word) in ("--model", "--like") for word in words)
        model = [] if given else ["--model", str(tiny_magic)]
        capsys.readouterr()
        code = main(["generate", *map(str, words), *model])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def save_picture(path: Path, seed: int = 1) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_text_to_video_by_a_picture(magic: Any, tiny_magic: Path) -> None:
    code, out, err = magic(PROMPT, "--seed", 7, "--keep-image", "first.png")
    assert (code, out) == (0, "onereel-7.mp4\n"), err
    assert decode(Path("onereel-7.mp4")).shape == (5, 16, 32, 3)
    lines = err.splitlines()
    assert lines[0].startswith("onereel ")
    assert "text to video: 5 frames, 32x16" in err and "1 segments of 1 steps" in err
    assert "first picture: tiny-magic at one frame" in err and "kept in first.png" in err
    record = read_metadata("onereel-7.mp4")
    assert record == json.loads(Path("onereel-7.mp4.json").read_text())
    assert record["complete"] and record["frames_written"] == 5 and record["mode"] == "t2v"
    assert record["picture"]["origin"].startswith("tiny-magic") and len(record["model_hash"]) == 64
    assert record["segments"] == [PROMPT] and record["sampling"]["fps"] == 24
    # Beginning with the kept picture gives the same video.
    assert magic(PROMPT, "--seed", 7, "--from-image", "first.png", "-o", "b.mp4")[0] == 0
    assert np.array_equal(decode(Path("b.mp4")), decode(Path("onereel-7.mp4")))
    assert read_metadata("b.mp4")["mode"] == "i2v"
    assert magic("--like", "onereel-7.mp4", "-o", "c.mp4")[0] == 0
    assert np.array_equal(decode(Path("c.mp4")), decode(Path("onereel-7.mp4")))
    words = record["command"]
    assert words.startswith("onereel generate 'a red disc'") and "--seed 7" in words


def test_long_videos_are_trimmed_and_follow_a_timeline(magic: Any, tmp_path: Path) -> None:
    Path("prompts.txt").write_text("0: a red disc\n0.2: a blue ring\n")
    picture = save_picture(tmp_path / "in.png")
    options = ("--image", picture, "--seed", 1, "--prompts", "prompts.txt", "--seconds", 0.5)
    made = {}
    for name in ("picture", "latent"):
        result = magic(*options, "--continuation", name, "--json", "-q", "-o", f"{name}.mp4")
        assert (result[0], result[2]) == (0, "")
        values = json.loads(result[1])
        assert values["num_frames"] == 12
        made[name] = decode(Path(f"{name}.mp4"))
        assert len(made[name]) == 12
        texts = values["record"]["segments"]
        # Segments begin at frames 0, 5 and 9: at 0.21 s the second prompt holds.
        assert texts == ["a red disc", "a blue ring", "a blue ring"]
    assert not np.array_equal(made["picture"], made["latent"])
    assert magic("--like", "latent.mp4", "-o", "again.mp4")[0] == 0
    assert np.array_equal(decode(Path("again.mp4")), made["latent"])
    save_picture(picture, seed=2)
    code, _, err = magic("--like", "latent.mp4", "-o", "again.mp4")
    assert code == 3 and "has changed since" in err


def test_a_minute_is_1440_frames(magic: Any) -> None:
    code, out, _ = magic(PROMPT, "--seconds", 60, "--plan", "--json")
    values = json.loads(out)
    assert code == 0 and values["num_frames"] == 1440
    assert values["num_segments"] == 360 and values["sampling"]["num_frames"] == 1441
    code, out, _ = magic(PROMPT, "--plan")
    assert code == 0 and "calls of the network" in out and not list(Path().iterdir())


def test_less_memory_makes_the_same_video(magic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.pipelines import magic_parts

    assert magic(PROMPT, "--seed", 3, "--num-frames", 9, "-o", "a.mp4")[0] == 0
    for way, apart in (("--low-memory", False), ("--offload", False), ("--low-memory", True)):
        # Blocks take turns as they do where the device has a memory of its own.
        monkeypatch.setattr(magic_parts, "has_own_memory", lambda device, apart=apart: apart)
        code, _, err = magic(PROMPT, "--seed", 3, "--num-frames", 9, way, "-o", "b.mp4")
        assert code == 0, err
        assert np.array_equal(decode(Path("a.mp4")), decode(Path("b.mp4")))
    assert magic(PROMPT, "--seed", 3, "--quantize", "int8", "-o", "c.mp4")[0] == 0


def test_ctrl_c_keeps_what_is_finished(magic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.pipelines import magic_run

    real = magic_run.stream_segments

    def spoiled(*args: Any, **options: Any) -> Any:
        for number, part in enumerate(real(*args, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(magic_run, "stream_segments", spoiled)
    code, _, err = magic(PROMPT, "--num-frames", 20, "-o", "a.mp4")
    assert code == 130 and "0.38 s (9 frames) are safe in a.mp4" in err
    assert len(decode(Path("a.mp4"))) == 9
    record = read_metadata("a.mp4")
    assert record["frames_written"] == 9 and not record["complete"]


def build_clip(folder: Path) -> Path:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    text = {"vocab_size": 300, "num_hidden_layers": 1, "max_position_embeddings": 77, **sizes}
    vision = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sides = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sides)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_folder_is_searched_for_the_picture(magic: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in (1, 2):
        save_picture(folder / f"{seed}.png", seed)
    clip = build_clip(tmp_path / "clip")
    options = ("--image-source", folder, "--seed", 1)
    code, _, err = magic(PROMPT, *options)
    assert code == 2 and "needs a CLIP model" in err and "--clip DIR" in err
    code, _, err = magic(PROMPT, *options, "--clip", clip, "-o", "a.mp4")
    assert code == 0 and "similarity" in err, err
    record = read_metadata("a.mp4")
    assert record["mode"] == "t2v" and "image_source" not in record["settings"]
    assert record["settings"]["image"].startswith(str(folder))
    assert magic("--like", "a.mp4", "-o", "b.mp4")[0] == 0
    assert np.array_equal(decode(Path("a.mp4")), decode(Path("b.mp4")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prev-scale", "1.5"), "--prev-scale of a Magic 1-For-1 checkpoint"),
        (("--policy", "fit"), "--policy of a Magic 1-For-1 checkpoint"),
        (("--no-hq",), "--hq of a Magic 1-For-1 checkpoint"),
        (("--video", "x.mp4"), "--video of a Magic 1-For-1 checkpoint"),
        (("--latents-only", "--num-frames", "9"), "--latents-only with --continuation picture"),
        (("--negative", "grey"), "--negative: expected guidance above 1"),
        (("--size", "40x16"), "width: expected a multiple of 16"),
        (("--continuation", "frames"), "continuation: expected picture or latent"),
        (("--image", "none.png"), "none.png does not exist"),
        (("--image", "a.png", "--from-image", "b.png"), "both name the first picture"),
        (("--image", "a.png", "--image-source", "self"), "--image and --image-source"),
        (("--image-source", "nowhere"), "nowhere is no folder"),
        (("--image-source", "."), "holds no picture"),
        (("--clip", "x"), "--clip"),
        (("--keep-image", "first.mp4"), "use first.png"),
        (("--offload", "--low-memory"), "--offload and --low-memory"),
        (("--steps", "0"), "steps: expected 1 to 1000"),
        (("--quantize", "int3"), "--quantize: expected one of"),
    ],
)
def test_what_cannot_be_is_refused(magic: Any, flags: tuple[str, ...], message: str) -> None:
    code, out, err = magic(PROMPT, *flags)
    assert code in (2, 3) and out == "" and message in err
    assert "hint:" in err or "expected" in err
    assert not list(Path().iterdir())


def test_magi_refuses_what_is_not_its_own(generate: Any) -> None:
    for flags in (("--image-source", "self"), ("--continuation", "latent")):
        code, _, err = generate(PROMPT, *flags)
        assert code == 2 and f"{flags[0]} of a MAGI-1 checkpoint" in err
    assert "of a MAGI-1 checkpoint" in generate(PROMPT, "--keep-image", "a.png")[2]
    assert "--interactive of a MAGI-1 checkpoint" in generate("--interactive")[2]


@pytest.mark.parametrize("level", [None, "int8"])
def test_a_transformer_of_the_other_family_is_refused(
    magic: Any, tiny_magic: Path, tiny_checkpoint: Path, tmp_path: Path, level: str | None
) -> None:
    copy = shutil.copytree(tiny_magic, tmp_path / "copy")
    shutil.rmtree(copy / "transformer")
    other = tiny_checkpoint
    if level is not None:
        other = tmp_path / "rounded"
        convert(resolve_model(tiny_checkpoint), other, level=level)
    shutil.copytree(other / "transformer", copy / "transformer")
    code, _, err = magic(PROMPT, "--model", copy, "-o", "a.mp4")
    assert code == 3 and "_class_name: expected HunyuanVideoTransformer3DModel" in err
    assert "hint: the parts belong to different checkpoints" in err


def test_damaged_checkpoints_are_found_before_loading(
    magic: Any, tiny_magic: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_magic, tmp_path / "copy")
    config = json.loads((copy / "transformer/config.json").read_text())
    config["num_layers"] = 2
    (copy / "transformer/config.json").write_text(json.dumps(config))
    code, _, err = magic(PROMPT, "--model", copy)
    assert code == 3 and "tensors do not fit the config" in err
    config |= {"num_layers": 1, "in_channels": 16}
    shutil.rmtree(copy / "vae")
    code, _, err = magic(PROMPT, "--model", copy)
    assert code == 3 and "vae: no such folder" in err


def test_pictures_are_needed_where_the_model_makes_none(
    magic: Any, tiny_magic: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_magic, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "Magic141ImageToVideoPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    code, _, err = magic(PROMPT, "--model", copy)
    assert code == 2 and "give --image FILE" in err
    picture = save_picture(tmp_path / "in.png")
    assert magic(PROMPT, "--model", copy, "--image", picture, "-o", "a.mp4")[0] == 0


def test_a_video_per_line(magic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.pipelines import magic_parts

    loaded = []
    real = magic_parts.load_part

    def watched(files: Any, part: str, **options: Any) -> Any:
        loaded.append(part)
        return real(files, part, **options)

    monkeypatch.setattr(magic_parts, "load_part", watched)
    picture = save_picture(tmp_path / "in.png")
    lines = f"a red disc\na blue ring | {picture}\na ring | gone.png\na green disc\n\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = magic("--interactive", "--seed", 5, "-o", "reel.mp4")
    assert code == 0
    assert out.splitlines() == ["reel-1.mp4", "reel-2.mp4", "reel-4.mp4"]
    assert "gone.png does not exist" in err and sorted(set(loaded)) == sorted(loaded)
    modes = [read_metadata(f"reel-{n}.mp4")["mode"] for n in (1, 2, 4)]
    assert modes == ["t2v", "i2v", "t2v"]
    code, _, err = magic(PROMPT, "--interactive")
    assert code == 2 and "the prompt and --interactive" in err


def test_pictures_of_all_modes(magic: Any, tmp_path: Path) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 800, dtype=np.uint16).reshape(20, 40))
    deep.save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(tmp_path / "clear.png")
    Image.new("P", (40, 20), 3).save(tmp_path / "few.gif")
    for name in ("deep.png", "clear.png", "few.gif"):
        assert magic(PROMPT, "--image", tmp_path / name, "-o", "a.mp4")[0] == 0
    (tmp_path / "torn.png").write_bytes((tmp_path / "deep.png").read_bytes()[:200])
    code, _, err = magic(PROMPT, "--image", tmp_path / "torn.png")
    assert code == 3 and "damaged" in err


def test_checkpoints_are_accounted_for(
    tiny_magic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "verify", str(tiny_magic), "--deep"]) == 0
    assert "all tensors accounted for" in capsys.readouterr().out
    assert main(["models", "info", str(tiny_magic), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["parts"]) == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    copy = shutil.copytree(tiny_magic, tmp_path / "copy")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert main(["models", "verify", str(copy)]) == 3
    assert "PROBLEM" in capsys.readouterr().out
    assert main(["plan", "--model", str(tiny_magic), "--device", "cpu", "--tflops", "1"]) == 0
    assert "\nin turn" in capsys.readouterr().out


def test_networks_go_before_the_next_comes(tiny_magic: Path) -> None:
    import weakref

    import torch

    from onereel.pipelines.magic_parts import MagicParts, Place
    from onereel.runtime.magic_source import magic_files
    from onereel.runtime.source import resolve_model

    place = Place(device=torch.device("cpu"), dtype=torch.float32, turns="reload")
    parts = MagicParts(magic_files(resolve_model(tiny_magic)), place)
    text, transformer, vae = parts.texts.text_encoder, parts.transformer, parts.vae
    llava = weakref.ref(text)
    del text
    assert transformer.config.out_channels == 16 and llava() is None
    network = weakref.ref(parts.bring("transformer"))
    vae.use_slicing = False
    assert network() is None and parts.bring("vae").use_slicing is False
