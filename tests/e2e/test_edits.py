"""Kept renders that are changed: what lies before stays, what follows is as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import decode

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.runs.folder import RunFolder

PROMPT = "a red disc bounces"
A = (PROMPT, "--seed", 7, "-o", "a.mp4")


def hashes(folder: str) -> list[str]:
    run = RunFolder(Path(folder))
    assert run.problems() == []
    return [chunk.sha256 for chunk in run.chunks]


def latents_of(folder: str) -> list[torch.Tensor]:
    run = RunFolder(Path(folder))
    return [run.load_chunk(chunk.index)[f"latent.{chunk.index}"] for chunk in run.chunks]


def frames(path: str) -> np.ndarray:
    return decode(Path(path))


@pytest.fixture(params=["tiny_checkpoint", "tiny_distilled"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_undo_then_resume_is_the_same_video(generate: Any, model: Path) -> None:
    assert generate(*A, "--seconds", 6, "--model", model)[0] == 0
    before, latents = frames("a.mp4"), hashes("a.run")
    assert main(["undo", "a.run", "--to", "5.2"]) == 0
    run = RunFolder(Path("a.run"))
    assert len(run.chunks) == 5 and not run.is_finished
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(frames("a.mp4"), before) and hashes("a.run") == latents
    assert main(["undo", "a.run", "--to", "0"]) == 0
    assert RunFolder(Path("a.run")).chunks == []
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(frames("a.mp4"), before) and hashes("a.run") == latents


def test_extending_keeps_what_there_is(generate: Any, model: Path) -> None:
    assert generate(*A, "--seconds", 5.5, "--model", model)[0] == 0
    before, latents = frames("a.mp4"), hashes("a.run")
    assert main(["extend", "a.run", "--seconds", "2"]) == 0
    after = frames("a.mp4")
    assert len(after) == 180 and hashes("a.run")[: len(latents)] == latents
    assert np.array_equal(after[:120], before[:120])  # whole chunks; the last one was cut short
    b = (PROMPT, "--seed", 7, "--seconds", 7.5, "-o", "b.mp4", "--model", model)
    assert generate(*b)[0] == 0
    # Chunks that were computed beside fewer others may differ in rounding, a pixel by a grey level
    # then, and what the codec makes of its block by more.
    torch.testing.assert_close(latents_of("a.run"), latents_of("b.run"), rtol=0, atol=1e-5)
    assert (after != frames("b.mp4")).mean() < 1e-3


@pytest.mark.parametrize(
    ("words", "setting"),
    [(["--prompt", "a blue ring rotates"], "prompt"), (["--seed", "8"], "seed")],
)
def test_redo_changes_what_follows(generate: Any, words: list[str], setting: str) -> None:
    assert generate(*A, "--seconds", 6)[0] == 0
    before = frames("a.mp4")
    assert main(["redo", "a.run", "--from", "3.1", *words]) == 0
    after = frames("a.mp4")
    assert np.array_equal(after[:72], before[:72])
    assert not np.array_equal(after[72:96], before[72:96])
    record = read_metadata("a.mp4")
    assert record["settings"]["edits"] == [[3, setting, words[1] if setting == "prompt" else 8]]
    assert generate("--like", "a.mp4", "-o", "b.mp4")[0] == 0
    assert np.abs(frames("b.mp4").astype(int) - after).max() <= 8
    assert main(["redo", "a.run", "--from", "1", "--seed", "7"]) == 0
    assert read_metadata("a.mp4")["settings"]["edits"] == [[1, "seed", 7]]


def test_broken_off_after_an_edit_it_goes_on(generate: Any, broken_off: Any) -> None:
    words = ["redo", "a.run", "--from", "2", "--seed", "9"]
    assert generate(*A, "--seconds", 6)[0] == 0
    assert generate(*A[:-1], "b.mp4", "--seconds", 6)[0] == 0
    assert main([*words[:1], "b.run", *words[2:]]) == 0
    for stop in (2, 3, 5):  # before the first new chunk, and within the new ones
        with broken_off(stop):
            assert main(words if stop == 2 else ["resume", "a.run"]) == 130
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(frames("a.mp4"), frames("b.mp4")) and hashes("a.run") == hashes("b.run")


def test_damage_before_an_edit(generate: Any) -> None:
    for name in ("a", "b"):
        assert generate(*A[:-1], f"{name}.mp4", "--seconds", 6)[0] == 0
        assert main(["redo", f"{name}.run", "--from", "3", "--seed", "9"]) == 0
    # The state after chunk 0 still holds chunk 3 in flight with its noise of before.
    Path("a.run/chunks/000001.safetensors").unlink()
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(frames("a.mp4"), frames("b.mp4"))
    for chunk in range(6):
        left, right = (RunFolder(Path(f"{run}.run")).load_chunk(chunk) for run in "ab")
        assert torch.equal(left[f"latent.{chunk}"], right[f"latent.{chunk}"])


def test_branches_share_files_and_nothing_else(generate: Any) -> None:
    assert generate(*A, "--seconds", 4)[0] == 0
    before, latents = frames("a.mp4"), hashes("a.run")
    assert main(["branch", "a.run", "b.run", "--at", "2", "--seed", "3"]) == 0
    assert frames("a.mp4").tobytes() == before.tobytes() and hashes("a.run") == latents
    after = frames("b.mp4")
    assert np.array_equal(after[:48], before[:48]) and not np.array_equal(after[48:], before[48:])
    shared = [Path(f"{run}/chunks/000001.safetensors").stat().st_ino for run in ("a.run", "b.run")]
    assert shared[0] == shared[1]
    assert main(["redo", "b.run", "--from", "0", "--seed", "4"]) == 0
    assert hashes("a.run") == latents


def test_bad_edits(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(*A, "--seconds", 2)[0] == 0
    latents = hashes("a.run")
    for words, text in (
        (["undo", "a.run", "--to", "2"], "expected 0 to less than 2"),
        (["undo", "a.run", "--to", "-1"], "expected 0 to less than 2"),
        (["redo", "a.run", "--from", "1"], "another prompt or seed"),
        (["redo", "a.run", "--from", "1", "--prompt", " "], "prompt"),
        (["redo", "a.run", "--from", "1", "--seed", "-1"], "seed"),
        (["extend", "a.run", "--seconds", "0"], "at least one frame"),
        (["extend", "a.run", "--seconds", "1e9"], "24 hours"),
        (["branch", "a.run", "a.run"], "exists already"),
        (["branch", "a.run", "b.run", "-o", "a.mp4"], "the first run's"),
    ):
        assert main(words) == 2
        assert text in capsys.readouterr().err
    assert hashes("a.run") == latents and RunFolder(Path("a.run")).is_finished
    assert not Path("b.run").exists()
