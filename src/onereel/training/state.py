"""What a checkpoint holds: networks, optimizers, averages, where the run stands, random states.

The file of one process and the folder of shards (see `checkpoint.py`) hold the same tree. A folder
is written and read with `torch.distributed.checkpoint`; its tensors are sharded anew as they are
read, and those of a file are cut after, so that either can be resumed by any number of processes.

Not torch's `get_optimizer_state_dict`: it runs a step of every optimizer that has not acted yet,
after which it does not act as in an unbroken run.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from onereel.core.errors import CheckpointError, OutOfMemory
from onereel.core.files import disk_full, is_disk_full, sync_folder, write_atomically
from onereel.training.checkpoint import (
    DamagedCheckpoint,
    checkpoints,
    damage,
    keep_last,
    random_state,
    read_file,
    remove,
    remove_leftovers,
    restore_random_state,
)
from onereel.training.distributed import Team
from onereel.training.ema import Ema
from onereel.training.method import Method, Progress

_PARTS = ("networks", "optimizers", "ema")
_PLAIN = "plain.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Everything of a run that checkpoints hold.

    Args:
        method: with its networks and optimizers.
        ema: averages by network.
        progress: where the run stands.
        team: the processes.
        sharded: whether the networks are.
    """

    method: Method
    ema: Mapping[str, Ema]
    progress: Progress
    team: Team
    sharded: bool

    def save(self, folder: Path, *, keep: int) -> Path:
        """Write a checkpoint so that a crash leaves the ones before whole, and remove old ones.

        Args:
            folder: folder of the checkpoints.
            keep: how many to keep.

        Returns:
            The new file or folder.

        Raises:
            OutOfMemory: the disk is full; nothing is left of the new checkpoint.
        """
        name = f"step-{self.progress.step:08d}"
        state = self._tree()
        random_states = self.team.gather(random_state())
        state |= {"random": random_states[0], "ranks": random_states[1:]}
        path = folder / (name if self.sharded else f"{name}.pt")
        if self.team.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        problem: OutOfMemory | None = None
        try:
            if self.sharded:
                self._write_shards(state, path.with_name(name + ".part"))
            elif self.team.is_first:
                write_atomically(path, lambda file: torch.save(state, file))
        except OutOfMemory as error:
            problem = error
        # A disk that is full for one of them must not leave the others waiting.
        failed = any(self.team.gather(problem is not None))
        if self.team.is_first:
            self._finish(path, keep, failed=failed)
        self.team.wait()
        if failed:
            raise problem or OutOfMemory(f"no room on another process's disk for {path.name}")
        return path

    def restore(self, path: Path) -> Progress:
        """Go back to a checkpoint, whatever number of processes wrote it.

        Args:
            path: a file or folder that `save` wrote.

        Returns:
            Where the run stood.

        Raises:
            DamagedCheckpoint: it cannot be read.
            CheckpointError: it belongs to another method.
        """
        state = self._read_shards(path) if path.is_dir() else read_file(path, self.team.device)
        self._check_names(path.name, state)
        for name, network in self.method.networks.items():
            present = network.state_dict()
            saved = state["networks"][name]
            network.load_state_dict({k: _like(present.get(k), v) for k, v in saved.items()})
        for name, optimizer in self.method.optimizers.items():
            saved = state["optimizers"][name]
            parameters = _parameters(optimizer)
            states = {
                index: {k: _like(parameters[int(index)], v) for k, v in values.items()}
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})
        for name, ema in self.ema.items():
            saved = state["ema"][name]
            shadow = {k: _like(ema.shadow[k], v) for k, v in saved["shadow"].items()}
            ema.load_state_dict({**saved, "shadow": shadow})
        self.method.load_state_dict(state["method"])
        others = [state["random"], *state.get("ranks", ())]
        if self.team.rank < len(others):
            restore_random_state(others[self.team.rank])
        return Progress(**state["progress"])

    def _tree(self) -> dict[str, Any]:
        return {
            "networks": {k: v.state_dict() for k, v in self.method.networks.items()},
            "optimizers": {k: v.state_dict() for k, v in self.method.optimizers.items()},
            "ema": {k: v.state_dict() for k, v in self.ema.items()},
            "method": self.method.state_dict(),
            "progress": asdict(self.progress),
        }

    def _check_names(self, file: str, state: Mapping[str, Any]) -> None:
        own = (self.method.networks, self.method.optimizers, self.ema)
        for part, wanted in zip(_PARTS, own, strict=True):
            if set(state[part]) != set(wanted):
                raise CheckpointError(
                    f"checkpoint {file}: {part}",
                    expected=", ".join(wanted) or "none",
                    got=", ".join(state[part]) or "none",
                    hint="resume with the recipe the run was started with",
                )

    def _write_shards(self, state: dict[str, Any], part: Path) -> None:
        """Write a folder under a passing name."""
        tensors: dict[str, Tensor] = {}
        plain = {k: v for k, v in state.items() if k not in _PARTS}
        plain["parts"] = {name: _without_tensors(state[name], name, tensors) for name in _PARTS}
        self.team.wait()
        try:
            save(tensors, storage_writer=FileSystemWriter(part, sync_files=True))
        except CheckpointException as error:
            if is_disk_full(error):
                raise disk_full(part) from error
            raise
        if self.team.is_first:
            write_atomically(part / _PLAIN, lambda file: torch.save(plain, file))

    def _finish(self, path: Path, keep: int, *, failed: bool) -> None:
        """Give a folder its name when all of it is on the disk, and tidy up."""
        part = path.with_name(path.name + ".part")
        if failed:
            remove(part)
            return
        if self.sharded:
            remove(path)
            part.rename(path)
            sync_folder(path.parent)
        keep_last(path.parent, keep)

    def _read_shards(self, path: Path) -> dict[str, Any]:
        """Read a folder into tensors that are laid out as the present ones."""
        plain = read_file(path / _PLAIN, self.team.device)
        reader = FileSystemReader(path)
        try:
            stored = reader.read_metadata().state_dict_metadata
            tensors = {
                key: _empty(entry, self._model_of(key, path.name))
                for key, entry in stored.items()
                if isinstance(entry, TensorStorageMetadata)
            }
            with warnings.catch_warnings():
                # That one process reads alone is meant so.
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                load(tensors, storage_reader=reader, no_dist=self.team.count == 1)
        except (
            OSError,
            RuntimeError,
            EOFError,
            CheckpointException,
            pickle.UnpicklingError,
        ) as error:
            raise damage(path, error) from error
        parts = {k: _with_tensors(v, k, tensors) for k, v in plain.pop("parts").items()}
        return {**plain, **parts}

    def _model_of(self, key: str, file: str) -> Tensor | None:
        """Find the present tensor that a stored one is laid out like."""
        part, name, *rest = key.split("|")
        owner: Mapping[str, Any] = {
            "networks": self.method.networks,
            "optimizers": self.method.optimizers,
            "ema": self.ema,
        }[part]
        if name not in owner:
            self._check_names(file, {**{p: () for p in _PARTS}, part: {name: None}})
        if part == "networks":
            return owner[name].state_dict().get(rest[0])
        if part == "ema":
            return owner[name].shadow.get(rest[1])
        return _parameters(owner[name])[int(rest[1])]


