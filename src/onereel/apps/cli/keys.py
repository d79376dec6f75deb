"""Keys that steer a render from the terminal that shows it."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from onereel.apps.cli.progress import QuietListener, TerminalListener
from onereel.core.errors import OneReelError

HELP = "keys: s steers with a new prompt, p pauses and goes on, q stops after the next chunk"
_POLL_S = 0.2


@contextlib.contextmanager
def steering_keys(folder: Path, listener: QuietListener) -> Iterator[None]:
    """Take keys while a run is rendered; nothing unless this is a terminal.

    Args:
        folder: of the run.
        listener: shows what is typed; keys are taken with a live display only.
    """
    if not isinstance(listener, TerminalListener) or not sys.stdin.isatty() or os.name != "posix":
        yield
        return
    keys = _Keys(folder, listener, sys.stdin)
    listener.say(HELP)
    with keys.raw():
        thread = threading.Thread(target=keys.watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            keys.ended.set()
            thread.join()


class _Keys:
    """Reads keys on a thread and asks the run for what they mean, as `onereel steer` does."""

    def __init__(self, folder: Path, listener: TerminalListener, stream: TextIO) -> None:
        self.folder, self.listener, self.stream = folder, listener, stream
        self.ended = threading.Event()
        self.paused = False
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="ignore").decode
        self._waiting = ""

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Let keys come one by one and unseen; Ctrl-C still interrupts."""
        import termios
        import tty

        before = termios.tcgetattr(self.stream)
        tty.setcbreak(self.stream)
        try:
            yield
        finally:
            termios.tcsetattr(self.stream, termios.TCSADRAIN, before)

    def watch(self) -> None:
        """Read keys until the run has ended."""
        while not self.ended.is_set():
            key = self._key()
            try:
                self._obey(key)
            except OneReelError as error:  # it has just ended, or has not begun
                self.listener.say(f"{error}")

    def _key(self) -> str:
        """Return the next key; nothing when none came for a while."""
        if not self._waiting and select.select([self.stream], [], [], _POLL_S)[0]:
            self._waiting = self._decode(os.read(self.stream.fileno(), 4096))
        key, self._waiting = self._waiting[:1], self._waiting[1:]
        return key

    def _obey(self, key: str) -> None:
        from onereel.runs import edit

        if key == "p":
            edit.control(self.folder, "continue" if self.paused else "pause")
            self.paused = not self.paused
            self.listener.say("asked; it is looked at after every chunk")
        elif key == "q":
            edit.control(self.folder, "stop")
            self.listener.say("stopping after the next chunk")
        elif key == "s":
            text = self._line()
            if text:
                edit.steer(self.folder, text)
                self.listener.say(f"asked for: {text}")

    def _line(self) -> str:
        """Read a line; the display shows it as it is typed. Escape gives it up."""
        text = ""
        while not self.ended.is_set():
            self.listener.typed(f"new prompt: {text}_")
            key = self._key()
            if key and key in "\r\n\x1b":
                self.listener.typed("")
                return "" if key == "\x1b" else text.strip()
            text = text[:-1] if key and key in "\x7f\b" else text + key
        return ""
