"""A Magic 1-For-1 checkpoint written anew: with another dtype, other shards, or in fewer bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from onereel.core.errors import CheckpointError, ConfigError
from onereel.runtime.magic_rounded import (
    ROUNDED_PARTS,
    ROUNDED_TENSORS,
    can_stream,
    empty_network,
)
from onereel.runtime.magic_source import (
    NETWORKS,
    PARTS,
    MagicFiles,
    check_parts,
    load_part,
    magic_files,
)
from onereel.runtime.quantize import QUANTIZATION, check_stored, packed_tensors, quantize
from onereel.runtime.shard_writing import Named, write_shards
from onereel.runtime.shards import TensorFolder
from onereel.runtime.source import MODEL_INDEX, ModelSource

_STEMS = {"text_encoder": "model", "text_encoder_2": "model"}  # of file names
_CONFIG = "config.json"


def check_magic(source: ModelSource, *, to: str, level: str | None) -> None:
    """Refuse what cannot be written, before anything is.

    Args:
        source: a folder of this family.
        to: layout that is asked for.
        level: to which weights are rounded, or None.

    Raises:
        ConfigError: the official layout, or another level than the stored one.
        CheckpointError: something is missing or damaged.
    """
    if to != "folder":
        raise ConfigError(
            "--to", expected="folder, for Magic 1-For-1", got=to,
            hint="there is no official folder of all parts; `onereel magic141` reads its files",
        )  # fmt: skip
    files = magic_files(source)
    check_parts(files)
    for part in ROUNDED_PARTS:
        check_stored(level, stored=files.level(part))
    for part in NETWORKS:
        _headers(files, part)


def stored_bytes_of(source: ModelSource) -> int:
    """Say how large a checkpoint's weights are.

    Args:
        source: a folder of this family.

    Returns:
        Bytes.
    """
    files = magic_files(source)
    return sum(_headers(files, part).num_bytes for part in NETWORKS)


def write_magic(
    source: ModelSource,
    out: Path,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
    level: str | None,
) -> str:
    """Write all parts into a folder.

    Args:
        source: a folder of this family.
        out: an empty folder.
        dtype: of weights that are not rounded; None keeps what is stored.
        max_bytes: of a file.
        level: to which the transformer's and LLaVA's weights are rounded; None keeps them.

    Returns:
        Where the checkpoint lies in the folder: in it itself.
    """
    files = magic_files(source)
    for part in PARTS:
        rounded = level if part in ROUNDED_PARTS and files.level(part) is None else None
        _copy_rest(files.places[part], out / part, level=rounded)
        if part not in NETWORKS:
            continue

        def tensors(part: str = part, rounded: str | None = rounded) -> Iterator[Named]:
            for name, tensor in _tensors(files, part, rounded):
                whole = tensor.is_floating_point() and not name.endswith(ROUNDED_TENSORS)
                yield name, tensor.to(dtype) if whole and dtype is not None else tensor

        planned = [(name, tensor.nbytes) for name, tensor in tensors()]
        stem = _STEMS.get(part, "diffusion_pytorch_model")
        write_shards(tensors(), out / part, stem=stem, planned=planned, max_bytes=max_bytes)
    shutil.copyfile(source.path / MODEL_INDEX, out / MODEL_INDEX)
    return ""


def _headers(files: MagicFiles, part: str) -> TensorFolder:
    found = files.tensors(part)
    if found is None:
        raise CheckpointError(f"{files.places[part]}: no safetensors", hint="save it again")
    return found


def _tensors(files: MagicFiles, part: str, level: str | None) -> Iterator[Named]:
    """Read a network's tensors one by one, rounded where that is asked for."""
    found = _headers(files, part)
    if level is None:
        yield from found.tensors()
    elif can_stream(part, found, stored=None):
        network = empty_network(part, files.config(part) or {}, level=level)
        yield from packed_tensors(network, found.tensors())
    else:  # files name LLaVA's tensors in another way than the network does
        dtype = next(iter(found.infos.values())).dtype
        network = load_part(files, part, dtype=dtype, device=torch.device("cpu"))
        quantize(network, level)
        yield from network.state_dict().items()


def _copy_rest(place: Path, folder: Path, *, level: str | None) -> None:
    """Copy what is not weights; a config names the level of weights that are rounded now."""
    folder.mkdir()
    for path in sorted(p for p in place.iterdir() if p.is_file()):
        if ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    if level is not None:
        path = folder / _CONFIG
        config = {**json.loads(path.read_text("utf-8")), QUANTIZATION: level}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
