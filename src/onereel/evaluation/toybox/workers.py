"""Work in this process or in several, each with its own copy of the model."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from onereel.evaluation.toybox.records import Record


class Bench(Protocol):
    """What makes and scores one thing after another; it may load a model at the first."""

    def run(self, case: Any) -> Record:
        """Make and score one."""
        ...


def threads_each(workers: int) -> int:
    """Share this process's threads among the workers.

    Args:
        workers: processes.

    Returns:
        Threads per process, at least 1.
    """
    return max(1, torch.get_num_threads() // workers)


def work(
    make_bench: Callable[[], Bench], cases: Sequence[Any], *, workers: int
) -> Iterator[Record]:
    """Make and score everything.

    Args:
        make_bench: called once per process; can be pickled where there are several.
        cases: what to make and score.
        workers: processes; 1 stays in this one.

    Yields:
        Records as they are finished.
    """
    if workers == 1 or len(cases) < 2:
        bench = make_bench()
        yield from map(bench.run, cases)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(cases)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(make_bench, threads_each(workers)),
    ) as pool:
        jobs = [pool.submit(_run, case) for case in cases]
        try:
            for finished in concurrent.futures.as_completed(jobs):
                yield finished.result()
        finally:  # whatever ended the loop: what is running ends, the rest never begins
            pool.shutdown(wait=False, cancel_futures=True)


_bench: Bench | None = None


def _start(make_bench: Callable[[], Bench], threads: int) -> None:
    """Prepare a process; Ctrl-C is left to the parent."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _bench = make_bench()


def _run(case: Any) -> Record:
    assert _bench is not None
    return _bench.run(case)
