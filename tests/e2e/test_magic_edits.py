"""Kept renders of Magic 1-For-1 that are changed, steered, and decoded later."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import decode
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.models.magic_vae.preview import colours_of
from onereel.pipelines import magic_run
from onereel.pipelines.magic_sampling import MagicSampleConfig, made_frames
from onereel.runs.edit import _grown_from
from onereel.runs.folder import Manifest, RunFolder
from onereel.runs.run import Run
from onereel.runtime.previews import fit_magic_previews
from onereel.runtime.source import resolve_model

PROMPT, BLUE = "a red disc", "a blue ring"
LATENT = ("--continuation", "latent")


@pytest.fixture
def model(tiny_magic: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with segments of 9 frames; parts of it may be taken away."""
    folder = tmp_path / "magic"
    folder.mkdir()
    for part in tiny_magic.iterdir():
        if part.is_dir():
            (folder / part.name).symlink_to(part)
    index = json.loads((tiny_magic / "model_index.json").read_text())
    index["sampling"]["segment_frames"] = 9
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something while the next renders have made `after` segments."""
    real = magic_run.stream_segments

    def plan(after: int, act: Callable[[], Any]) -> None:
        def acting(*args: Any, **options: Any) -> Any:
            for number, part in enumerate(real(*args, **options), start=1):
                yield part
                if number == after:
                    act()

        monkeypatch.setattr(magic_run, "stream_segments", acting)

    return plan


def make(model: Path, *words: object, frames: int = 20) -> int:
    options = ("--model", model, "--seed", 7, "--num-frames", frames, *words)
    return main(["generate", PROMPT, *map(str, options)])


def hashes(folder: str) -> list[str]:
    run = RunFolder(Path(folder))
    assert run.problems() == []
    return [chunk.sha256 for chunk in run.chunks]


def frames(path: str) -> np.ndarray:
    return decode(Path(path))


def test_changes_to_a_kept_run(model: Path) -> None:
    """Segments begin at frames 0, 9 and 17; 24 frames make a second."""
    assert make(model, "-o", "a.mp4") == 0
    before, latents = frames("a.mp4"), hashes("a.run")
    assert main(["undo", "a.run", "--to", "0.5"]) == 0
    assert len(RunFolder(Path("a.run")).chunks) == 1
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(frames("a.mp4"), before) and hashes("a.run") == latents

    redo = ["redo", "a.run", "--from", "0.4", "--prompt", BLUE]
    assert main(redo) == 0
    assert np.array_equal(frames("a.mp4")[:9], before[:9]) and hashes("a.run")[0] == latents[0]
    assert hashes("a.run")[1] != latents[1]
    assert main(["branch", "a.run", "b.run", "--at", "0.8", "--seed", "9"]) == 0
    after = frames("b.mp4")
    assert np.array_equal(after[:17], frames("a.mp4")[:17]) and hashes("b.run") != hashes("a.run")
    first = [Path(f"{run}.run/chunks/000000.safetensors").stat().st_ino for run in "ab"]
    assert first[0] == first[1]
    record = read_metadata("b.mp4")
    assert record["settings"]["edits"] == [[1, "prompt", BLUE], [2, "seed", 9]]
    assert record["segments"] == [PROMPT, BLUE, BLUE]

    # The last segment, which the end had cut short, is made anew; edits stay.
    latents = hashes("b.run")
    assert main(["extend", "b.run", "--seconds", "0.5"]) == 0
    after = frames("b.mp4")
    assert len(after) == 32 and hashes("b.run")[:2] == latents[:2] and len(hashes("b.run")) == 4
    assert main(["generate", "--like", "b.mp4", "-o", "c.mp4"]) == 0
    assert np.array_equal(frames("c.mp4"), after) and hashes("c.run") == hashes("b.run")
    assert read_metadata("c.mp4")["picture"] == read_metadata("a.mp4")["picture"]


def test_the_first_picture_stays(model: Path) -> None:
    assert make(model, "-o", "a.mp4", frames=5) == 0
    latents = hashes("a.run")
    assert main(["redo", "a.run", "--from", "0", "--prompt", BLUE, "--seed", "8"]) == 0
    assert hashes("a.run") != latents
    assert main(["generate", "--like", "a.mp4", "-o", "b.mp4"]) == 0
    assert hashes("a.run") == hashes("b.run")
    pictures = [Path(f"{run}.run/inputs/picture.png").read_bytes() for run in "ab"]
    assert pictures[0] == pictures[1]


def test_steering(model: Path, during: Any, capsys: pytest.CaptureFixture[str]) -> None:
    during(1, lambda: main(["steer", "a.run", BLUE]))
    assert make(model, *LATENT, "-o", "a.mp4") == 0
    assert f"from 0.375 s on: {BLUE}" in capsys.readouterr().err
    assert RunFolder(Path("a.run")).settings["edits"] == [[1, "prompt", BLUE]]
    during(99, lambda: None)
    assert main(["generate", "--like", "a.mp4", "-o", "b.mp4"]) == 0
    assert hashes("a.run") == hashes("b.run")
    assert np.array_equal(frames("a.mp4"), frames("b.mp4"))
    assert main(["resume", "a.run", "-o", "c.mp4"]) == 0
    assert np.array_equal(frames("a.mp4"), frames("c.mp4"))
    assert read_metadata("c.mp4")["segments"] == read_metadata("a.mp4")["segments"]

    # Not before a second; stopped, paused; gone on with.
    def several() -> None:
        assert main(["steer", "d.run", BLUE, "--at", "0.8"]) == 0
        assert main(["steer", "d.run", "--stop"]) == 0

    def pause() -> None:
        def later() -> None:
            time.sleep(0.3)
            RunFolder(Path("d.run")).ask(kind="continue")

        assert main(["steer", "d.run", "--pause"]) == 0
        threading.Thread(target=later).start()

    during(1, several)
    assert make(model, *LATENT, "-o", "d.mp4") == 130
    assert RunFolder(Path("d.run")).settings["edits"] == [[2, "prompt", BLUE]]
    during(2, pause)
    capsys.readouterr()
    assert main(["resume", "d.run"]) == 0
    told = capsys.readouterr().err
    assert "paused" in told and "going on" in told
    assert read_metadata("d.mp4")["segments"] == [PROMPT, PROMPT, BLUE]
    during(3, lambda: main(["steer", "d.run", BLUE]))
    assert main(["resume", "d.run"]) == 0
    assert "too late for" in capsys.readouterr().err
    assert main(["steer", "d.run", BLUE]) == 2


def test_latents_are_decoded_later(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(model, *LATENT, "-o", "a.mp4") == 0
    assert make(model, *LATENT, "--latents-only", "-o", "b.mp4") == 0
    assert not Path("b.mp4").exists() and hashes("a.run") == hashes("b.run")
    assert RunFolder(Path("b.run")).state == "latents"
    capsys.readouterr()
    assert make(model, "--latents-only", "-o", "c.mp4") == 2
    assert "begins with the last picture" in capsys.readouterr().err
    assert make(model, "--latents-only", "-o", "c.mp4", frames=9) == 0
    assert make(model, "-o", "d.mp4") == 0
    before = frames("d.mp4")
    for part in list(model.iterdir()):
        if part.name not in ("vae", "model_index.json"):
            part.unlink()
    for name in "bcd":
        assert main(["decode", f"{name}.run", "--tile", "32"]) == 0
        assert RunFolder(Path(f"{name}.run")).is_finished
    assert np.array_equal(frames("a.mp4"), frames("b.mp4"))
    assert np.array_equal(frames("d.mp4"), before) and np.array_equal(frames("c.mp4"), before[:9])
    kept = [read_metadata(f"{name}.mp4") for name in "ab"]
    assert kept[0]["settings"] == kept[1]["settings"] and kept[1]["complete"]
    assert main(["undo", "b.run", "--to", "0.4"]) == 0
    assert len(Run("b.run").decode(output="e.mp4").record["segments"]) == 3
    assert len(frames("e.mp4")) == 9
    assert main(["decode", "b.run", "--tile", "20"]) == 2


def test_latents_are_shown_before_they_are_decoded(model: Path) -> None:
    weights = (model / "vae").resolve()
    (model / "vae").unlink()
    shutil.copytree(weights, model / "vae")
    clips = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 32, 3), np.uint8)
    config = fit_magic_previews(resolve_model(model), clips)
    assert config == model / "vae/config.json"
    shown: list[np.ndarray] = []
    listener = SimpleNamespace(
        say=lambda text: None, progress=lambda state: None, preview=shown.append
    )
    wishes = {"model": str(model), "num_frames": 20, "steps": 2, "seed": 1, "prompt": PROMPT}
    Run.create("a.run", output="a.mp4", listener=listener, **wishes).finish()
    with Image.open("a.run/preview.jpg") as sheet:
        assert sheet.size == (6 * 64, 32)
    assert shown[1].shape == (3, 2, 4, 3)  # the first segment, on its way
    # diffusers passes over the map without a word, and keeps it.
    vae = AutoencoderKLHunyuanVideo.from_pretrained(model / "vae")
    assert (colours := colours_of(vae)) is not None
    assert colours(torch.zeros(1, 16, 1, 2, 2)).shape == (1, 2, 2, 3)


@pytest.mark.parametrize(("longest", "overlap"), [(2, 1), (3, 1), (4, 2), (6, 3)])
def test_the_folder_counts_segments_as_they_are_planned(
    tmp_path: Path, longest: int, overlap: int
) -> None:
    config = MagicSampleConfig(
        segment_frames=4 * longest - 3, continuation="latent", overlap_latents=overlap
    )
    plans = {}
    for number in range(1, 34):
        found = dataclasses.replace(config, num_frames=made_frames(number)).segments()
        plans[number] = [(segment.first_frame(), segment.num_latents) for segment in found]
    for number, plan in plans.items():
        record = {"num_frames": number, "fps": 1, "settings": {"num_frames": number}}
        manifest = Manifest(
            format=2, record=record | {"family": "magic141"}, output="a.mp4",
            num_chunks=len(plan), num_given_chunks=0, inputs={},
            frames_per_chunk=4 * (longest - overlap), hidden_frames=-(4 * (overlap - 1) + 1),
        )  # fmt: skip
        folder = RunFolder.create(tmp_path / str(number), manifest)
        folder.edit(0, {"num_frames": number + 1})
        assert [folder.start_of(index) for index in range(len(plan))] == [s for s, _ in plan]
        if number + 1 in plans:
            assert folder.num_chunks == len(plans[number + 1])
        folder.edit(0, {"num_frames": number})
        for chunk in range(len(plan)):
            folder.journal.append("chunk", index=chunk, file="x", sha256="", num_bytes=0)
        for more in (1, 2, 5, 17):
            longer = plans.get(number + more, plan)
            same = [a == b for a, b in zip(plan, longer, strict=False)]
            assert (
                _grown_from(folder, more if longer is not plan else 0) == same.index(False)
                if (False in same)
                else len(plan)
            )
