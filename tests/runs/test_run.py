"""The Python side of kept renders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onereel import Run
from onereel.core.errors import ConfigError, MediaError


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def wishes(tiny_checkpoint: Path) -> dict[str, Any]:
    """What every run of this file asks for: four chunks."""
    return {"prompt": "a red disc", "seconds": 4.0, "seed": 3, "model": str(tiny_checkpoint)}


def test_a_run_is_left_and_gone_on_with(wishes: dict[str, Any]) -> None:
    whole = Run.create("whole.run", output="whole.mp4", **wishes)
    assert whole.state.name == "new" and whole.state.num_chunks == 4 and not whole.path.exists()
    frames = np.concatenate([chunk.to_uint8() for chunk in whole])
    assert frames.shape == (96, 32, 32, 3) and whole.state.name == "finished"

    run = Run.create("a.run", output="a.mp4", **wishes)
    for chunk in run:
        if chunk.index == 1:
            break
    state = Run("a.run").state
    assert (state.name, state.num_kept, state.seconds_kept, state.seconds) == (
        "unfinished",
        2,
        2,
        4,
    )
    again = np.concatenate([chunk.to_uint8() for chunk in Run("a.run")])
    assert np.array_equal(again, frames) and run.state == Run("a.run").state


def test_a_run_is_steered_while_it_is_iterated(wishes: dict[str, Any]) -> None:
    wishes["seconds"] = 7.0  # the checkpoint makes four chunks at a time
    run = Run.create("a.run", output="a.mp4", **wishes)
    for chunk in run:
        if chunk.index == 0:
            run.steer("a blue square")
            with pytest.raises(ConfigError, match="in use"):
                run.undo(0.5)
    replay = Run.create("b.run", output="b.mp4", **wishes)
    replay.finish()
    left, right = (
        np.concatenate([chunk.to_uint8() for chunk in Run(name)]) for name in ("a.run", "b.run")
    )
    assert np.array_equal(left[:24], right[:24]) and not np.array_equal(left[-24:], right[-24:])


def test_edits(wishes: dict[str, Any]) -> None:
    run = Run.create("a.run", output="a.mp4", latents_only=True, **wishes)
    with pytest.raises(ConfigError, match="has not begun"):
        run.undo(1)
    assert run.finish().path == "a.run" and run.state.name == "latents"
    assert run.undo(2.5) == 2 and run.state.name == "unfinished"
    assert run.redo(1, seed=9) == 1
    assert list(run) == [] and run.state.name == "latents"
    assert run.extend(1) == 5 and run.state.num_chunks == 5 and run.state.seconds == 5
    twin = run.branch("b.run", output="b.mp4", seconds=2, seed=4)
    assert twin.state.seconds_kept == 2
    run.finish()
    assert run.decode(output="c.mp4").num_frames == 120 and Path("c.mp4").is_file()


def test_nothing_to_open() -> None:
    with pytest.raises(MediaError, match="holds no run"):
        Run("nowhere")


def test_the_documented_example(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert example.count("seed=1, ") == 1
    exec(example.replace("seed=1, ", f"seed=1, model={str(tiny_checkpoint)!r}, "), {})
    assert "name='finished'" in capsys.readouterr().out
    assert Run("other.run").state.seconds == 6 and Path("other.mp4").is_file()
