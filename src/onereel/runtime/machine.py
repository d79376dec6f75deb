"""What this machine has: free memory, and the speed of its matrix products."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Final

import torch

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_BUDGET_S: Final = 0.2  # of one measurement of speed


def available_bytes(device: torch.device | str) -> int | None:
    """Say how much memory a device has left.

    Args:
        device: a CUDA device, or the CPU.

    Returns:
        Bytes, or None where the system does not tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return int(torch.mps.recommended_max_memory() - used)
    found = [size for size in (_free_ram(), _free_in_container()) if size is not None]
    return min(found, default=None)


def _free_ram() -> int | None:
    """Read what Linux can give without swapping; elsewhere take the machine's whole memory."""
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_in_container() -> int | None:
    """Read the limit of the container, if there is one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used) if limit.isdigit() else None


@functools.cache
def measure_tflops(device: torch.device, dtype: torch.dtype, *, width: int = 1024) -> float:
    """Measure the speed of matrix products for a fraction of a second.

    Args:
        device: where.
        dtype: of the matrices.
        width: of the model whose speed is wanted, for small matrices are slower.

    Returns:
        10^12 operations per second, the best of several products.
    """
    size = min(width, 4096 if device.type == "cuda" else 1024)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)  # libraries load their kernels at the first use
    best, end = float("inf"), time.perf_counter() + _BUDGET_S
    while True:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return 2 * size**3 / best / 1e12
