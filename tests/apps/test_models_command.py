from __future__ import annotations

import json
from pathlib import Path

import pytest

from onereel.apps.cli.main import main
from onereel.apps.cli.models import OFFICIAL_REPO
from onereel.runtime import source as source_module
from onereel.runtime.source import resolve_model

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shipped(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that the tiny checkpoint is the shipped one."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "toybox-magi").symlink_to(tiny_checkpoint)
    monkeypatch.setattr(source_module, "shipped_folder", lambda: tmp_path / "shipped")
    return tiny_checkpoint


def test_list(shipped: Path, capsys: Captured) -> None:
    assert main(["models", "list"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("toybox-magi (default)  ") and "4.5B_distill_quant" in err
    assert main(["models", "list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["shipped"]["toybox-magi"]["num_bytes"] > 100_000
    assert data["download"][0] == "4.5B_base"


def test_nothing_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(source_module, "shipped_folder", lambda: tmp_path / "none")
    assert main(["models", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "no checkpoint is shipped" in err
    assert main(["models", "info"]) == 2
    assert "no checkpoint is shipped here" in capsys.readouterr().err


def test_info_and_verify(shipped: Path, capsys: Captured) -> None:
    assert main(["models", "info"]) == 0
    out = capsys.readouterr().out
    assert "transformer" in out and "all tensors accounted for" in out and "sha256" not in out
    assert main(["models", "verify", str(shipped), "--deep", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] and len(data["model_hash"]) == 64
    assert data["sampling"]["num_steps"] == 4


def test_convert_there_and_back(shipped: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["models", "convert", str(shipped), str(tmp_path / "off"), "--to", "official"]) == 0
    config = capsys.readouterr().out.strip()
    assert config.endswith("tiny-magi_config.json") and resolve_model(config).kind == "official"
    arguments = ["models", "convert", config, str(tmp_path / "ours"), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path / "ours")}
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    hashes = []
    for model in (shipped, tmp_path / "ours"):
        assert main(["models", "verify", str(model), "--json"]) == 0
        hashes.append(json.loads(capsys.readouterr().out)["model_hash"])
    assert hashes[0] == hashes[1]


def test_a_damaged_checkpoint(shipped: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["models", "convert", str(shipped), str(tmp_path / "bad")]) == 0
    path = tmp_path / "bad" / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    capsys.readouterr()
    assert main(["models", "verify", str(tmp_path / "bad")]) == 3
    out, err = capsys.readouterr()
    assert "PROBLEM" in out and str(path) in out and "1 problem(s)" in err
    assert main(["models", "info", str(tmp_path / "bad")]) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["info", "toybox-mago"], "did you mean 'toybox-magi'"),
        (["convert", "toybox-magi", "OUT", "--to", "gguf"], "folder or official"),
        (["convert", "toybox-magi", "OUT", "--max-shard-gb", "0"], "more than 0"),
        (["download"], "one of 4.5B_base"),
        (["download", "4.5B_bas"], "did you mean '4.5B_base'"),
        (["download", "4.5B_base", "--repo", "a/b"], "expected none with --repo a/b"),
        (["nothing"], "nothing"),
    ],
)
def test_usage_errors(
    shipped: Path, tmp_path: Path, capsys: Captured, arguments: list[str], text: str
) -> None:
    arguments = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    assert main(["models", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_download_asks_for_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    asked = {}

    def fake(repo: str, **options: object) -> str:
        asked.update(repo=repo, **options)
        return ""

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    arguments = ["models", "download", "24B_distill", "--to", str(tmp_path), "--json"]
    assert main(arguments) == 0
    assert asked["repo"] == OFFICIAL_REPO and asked["local_dir"] == tmp_path
    assert asked["allow_patterns"] == ["ckpt/magi/24B_distill/*", "ckpt/vae/*", "ckpt/t5/*"]
    out, err = capsys.readouterr()
    settings = json.loads(out)["runtime_config"]
    assert settings["load"] == str(tmp_path / "ckpt" / "magi" / "24B_distill")
    assert '"t5_pretrained"' in err
    assert main(["models", "download", "--repo", "someone/else", "--to", str(tmp_path)]) == 0
    assert asked["allow_patterns"] is None


def test_download_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["models", "download", "4.5B_base", "--to", str(tmp_path / "to")]
    assert main(arguments) == 4
    err = capsys.readouterr().err
    assert "error: cannot download sand-ai/MAGI-1" in err and "hint: check the network" in err
    assert main(["models", "download", "--repo", "not a repo", "--to", str(tmp_path)]) == 2
    assert "one that exists" in capsys.readouterr().err
