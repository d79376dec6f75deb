"""How counted work is shown on stderr: videos done, the pace, and the time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from onereel.apps.cli.progress import PLAIN_INTERVAL_S, format_seconds


class Counter:
    """Counts things of equal cost; use it as a context manager around the work.

    Args:
        what: name of the things, in the plural.
        quiet: show nothing.
        stream: where plain lines go; None takes stderr, with a moving bar if it is a terminal.
    """

    def __init__(self, what: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._what, self._quiet, self._stream = what, quiet, stream
        self._start: tuple[float, int] | None = None
        self._last = float("-inf")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Counter:
        """Begin.

        Returns:
            This.
        """
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands.

        Args:
            kind: of what ended the work.
            error: what ended the work.
            trace: where.
        """
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, done: int, total: int) -> None:
        """Tell how far the work is; the first call sets the clock.

        Args:
            done: things done, by an earlier run as well.
            total: things in all.
        """
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        if self._quiet:
            return
        text = describe_count(
            self._what, done, total=total, before=self._start[1], elapsed_s=now - self._start[0]
        )
        if self._stream is None and sys.stderr.isatty():
            self._move(done, total, text)
        elif now - self._last >= PLAIN_INTERVAL_S or done == total:
            self._last = now
            print(text, file=self._stream or sys.stderr, flush=True)

    def _move(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            words = TextColumn("{task.fields[state]}", markup=False)
            self._bar = Progress(BarColumn(bar_width=20), words, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, state="")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, state=text)


def describe_count(what: str, done: int, *, total: int, before: int, elapsed_s: float) -> str:
    """Put the state of counted work in one line.

    Args:
        what: name of the things.
        done: things done.
        total: things in all.
        before: things that were done when the clock started.
        elapsed_s: since then.

    Returns:
        Such as `12/16 videos, 2.8 s each, 0:11 left`.
    """
    text = f"{done}/{total} {what}"
    if before and done == before:
        return f"{text}, which an earlier run finished"
    if done == before:
        return text
    each = elapsed_s / (done - before)
    return f"{text}, {each:.3g} s each, {format_seconds(each * (total - done))} left"
