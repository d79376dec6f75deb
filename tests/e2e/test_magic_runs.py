"""Renders of Magic 1-For-1 that are broken off and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.runs.folder import RunFolder

PROMPT = "a red disc"
LONG = ("--num-frames", "20", "--seed", "7")


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Let renders end after some segments as Ctrl-C ends them, for the time of a `with` block."""
    from onereel.pipelines import magic_run

    @contextmanager
    def after(number: int) -> Iterator[None]:
        real = magic_run.stream_segments

        def spoiled(*args: Any, **options: Any) -> Any:
            for part in real(*args, **options):
                if part.index == number:
                    raise KeyboardInterrupt
                yield part

        with monkeypatch.context() as patch:
            patch.setattr(magic_run, "stream_segments", spoiled)
            yield

    return after


def run(model: Path, *words: object) -> int:
    return main(["generate", PROMPT, "--model", str(model), *LONG, *map(str, words)])


@pytest.mark.parametrize("continuation", ["picture", "latent"])
def test_a_broken_run_ends_as_an_unbroken_one(
    tiny_magic: Path, broken_off: Any, continuation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    way = ("--continuation", continuation)
    assert run(tiny_magic, *way, "-o", "whole.mp4") == 0
    with broken_off(2):
        assert run(tiny_magic, *way, "-o", "a.mp4") == 130
    folder = RunFolder(Path("a.run"))
    kept = len(folder.chunks)
    assert kept == 3 and folder.state == "unfinished" and folder.family == "magic141"
    damaged = folder.path / "chunks" / folder.chunks[2].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["runs", "verify", "a.run"]) == 1
    assert main(["resume", "a.run"]) == 0
    captured = capsys.readouterr()
    assert "computed again from there" in captured.err and "2 segments are kept" in captured.err
    assert np.array_equal(decode(Path("a.mp4")), decode(Path("whole.mp4")))
    hashes = [[c.sha256 for c in RunFolder(Path(f"{n}.run")).chunks] for n in ("a", "whole")]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 5
    one, other = (read_metadata(f"{name}.mp4") for name in ("a", "whole"))
    for name in ("picture", "settings", "inputs", "mode", "sampling"):
        assert one[name] == other[name]
    assert main(["runs", "verify", "a.run"]) == 0
    capsys.readouterr()
    assert main(["runs", "list", "--json"]) == 0
    states = {r["path"]: r["state"] for r in json.loads(capsys.readouterr().out)["runs"]}
    assert states == {"a.run": "finished", "whole.run": "finished"}
    assert main(["runs", "show", "a.run"]) == 0
    assert main(["runs", "clean", "a.run"]) == 0


def test_without_its_picture_it_cannot_go_on(
    tiny_magic: Path, broken_off: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with broken_off(1):
        assert run(tiny_magic, "-o", "a.mp4") == 130
    Path("a.run/inputs/picture.png").unlink()
    assert main(["resume", "a.run"]) == 3
    assert "picture.png is gone" in capsys.readouterr().err


def test_runs_are_kept_where_they_are_wanted(tiny_magic: Path) -> None:
    words = ("--num-frames", "5")
    assert run(tiny_magic, *words, "--no-run", "-o", "a.mp4") == 0
    assert not Path("a.run").exists()
    assert run(tiny_magic, *words, "--run", "kept/disc", "-o", "a.mp4") == 0
    assert RunFolder(Path("kept/disc")).is_finished
