"""`import onereel` and `onereel --help` stay quick and light."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
LIMIT_S = 0.5
IMPORT = "import onereel"
HELP = "import sys; from onereel.apps.cli.main import main; sys.exit(main(['--help']))"
HEAVY = ("torch", "diffusers", "transformers", "numpy", "av", "PIL", "rich")


def _run(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def _seconds(code: str) -> float:
    start = time.perf_counter()
    _run(code)
    return time.perf_counter() - start


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_it_takes_less_than_half_a_second(code: str) -> None:
    assert min(_seconds(code) for _ in range(3)) < LIMIT_S


@pytest.mark.parametrize("code", [IMPORT, HELP.replace("sys.exit(", "(")], ids=["import", "help"])
def test_nothing_heavy_is_imported(code: str) -> None:
    out = _run(f"{code}\nimport sys\nprint('LOADED', *[m for m in {HEAVY} if m in sys.modules])")
    assert out.splitlines()[-1] == "LOADED"


def test_the_help_names_every_command() -> None:
    from onereel.apps.cli.main import COMMANDS

    out = _run(HELP)
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in out
        assert text in out
