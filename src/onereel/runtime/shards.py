"""Tensors of a checkpoint: headers first, then one tensor at a time.

A checkpoint is one safetensors file, or shards with an index; each file may be compressed with
zstd. Only headers are read to account for names, shapes and bytes, so a damaged download is found
in milliseconds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import safe_open

from onereel.core.errors import BackendUnavailable, CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Names under which diffusers, transformers and the official code store weights.
STEMS = ("diffusion_pytorch_model", "model")
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_ZST = ".zst"
_ZSTD_MODULES = ("compression.zstd", "zstandard")  # from Python 3.14 on, and the package
_THREADS = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says about a tensor.

    Args:
        dtype: of the stored values.
        shape: of the tensor.
        file: where it is stored, possibly compressed.
        start: offset of its first byte in the uncompressed file.
        end: offset behind its last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Stored size."""
        return self.end - self.start

    def meta(self) -> torch.Tensor:
        """Make a tensor without storage."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class TensorFolder:
    """All tensors of one component.

    Args:
        path: the folder.
        files: its weight files in order.
        infos: names to what their headers say, in the order of the files' bytes.
    """

    path: Path
    files: tuple[Path, ...]
    infos: Mapping[str, TensorInfo]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, uncompressed."""
        return sum(info.num_bytes for info in self.infos.values())

    @property
    def num_parameters(self) -> int:
        """Numbers stored."""
        return sum(info.num_bytes // info.dtype.itemsize for info in self.infos.values())

    def meta(self) -> dict[str, torch.Tensor]:
        """Make tensors without storage, for accounting."""
        return {name: info.meta() for name, info in self.infos.items()}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Read file by file, tensor by tensor.

        Plain files are mapped: pages are read when values are used. Compressed files are
        decompressed on the way, one tensor in memory at a time.

        Yields:
            Names and CPU tensors.

        Raises:
            CheckpointError: a compressed file ends early.
            BackendUnavailable: a file is compressed and no decompressor is installed.
        """
        for file in self.files:
            if file.suffix == _ZST:
                for name, info, data in _decompressed(file, self._of(file)):
                    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
                    yield name, flat.view(info.dtype).reshape(info.shape)
                continue
            with safe_open(file, framework="pt") as opened:
                for name in self._of(file):
                    yield name, opened.get_tensor(name)

    def digests(self) -> dict[str, str]:
        """Hash every tensor's bytes, several at a time.

        Returns:
            Names to SHA-256 in hexadecimal.

        Raises:
            CheckpointError: a compressed file ends early.
            BackendUnavailable: a file is compressed and no decompressor is installed.
        """
        found: dict[str, str] = {}
        for file in self.files:
            infos = self._of(file)
            if file.suffix == _ZST:
                for name, _, data in _decompressed(file, infos):
                    found[name] = hashlib.sha256(data).hexdigest()
                continue
            with (
                file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
                ThreadPoolExecutor(_THREADS) as pool,
            ):
                found.update(pool.map(lambda item: _digest(view, *item), infos.items()))  # noqa: B023
        return found

    def _of(self, file: Path) -> dict[str, TensorInfo]:
        """Return a file's tensors."""
        return {name: info for name, info in self.infos.items() if info.file == file}


def _digest(view: memoryview, name: str, info: TensorInfo) -> tuple[str, str]:
    with view[info.start : info.end] as part:
        return name, hashlib.sha256(part).hexdigest()


def find_weights(folder: Path) -> Path | None:
    """Find a folder's index or its only weight file.

    Args:
        folder: the component's folder.

    Returns:
        The index, or the file, or None where there is neither.
    """
    for stem in STEMS:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            for path in (folder / name, folder / f"{name}{_ZST}"):
                if path.is_file() and not (path.suffix == _ZST and name.endswith("json")):
                    return path
    return None


def open_tensors(folder: Path) -> TensorFolder:
    """Read the headers of all weight files of a folder.

    Args:
        folder: holds `model.safetensors` or `diffusion_pytorch_model.safetensors`, or shards and
            their index, each file possibly with `.zst` behind its name.

    Returns:
        The tensors, none of them read.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or the index is wrong.
        BackendUnavailable: a file is compressed and no decompressor is installed.
    """
    found = find_weights(folder)
    if found is None:
        wanted = ", ".join(f"{stem}.safetensors" for stem in STEMS)
        raise CheckpointError(
            f"{folder}: no weights",
            expected=f"{wanted} or an index of shards",
            got="no such folder" if not folder.is_dir() else _listing(folder),
            hint="download it again, or check the path",
        )
    if found.suffix != ".json":
        return TensorFolder(folder, (found,), read_header(found))
    weight_map = _read_index(found)
    files = [_existing(folder / name, found) for name in dict.fromkeys(weight_map.values())]
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(read_header, files))
    infos: dict[str, TensorInfo] = {}
    for header in headers:
        infos.update(header)
    _check_index(found, weight_map, infos)
    return TensorFolder(folder, tuple(files), infos)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: 'weight_map' is missing", hint="download it again")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path}: shard", expected="a file name", got=repr(file))
    return cast("dict[str, str]", weight_map)


