"""The scripts set up `.venv` once, again when needed, and pass everything through.

A stand-in for python3 records what it is asked for and makes environments of shell scripts, so that
nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Called as `python3`, and as `.venv/bin/python` of the environments it makes.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
  --version) echo "Python 3.11.9" ;;
  "-m pip --version") ;;
  "-m venv --clear "*)
    echo "venv" >>"$FAKE_LOG"
    mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip install "*)
    echo "pip $*" >>"$FAKE_LOG"
    [ -z "${FAKE_PIP_FAILS:-}" ] || exit 1
    bin=$(dirname -- "$0")
    printf '#!/bin/sh\\npwd\\nfor a in "$@"; do echo "<$a>"; done\\nexit 5\\n' >"$bin/onereel"
    chmod +x "$bin/onereel" ;;
  "-m pytest "*) echo "pytest in $PWD: $*" ;;
  *bench_*) echo "bench: $*" ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class Checkout:
    """A copy of the scripts with a stand-in python3 on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.log = folder / "log"
        self.log.touch()
        tools = folder / "tools"
        tools.mkdir()
        for name in ("python3", "python3.13", "python3.12", "python3.11"):
            (tools / name).write_text(FAKE_PYTHON)
            (tools / name).chmod(0o755)
        self.env = {"PATH": f"{tools}:{os.environ['PATH']}", "FAKE_LOG": str(self.log)}

    def run(
        self, script: str | Path, *args: str, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout."""
        path = script if isinstance(script, Path) else self.root / "scripts" / script
        return subprocess.run(
            [str(path), *args],
            cwd=cwd or self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def events(self) -> list[str]:
        """What the stand-in was asked to make: `venv` and `pip`."""
        return [line.split()[0] for line in self.log.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_use_installs_with_constraints_and_talks_to_stderr(checkout: Checkout) -> None:
    done = checkout.run("onereel", "doctor")
    assert done.returncode == 5
    assert done.stdout.splitlines()[1:] == ["<doctor>"]
    assert "first use: making" in done.stderr
    assert "installing" in done.stderr
    assert checkout.events() == ["venv", "pip"]
    command = checkout.log.read_text()
    assert (
        f"--constraint {checkout.root}/constraints.txt --editable {checkout.root}[eval]\n"
        in command
    )


def test_arguments_folder_and_exit_code_pass_through_a_symlink(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.run("onereel")
    link = tmp_path / "bin" / "reel"
    link.parent.mkdir()
    link.symlink_to(checkout.root / "scripts" / "onereel")
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    done = checkout.run(link, "generate", "a red disc", "", "-o", "x y.mp4", cwd=elsewhere)
    assert done.returncode == 5
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        str(elsewhere),
        *("<generate>", "<a red disc>", "<>", "<-o>", "<x y.mp4>"),
    ]


def test_a_second_run_only_compares_and_is_quick(checkout: Checkout) -> None:
    checkout.run("onereel")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert checkout.run("onereel").stderr == ""
        seconds.append(time.perf_counter() - start)
    assert checkout.events() == ["venv", "pip"]
    assert min(seconds) < 0.2


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_venv(
    checkout: Checkout, name: str
) -> None:
    checkout.run("onereel")
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    checkout.run("onereel")
    checkout.run("onereel")
    assert checkout.events() == ["venv", "pip", "pip"]


def test_an_interrupted_install_is_tried_again(checkout: Checkout) -> None:
    done = checkout.run("onereel", FAKE_PIP_FAILS="1")
    assert done.returncode == 4
    assert "error: the installation failed\nhint: " in done.stderr
    assert checkout.run("onereel").returncode == 5
    assert checkout.events() == ["venv", "pip", "pip"]


def test_a_broken_venv_is_made_anew(checkout: Checkout) -> None:
    checkout.run("onereel")
    (checkout.root / ".venv" / "bin" / "python").unlink()
    (checkout.root / ".venv" / "bin" / "onereel").unlink()
    assert checkout.run("onereel").returncode == 5
    assert checkout.events() == ["venv", "pip", "venv", "pip"]


def test_a_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.run("onereel")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run("onereel").returncode == 5
    assert checkout.events() == ["venv", "pip", "pip"]


def test_two_first_uses_at_once_install_once(checkout: Checkout) -> None:
    path = str(checkout.root / "scripts" / "onereel")
    runs = [
        subprocess.Popen([path], env=checkout.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:
        run.communicate()
        assert run.returncode == 5
    assert checkout.events() == ["venv", "pip"]


def test_an_old_python_is_refused_with_a_hint(checkout: Checkout) -> None:
    done = checkout.run("onereel", FAKE_TOO_OLD="1")
    assert done.returncode == 4
    assert "error: python3: expected 3.11 or newer, got Python 3.11.9\nhint: " in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_the_test_script_adds_the_dev_extra_and_runs_in_the_repository(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.run("onereel")
    done = checkout.run("test", "-q", "tests/world", cwd=tmp_path)
    assert done.stdout == f"pytest in {checkout.root}: -m pytest -n auto -q tests/world\n"
    assert f"--editable {checkout.root}[dev]" in checkout.log.read_text()
    checkout.run("onereel")
    checkout.run("test")
    assert checkout.events() == ["venv", "pip", "pip"]


def test_bench_lists_and_runs(checkout: Checkout) -> None:
    (checkout.root / "scripts" / "bench_sums.py").write_text('"""Measure sums."""\n')
    listed = checkout.run("bench").stdout.splitlines()
    assert "sums             Measure sums." in listed
    assert checkout.events() == []
    done = checkout.run("bench", "nothing")
    assert done.returncode == 2
    assert "error: no benchmark named nothing\nhint: " in done.stderr
    done = checkout.run("bench", "sums", "--n", "3")
    assert done.stdout == f"bench: {checkout.root}/scripts/bench_sums.py --n 3\n"


def test_check_refuses_unknown_arguments(checkout: Checkout) -> None:
    assert checkout.run("check", "--fux").returncode == 2
