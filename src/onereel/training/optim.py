"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onereel.core.device import computes_bfloat16
from onereel.core.errors import BackendUnavailable

SCHEDULES = ("constant", "cosine", "time")


def schedule_factor(share: float, *, hold: float = 0.0, final: float = 0.0) -> float:
    """Give the learning rate's factor: 1 during `hold`, then a cosine down to `final`.

    Args:
        share: share of the run that is done, in [0, 1]; larger values count as 1.
        hold: share of the run at full rate.
        final: factor at the end.

    Returns:
        The factor, in [final, 1].
    """
    decayed = min(max((share - hold) / max(1e-12, 1.0 - hold), 0.0), 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * decayed))


def split_parameters(
    module: nn.Module, *, min_size: int = 8
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part a module's trained parameters into block matrices and the rest.

    A block matrix is a 2-D parameter of a numbered submodule (an entry of a `ModuleList` or
    `Sequential`), no embedding table, and at least `min_size` wide both ways. First and last
    projections, embeddings, norms and biases belong to the rest.

    Args:
        module: the network.
        min_size: smallest side of a matrix.

    Returns:
        The matrices (for Muon) and the other parameters (for AdamW); every parameter once.
    """
    tables = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, nn.Embedding)
        for parameter in child.parameters(recurse=False)
    }
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        numbered = any(part.isdigit() for part in name.split("."))
        matrix = parameter.ndim == 2 and min(parameter.shape) >= min_size
        is_block = numbered and matrix and id(parameter) not in tables
        (matrices if is_block else others).append(parameter)
    return matrices, others


class _Float32(TorchFunctionMode):
    """While it is entered, a tensor that is asked for in bfloat16 is a copy in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Copy, or pass the call on."""
        del types
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


def step_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Give what optimizers step in.

    PyTorch's Muon makes updates orthogonal in bfloat16, which took a third of a step's time on a
    CPU that does not compute in it (docs/log.md, 2026-11-29); there they stay in float32.

    Args:
        device: of the weights.

    Returns:
        A context.
    """
    return contextlib.nullcontext() if computes_bfloat16(device) else _Float32()


def network_optimizers(
    networks: Mapping[str, nn.Module], *, lr: float, matrix_lr: float | None
) -> dict[str, torch.optim.Optimizer]:
    """Build the optimizers of several networks, each clipped by itself.

    Args:
        networks: by name.
        lr: AdamW's learning rate.
        matrix_lr: Muon's for the blocks' matrices; None gives them to AdamW.

    Returns:
        Those of `build_optimizers` for every network.
    """
    return {
        name: optimizer
        for part, network in networks.items()
        for name, optimizer in build_optimizers(
            network, lr=lr, matrix_lr=matrix_lr, name=part
        ).items()
    }


def build_optimizers(
    module: nn.Module,
    *,
    lr: float,
    matrix_lr: float | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    name: str = "main",
) -> dict[str, torch.optim.Optimizer]:
    """Build AdamW for a module, and Muon for its block matrices when asked.

    Args:
        module: the network.
        lr: AdamW's learning rate.
        matrix_lr: Muon's learning rate, on AdamW's scale; None gives the matrices to AdamW.
        weight_decay: decay of matrices; norms, biases and embeddings have none.
        betas: AdamW's.
        name: prefix of the optimizers' names; those of one prefix are clipped together.

    Returns:
        `{name}.adamw` and, with `matrix_lr`, `{name}.muon`.

    Raises:
        BackendUnavailable: this torch is too old for Muon.
    """
    matrices, others = split_parameters(module)
    groups: list[dict[str, object]] = [{"params": others, "weight_decay": 0.0}]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if matrix_lr is None:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    elif not hasattr(torch.optim, "Muon"):
        raise BackendUnavailable(
            f"torch {torch.__version__} has no Muon",
            hint="use torch 2.9, or matrix_lr=none",
        )
    elif matrices:
        # Updates scaled to AdamW's root mean square, so that both share one range of rates.
        optimizers[f"{name}.muon"] = torch.optim.Muon(
            matrices, lr=matrix_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers = {
            f"{name}.adamw": torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
        } | optimizers
    return optimizers
