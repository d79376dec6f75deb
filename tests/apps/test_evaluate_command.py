"""`onereel evaluate`: what a user types, what is written, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onereel
from onereel.apps.cli.counting import Counter, describe_count
from onereel.apps.cli.main import main
from onereel.evaluation.report.result import read_result
from onereel.media import VideoWriter

SOURCE = Path(onereel.__file__).parents[1]


def clip(path: Path, *, shift: int = 0, frames: int = 12) -> Path:
    base = np.random.default_rng(0).integers(0, 200, (frames, 32, 48, 3), np.uint8)
    with VideoWriter(path, width=48, height=32, fps=24) as writer:
        writer.write(base + np.uint8(shift))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made, wanted = tmp_path / "made", tmp_path / "wanted"
    for folder, shift in ((made, 9), (wanted, 0)):
        folder.mkdir()
        for name in ("a cat-0", "a cat-1"):
            clip(folder / f"{name}.mp4", shift=shift)
    return made, wanted


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--quiet"])


def test_the_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "av", "PIL", "rich", "scipy", "transformers")
    code = (
        "import sys; from onereel.apps.cli.main import main; main(['evaluate', '--help'])\n"
        f"print('LOADED', *[name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    env = {"PYTHONPATH": str(SOURCE), "PATH": ""}
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "LOADED"
    for name in ("toybox", "floor", "physics-iq", "vbench", "vbench-i2v", "magic141",
                 "distance", "pair", "report"):  # fmt: skip
        assert f"  {name} " in out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny", "lora nothing.safetensors: no such file"),
        ("simulator", "--lora: expected a model, got 'simulator'"),
    ],
)
def test_an_adapter_that_cannot_be_worn_is_refused(
    tiny_checkpoint: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint) if model == "tiny" else model
    assert evaluate("toybox", "--model", model, "--lora", "nothing.safetensors:0.5") != 0
    assert message in capsys.readouterr().err


def test_toybox_writes_what_others_rely_on(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "q.json", tmp_path / "q.html"
    code = evaluate("toybox", "--model", tiny_checkpoint, "--suite", "quick", "--steps", 8,
                    "--limit", 1, "--frames", 24, "--json", target, "--html", page)  # fmt: skip
    assert code == 0
    data = json.loads(target.read_text())
    assert (data["suite"], data["steps"], data["num_videos"]) == ("quick", 8, 1)
    assert data["model"] == "tiny-magi" and data["seconds_per_video_second"] > 0
    assert set(data["metrics"]["all_correct"]) >= {"mean", "low", "high"}
    assert data["command"].startswith("onereel") and data["folder"] == ""
    assert "data:image/png;base64," in page.read_text()
    assert (tmp_path / "q-worst.png").is_file()
    out = capsys.readouterr().out
    assert "all_correct" in out and "only the first 1 of the suite's 16 prompts" in out


def test_toybox_keeps_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("toybox", "--model", "simulator", "--frames", 24, "--out", tmp_path / "run")
    assert evaluate(*words, "--limit", 1) == 0
    assert evaluate(*words, "--limit", 2) == 2
    assert "go on with it (--resume)" in capsys.readouterr().err
    assert evaluate(*words, "--limit", 2, "--resume") == 0
    assert read_result(tmp_path / "run").num_videos == 2
    assert evaluate(*words, "--limit", 2, "--resume", "--seed", 5) == 2
    assert "seed was 0, is 5" in capsys.readouterr().err
    assert evaluate("toybox", "--model", "simulator", "--resume") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "toybox-mag"), "did you mean 'toybox-magi'"),
        (("--model", "simulator", "--suite", "quik"), "did you mean 'quick'"),
        (("--model", "simulator", "--limit", "0"), "limit: expected at least 1"),
        (("--model", "simulator", "--suite", "physics-v2v", "--samples", "2"), "leave it out"),
        (("--model", "simulator", "--suite", "physics-v3v"), "did you mean 'physics-v2v'"),
    ],
)
def test_wrong_wishes_are_named(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("toybox", *words) == 2
    assert message in capsys.readouterr().err


def test_reports_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        evaluate("toybox", "--model", "simulator", "--suite", "standard", "--limit", 1, "--seed",
                 seed, "--samples", 1, "--frames", 24, "--out", tmp_path / str(seed))  # fmt: skip
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    runs = [str(tmp_path / "0"), str(tmp_path / "1" / "result.json")]
    assert main(["evaluate", "report", *runs, "--html", str(page), "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "seed is 1 in run 2 and 0 in run 1" in out
    assert "simulator against simulator" in page.read_text() and sheet.is_file()
    assert main(["evaluate", "report", str(tmp_path / "none.json")]) == 3


def test_pairs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "pair.json"
    assert evaluate("pair", *folders, "--metrics", "psnr,ssim,lpips", "--json", target) == 0
    result = read_result(target)
    assert result.metrics["psnr"].unit == "dB" and result.num_videos == 2
    assert "backbone" in result.not_computed["lpips"]
    (folders[1] / "a cat-1.mp4").unlink()
    assert evaluate("pair", *folders) == 3


def test_a_pair_that_does_not_fit_is_named(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    clip(folders[0] / "a cat-1.mp4", frames=9)
    assert evaluate("pair", *folders) == 1
    assert "problem: a cat-1" in capsys.readouterr().err


def test_distances_want_a_network(folders: tuple[Path, Path]) -> None:
    assert evaluate("distance", *folders) == 2
    assert evaluate("distance", *folders, "--network", "i3d.pt", "--kind", "fdd") == 2
    assert evaluate("distance", *folders, "--network", "none.pt") == 3


def test_vbench_without_networks(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, out = tmp_path / "v.json", tmp_path / "vbench"
    words = ("vbench", folders[0], "--out", out, "--json", target)
    assert evaluate(*words) == 0
    result = read_result(target)
    assert result.num_videos == 2 and "temporal_flickering" in result.metrics
    assert "DINO" in result.not_computed["subject_consistency"]
    assert "total" in result.not_computed
    official = json.loads((out / "made_eval_results.json").read_text())
    assert official["temporal_flickering"][0] == result.metrics["temporal_flickering"].mean
    scores = (out / "scores.jsonl").read_text()
    assert evaluate(*words) == 0 and (out / "scores.jsonl").read_text() == scores
    clip(folders[0] / "a cat-1.mp4", shift=40)
    assert evaluate(*words) == 0
    assert len((out / "scores.jsonl").read_text()) > len(scores)
    assert evaluate("vbench", folders[0], "--dims", "flicker") == 2
    assert evaluate("vbench", folders[0], "--network", "dino") == 2
    capsys.readouterr()
    assert evaluate("magic141", folders[0]) == 0
    assert "| made |" in capsys.readouterr().out


def test_vbench_names_what_is_missing(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"prompt_en": "a cat", "dimension": ["temporal_flickering"]},
              {"prompt_en": "a dog", "dimension": ["temporal_flickering"]}]  # fmt: skip
    info = tmp_path / "VBench_full_info.json"
    info.write_text(json.dumps(listed))
    code = evaluate("vbench", folders[0], "--full-info", info, "--samples", 2,
                    "--dims", "temporal_flickering")  # fmt: skip
    assert code == 1
    err = capsys.readouterr().err
    assert "problem: a dog-0.mp4: missing" in err and "problem: a dog-1.mp4: missing" in err


def test_counted_work_tells_pace_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_count("videos", 0, total=4, before=0, elapsed_s=0) == "0/4 videos"
    text = describe_count("videos", 3, total=5, before=1, elapsed_s=8)
    assert text == "3/5 videos, 4 s each, 8 s left"
    text = describe_count("videos", 2, total=5, before=2, elapsed_s=0)
    assert text == "2/5 videos, which an earlier run finished"
    with Counter("videos") as counter:
        for done in range(3):
            counter.show(done, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0/2 videos" and lines[-1].startswith("2/2 videos, ")


def physics_dataset(root: Path) -> Path:
    """Write a dataset of one scenario with three views, tiny and at the model's rate."""
    name = "trimmed-ball"
    rows = ["scenario,description,category,generated_video_name"]
    for take in (1, 2):
        for view, side in enumerate(("left", "center", "right")):
            number = f"{3 * take - 2 + view:04d}"
            where = f"{number}_perspective-{side}"
            rows.append(
                f"{where}_take-{take}_{name}.mp4,A ball. Static camera.,Solid Mechanics,"
                f"{where}_{name}.mp4"
            )
            for part, frames in (("testing", 120), ("conditioning", 72)):
                folder = root / "split-videos" / part / "24FPS"
                folder.mkdir(parents=True, exist_ok=True)
                clip(folder / f"{number}_{part}-videos_24FPS_perspective-{side}_take-{take}_"
                     f"{name}.mp4", frames=frames, shift=take)  # fmt: skip
            if take == 1:
                picture = f"{number}_switch-frames_anyFPS_perspective-{side}_{name}.jpg"
                (root / "switch-frames").mkdir(exist_ok=True)
                Image.new("RGB", (48, 32), "grey").save(root / "switch-frames" / picture)
    (root / "descriptions").mkdir()
    (root / "descriptions" / "descriptions.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.slow
def test_physics_iq_makes_the_videos_and_scores_them(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = physics_dataset(tmp_path / "physics-IQ-benchmark")
    words: tuple[Any, ...] = ("physics-iq", root, tmp_path / "made")
    assert evaluate(*words, "--generate") == 2
    assert evaluate(*words) == 3
    target = tmp_path / "p.json"
    made = ("--generate", "--model", tiny_checkpoint, "--protocol", "v2v")
    assert evaluate(*words, *made, "--json", target) == 0, capsys.readouterr().err
    result = read_result(target)
    assert result.num_videos == 3 and "variance_spatial" in result.metrics
    assert result.config["generation"]["protocol"] == "v2v"
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names[0] == "0001_perspective-left_trimmed-ball.mp4" and len(names) == 3
