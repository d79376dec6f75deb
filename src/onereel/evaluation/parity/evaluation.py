"""Golden cases of the evaluation: Physics-IQ, VBench, quality and distances, LPIPS.

The index lists the files of every set under `sets`; a folder may hold any of the sets. Each set's
cases are in a module of their own, imported when such a set is there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onereel.core.errors import CheckpointError
from onereel.evaluation.parity.case import CaseResult

Cases = Callable[[Path], Iterator[CaseResult]]

# Set of goldens -> (module of this room, function that gives its cases).
SETS = {
    "physics_iq": ("evaluation_physics_iq", "physics_iq_cases"),
    "vbench": ("evaluation_vbench", "vbench_cases"),
    "quality": ("evaluation_quality", "quality_cases"),
    "lpips": ("evaluation_quality", "lpips_cases"),
}


def run(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of all sets that the index lists.

    An index without `sets` is that of a single set, named by its `set` or else by its folder.

    Args:
        folder: holds the index and one folder per set.

    Yields:
        One result per case; an unknown set is a failed case.

    Raises:
        CheckpointError: a listed file is missing or is not the one listed.
    """
    index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    if "sets" not in index:
        yield from _set_cases(str(index.get("set", folder.resolve().name)), folder)
        return
    for name, files in index["sets"].items():
        for file, entry in files.items():
            check_file(folder / name / file, entry)
    for name in index["sets"]:
        yield from _set_cases(name, folder / name)


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Refuse a file that is not the one recorded.

    Args:
        path: the file.
        entry: its `bytes` and `sha256`; either may be absent.

    Raises:
        CheckpointError: it is missing, or its size or hash differ.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", hint="copy the whole folder again")
    size = path.stat().st_size
    if size != entry.get("bytes", size):
        raise CheckpointError(str(path), expected=f"{entry['bytes']} bytes", got=f"{size} bytes")
    if "sha256" in entry:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise CheckpointError(str(path), expected=f"sha256 {entry['sha256']}", got=found)


def _set_cases(name: str, folder: Path) -> Iterator[CaseResult]:
    if name not in SETS:
        note = f"unknown set; known are {', '.join(SETS)}"
        yield CaseResult(f"{name}.set", False, float("inf"), 0.0, note)
        return
    module, function = SETS[name]
    cases: Cases = getattr(importlib.import_module(f"onereel.evaluation.parity.{module}"), function)
    yield from cases(folder)
