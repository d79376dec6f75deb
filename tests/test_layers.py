"""Imports point downward, and nothing is imported that was not declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "onereel"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "core": 0,
    "media": 1,
    "nn": 1,
    "world": 1,
    "models": 2,
    "samplers": 2,
    "runtime": 3,
    "pipelines": 4,
    "runs": 5,
    "training": 5,
    "evaluation": 5,
    "apps": 6,
}
# The package's own file and `python -m onereel` stand above all rooms.
TOP = ("__init__", "__main__")

# Distributions whose import name differs.
IMPORT_NAMES = {"pillow": "PIL", "beautifulsoup4": "bs4", "pyyaml": "yaml"}
# Used when found, never installed by us (docs/dependencies.md): attention backends, and the client
# that diffusers and transformers bring along.
FOUND = {"flash_attn", "sageattention", "huggingface_hub", "torchmetrics"}
FORBIDDEN = {"torchvision", "timm"}


class Import(NamedTuple):
    """One import: the module's full name, its line, whether it runs when the file is imported."""

    module: str
    line: int
    at_import: bool


def _absolute(node: ast.ImportFrom, file: Path) -> str:
    if not node.level:
        return node.module or ""
    package = ("onereel", *file.relative_to(PACKAGE).parts[:-1])
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *([node.module] if node.module else [])))


def _named(node: ast.AST, file: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node, file)
        # `from onereel import media` imports a room, too.
        return [f"{base}.{alias.name}" if base == "onereel" else base for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        value = node.args[0].value
        if name in ("import_module", "__import__") and isinstance(value, str):
            return [value]
    return []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree: ast.AST, file: Path, *, at_import: bool = True) -> Iterator[Import]:
    """Walk a tree for imports, knowing which of them are inside functions or for types only."""
    for node in ast.iter_child_nodes(tree):
        for name in _named(node, file):
            yield Import(name, getattr(node, "lineno", 0), at_import)
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        late = deferred or _is_type_checking(node)
        yield from imports_of(node, file, at_import=at_import and not late)


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "onereel" and len(parts) > 1 else None


def layer_errors(source: str, file: Path) -> list[str]:
    """List the imports of a file that point upward or sideways."""
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    errors = []
    for found in imports_of(ast.parse(source), file):
        room = _room(found.module)
        if room is None or room == here or here in TOP:
            continue
        if room not in LEVELS:
            if room != "__version__":
                errors.append(f"{file.name}:{found.line}: unknown room {found.module}")
        elif LEVELS[here] <= LEVELS[room]:
            errors.append(f"{file.name}:{found.line}: {here} imports {found.module}")
    return errors


def _import_names(requirements: list[str]) -> set[str]:
    names = (re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in requirements)
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def _declared() -> tuple[set[str], set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [text for name, texts in extras.items() if name != "dev" for text in texts]
    return _import_names(project["dependencies"]), _import_names(optional)


CORE, OPTIONAL = _declared()


def dependency_errors(source: str, file: Path) -> list[str]:
    """List the imports of a file that are undeclared, forbidden or too early."""
    errors = []
    for found in imports_of(ast.parse(source), file):
        top = found.module.split(".")[0]
        where = f"{file.name}:{found.line}: {found.module}"
        if top in FORBIDDEN:
            errors.append(f"{where} is never used here")
        elif top in OPTIONAL | FOUND and found.at_import:
            errors.append(f"{where} is optional: import it inside the function that needs it")
        elif top not in sys.stdlib_module_names | CORE | OPTIONAL | FOUND | {"onereel"}:
            errors.append(f"{where} is not declared in pyproject.toml")
    return errors


def _id(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_imports_point_downward(file: Path) -> None:
    assert layer_errors(file.read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_imports_are_declared(file: Path) -> None:
    assert dependency_errors(file.read_text(encoding="utf-8"), file) == []


def test_every_room_has_a_level_and_a_docstring() -> None:
    folders = {path.parent for path in FILES} - {PACKAGE}
    unknown = {path.relative_to(PACKAGE).parts[0] for path in folders} - LEVELS.keys()
    assert unknown == set()
    undocumented = [
        str(folder.relative_to(PACKAGE))
        for folder in folders
        if not (folder / "__init__.py").is_file()
        or ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) is None
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("core", "from onereel.nn.rope import x"),
        ("nn", "import onereel.media"),
        ("media", "from onereel import world"),
        ("models", "def f():\n    from onereel.samplers import plan"),
        ("training", "from onereel.evaluation import parity"),
        ("samplers", "from ..models import text"),
        ("runtime", "import importlib\nimportlib.import_module('onereel.apps')"),
        ("world", "from onereel.nowhere import x"),
    ],
)
def test_the_layer_guard_sees(room: str, source: str) -> None:
    assert len(layer_errors(source, PACKAGE / room / "x.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torchvision.ops",
        "def f():\n    import timm",
        "import torchao",
        "class A:\n    import scipy.ndimage",
        "def f():\n    import requests",
    ],
)
def test_the_dependency_guard_sees(source: str) -> None:
    assert len(dependency_errors(source, PACKAGE / "core" / "x.py")) == 1


def test_what_is_right_passes() -> None:
    source = "import json, torch\nfrom PIL import Image\nfrom onereel import __version__\n"
    source += "from onereel.core import errors\ndef f():\n    import torchao.quantization\n"
    assert dependency_errors(source, PACKAGE / "runtime" / "x.py") == []
    assert layer_errors(source, PACKAGE / "runtime" / "x.py") == []


def test_each_dependency_is_argued_in_one_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    wanted = {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in texts}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    argued = re.findall(r"^\| `([^`]+)` \|.+\|$", page, flags=re.MULTILINE)
    assert wanted <= set(argued)
    assert len(argued) == len(set(argued))
