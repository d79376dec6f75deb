"""Renders that are broken off and gone on with."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips import decode, write_counting_video
from PIL import Image

import onereel
from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
LONG = ("a red disc bounces", "--seconds", 3.5, "--seed", 7, "-o", "a.mp4")


@pytest.fixture
def broken(generate: Any, broken_off: Any) -> Callable[..., Path]:
    """Make a run that ends after some chunks; returns its folder."""

    def make(after: int, *words: object) -> Path:
        with broken_off(after):
            assert generate(*(words or LONG))[0] == 130
        return Path("a.run")

    return make


@pytest.fixture
def unbroken(generate: Any) -> Callable[..., np.ndarray]:
    """Make the same video without a break, beside it; returns its frames."""

    def make(*words: object) -> np.ndarray:
        words = tuple("whole.mp4" if word == "a.mp4" else word for word in words or LONG)
        assert generate(*words)[0] == 0
        return decode(Path("whole.mp4"))

    return make


def same_latents(left: Path, right: Path) -> bool:
    """Compare all chunks of two runs, byte by byte."""
    folders = [RunFolder(left), RunFolder(right)]
    hashes = [[(c.index, c.sha256) for c in folder.chunks] for folder in folders]
    return hashes[0] == hashes[1] and not any(folder.problems() for folder in folders)


def test_a_finished_run_is_kept(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(*LONG)[0] == 0
    run = RunFolder(Path("a.run"))
    assert run.is_finished and len(run.chunks) == 4 and run.problems() == []
    assert run.output == Path("a.mp4").absolute()
    late = ("complete", "frames_written", "elapsed_s")
    record = {k: v for k, v in read_metadata("a.mp4").items() if k not in late}
    assert {k: v for k, v in run.manifest.record.items() if k not in late} == record
    before = decode(Path("a.mp4"))
    Path("a.mp4").unlink()
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), before)
    capsys.readouterr()
    assert main(["runs", "list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["path"], found["state"], found["chunks"]) == ("a.run", "finished", 4)
    assert main(["runs", "show", "a.run"]) == 0
    assert "onereel generate 'a red disc bounces'" in capsys.readouterr().out


@pytest.mark.parametrize("after", [0, 3])
def test_a_broken_run_is_gone_on_with(broken: Any, unbroken: Any, after: int) -> None:
    folder = broken(after)
    assert len(RunFolder(folder).chunks) == after + 1  # kept before it is decoded
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), unbroken())
    assert same_latents(Path("a.run"), Path("whole.run"))
    record = read_metadata("a.mp4")
    assert record["complete"] and record["frames_written"] == 84


def test_a_run_from_a_picture_needs_it_no_longer(broken: Any, unbroken: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save("start.png")
    words = (*LONG, "--image", "start.png")
    folder = broken(2, *words)
    whole = unbroken(*words)
    Path("start.png").unlink()
    assert main(["resume", str(folder)]) == 0
    assert np.array_equal(decode(Path("a.mp4")), whole)
    assert read_metadata("a.mp4")["settings"]["image"] == "start.png"


def test_a_continued_video(broken: Any, unbroken: Any) -> None:
    write_counting_video(Path("clip.mkv"), 60)
    words = (*LONG, "--video", "clip.mkv", "--prefix-frames", 28)
    folder = broken(2, *words)
    assert main(["resume", str(folder)]) == 0
    assert np.array_equal(decode(Path("a.mp4")), unbroken(*words))


def _truncate(folder: Path) -> None:
    path = folder / "chunks" / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _flip(folder: Path) -> None:
    path = folder / "chunks" / "000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    (folder / "chunks" / "000001.safetensors").unlink()


@pytest.mark.parametrize("spoil", [_truncate, _flip, _remove])
def test_damaged_chunks_are_computed_again(
    broken: Any, unbroken: Any, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken(3)
    spoil(folder)
    assert main(["runs", "verify", str(folder)]) == 1
    assert "000001" in capsys.readouterr().out
    assert main(["resume", str(folder)]) == 0
    assert "000001" in capsys.readouterr().err
    assert np.array_equal(decode(Path("a.mp4")), unbroken())
    assert main(["runs", "verify", str(folder)]) == 0


def test_a_torn_journal(broken: Any, unbroken: Any) -> None:
    folder = broken(2)
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(RunFolder(folder).chunks) == 2
    assert main(["resume", str(folder)]) == 0
    assert np.array_equal(decode(Path("a.mp4")), unbroken())


def test_what_would_not_be_the_same_is_refused(
    broken: Any, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    folder = broken(2, *LONG, "--model", model)
    index = model / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace('"num_steps": 4', '"num_steps": 8'))
    assert index.read_text() != text
    assert main(["resume", str(folder)]) == 2
    assert "sampling.num_steps: expected 4, got 8" in capsys.readouterr().err
    index.write_text(text)
    weights = next((model / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["resume", str(folder)]) == 3
    assert "the weights of model" in capsys.readouterr().err


def test_bad_folders(broken: Any, generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken(2)
    for words, code, text in (
        (["resume", "nowhere"], 3, "nowhere holds no run"),
        (["runs", "clean", str(folder)], 2, "is not finished"),
    ):
        assert main(words) == code
        assert text in capsys.readouterr().err
    # Nothing that could be resumed is overwritten.
    assert generate(*LONG)[0] == 0
    assert not RunFolder(folder).is_finished and RunFolder(Path("a-2.run")).is_finished
    code, _, err = generate(*LONG, "--run", folder)
    assert code == 2 and "`onereel resume a.run` goes on" in err
    with RunFolder(folder).locked():
        assert main(["resume", str(folder)]) == 2
    assert "in use by another process" in capsys.readouterr().err
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 2', '"format": 3'))
    assert main(["resume", str(folder)]) == 3
    assert "use a newer onereel" in capsys.readouterr().err
    manifest.write_text(text[:40])
    assert main(["runs", "list"]) == 0
    assert "damaged" in capsys.readouterr().out
    manifest.write_text(text)
    assert main(["runs", "clean", str(folder), "--force"]) == 0
    assert not folder.exists() and Path("a.mp4").exists()


def test_a_folder_of_an_older_format_is_gone_on_with(broken: Any, unbroken: Any) -> None:
    manifest = broken(1) / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["latents_only"], values["vae_hash"]
    manifest.write_text(json.dumps({**values, "format": 1}))
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), unbroken())


def test_no_run_keeps_nothing(generate: Any) -> None:
    assert generate("a disc", "-o", "a.mp4", "--no-run")[0] == 0
    assert sorted(path.name for path in Path().iterdir()) == ["a.mp4", "a.mp4.json"]
    assert generate("a disc", "-o", "a.mp4", "--no-run", "--run", "x")[0] == 2


def test_kills_at_random_moments(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "chaos_render.py"), "--seconds", "3"]
    paths = {"PYTHONPATH": str(Path(onereel.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **paths}
    done = subprocess.run(
        [*script, "--kills", "10", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "c")],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["kills"] >= 10 and result["differences"] == 0 and result["unreadable"] == 0


def test_killed_before_its_first_line_a_run_leaves_its_name_free(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing cleans up after a kill."""

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("onereel.core.files.shutil.rmtree", lambda *_, **__: None)
        patch.setattr(RunFolder, "create", kill)
        with pytest.raises(Killed):
            generate(*LONG)
    assert not Path("a.run").exists()
    assert generate(*LONG, "--run", "a.run")[0] == 0 and RunFolder(Path("a.run")).is_finished


