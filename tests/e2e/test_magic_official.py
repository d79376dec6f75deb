"""`onereel magic141`: official flags and YAML."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode
from PIL import Image

from onereel.apps.cli.main import main
from onereel.core.errors import ConfigError
from onereel.media import read_metadata
from onereel.pipelines.magic_yaml import read_official_yaml

YAML = """
seed: 39
is_inference: true
exp_name: demo
resume_ckpt: /nobody/dmd_4_step_i2v.pth
model:
  module_name: model_dit.models
  base_model_path: {model}
  dtype: torch.float32
  vae_model_path: /nobody/vae
noise_scheduler: flow
scheduler: {{flow_shift: 5.0, flow_reverse: true, flow_solver: euler, logit_mean: 0.0}}
test_data:
  image_paths_and_scales:
    - [in.png, 2, 1.2, "a red disc"]
    - [in.png, 3, 1.2, "a blue ring"]
inference:
  inversion: false
  output_dir: made
  num_inference_steps: 1
  guidance_scale: 1.0
  repeat_times: 1
  colour: red
"""


@pytest.fixture
def config(tiny_magic: Path, tmp_path: Path) -> Path:
    path = tmp_path / "4_step.yaml"
    path.write_text(YAML.format(model=tiny_magic))
    pixels = np.random.default_rng(1).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return path


def change(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return config


def test_a_config_makes_its_videos(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["magic141", "-c", str(config), "--quantization", "False"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["made/in_repeat-0.mp4", "made/in-2_repeat-0.mp4"]
    assert err.count("not needed here: is_inference, exp_name") == 1
    assert err.count("unknown key 'inference.colour'") == 1
    assert err.count("resume_ckpt: /nobody/dmd_4_step_i2v.pth is not there; ") == 1
    lengths = [len(decode(Path(name))) for name in out.splitlines()]
    assert lengths == [5, 9]
    record = read_metadata("made/in_repeat-0.mp4")
    assert record["seed"] == 39 and record["prompt"] == "a red disc" and record["mode"] == "i2v"
    assert "quantize" not in record["settings"]
    # A second time nothing is overwritten; true means true.
    words = ["-q", "true", "-l", "int4", "-m", "yes"]
    assert main(["magic141", "-c", str(config), *words]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "made/in_repeat-0-2.mp4"
    settings = read_metadata(out.splitlines()[0])["settings"]
    assert settings["quantize"] == "int4" and settings["low_memory"] is True


@pytest.mark.parametrize("words", [["--cli"], ["--cli", "True"]])
def test_it_asks_until_exit(
    config: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a red disc | in.png\nexit\nnever\n"))
    assert main(["magic141", *words, "-c", str(config)]) == 0
    assert capsys.readouterr().out == "made/cli-1.mp4\n"
    assert not Path("made/in_repeat-0.mp4").exists()


def test_repetitions_count_on(config: Path) -> None:
    change(config, "repeat_times: 1", "repeat_times: 2")
    jobs = list(read_official_yaml(config).jobs())
    assert [wishes.seed for wishes, _ in jobs] == [39, 40, 39, 40]
    assert [name for _, name in jobs][1:3] == ["in_repeat-1", "in-2_repeat-0"]


def test_parts_in_places_of_their_own(config: Path, tiny_magic: Path) -> None:
    change(config, f"base_model_path: {tiny_magic}", "base_model_path: /nobody/base")
    with pytest.raises(ConfigError, match="resume_ckpt: expected a path that exists"):
        read_official_yaml(config)
    change(config, "/nobody/dmd_4_step_i2v.pth", str(tiny_magic / "transformer"))
    places = f"{tiny_magic}/vae\n  text_encoder_vlm_path: {tiny_magic}/text_encoder"
    change(config, "/nobody/vae", f"{places}\n  text_encoder2_path: {tiny_magic}/text_encoder_2")
    files = read_official_yaml(config).files
    assert files.places["transformer"] == tiny_magic / "transformer"
    assert files.places["tokenizer"] == tiny_magic / "text_encoder" and not files.makes_pictures


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("trapped").touch, ())


def test_nothing_is_run(config: Path, tiny_magic: Path) -> None:
    trap = Path("trap.pth")
    trap.write_bytes(pickle.dumps(Trap()))
    change(config, str(tiny_magic), "/nobody/base")
    change(config, "/nobody/dmd_4_step_i2v.pth", str(trap))
    places = f"{tiny_magic}/vae\n  text_encoder_vlm_path: {tiny_magic}/text_encoder"
    change(config, "/nobody/vae", f"{places}\n  text_encoder2_path: {tiny_magic}/text_encoder_2")
    assert main(["magic141", "-c", str(config)]) in (2, 3)
    change(config, "/nobody/base", str(tiny_magic))  # which has a transformer of its own
    assert main(["magic141", "-c", str(config)]) in (2, 3)
    config.write_text("seed: !!python/object/apply:pathlib.Path.touch [trapped]\n")
    assert main(["magic141", "-c", str(config)]) == 2
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flow_solver: euler", "flow_solver: heun", "flow_solver: expected euler"),
        ("[in.png, 2, 1.2,", "[in.png, two, 1.2,", "a whole number of latent frames"),
        ("[in.png, 2, 1.2, ", "[in.png, 1.2, ", "entry 1: expected \\[image, latent_frames"),
        ("num_inference_steps: 1", 'num_inference_steps: "1"', "a whole number, got '1'"),
        ("inversion: false", "inversion: 0", "expected true or false, got 0"),
        ("seed: 39", "seed: [", "expected YAML"),
    ],
)
def test_wrong_values_are_refused(config: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_official_yaml(change(config, old, new))


def test_wrong_flags_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["-q", "perhaps"], "--quantization: expected true or false, got perhaps"),
        (["-l", "int3"], "--quantization_level: expected int8 or int4"),
        (["-c", "none.yaml"], "config none.yaml"),
    ):
        assert main(["magic141", "-c", str(config), *words]) == 2
        assert message in capsys.readouterr().err
