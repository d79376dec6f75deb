"""Freed memory that stays in the process: page faults are counted, in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from onereel.core.allocator import keep_freed_memory

_COUNT = """
import random, resource, torch
from onereel.core.allocator import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(rounds, low, high):
    sizes = random.Random(0)
    start = faults()
    for _ in range(rounds):
        held = []
        for _ in range(8):
            held = [*held[-2:], torch.empty(sizes.randrange(low, high) * 2**18).fill_(1)]
        del held
    return faults() - start
def measure():
    use(3, 8, 30)  # megabytes
    return use(10, 8, 30), use(3, 40, 80)
before = measure()
assert keep_freed_memory(torch.device("cpu"))
print(*before, *measure())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_small_buffers_are_mapped_once_and_large_ones_go_back() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], env=plain, capture_output=True, text=True, check=True
    )
    small, large, small_kept, large_kept = map(int, done.stdout.split())
    assert small_kept < small / 2
    assert large_kept > large / 2


def test_other_libraries_and_devices_and_wishes_of_the_user_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert keep_freed_memory(torch.device("meta")) is False
    with monkeypatch.context() as patch:
        patch.setattr(platform, "libc_ver", lambda: ("", ""))
        assert keep_freed_memory(torch.device("cpu")) is False
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert keep_freed_memory(torch.device("cpu")) is False
