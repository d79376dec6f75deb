"""How a run is shown on stderr: a live line in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from onereel.pipelines.run import RunProgress

PLAIN_INTERVAL_S = 2.0


def format_seconds(seconds: float) -> str:
    """Write a duration as people say it.

    Args:
        seconds: at least 0.

    Returns:
        Such as `8 s`, `2:05` or `1:02:05`.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_progress(state: RunProgress) -> str:
    """Put the state of a run in one line.

    Args:
        state: how far it is.

    Returns:
        Chunk, step, seconds of video, speed and the time left.
    """
    return (
        f"chunk {state.chunk}/{state.num_chunks}  step {state.step}/{state.num_steps}  "
        f"video {state.seconds_done:.1f}/{state.seconds_total:.1f} s  "
        f"{state.speed:.3g} s per s of video  {format_seconds(state.eta_s)} left"
    )


class QuietListener:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Drop a line.

        Args:
            text: the line.
        """

    def progress(self, state: RunProgress) -> None:
        """Drop a state.

        Args:
            state: how far the run is.
        """

    def close(self) -> None:
        """End the display."""


class PlainListener(QuietListener):
    """Writes lines, those of progress at most every two seconds.

    Args:
        stream: where to write; None takes stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._last = float("-inf")

    def say(self, text: str) -> None:
        """Write a line.

        Args:
            text: the line.
        """
        print(text, file=self._stream, flush=True)

    def progress(self, state: RunProgress) -> None:
        """Write the state, if the last line is old enough or all is done.

        Args:
            state: how far the run is.
        """
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL_S:
            self._last = now
            self.say(describe_progress(state))


class TerminalListener(QuietListener):
    """Shows lines, and under them a bar that moves."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """Show a line above the bar.

        Args:
            text: the line.
        """
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False)

    def progress(self, state: RunProgress) -> None:
        """Move the bar.

        Args:
            state: how far the run is.
        """
        if self._progress is None:
            self._begin()
        text = describe_progress(state)
        self._progress.update(self._task, completed=state.share, state=text)

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        bar, text = BarColumn(bar_width=20), TextColumn("{task.fields[state]}", markup=False)
        self._progress = Progress(bar, text, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=1.0, state="")
        self._progress.start()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def make_listener(*, quiet: bool) -> QuietListener:
    """Choose the display.

    Args:
        quiet: show nothing.

    Returns:
        The listener.
    """
    if quiet:
        return QuietListener()
    return TerminalListener() if sys.stderr.isatty() else PlainListener()
