from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onereel.core.errors import CheckpointError, ConfigError
from onereel.runtime import source as source_module
from onereel.runtime.source import DEFAULT_MODEL, resolve_model, shipped_models

Make = Callable[..., Path]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    for name in (DEFAULT_MODEL, "toybox-magi-fast"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model_index.json").write_text("{}")
    (folder / "unfinished").mkdir()
    monkeypatch.setattr(source_module, "shipped_folder", lambda: folder)
    return folder


def test_shipped_names(shipped: Path) -> None:
    assert list(shipped_models()) == ["toybox-magi", "toybox-magi-fast"]
    assert resolve_model(None).path == shipped / DEFAULT_MODEL
    found = resolve_model("toybox-magi-fast")
    assert (found.kind, found.name) == ("folder", "toybox-magi-fast")


def test_an_unknown_name_suggests_the_nearest(shipped: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'toybox-magi'.*toybox-magi-fast"):
        resolve_model("toybox-mgi")
    with pytest.raises(ConfigError, match="models download --repo sand-ai/MAGI-1"):
        resolve_model("sand-ai/MAGI-1")


def test_no_checkpoint_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "shipped_folder", lambda: tmp_path / "none")
    with pytest.raises(ConfigError, match="no checkpoint is shipped"):
        resolve_model(None)


def test_folders(shipped: Path, tmp_path: Path) -> None:
    found = resolve_model(shipped / DEFAULT_MODEL / "model_index.json")
    assert found == resolve_model(shipped / DEFAULT_MODEL) and found.name == DEFAULT_MODEL
    (tmp_path / "export" / "transformer").mkdir(parents=True)
    with pytest.raises(ConfigError, match="model_index.json, got a folder with transformer but"):
        resolve_model(tmp_path / "export")
    with pytest.raises(CheckpointError, match="vae: no such folder"):
        found.folder("vae")


def test_paths_of_an_official_config(
    make_official: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve_model(make_official())  # example/tiny_config.json says ./downloads/...
    downloads = tmp_path / "tiny" / "downloads"
    assert found.folder("transformer") == downloads / "magi" / "inference_weight"
    assert found.folder("tokenizer") == downloads / "t5" / "t5-v1_1-xxl"
    here = tmp_path / "here"
    (here / "downloads" / "vae").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert found.folder("vae") == here / "downloads" / "vae"  # the working folder comes first


def test_a_missing_official_folder_is_named(make_official: Make) -> None:
    path = make_official()
    text = path.read_text().replace("./downloads/vae", "./elsewhere/vae")
    path.write_text(text)
    with pytest.raises(CheckpointError, match="vae_pretrained: expected the folder elsewhere/vae"):
        resolve_model(path).folder("vae")


def test_official_weights_need_their_config(make_official: Make, tmp_path: Path) -> None:
    make_official()
    tree = tmp_path / "hub" / "ckpt" / "magi"
    tree.mkdir(parents=True)
    (tmp_path / "tiny" / "downloads" / "magi").rename(tree / "4.5B_base")
    for folder in (tmp_path / "hub", tree, tree / "4.5B_base"):
        with pytest.raises(ConfigError, match=r"example/4\.5B/4\.5B_base_config\.json"):
            resolve_model(folder)


def test_wrong_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        resolve_model(tmp_path / "missing.json")
    (tmp_path / "a.json").write_text(json.dumps({"model_conf": {}}))
    with pytest.raises(ConfigError, match="did you mean 'model_config'"):
        resolve_model(tmp_path / "a.json")


def test_the_token_table_is_found(make_official: Make, tmp_path: Path) -> None:
    path = make_official()
    assert resolve_model(path).special_tokens_file() is None
    (tmp_path / "tiny" / "example" / "assets").mkdir()
    table = tmp_path / "tiny" / "example" / "assets" / "special_tokens.npz"
    table.write_bytes(b"")
    assert resolve_model(path).special_tokens_file() == table