def restore_newest(stored: Stored, folder: Path) -> tuple[Path, Progress] | None:
    """Go back to the newest checkpoint that can be read.

    Args:
        stored: the run.
        folder: folder of the checkpoints.

    Returns:
        The checkpoint and where it stands, or None where there is none.

    Raises:
        CheckpointError: all are damaged, or one belongs to another method.
    """
    found = checkpoints(folder)
    damaged: list[Path] = []
    for path in reversed(found):
        try:
            progress = stored.restore(path)
        except DamagedCheckpoint as error:
            if path == found[0]:
                raise
            damaged.append(path)
            warnings.warn(f"{error}; the one before is taken", stacklevel=2)
            continue
        stored.team.wait()
        if stored.team.is_first:
            # Under its name it would count as one of the last that are kept.
            for other in damaged:
                other.rename(other.with_name(f"damaged-{other.name}"))
        return path, progress
    return None


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """List an optimizer's parameters in the order of its state's numbers."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _like(target: Tensor | None, value: Any) -> Any:
    """Cut a whole tensor as the present one is; counters and tensors that are cut stay."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    if not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def _empty(entry: TensorStorageMetadata, target: Tensor | None) -> Tensor:
    """Make room for a stored tensor, laid out as the present one where the shapes agree."""
    dtype = entry.properties.dtype
    if target is not None and target.shape == entry.size:
        return torch.zeros_like(target, dtype=dtype, requires_grad=False)
    return torch.zeros(entry.size, dtype=dtype)


def _without_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a tree to a flat mapping, and leave their keys in their places."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {k: _without_tensors(v, f"{key}|{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(v, f"{key}|{i}", tensors) for i, v in enumerate(value))
    return value


def _with_tensors(value: Any, key: str, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_without_tensors`."""
    if isinstance(value, Mapping):
        if value == {"tensor": key}:
            return tensors[key]
        return {k: _with_tensors(v, f"{key}|{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(v, f"{key}|{i}", tensors) for i, v in enumerate(value))
    return value
