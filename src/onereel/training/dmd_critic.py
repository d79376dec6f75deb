"""The critic of DMD2: a velocity network that knows the exit step, and may judge samples.

The student leaves its way at a random step, and samples of early steps are blurred. A critic that
is not told the step learns the mixture, so that the student is led to make the mixture look like
the data: early exits stay blurred and the last one, the only one that counts, makes up for it.
Told the step, it leads every exit to the data by itself. This is ours; DMD2 does not do it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from onereel.training.hooks import output_of


class JudgeHead(nn.Module):
    """Pools tokens by learned weights, and says how real they look.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Linear(width, 1)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Judge tokens [B, L, D]: logits [B], above 0 for data."""
        tokens = self.norm(tokens.float())
        pooled = (self.weigh(tokens).float().softmax(dim=1) * tokens).sum(dim=1)
        logit: Tensor = self.out(nn.functional.silu(self.hidden(pooled)))[:, 0].float()
        return logit


class Critic(nn.Module):
    """A velocity network, and what the distillation adds to it.

    Args:
        network: the velocity network; it is changed by training.
        conditioning: name of its submodule whose output, or the first of several, [B, ..., D], says
            what the sample is; the exit step's row is added there.
        width: D.
        num_exits: exit steps, one learned row each; 0 for a critic that is not told.
        judged: name of its block, the first of whose outputs, [B, L, E], a head judges; empty for
            no head.
        judged_width: E.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        conditioning: str,
        width: int,
        num_exits: int,
        judged: str = "",
        judged_width: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.conditioning, self.judged = conditioning, judged
        # How it is sharded over processes.
        self._no_split_modules = getattr(network, "_no_split_modules", None)
        # Zeros: at first the critic is the network it was made from.
        self.exits = nn.Parameter(torch.zeros(num_exits, width)) if num_exits else None
        self.head = JudgeHead(judged_width) if judged else None

    def forward(
        self, call: Callable[[Any], Tensor], exit_step: int
    ) -> tuple[Tensor, Tensor | None]:
        """Ask the network about samples of one exit step.

        Args:
            call: takes the network and returns its velocity.
            exit_step: where the samples left the student's way, from 0.

        Returns:
            The velocity, and the head's logits [B], if there is a head.
        """
        judged = None if self.head is None else self.network.get_submodule(self.judged)
        with self._told(exit_step), output_of(judged) as tokens:
            velocity = call(self.network)
        return velocity, None if self.head is None else self.head(tokens[0])

    @contextlib.contextmanager
    def _told(self, exit_step: int) -> Iterator[None]:
        """Add the exit step's row to the conditioning while the `with` block runs."""
        if self.exits is None:
            yield
            return
        row = self.exits[exit_step]

        def add(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + row.to(output[0].dtype), *output[1:])
            return output + row.to(output.dtype)

        handle = self.network.get_submodule(self.conditioning).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
