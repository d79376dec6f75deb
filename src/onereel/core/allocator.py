"""The C library's allocator, told to keep freed memory for what comes next."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# Names and numbers of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT = 2**30  # bytes that may lie free
_AHEAD = 2**24  # bytes that are asked for beyond what is needed
_LARGE = 2**25  # bytes of a buffer that is mapped and given back by itself; the most glibc takes


def keep_freed_memory(device: torch.device) -> bool:
    """Keep freed buffers of up to 32 MiB, 1 GiB in all, rather than give each back to the system.

    Decoding small pictures frees and asks for such buffers all the time; glibc maps each anew, and
    the kernel fills it with zeros, page by page. Larger ones still come and go by themselves, so
    that large pictures need no more memory than before. Nothing is done where the C library is
    another one, or a variable `MALLOC_...` says what the user wants.

    Args:
        device: where is computed; other devices have allocators of their own.

    Returns:
        Whether it was told.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    values = ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AHEAD))
    return all([mallopt(name, value) == 1 for name, value in values])
