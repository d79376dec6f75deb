"""Room `evaluation/parity`: our code against outputs recorded from official code.

A folder of recordings has an `index.json` that names its `family`; the module of that name runs it.
Read `case.py` first.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from onereel.core.config import nearest_name
from onereel.core.errors import CheckpointError, ConfigError
from onereel.evaluation.parity.case import CaseResult, compare

__all__ = ["CaseResult", "compare", "run_folder"]


def families() -> list[str]:
    """List the families that have a runner.

    Returns:
        Module names that the index may give as `family`.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return [name for name in names if _has_runner(name)]


def _has_runner(name: str) -> bool:
    source = Path(__path__[0], f"{name}.py").read_text(encoding="utf-8")
    return "\ndef run(folder" in source


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
    known = families()
    if family not in known:
        near = nearest_name(str(family), known)
        hint = f"did you mean '{near}'?" if near else None
        raise ConfigError(f"{path}: family", expected=f"one of {known}", got=family, hint=hint)
    module = importlib.import_module(f"{__name__}.{family}")
    results: Iterator[CaseResult] = module.run(folder)
    return results