@pytest.mark.parametrize("file", ["a.run/manifest.json", "a.run/chunks", "a.mp4"])
def test_a_disk_that_is_full_at_some_file(generate: Any, unbroken: Any, file: str) -> None:
    words = (*LONG, "--size", "64x48")  # so that chunks are larger than the manifest
    whole = unbroken(*words)
    path = Path(file.replace("a.", "whole."))
    limit = min(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path])) - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code, _, err = generate(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and "disk" in err
    begun = Path("a.run").exists()
    assert begun == (file == "a.mp4")  # without a chunk there is nothing to go on with
    assert (main(["resume", "a.run"]) if begun else generate(*words)[0]) == 0
    assert np.array_equal(decode(Path("a.mp4")), whole)
    assert same_latents(Path("a.run"), Path("whole.run"))


@pytest.mark.parametrize("append", [2, 3])
def test_a_disk_that_is_full_at_the_journal(
    generate: Any, unbroken: Any, monkeypatch: pytest.MonkeyPatch, append: int
) -> None:
    whole, real, calls = unbroken(), os.fsync, iter(range(1, 99))

    def full(handle: int) -> None:
        if next(calls) == append:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("onereel.runs.journal.os", SimpleNamespace(fsync=full))
        assert generate(*LONG)[0] == 4
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), whole)
    assert same_latents(Path("a.run"), Path("whole.run"))
