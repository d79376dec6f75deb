"""What this machine has: free memory, and the speed of its matrix products."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_BUDGET_S: Final = 0.1  # of one measurement of speed
# Where only the speed of matrix products is known: the share of it that a whole step reaches.
_EFFICIENCY: Final = 0.6
# Measured on a CPU: what a layer does beside products takes as long as this many LayerNorms.
_NORMS_PER_LAYER: Final = 60
# Small models wait for kernels to start: about 80 per layer and call.
_SECONDS_PER_LAYER: Final = 80 * 6e-6


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
        10^12 operations per second.
    """
    size = min(width, 4096 if device.type == "cuda" else 1024)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: torch.mm(a, b), device) / 1e12


@functools.cache
def measure_norm_seconds(device: torch.device, *, width: int = 1024) -> float:
    """Measure how long a LayerNorm takes, which stands for everything but matrix products.

    Args:
        device: where.
        width: of the model.

    Returns:
        Seconds per number.
    """
    x = torch.ones(4096 if device.type == "cuda" else 512, width, device=device)
    return _median_seconds(lambda: F.layer_norm(x, (width,)), device) / x.numel()


def rough_seconds(
    flops: float,
    *,
    numbers: float,
    layer_calls: int,
    width: int,
    place: tuple[torch.device, torch.dtype],
    tflops: float | None,
) -> float:
    """Say how long a transformer's work takes, within a factor of two.

    Args:
        flops: operations of matrix products.
        numbers: tokens times width, summed over all layers of all calls.
        layer_calls: layers times calls.
        width: of the model.
        place: device and dtype.
        tflops: speed of matrix products, 10^12 per second; None measures it.

    Returns:
        Seconds.
    """
    device, dtype = place
    speed = measure_tflops(device, dtype, width=width) if tflops is None else tflops
    products = flops / (speed * 1e12)
    if tflops is not None:
        rest = products * (1 / _EFFICIENCY - 1)
    else:
        rest = numbers * _NORMS_PER_LAYER * measure_norm_seconds(device, width=width)
    return products + rest + layer_calls * _SECONDS_PER_LAYER


def _median_seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Time a function; the median forgives a busy moment but not a busy machine."""
    run()  # libraries load their kernels at the first use
    times: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
