"""Files that are whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from onereel.core.errors import OutOfMemory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder outlast a power cut; nothing where folders cannot be synced.

    Args:
        folder: the folder.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a crash leaves either the old or the new one.

    Args:
        path: the file.
        write: called with an open binary file.

    Raises:
        OutOfMemory: the disk is full; the half-written file is removed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Recognise a full disk, also behind the errors with which libraries hide it.

    Args:
        error: what was raised, or None.

    Returns:
        Whether it, or what it came from, says that no space or no quota is left.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, SafetensorError) and f"(os error {errno.ENOSPC})" in str(error):
            return True
        # Those of torch's CheckpointException, by rank.
        if any(is_disk_full(failure[0]) for failure in getattr(error, "failures", {}).values()):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(path: Path) -> OutOfMemory:
    """Say that a file could not be written.

    Args:
        path: the file.

    Returns:
        The error.
    """
    return OutOfMemory(
        f"{path} cannot be written: the disk is full",
        hint="free some space and repeat the command, with --resume if a training had begun; what "
        "was saved before is whole",
    )


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside its place, then put it there; half of one is never seen.

    Args:
        folder: its place; what was there is removed.
        write: called with an empty folder to fill.

    Raises:
        OutOfMemory: the disk is full; the old folder is untouched.
    """
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        write(staging)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(folder) from error
        raise
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
