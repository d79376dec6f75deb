"""Several processes that train together: who they are, and how networks are spread over them.

`torchrun --nproc-per-node N -m onereel train ...` starts them; alone, a process has no group and
takes the same path. Every rank draws the same batch and computes its part of it (`method.Part`).
Networks are sharded by FSDP2, or, for optimizers that need whole matrices, held by every rank; then
the gradients are added up.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import os
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from onereel.core.errors import ConfigError
from onereel.training.method import Method, TrainerConfig

Value = TypeVar("Value")
_TIMEOUT = datetime.timedelta(hours=2)  # others wait while the first rank exports or makes samples
_BUCKET = 2**24  # elements that are reduced at a time
_INSIDE = "call_inside"


@contextlib.contextmanager
def launched(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, for the time of a `with` block; alone do nothing.

    Args:
        device: torch device name; on CUDA each process takes the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # gloo beside nccl: checkpoints talk about files, not about tensors on a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """The processes of a run.

    Args:
        rank: number of this one; 0 writes.
        count: of them.
        device: where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def present(cls, device: torch.device) -> Team:
        """Find out who is there.

        Args:
            device: where this process computes.

        Returns:
            The team; of one where there is no process group.
        """
        if not dist.is_initialized():
            return cls(rank=0, count=1, device=device)
        return cls(rank=dist.get_rank(), count=dist.get_world_size(), device=device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            dist.barrier()

    def add_up(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sum scalars over the processes.

        Args:
            values: by name; the names are the same everywhere.

        Returns:
            The sums.
        """
        table = torch.stack([value.double().to("cpu") for value in values.values()])
        if self.count > 1:
            dist.all_reduce(table)
        return dict(zip(values, table.tolist(), strict=True))

    def agree(self, seconds: float, *, stop: bool) -> tuple[float, bool]:
        """Take the first process's clock, and anyone's wish to stop.

        Args:
            seconds: by the clock of this process.
            stop: whether this process was told to stop.

        Returns:
            What all go by.
        """
        if self.count == 1:
            return seconds, stop
        both = torch.tensor([seconds if self.is_first else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return float(both[0]), bool(both[1])

    def gather(self, value: Any) -> list[Any]:
        """Collect a value of every process, at every process.

        Args:
            value: that of this process, made of plain values and tensors.

        Returns:
            One per rank.
        """
        if self.count == 1:
            return [value]
        file = io.BytesIO()
        torch.save(value, file)
        found: list[bytes] = [b""] * self.count
        dist.all_gather_object(found, file.getvalue())
        return [torch.load(io.BytesIO(one), weights_only=True) for one in found]


class Spread:
    """How a method's networks are spread over a team. Moves and shards them when it is made.

    Args:
        method: its optimizers are given the sharded parameters.
        team: the processes.
        config: `sharding` and `replicas`.

    Raises:
        ConfigError: the method or its optimizers cannot be spread in this way.
    """

    def __init__(self, method: Method, team: Team, *, config: TrainerConfig) -> None:
        self.method, self.team = method, team
        parts = team.count * config.accumulate
        if parts > 1 and not method.splits:
            raise ConfigError(
                f"{type(method).__name__} computes whole batches only",
                expected="one process and accumulate=1",
                got=f"{team.count} processes and accumulate={config.accumulate}",
            )
        self.mode = _mode(method, config) if team.count > 1 else "alone"
        self._whole: dict[str, nn.Module] = {}
        if self.mode == "shard" and team.is_first:
            self._whole = copy.deepcopy(dict(method.networks))
        for network in method.networks.values():
            network.to(team.device)
        if self.mode == "replicate":
            for network in method.networks.values():
                for tensor in (*network.parameters(), *network.buffers()):
                    value = tensor.detach().contiguous()
                    dist.broadcast(value, 0)
                    tensor.detach().copy_(value)
        elif self.mode == "shard":
            mesh = _mesh(team, config.replicas)
            for network in method.networks.values():
                shard_network(network, mesh, optimizers=list(method.optimizers.values()))

    @property
    def loss_scale(self) -> float:
        """What a part's loss is multiplied by: FSDP averages gradients where we add them up."""
        return float(self.team.count) if self.mode == "shard" else 1.0

    def reduce_during(self, *, last: bool) -> None:
        """Say whether the backward pass that comes is the last one of the step.

        Args:
            last: sharded gradients are reduced while it runs.
        """
        for network in self.method.networks.values():
            if isinstance(network, FSDPModule):
                network.set_requires_gradient_sync(last)

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of replicated parameters; sharded ones have been.

        Args:
            parameters: those that are updated in this step, in the same order everywhere.
        """
        if self.mode != "replicate" or not parameters:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        dist.all_reduce(used, dist.ReduceOp.MAX)
        # Like that of a single process, a parameter without a gradient on any rank stays without.
        needed = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
        bucket: list[nn.Parameter] = []
        for number, parameter in enumerate(needed, 1):
            bucket.append(parameter)
            if number == len(needed) or sum(p.numel() for p in bucket) >= _BUCKET:
                _reduce_bucket(bucket)
                bucket = []

    def reshard(self) -> None:
        """Let go of weights that a forward pass without a backward pass has gathered.

        They would be used in the next pass, whatever the shards have become by then.
        """
        for network in self.method.networks.values():
            if isinstance(network, FSDPModule):
                network.reshard()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[bool]:
        """Put whole networks into the method at the first rank, for a `with` block.

        Yields:
            Whether this is the first rank; the others wait at the end of the block.
        """
        if self.mode != "shard":
            yield self.team.is_first
            self.team.wait()
            return
        for name, network in self.method.networks.items():
            _copy_whole(network, self._whole.get(name))
        with (
            _exchanged(self.method, self._whole) if self.team.is_first else contextlib.nullcontext()
        ):
            yield self.team.is_first
        self.team.wait()


def through(network: nn.Module, call: Callable[[Any], Value]) -> Value:
    """Use a network by other ways than its forward: a method of its, or a parameter.

    A sharded network has its weights only while it is called; this counts as a call. The value must
    be made of tensors, lists, tuples and dicts, for the backward pass begins at its tensors.

    Args:
        network: sharded or not.
        call: what to do with it.

    Returns:
        What `call` returns.
    """
    if isinstance(network, FSDPModule):
        value: Value = getattr(network, _INSIDE)(call)
        return value
    return call(network)


def shard_network(
    network: nn.Module, mesh: DeviceMesh, *, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Shard a network in place: every block by itself, then the rest.

    Args:
        network: its blocks are those it names as not to be split, else the items of its lists.
        mesh: 1-D, or 2-D for replicas of shards.
        optimizers: without states yet; they are given the new parameters.
    """
    before = dict(network.named_parameters())
    for parameter in before.values():
        # FSDP takes no other memory layouts.
        parameter.data = parameter.data.contiguous()
    setattr(network, _INSIDE, types.MethodType(_call, network))
    # It is about operations in place on what a block returns; ours has none, as the comparison of
    # one process with two in the tests shows.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, _INSIDE)
    after = dict(network.named_parameters())
    renewed = {id(parameter): after[name] for name, parameter in before.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [renewed.get(id(p), p) for p in group["params"]]


def local(tensor: Tensor) -> Tensor:
    """Give this rank's shard of a tensor; a plain tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Give the whole tensor; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _call(network: nn.Module, call: Callable[[nn.Module], Value]) -> Value:
    # FSDP hangs the beginning of the backward pass on what is returned; views lose it.
    value: Value = tree_map_only(Tensor, lambda x: x.clone() if x._is_view() else x, call(network))
    return value


def _mode(method: Method, config: TrainerConfig) -> str:
    """Choose between shards and replicas."""
    muon = getattr(torch.optim, "Muon", ())
    names = [name for name, item in method.optimizers.items() if isinstance(item, muon)]
    if config.sharding == "shard" and names:
        raise ConfigError(
            "sharding",
            expected="'replicate' or 'auto', since Muon needs whole matrices",
            got=f"'shard' with {', '.join(names)}",
            hint="matrix_lr=none trains with AdamW alone, which can be sharded",
        )
    mode = config.sharding if config.sharding != "auto" else "replicate" if names else "shard"
    if config.replicas > 1 and mode != "shard":
        raise ConfigError("replicas", expected="1 where nothing is sharded", got=config.replicas)
    return mode


def _mesh(team: Team, replicas: int) -> DeviceMesh:
    kind = team.device.type
    if replicas == 1:
        return init_device_mesh(kind, (team.count,), mesh_dim_names=("shard",))
    if team.count % replicas:
        raise ConfigError("replicas", expected=f"a divisor of {team.count}", got=replicas)
    shape = (replicas, team.count // replicas)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def _blocks(network: nn.Module) -> list[nn.Module]:
    names = set(getattr(network, "_no_split_modules", None) or ())
    if names:
        return [m for m in network.modules() if type(m).__name__ in names]
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    found = [item for items in lists for item in items if any(True for _ in item.parameters())]
    return [item for item in found if type(item).forward is not nn.Module.forward]


def _reduce_bucket(parameters: Sequence[nn.Parameter]) -> None:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    pieces = torch.split(flat, [grad.numel() for grad in grads])
    for parameter, grad, piece in zip(parameters, grads, pieces, strict=True):
        parameter.grad = grad
        grad.copy_(piece.view_as(grad))


@torch.no_grad()
def _copy_whole(network: nn.Module, target: nn.Module | None) -> None:
    """Gather every parameter and buffer, and put it into an unsharded network, if there is one."""
    for kind in ("named_parameters", "named_buffers"):
        found = {} if target is None else dict(getattr(target, kind)())
        for name, tensor in getattr(network, kind)():
            value = full(tensor.detach())
            if target is not None:
                found[name].copy_(value)


@contextlib.contextmanager
def _exchanged(method: Method, networks: dict[str, nn.Module]) -> Iterator[None]:
    """Put other networks where the method keeps its own."""
    own = dict(method.networks)
    others = {id(network): networks[name] for name, network in own.items()}
    for network in networks.values():
        network.eval()
    kept = {name: value for name, value in vars(method).items() if id(value) in others}
    kept["networks"] = method.networks
    try:
        for name, value in kept.items():
            setattr(method, name, networks if name == "networks" else others[id(value)])
        yield
    finally:
        for name, value in kept.items():
            setattr(method, name, value)
