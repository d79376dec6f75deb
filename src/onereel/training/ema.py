"""Averaged weights: along a run, with warm-up, and of several runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.training.distributed import local


def warm_decay(decay: float, updates: int) -> float:
    """Give the decay of one update: small at first, so that the start is forgotten.

    Args:
        decay: the final decay d, in [0, 1).
        updates: number k of updates done before.

    Returns:
        min(d, (1 + k) / (10 + k)).

    Source: training spec, section 1.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """Exponential moving average of a network's trained parameters, in float32, sharded as they.

    Args:
        network: the network; parameters that need no gradient are left out.
        decay: the final decay, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().float().clone()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights.

        Args:
            network: the network the average was made from.
        """
        weight = 1.0 - warm_decay(self.decay, self.updates)
        self.updates += 1
        current = dict(network.named_parameters())
        shadows = [local(shadow) for shadow in self.shadow.values()]
        values = [local(current[name].detach()).float() for name in self.shadow]
        torch._foreach_lerp_(shadows, values, weight)

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Put the average into the network for the time of a `with` block.

        Args:
            network: the network the average was made from.
        """
        current = dict(network.named_parameters())
        kept = {name: current[name].detach().clone() for name in self.shadow}
        self._write(current, self.shadow)
        try:
            yield
        finally:
            self._write(current, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Args:
            state: the saved average.
        """
        self.updates = int(state["updates"])
        for name, value in self.shadow.items():
            value.copy_(state["shadow"][name])

    @staticmethod
    @torch.no_grad()
    def _write(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            parameters[name].copy_(value)


def go_on_with(student: nn.Module, load: Callable[[str], nn.Module], *, folders: str) -> None:
    """Give a student the weights of one that has begun, or the mean of several.

    Args:
        student: changed in place.
        load: reads the student of a folder.
        folders: where they are, separated by commas.

    Raises:
        ConfigError: one has another shape than the teacher.

    Source: the mean of fine-tuned weights, Model soups (arXiv 2203.05482).
    """
    mean = {name: torch.zeros_like(value) for name, value in student.state_dict().items()}
    places = [folder.strip() for folder in folders.split(",")]
    for folder in places:
        have = load(folder).state_dict()
        if {k: v.shape for k, v in have.items()} != {k: v.shape for k, v in mean.items()}:
            got = f"{sum(v.numel() for v in have.values()):,} numbers in other tensors"
            raise ConfigError(f"{folder}: init", expected="a student of the same teacher", got=got)
        for name, value in have.items():
            mean[name] += value.to(mean[name]) / len(places)
    student.load_state_dict(mean)


def follow_teacher(student: nn.Module, *, before: nn.Module, teacher: nn.Module) -> None:
    """Give a student of an earlier teacher what the teacher has learned since.

    Args:
        student: changed in place; it has the teacher's tensors, and perhaps more.
        before: the earlier teacher.
        teacher: the present one.

    Raises:
        ConfigError: the two have other shapes.

    Source: sums of differences of weights, Task arithmetic (arXiv 2212.04089).
    """
    was, now, have = before.state_dict(), teacher.state_dict(), student.state_dict()
    if {k: v.shape for k, v in was.items()} != {k: v.shape for k, v in now.items()}:
        raise ConfigError("init_teacher", expected="a teacher of the same shape", got="another one")
    moved = {name: have[name] + (value - was[name].to(value)).to(have[name])
             for name, value in now.items()}  # fmt: skip
    student.load_state_dict(have | moved)
