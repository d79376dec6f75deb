from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest

from onereel.apps.cli import doctor
from onereel.apps.cli.main import main

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def _distributions(texts: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in texts}


def test_json_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["packages"]["torch"] == importlib.metadata.version("torch")
    assert machine["media"]["encoders"]["libx264"] is True
    assert machine["devices"][-1]["name"] == "cpu"
    assert machine["problems"] == []
    assert 0 < machine["memory_gib"]["available"] <= machine["memory_gib"]["total"]


def test_text_has_a_line_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "torch", "memory", "disk", "encoders", *doctor.OPTIONAL_PACKAGES):
        assert re.search(rf"^ *{word} ", out, flags=re.MULTILINE)


def test_a_missing_package_is_a_problem_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {name: "1.0" for name in _distributions(PROJECT["dependencies"])}
    del versions["av"], versions["torch"]
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert main(["doctor"]) == 4
    out, err = capsys.readouterr()
    assert "problem: torch is not installed" in out
    assert "problem: av is not installed" in out
    assert "hint: pip install torch" in err


def test_it_knows_the_dependencies_of_the_project() -> None:
    machine = doctor.examine()
    assert set(machine["packages"]) == _distributions(PROJECT["dependencies"])
    extras = {
        (distribution, f"pip install 'onereel[{extra}]'")
        for extra, texts in PROJECT["optional-dependencies"].items()
        if extra != "dev"
        for distribution in _distributions(texts)
    }
    told = {(entry[0], entry[2]) for entry in doctor.OPTIONAL_PACKAGES.values()}
    assert extras <= told


def test_a_container_limit_counts_as_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = {
        "/sys/fs/cgroup/memory.max": tmp_path / "max",
        "/sys/fs/cgroup/memory.current": tmp_path / "current",
    }
    (tmp_path / "max").write_text(f"{2**29}\n")
    (tmp_path / "current").write_text(f"{2**28}\n")
    monkeypatch.setattr(doctor, "Path", lambda path: limits.get(path, Path(path)))
    assert doctor.memory_gib() == {"total": 0.5, "available": 0.2}
