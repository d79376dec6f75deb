from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onereel.core.errors import BackendUnavailable, CheckpointError
from onereel.runtime import shards
from onereel.runtime.shards import open_tensors, read_header

needs_zstd = pytest.mark.skipif(
    not any(importlib.util.find_spec(n.split(".")[0]) for n in ("compression", "zstandard")),
    reason="no zstd",
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(2, 2, 2).to(torch.bfloat16),
        "c": torch.randn(1, 7).to(torch.float8_e4m3fn),
        "d": torch.arange(4),
        "empty": torch.empty(0, 3),
    }


def write_sharded(state: dict[str, torch.Tensor], folder: Path) -> None:
    save_file({"a": state["a"], "c": state["c"]}, folder / "one.safetensors")
    rest = {k: v for k, v in state.items() if k not in "ac"}
    save_file(rest, folder / "two.safetensors")
    weight_map = {k: "one.safetensors" if k in "ac" else "two.safetensors" for k in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def equal(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return found.keys() == state.keys() and all(
        found[k].dtype == state[k].dtype
        and found[k].shape == state[k].shape
        and torch.equal(found[k].float(), state[k].float())
        for k in state
    )


def test_headers_and_tensors(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "model.safetensors")
    folder = open_tensors(tmp_path)
    assert folder.num_bytes == sum(t.nbytes for t in state.values())
    assert folder.num_parameters == sum(t.numel() for t in state.values())
    assert {k: t.shape for k, t in folder.meta().items()} == {k: t.shape for k, t in state.items()}
    assert all(tensor.is_meta for tensor in folder.meta().values())
    assert equal(dict(folder.tensors()), state)


def test_shards_hold_the_same(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "whole").mkdir()
    write_sharded(state, tmp_path)
    save_file(state, tmp_path / "whole" / "diffusion_pytorch_model.safetensors")
    sharded, whole = open_tensors(tmp_path), open_tensors(tmp_path / "whole")
    assert len(sharded.files) == 2 and equal(dict(sharded.tensors()), state)
    assert sharded.digests() == whole.digests()
    raw = state["a"].numpy().tobytes()
    assert sharded.digests()["a"] == hashlib.sha256(raw).hexdigest()


def test_headers_do_not_touch_values(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(shards, "safe_open", None)
    assert set(open_tensors(tmp_path).infos) == set(state)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_truncated_file_is_named_with_its_sizes(
    tmp_path: Path, state: dict[str, torch.Tensor], cut: int
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    with pytest.raises(CheckpointError) as error:
        open_tensors(tmp_path)
    assert f"{path}: size: expected {len(data)} bytes, got {len(data) - cut}" in str(error.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "header length: expected 8 bytes, got 0"),
        (b"\x10\0\0\0\0\0\0\0{}", "expected more than 24 bytes, got 10"),
        (b"version https://git-lfs.github.com/spec/v1", "claims a header"),
        (struct.pack("<Q", 4) + b"abcd", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
        (struct.pack("<Q", 10) + b'{"a": "b"}', "its header cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=text) as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}, "unknown dtype F4"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "expected 8 bytes, got 4"),
    ],
)
def test_headers_that_lie(tmp_path: Path, entry: dict[str, object], text: str) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=text):
        read_header(path)


def test_missing_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="got no such folder"):
        open_tensors(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="got nothing"):
        open_tensors(tmp_path)
    write_sharded(state, tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors: shard is missing"):
        open_tensors(tmp_path)


def test_an_index_must_agree(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    write_sharded(state, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())["weight_map"]
    for weight_map, text in (
        ({**good, "a": "two.safetensors"}, "tensor 'a' is not in two"),
        ({**good, "z": "two.safetensors"}, "tensor 'z' is not in two"),
        ({k: v for k, v in good.items() if k != "b"}, r"does not list \(b"),
        ({**good, "a": "../one.safetensors"}, "expected a file name"),
        ({}, "'weight_map' is missing"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=text):
            open_tensors(tmp_path)


def compress(path: Path) -> None:
    module = shards._zstd(path.with_name(path.name + ".zst"))
    with module.open(path.with_name(path.name + ".zst"), "wb") as file:
        file.write(path.read_bytes())
    path.unlink()


@needs_zstd
def test_compressed_shards(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    write_sharded(state, tmp_path)
    digests = open_tensors(tmp_path).digests()
    compress(tmp_path / "two.safetensors")
    folder = open_tensors(tmp_path)
    assert equal(dict(folder.tensors()), state) and folder.digests() == digests
    (tmp_path / "whole").mkdir()
    save_file(state, tmp_path / "whole" / "model.safetensors")
    compress(tmp_path / "whole" / "model.safetensors")
    assert equal(dict(open_tensors(tmp_path / "whole").tensors()), state)


@needs_zstd
def test_a_truncated_compressed_shard(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"a": torch.randn(300_000)}, tmp_path / "model.safetensors")
    compress(tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors.zst"
    path.write_bytes(path.read_bytes()[:-1000])
    folder = open_tensors(tmp_path)  # the header is whole
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.zst"):
        dict(folder.tensors())


def test_a_compressed_shard_without_decompressor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(shards, "_ZSTD_MODULES", ("no_such_module",))
    with pytest.raises(BackendUnavailable, match="hint: pip install zstandard, or run: zstd -d"):
        open_tensors(tmp_path)
