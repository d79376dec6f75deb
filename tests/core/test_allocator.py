"""Freed memory that stays in the process: page faults are counted, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from onereel.core.allocator import keep_freed_memory

_COUNT = """
import random, resource, sys, torch
from onereel.core.allocator import keep_freed_memory
told = keep_freed_memory(torch.device("cpu")) if sys.argv[1] == "keep" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(rounds, low, high):
    sizes = random.Random(0)
    for _ in range(rounds):
        held = []
        for _ in range(8):
            held = [*held[-2:], torch.empty(sizes.randrange(low, high) * 2**18).fill_(1)]
        del held
use(3, 8, 30)  # megabytes
start = faults()
use(10, 8, 30)
small = faults() - start
use(3, 40, 80)
print(told, small, faults() - start - small)
"""


def _faults(mode: str, **variables: str) -> tuple[str, int, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, mode],
        env=plain | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, small, large = done.stdout.split()
    return told, int(small), int(large)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_small_buffers_are_mapped_once_unless_the_user_has_said_otherwise() -> None:
    _, anew, _ = _faults("plain")
    told, kept, large = _faults("keep")
    assert told == "True"
    assert kept < anew / 2
    assert large > 2 * anew  # these go back, whatever is kept
    # A variable that glibc does not know: what it knows would change the count by itself.
    told, count, _ = _faults("keep", MALLOC_OWN_WISH="1")
    assert told == "False"
    assert count > 2 * kept


def test_other_devices_are_left_alone() -> None:
    assert keep_freed_memory(torch.device("meta")) is False
