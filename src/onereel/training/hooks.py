"""What is taken from networks: a block's output while it is called, a config that others read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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


def exported_config(network: Any) -> dict[str, Any]:
    """Give a network's config without the folder it was read from, which is nobody's business."""
    return {key: value for key, value in network.config.items() if key != "_name_or_path"}
