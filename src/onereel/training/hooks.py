"""What a block of a network returns while it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def output_of(block: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the tokens that a block returns while the `with` block runs; nothing of None."""
    outputs: list[Tensor] = []
    if block is None:
        yield outputs
        return
    handle = block.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
    try:
        yield outputs
    finally:
        handle.remove()
