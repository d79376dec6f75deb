"""Room `evaluation/parity`: our code against outputs recorded from official code.

A folder of recordings has an `index.json` that names its `family`; the module of that name runs it.
Read `case.py` first.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path

from onereel.core.config import nearest_name
from onereel.core.errors import CheckpointError, ConfigError
from onereel.evaluation.parity.case import CaseResult, compare

__all__ = ["CaseResult", "compare", "run_folder"]


Runner = Callable[[Path], Iterator[CaseResult]]


def find_runner(family: str) -> Runner | None:
    """Find the function that runs a family's folders.

    Args:
        family: name of a module of this room.

    Returns:
        Its `run`, or None when there is no such module or it runs nothing.
    """
    if family not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return None
    runner: Runner | None = getattr(importlib.import_module(f"{__name__}.{family}"), "run", None)
    return runner


def families() -> list[str]:
    """List the families that have a runner.

    Returns:
        Names that an index may give as `family`.
    """
    return [m.name for m in pkgutil.iter_modules(__path__) if find_runner(m.name)]


def run_folder(folder: Path) -> Iterator[CaseResult]:
    """Run every case of a folder.

    Args:
        folder: holds `index.json` and the files it names.

    Returns:
        Results, one by one.

    Raises:
        CheckpointError: there is no readable index.
        ConfigError: the index names no family, or one without runner.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable index ({error})") from error
    family = index.get("family") if isinstance(index, dict) else None
    runner = find_runner(str(family))
    if runner is None:
        known = families()
        near = nearest_name(str(family), known)
        hint = f"did you mean '{near}'?" if near else None
        raise ConfigError(f"{path}: family", expected=f"one of {known}", got=family, hint=hint)
    return runner(folder)
