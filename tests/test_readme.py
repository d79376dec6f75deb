"""What the README tells people to type exists, and what it marks as tried is run.

Every `sh` block is parsed: each command's subcommand and flags must exist, each script and file of
the repository it names, too. A block that opens with ```sh e2e is run as well, line by line in one
empty folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from onereel.apps.cli.main import COMMANDS, LazyGroup, app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUN = "import sys; from onereel.apps.cli.main import main; sys.exit(main(sys.argv[1:]))"


class Block(NamedTuple):
    """One fenced block: its commands and whether they are run."""

    commands: tuple[str, ...]
    runs: bool


def blocks_of(text: str) -> list[Block]:
    """Read the `sh` blocks of a page: continued lines joined, comments and prompts dropped."""
    found = []
    for info, body in re.findall(r"^```sh([^\n]*)\n(.*?)^```", text, flags=re.M | re.S):
        lines = (line.strip().removeprefix("$ ") for line in body.replace(" \\\n", " ").split("\n"))
        commands = tuple(" ".join(line.split()) for line in lines if line and line[0] != "#")
        found.append(Block(commands, "e2e" in info.split()))
    return found


def onereel_arguments(command: str) -> list[str] | None:
    """Give what a command passes to onereel, or None when it calls something else."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0].removeprefix("./").removeprefix("scripts/") != "onereel":
        return None
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "2>")]
    return words[1 : ends[0] if ends else None]


def _flags(command: Any) -> set[str]:
    names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return names | {"-h", "--help"}


def unknown_parts(arguments: list[str]) -> list[str]:
    """List the subcommands and flags among arguments that do not exist."""
    command: Any = typer.main.get_command(app)
    assert isinstance(command, LazyGroup)
    for word in arguments:
        if word.startswith("-"):
            if not re.fullmatch(r"-\d.*", word) and word.split("=")[0] not in _flags(command):
                return [word]
        elif hasattr(command, "list_commands"):
            if word not in command.list_commands(None):
                return [word]
            command = command.get_command(None, word)
    return []


BLOCKS = blocks_of(README.read_text(encoding="utf-8")) if README.is_file() else []
COMMAND_LINES = [line for block in BLOCKS for line in block.commands]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_of_the_readme_exists(line: str) -> None:
    arguments = onereel_arguments(line)
    if arguments is not None:
        assert unknown_parts(arguments) == []
    for script in re.findall(r"(?:^|\s)\.?/?(scripts/[\w./-]+)", line):
        assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.runs], ids=lambda block: block.commands[0]
)
def test_a_marked_block_of_the_readme_runs(block: Block, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for line in block.commands:
        arguments = onereel_arguments(line)
        assert arguments is not None, f"only onereel's own commands are run, not: {line}"
        command = [sys.executable, "-c", RUN, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def _written(name: str) -> bool:
    return (ROOT / "src" / f"{COMMANDS[name][0].split(':')[0].replace('.', '/')}.py").is_file()


# Rooms are written one after the other: a command that does not exist yet is not asked.
@pytest.mark.parametrize("name", [name for name in COMMANDS if _written(name)])
def test_every_command_is_there(name: str) -> None:
    command = LazyGroup(name="onereel").get_command(None, name)
    assert command.name == name
    assert command.help or command.get_short_help_str()


def test_the_guard_reads_a_page() -> None:
    page = "x\n```sh e2e\n# note\n$ onereel doctor \\\n  --json\n```\n"
    page += "```python\nx\n```\n```sh\na\n```\n"
    assert blocks_of(page) == [Block(("onereel doctor --json",), True), Block(("a",), False)]
    assert onereel_arguments("./scripts/onereel parity X > out.txt") == ["parity", "X"]
    assert onereel_arguments("A=1 onereel train") == ["train"]
    assert onereel_arguments("pip install .") is None


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["doctor", "--json"], []),
        (["doctor", "--jsn"], ["--jsn"]),
        (["docter"], ["docter"]),
        (["--version"], []),
        (["--verbose"], ["--verbose"]),
        (["parity", "folder", "--json"], []),
    ],
)
def test_the_guard_sees(arguments: list[str], unknown: list[str]) -> None:
    assert unknown_parts(arguments) == unknown
