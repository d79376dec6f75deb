"""How much memory a run takes, before it starts and when it runs out."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onereel.core.device import is_out_of_memory
from onereel.core.errors import OutOfMemory
from onereel.runtime.machine import available_bytes
from onereel.training.distributed import local
from onereel.training.method import Method

_HINT = (
    "use a smaller batch_size, a larger accumulate, activation_checkpointing=true, "
    "or more processes"
)
_DEFAULT_MOMENTS = 2  # of an optimizer we do not know


def state_bytes(method: Method, averages: Iterable[Mapping[str, Tensor]]) -> dict[str, int]:
    """Count what stays in memory all along, on this process.

    Args:
        method: what is trained.
        averages: the averaged weights.

    Returns:
        Bytes of `weights`, `gradients`, `optimizers` and `averages`.
    """
    weights = [p for network in method.networks.values() for p in network.parameters()]
    optimizers = 0
    for optimizer in method.optimizers.values():
        for group in optimizer.param_groups:
            optimizers += _moments(optimizer, group) * sum(_size(p) for p in group["params"])
    return {
        "weights": sum(_size(p) for p in weights),
        "gradients": sum(_size(p) for p in weights if p.requires_grad),
        "optimizers": optimizers,
        "averages": sum(_size(v) for shadow in averages for v in shadow.values()),
    }


def require_memory(method: Method, device: torch.device) -> None:
    """Refuse to start a run whose gradients and optimizer states alone do not fit.

    Args:
        method: what is trained; its weights are in memory.
        device: where.

    Raises:
        OutOfMemory: too little is free.
    """
    sizes = state_bytes(method, ())
    needed, free = sizes["gradients"] + sizes["optimizers"], available_bytes(device)
    if free is not None and needed > free:
        raise OutOfMemory(
            "training",
            expected=f"{_mib(needed)} MiB of free memory for gradients and optimizers, and more "
            "for activations",
            got=f"{_mib(free)} MiB",
            hint="use a smaller model, more processes with sharding=shard, or free some memory",
        )


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn errors of exhausted memory into ours.

    Raises:
        OutOfMemory: there was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).splitlines() or ["no more memory"]
        raise OutOfMemory(f"training ran out of memory ({lines[0]})", hint=_HINT) from error


class SavedBytes:
    """Counts the tensors that a forward pass keeps for the backward pass.

    Args:
        networks: whose parameters do not count.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.count = 0
        self._known = {
            local(p.detach()).untyped_storage().data_ptr()
            for network in networks
            for p in network.parameters()
        }

    def counting(self) -> Any:
        """Give a context manager that counts.

        Returns:
            torch's hooks on saved tensors.
        """
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.count += storage.nbytes()
        return tensor


def measure_steps(trainer: Any, positions: Iterable[int]) -> list[dict[str, float]]:
    """Run steps at several places of a run, twice each, and measure the second.

    Args:
        trainer: a `Trainer`; its weights change and its method is of no use afterwards.
        positions: numbers of steps.

    Returns:
        Per position the `step`, `seconds` and `activations_mib`: what is kept for the backward
        pass of the largest micro-batch.
    """
    found = []
    for position in positions:
        seconds, watched = 0.0, list[SavedBytes]()

        def watch(watched: list[SavedBytes] = watched) -> Any:
            watched.append(SavedBytes(trainer.method.networks.values()))
            return watched[-1].counting()

        trainer.around_forward = watch
        for batch in itertools.islice(trainer.stream.batches(position), 2):
            trainer.progress.step = position
            watched.clear()
            started = time.perf_counter()
            trainer.train_batch(batch)
            seconds = time.perf_counter() - started
        saved = _mib(max(watcher.count for watcher in watched))
        found.append({"step": position, "seconds": round(seconds, 3), "activations_mib": saved})
    return found


def _mib(size: float) -> float:
    return round(size / 2**20, 1)


def _size(tensor: Tensor) -> int:
    own = local(tensor.detach())
    return own.numel() * own.element_size()


def _moments(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> int:
    """Say how many numbers per weight an optimizer keeps."""
    name = type(optimizer).__name__
    if name == "SGD":
        return int(bool(group["momentum"]))
    return 1 if name == "Muon" else _DEFAULT_MOMENTS