def _existing(path: Path, index: Path) -> Path:
    """Return the shard, or its compressed form."""
    for candidate in (path, path.with_name(path.name + _ZST)):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{path}: shard is missing", expected=f"as listed in {index.name}",
        hint="download it again",
    )  # fmt: skip


def _check_index(
    index: Path, weight_map: Mapping[str, str], infos: Mapping[str, TensorInfo]
) -> None:
    """Refuse an index that contradicts the shards' headers."""
    for name, file in weight_map.items():
        if name not in infos or infos[name].file.name not in (file, file + _ZST):
            raise CheckpointError(f"{index}: tensor '{name}' is not in {file}")
    extra = sorted(set(infos) - set(weight_map))
    if extra:
        raise CheckpointError(
            f"{infos[extra[0]].file}: {len(extra)} tensors that {index.name} does not list "
            f"({extra[0]}, ...)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file", hint="check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(path.name, expected="a JSON object", got=type(data).__name__)
    return data


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read what one safetensors file holds, and check that the file is whole.

    Args:
        path: the file, possibly compressed; then only its beginning can be checked.

    Returns:
        Names to what the header says.

    Raises:
        CheckpointError: the file is truncated or not safetensors.
        BackendUnavailable: it is compressed and no decompressor is installed.
    """
    compressed = path.suffix == _ZST
    with _open(path) as file:
        length = _header_length(file, path, None if compressed else path.stat().st_size)
        text = _read(file, length, path, what="header")
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        infos = {
            name: _tensor_info(name, entry, path, 8 + length) for name, entry in entries.items()
        }
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError,
            AttributeError) as error:  # fmt: skip
        raise _not_safetensors(path, f"its header cannot be read: {error!r}") from error
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].end)))
    end = max((info.end for info in infos.values()), default=8 + length)
    if not compressed and path.stat().st_size != end:
        raise CheckpointError(
            f"{path}: size", expected=f"{end} bytes", got=f"{path.stat().st_size} bytes",
            hint="the file is truncated or damaged: download it again",
        )  # fmt: skip
    return infos


def _header_length(file: BinaryIO, path: Path, size: int | None) -> int:
    length = struct.unpack("<Q", _read(file, 8, path, what="header length"))[0]
    if length > _MAX_HEADER:
        raise _not_safetensors(path, f"it claims a header of {length} bytes")
    if size is not None and size < 8 + length:
        raise CheckpointError(
            f"{path}: size", expected=f"more than {8 + length} bytes", got=f"{size} bytes",
            hint="the file is truncated: download it again",
        )  # fmt: skip
    return int(length)


def _not_safetensors(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a safetensors file, {why}", hint="download it again")


def _read(file: BinaryIO, count: int, path: Path, *, what: str) -> bytearray:
    """Read exactly `count` bytes."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    errors: tuple[type[BaseException], ...] = (EOFError, OSError, *_zstd_errors(path))
    try:
        while done < count:
            step = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not step:
                break
            done += step
    except errors as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if done < count:
        raise CheckpointError(
            f"{path}: {what}", expected=f"{count} bytes", got=f"{done} bytes",
            hint="the file is truncated: download it again",
        )  # fmt: skip
    return data


def _tensor_info(name: str, entry: Mapping[str, Any], path: Path, base: int) -> TensorInfo:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{path}: '{name}' has the unknown dtype {entry['dtype']}")
    shape = tuple(int(size) for size in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    wanted = torch.Size(shape).numel() * dtype.itemsize
    if start < 0 or end - start != wanted:
        raise CheckpointError(
            f"{path}: '{name}'", expected=f"{wanted} bytes", got=f"{end - start} bytes"
        )
    return TensorInfo(dtype, shape, path, base + start, base + end)


def _zstd(path: Path) -> Any:
    """Import a decompressor."""
    for name in _ZSTD_MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise BackendUnavailable(
        f"{path} is compressed and no zstd decompressor is installed",
        hint=f"pip install zstandard, or run: zstd -d '{path}'",
    )


def _zstd_errors(path: Path) -> tuple[type[Exception], ...]:
    return (_zstd(path).ZstdError,) if path.suffix == _ZST else ()


def _open(path: Path) -> BinaryIO:
    """Open a plain or compressed file for reading."""
    opener: Callable[..., Any] = _zstd(path).open if path.suffix == _ZST else open
    return cast("BinaryIO", opener(path, "rb"))


def _decompressed(
    path: Path, infos: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, TensorInfo, bytearray]]:
    """Stream the tensors of a compressed file in the order of their bytes."""
    with _open(path) as file:
        length = _header_length(file, path, None)
        _read(file, length, path, what="header")
        position = 8 + length
        for name, info in infos.items():
            _read(file, info.start - position, path, what="bytes between tensors")
            yield name, info, _read(file, info.num_bytes, path, what=f"tensor '{name}'")
            position = info.end
