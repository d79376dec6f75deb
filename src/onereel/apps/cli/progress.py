"""How a run is shown on stderr: a live line in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from onereel.pipelines.listeners import SilentListener

if TYPE_CHECKING:
    from onereel.pipelines.listeners import RunProgress

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


class QuietListener(SilentListener):
    """Shows nothing."""

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
    """Shows lines, and under them pictures of what is in flight and a bar that moves."""

    def __init__(self) -> None:
        self._live: Any = None
        self._progress: Any = None
        self._task: Any = None
        self._strip: Any = None
        self._typed = ""

    def say(self, text: str) -> None:
        """Show a line above the bar.

        Args:
            text: the line.
        """
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def progress(self, state: RunProgress) -> None:
        """Move the bar.

        Args:
            state: how far the run is.
        """
        if self._live is None:
            self._begin()
        self._progress.update(self._task, completed=state.share, state=describe_progress(state))

    def preview(self, pictures: Any) -> None:
        """Show pictures, two pixels to a character, where the terminal has the colours.

        Args:
            pictures: uint8 [T, h, w, 3].
        """
        if self._live is not None and self._live.console.color_system in ("256", "truecolor"):
            self._strip = half_blocks(pictures, columns=self._live.console.width)

    def typed(self, text: str) -> None:
        """Show what is being typed.

        Args:
            text: the line; empty takes it away.
        """
        self._typed = text

    def _begin(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        bar, text = BarColumn(bar_width=20), TextColumn("{task.fields[state]}", markup=False)
        console = Console(stderr=True)
        self._progress = Progress(bar, text, console=console)
        self._task = self._progress.add_task("", total=1.0, state="")
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)
        self._live.start()

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        typed = Text(self._typed) if self._typed else None
        parts = (self._strip, typed, self._progress)
        return Group(*(part for part in parts if part is not None))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._live is not None:
            self._strip, self._typed = None, ""
            self._live.stop()
            self._live = None


def half_blocks(pictures: Any, *, columns: int) -> Any:
    """Draw pictures side by side with characters that are two pixels high.

    Args:
        pictures: uint8 [T, h, w, 3].
        columns: of the terminal; more pictures than fit, or wider ones, are made smaller.

    Returns:
        A rich text.
    """
    from PIL import Image
    from rich.text import Text

    strip = Image.fromarray(pictures.transpose(1, 0, 2, 3).reshape(pictures.shape[1], -1, 3))
    width = min(strip.width, columns - 1)
    rows = max(2, round(strip.height * width / strip.width / 2) * 2)
    data = strip.resize((width, rows), Image.Resampling.BOX).tobytes().hex()
    colours = [f"#{data[i : i + 6]}" for i in range(0, len(data), 6)]
    text = Text(no_wrap=True, end="")
    for y in range(0, rows * width, 2 * width):
        for upper, lower in zip(
            colours[y : y + width], colours[y + width : y + 2 * width], strict=True
        ):
            text.append("\N{UPPER HALF BLOCK}", style=f"{upper} on {lower}")
        text.append("\n")
    return text


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
