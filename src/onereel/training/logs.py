"""What a run says: `log.jsonl`, TensorBoard files when asked, and lines on stderr."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onereel.core.errors import BackendUnavailable
from onereel.training.method import Progress

LOG_FILE = "log.jsonl"


class RunLog:
    """Writes the log of a run.

    Args:
        out: folder of the run.
        quiet: no lines on stderr.
        tensorboard: write TensorBoard files into `out/tensorboard`.

    Raises:
        BackendUnavailable: TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path, *, quiet: bool, tensorboard: bool) -> None:
        self.path, self.quiet = out / LOG_FILE, quiet
        self._make_board = _summary_writer() if tensorboard else None
        self._board: Any = None
        self._full = False

    def start(self, step: int) -> None:
        """Open the log, and forget what it says of steps that will be done again.

        Args:
            step: steps done.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._forget(step)
        if self._make_board is not None:
            folder = str(self.path.parent / "tensorboard")
            self._board = self._make_board(folder, purge_step=step + 1)

    def write(self, progress: Progress, entry: Mapping[str, Any]) -> None:
        """Write a line everywhere.

        Args:
            progress: where the run stands.
            entry: values by name.
        """
        line = {
            "step": progress.step,
            "seconds": round(progress.seconds, 2),
            "skipped": progress.skipped,
            **entry,
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._write_board(progress.step, entry)
        except OSError as error:
            if not self._full:
                warnings.warn(f"the log cannot be written ({error.strerror})", stacklevel=2)
            self._full = True
        self.say(line)

    def say(self, line: Mapping[str, Any]) -> None:
        """Write a line to stderr.

        Args:
            line: values by name.
        """
        if self.quiet:
            return
        words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()]
        sys.stderr.write("  ".join(words) + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the log."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write_board(self, step: int, entry: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in entry.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{entry.get('event', 'train')}/{name}", value, step)

    def _forget(self, step: int) -> None:
        """Drop the lines of later steps, and a line that was cut off."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        if len(kept) < len(lines):
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BackendUnavailable(
            "tensorboard is not installed",
            hint="pip install 'onereel[train]', or tensorboard=false; log.jsonl says the same",
        ) from error
    return SummaryWriter
