"""An append-only file of events, of which a torn or damaged end is noticed."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from onereel.core.files import disk_full, is_disk_full, sync_folder

Event = dict[str, Any]


def encode_event(event: Event) -> bytes:
    """Write an event as a line: its CRC-32 in hexadecimal, a space, and JSON.

    Args:
        event: JSON values.

    Returns:
        The line.
    """
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x " % zlib.crc32(body) + body + b"\n"


def decode_events(data: bytes) -> tuple[list[Event], int]:
    """Read events up to the first line that is torn or damaged.

    Args:
        data: contents of a journal.

    Returns:
        The events, and the number of bytes they take.
    """
    events, length = [], 0
    while (end := data.find(b"\n", length)) >= 0:
        line = data[length:end]
        if line[:9] != b"%08x " % zlib.crc32(line[9:]):
            break
        events.append(json.loads(line[9:]))
        length = end + 1
    return events, length


class Journal:
    """Events of a run, on disk before `append` returns.

    Args:
        path: the file; what follows its last whole event is cut off at the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        self.events, self._length = decode_events(data)
        self.lost_bytes = len(data) - self._length

    def append(self, kind: str, **values: Any) -> None:
        """Add an event.

        Args:
            kind: what happened.
            values: more of it.

        Raises:
            OutOfMemory: the disk is full; the events before stay readable.
        """
        event = {"kind": kind, **values}
        line = encode_event(event)
        try:
            is_new = not self.path.exists()
            with self.path.open("xb" if is_new else "r+b") as file:
                file.truncate(self._length)
                file.seek(self._length)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path) from error
            raise
        self._length += len(line)
        self.lost_bytes = 0
        self.events.append(event)
