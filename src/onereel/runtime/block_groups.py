"""A transformer larger than the GPU: its blocks are there one after another.

All weights wait in main memory. A block is brought to the device before it computes and its place
given free afterwards; on CUDA the next one travels meanwhile. Frames do not change.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from torch import nn

BLOCKS_AT_ONCE: Final = 2  # the one that computes, and the next, on its way


def has_own_memory(device: torch.device) -> bool:
    """Tell whether a device computes in a memory of its own; a CPU does not.

    Args:
        device: where networks compute.

    Returns:
        Whether weights can wait elsewhere.
    """
    return device.type != "cpu"


def bring_by_block(network: nn.Module, device: torch.device) -> None:
    """Let the blocks of a network take turns on a device.

    Args:
        network: a transformer in main memory, adapters included; changed in place. Its blocks are
            in `nn.ModuleList`s, what lies beside them is on the device for a whole call.
        device: where it computes.
    """
    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        low_cpu_mem_usage=True,  # pins a block at a time, not all of main memory
    )
