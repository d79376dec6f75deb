"""The package's public names are few and exact; no file or class has a name that says nothing."""

from __future__ import annotations

import ast
import sys
import tomllib
import types
from pathlib import Path

import pytest

import onereel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "onereel"
FILES = sorted(PACKAGE.rglob("*.py"))

EXPECTED = {
    "AutoModel",
    "AutoencoderKLMagi1",
    "Magi1ImageToVideoPipeline",
    "Magi1LoraLoaderMixin",
    "Magi1Pipeline",
    "Magi1PipelineOutput",
    "Magi1Transformer3DModel",
    "Magi1VideoToVideoPipeline",
    "Run",
    "__version__",
}
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "stuff"}


def test_public_names_are_few_and_exact() -> None:
    assert len(onereel.__all__) == len(set(onereel.__all__)) <= 10  # nine and the version
    assert set(onereel.__all__) == EXPECTED
    assert list(onereel.__all__) == sorted(onereel.__all__)
    assert set(onereel.__all__) <= set(dir(onereel))


def test_nothing_else_is_public() -> None:
    values = vars(onereel)
    public = {
        name
        for name, value in values.items()
        if not name.startswith("_")
        and name != "annotations"  # of `from __future__`
        and not (isinstance(value, types.ModuleType) and value.__name__.startswith("onereel."))
    }
    assert public <= EXPECTED


def test_every_public_name_has_a_home() -> None:
    assert set(onereel._HOMES) == EXPECTED - {"__version__"}


@pytest.mark.parametrize("name", sorted(onereel._HOMES))
def test_a_public_name_resolves_to_its_home(name: str) -> None:
    value = getattr(onereel, name)
    assert value.__name__ == name
    # diffusers writes the module into saved pipelines, so a class must live where it is listed.
    assert value.__module__ == onereel._HOMES[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Magi2Pipeline'"):
        _ = onereel.Magi2Pipeline


def test_the_version_is_the_one_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "src/onereel/__init__.py"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{onereel.__version__}]" in changelog


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_names_say_something(file: Path) -> None:
    assert file.stem not in EMPTY_NAMES
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if "Manager" in name] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_shadows_the_standard_library(file: Path) -> None:
    name = file.parent.name if file.stem == "__init__" else file.stem
    assert name not in sys.stdlib_module_names - {"__main__"}
