"""Renders that are steered while they run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import decode

from onereel import Run
from onereel.apps.cli.main import main
from onereel.apps.cli.progress import TerminalListener
from onereel.evaluation.toybox.tracker import track
from onereel.media import read_metadata
from onereel.pipelines import run as run_module
from onereel.runs.folder import RunFolder
from onereel.runs.journal import Journal

WORDS = ("a red disc bounces", "--seed", 7, "--seconds", 7, "-o", "a.mp4")
BLUE = "a blue ring rotates"


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something while the next render has finished `after` chunks."""

    real = run_module.stream_chunks

    def plan(after: int, act: Callable[[], Any]) -> None:
        def acting(*args: Any, **options: Any) -> Any:
            for number, chunk in enumerate(real(*args, **options), start=1):
                yield chunk
                if number == after:
                    act()

        monkeypatch.setattr(run_module, "stream_chunks", acting)

    return plan


def test_a_prompt_is_followed_by_what_has_not_begun(generate: Any, during: Any) -> None:
    during(1, lambda: main(["steer", "a.run", BLUE]))
    code, _, err = generate(*WORDS)
    assert code == 0 and f"from 4 s on: {BLUE}" in err  # 3 in flight behind the first chunk
    frames = decode(Path("a.mp4"))
    assert read_metadata("a.mp4")["settings"].get("edits") is None  # as it was begun
    assert RunFolder(Path("a.run")).settings["edits"] == [[4, "prompt", BLUE]]
    during(99, lambda: None)
    assert generate(*WORDS[:-1], "b.mp4")[0] == 0
    plain = decode(Path("b.mp4"))
    assert np.array_equal(frames[:96], plain[:96])
    assert not np.array_equal(frames[96:120], plain[96:120])
    assert main(["resume", "a.run", "-o", "c.mp4"]) == 0
    assert np.array_equal(decode(Path("c.mp4")), frames)
    assert generate("--like", "c.mp4", "-o", "d.mp4")[0] == 0
    assert np.array_equal(decode(Path("d.mp4")), frames)


def test_not_before_a_second_and_too_late(generate: Any, during: Any) -> None:
    during(1, lambda: main(["steer", "a.run", BLUE, "--at", "6.2"]))
    assert f"from 6 s on: {BLUE}" in generate(*WORDS)[2]
    during(5, lambda: main(["steer", "a.run", BLUE]))
    assert "too late for" in generate(*WORDS)[2]


def test_pause_continue_and_stop(generate: Any, during: Any) -> None:
    waited = []

    def pause() -> None:
        assert main(["steer", "a.run", "--pause"]) == 0
        start = time.monotonic()

        def later() -> None:
            time.sleep(0.5)
            waited.append(time.monotonic() - start)
            RunFolder(Path("a.run")).ask(kind="continue")

        threading.Thread(target=later).start()

    during(1, pause)
    code, _, err = generate(*WORDS)
    assert code == 0 and waited and "paused" in err and "going on" in err
    whole = decode(Path("a.mp4"))
    during(2, lambda: main(["steer", "a.run", "--stop"]))
    code, _, err = generate(*WORDS)
    assert code == 130 and "48 frames) are safe" in err
    kinds = [event["kind"] for event in Journal(Path("a.run/journal.jsonl")).events]
    assert kinds == ["chunk"] * 2 + ["asked"]
    during(99, lambda: None)
    assert main(["resume", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), whole)


def test_keys_of_the_terminal(generate: Any, during: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    stdin = os.fdopen(slave, "rb", buffering=0)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr("onereel.apps.cli.generate.make_listener", lambda quiet: TerminalListener())

    def press(keys: str, requests: int) -> None:
        os.write(master, keys.encode())
        end = time.monotonic() + 20
        while len(list(Path("a.run/requests").glob("*.json"))) < requests:
            assert time.monotonic() < end
            time.sleep(0.02)

    during(1, lambda: press(f"sgone\x1bs{BLUE}?\x7f\r", 1))
    code, _, err = generate(*WORDS)
    assert code == 0 and "keys: s steers" in err and f"from 4 s on: {BLUE}\n" in err
    assert RunFolder(Path("a.run")).settings["edits"] == [[4, "prompt", BLUE]]
    during(2, lambda: press("pxpq", 3))
    code, _, err = generate(*WORDS)
    assert code == 130 and "paused" in err and "going on" in err and "48 frames) are safe" in err
    stdin.close()
    os.close(master)


def test_bad_steering(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a disc", "--seconds", 1, "-o", "a.mp4")[0] == 0
    for words, code, text in (
        (["steer", "a.run", BLUE], 2, "is not being rendered"),
        (["steer", "a.run"], 2, "a prompt, --pause, --continue or --stop"),
        (["steer", "a.run", BLUE, "--stop"], 2, "one of them"),
        (["steer", "a.run", " "], 2, "prompt"),
        (["steer", "nowhere", BLUE], 3, "holds no run"),
    ):
        assert main(words) == code
        assert text in capsys.readouterr().err


def test_the_instrument_sees_what_was_asked_for() -> None:
    """With the shipped weights: steered in the second second, the disc is yellow in the fourth."""
    red, yellow = "a large red disc does not move", "a large yellow disc does not move"
    run = Run.create("a.run", prompt=red, seconds=5, steps=16, seed=3, output="a.mp4")
    for chunk in run:
        if chunk.index == 1:
            run.steer("a large red disc turns yellow")
        if chunk.index == 2:
            run.steer(yellow)
    assert RunFolder(Path("a.run")).settings["edits"] == [
        [2, "prompt", "a large red disc turns yellow"],
        [3, "prompt", yellow],
    ]
    tracks = track(decode(Path("a.mp4"))).tracks
    frames = {
        colour: {int(f) for found in tracks if found.colour == colour for f in found.frames}
        for colour in ("red", "yellow")
    }
    assert len(frames["red"] & set(range(48))) > 40 and not frames["yellow"] & set(range(48))
    # Within the chunk that was asked to change, and those after it.
    assert len(frames["yellow"] & set(range(72, 120))) > 40
    assert len(frames["red"] & set(range(72, 120))) < 8
