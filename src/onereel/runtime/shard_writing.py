"""Safetensors files written as a stream: one file in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Named = tuple[str, torch.Tensor]


def write_shards(
    tensors: Iterable[Named],
    folder: Path,
    *,
    stem: str,
    planned: Sequence[tuple[str, int]],
    max_bytes: int,
) -> None:
    """Write a stream of tensors as one safetensors file, or as shards and their index.

    Args:
        tensors: names and values.
        folder: where to write; it is made.
        stem: beginning of the file names.
        planned: the same names in the same order, and their sizes in bytes.
        max_bytes: of a file, unless a single tensor is larger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = _group(planned, max_bytes)
    stream, weight_map, total = iter(tensors), {}, 0
    for number, names in enumerate(groups, start=1):
        suffix = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        file = f"{stem}{suffix}.safetensors"
        shard = {name: _own_storage(tensor) for name, tensor in _take(stream, len(names))}
        assert list(shard) == names, "the plan and the stream differ"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=4) + "\n", encoding="utf-8")


def _group(planned: Sequence[tuple[str, int]], max_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in planned:
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _take(stream: Iterator[Named], count: int) -> Iterator[Named]:
    for _ in range(count):
        yield next(stream)


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a view, for safetensors writes no shared memory."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
