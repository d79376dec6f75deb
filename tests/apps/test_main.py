from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

import onereel
from onereel.apps.cli import main as cli
from onereel.core.errors import (
    BackendUnavailable,
    CheckpointError,
    ConfigError,
    MediaError,
    OneReelError,
    OutOfMemory,
    ShapeError,
)

SOURCE = Path(onereel.__file__).parents[1]


def _command(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., object] | typer.Typer
) -> None:
    """Make `onereel act` call a function."""
    monkeypatch.setattr(sys.modules[__name__], "act", function, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "act", (f"{__name__}:act", "Acts."))


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"onereel {onereel.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout_in_the_order_of_the_table(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([flag]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"  {name} ") for name in cli.COMMANDS]
    assert places == sorted(places)


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--nonsense"]) == 2
    assert cli.main(["doctor", "--nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate"]) == 2
    err = capsys.readouterr().err
    assert err == "error: unknown command 'genrate'\nhint: did you mean 'generate'?\n"


def test_a_plain_function_and_a_typer_are_both_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(word: str, loud: bool = False) -> None:
        """Say a word."""
        print(word.upper() if loud else word)

    _command(monkeypatch, act)
    assert cli.main(["act", "hello", "--loud"]) == 0
    assert capsys.readouterr().out == "HELLO\n"
    group = typer.Typer()
    group.command("one")(act)
    group.command("two")(act)
    _command(monkeypatch, group)
    assert cli.main(["act", "two", "bye"]) == 0
    assert capsys.readouterr().out == "bye\n"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (ShapeError, 2),
        (CheckpointError, 3),
        (MediaError, 3),
        (BackendUnavailable, 4),
        (OutOfMemory, 4),
    ],
)
def test_our_errors_have_exit_codes_and_a_hint_line(
    kind: type[OneReelError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind("num_frames", expected="a multiple of 24", got=100, hint="use 96 or 120")
    _command(monkeypatch, _raise(error))
    assert cli.main(["act"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: num_frames: expected a multiple of 24, got 100\nhint: use 96 or 120\n"


def test_an_error_without_hint_has_no_hint_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, _raise(MediaError("x.mp4 is empty")))
    assert cli.main(["act"]) == 3
    assert capsys.readouterr().err == "error: x.mp4 is empty\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (typer.Exit(7), 7),
        (MemoryError(), 4),
        (torch.OutOfMemoryError("CUDA out of memory"), 4),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
    ],
)
def test_other_ends_have_exit_codes(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _command(monkeypatch, _raise(error))
    assert cli.main(["act"]) == code
    assert ("hint: " in capsys.readouterr().err) == (code == 4)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("x"), FileNotFoundError("y")])
def test_unexpected_errors_are_not_swallowed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _command(monkeypatch, _raise(error))
    with pytest.raises(type(error)):
        cli.main(["act"])


def test_a_crash_shows_its_traceback_and_asks_for_a_report(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def app():\n    return 1 // 0\n")
    code = (
        "import sys; from onereel.apps.cli import main as m;"
        "m.COMMANDS['broken'] = ('broken:app', 'Breaks.'); sys.exit(m.main(['broken']))"
    )
    env = {"PYTHONPATH": f"{SOURCE}:{tmp_path}", "PATH": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: please report it")


def test_python_dash_m_works() -> None:
    env = {"PYTHONPATH": str(SOURCE), "PATH": ""}
    command = [sys.executable, "-m", "onereel", "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"onereel {onereel.__version__}"
