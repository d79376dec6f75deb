"""The command, run in an empty folder without a network."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from onereel.apps.cli.main import main


@pytest.fixture(autouse=True)
def _offline_in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, where any try to reach the network fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"tried to reach the network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _imports_are_not_searched() -> None:
    """Spare what is there by now when networks are let go: collecting was half of the time."""
    gc.freeze()


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Let renders end after some chunks as Ctrl-C ends them, for the time of a `with` block."""
    from onereel.pipelines import run as run_module

    @contextmanager
    def after(number: int) -> Iterator[None]:
        real = run_module.stream_chunks

        def spoiled(*args: Any, **options: Any) -> Any:
            for index, chunk in enumerate(real(*args, **options)):
                if index == number:
                    raise KeyboardInterrupt
                yield chunk

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "stream_chunks", spoiled)
            yield

    return after


@pytest.fixture
def generate(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on the tiny checkpoint; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        names = ("--model", "--config_file", "--like")
        model = [] if any(str(w) in names for w in words) else ["--model", str(tiny_checkpoint)]
        capsys.readouterr()
        code = main(["generate", *map(str, words), *model])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
