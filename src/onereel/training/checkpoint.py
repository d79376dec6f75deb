"""Files of a run: atomic checkpoints, of which the last few are kept."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError

from onereel.core.errors import CheckpointError, OutOfMemory


def random_state() -> dict[str, Any]:
    """Collect the states of Python's, NumPy's and torch's global generators.

    Returns:
        A mapping of plain values and tensors, loadable without unpickling code.
    """
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators to a saved state.

    Args:
        state: what `random_state` returned.
    """
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Recognise a full disk, also behind the error with which torch hides it.

    Args:
        error: what was raised, or None.

    Returns:
        Whether it, or what it came from, says that no space or no quota is left.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, SafetensorError) and f"(os error {errno.ENOSPC})" in str(error):
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
        hint="free some space and repeat the command, with --resume if a run had begun; what was "
        "saved before is whole",
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


def save_checkpoint(state: dict[str, Any], folder: Path, *, step: int, keep: int) -> Path:
    """Write a checkpoint atomically and remove old ones.

    Args:
        state: tensors and plain values.
        folder: folder of the checkpoints.
        step: number of the step, part of the name.
        keep: how many to keep.

    Returns:
        The new file.
    """
    path = folder / f"step-{step:08d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint of a folder.

    Args:
        folder: folder of the checkpoints.

    Returns:
        The file of the highest step, or None.
    """
    found = sorted(folder.glob("step-*.pt"))
    return found[-1] if found else None


def load_checkpoint(
    path: Path, names: Mapping[str, Collection[str]], *, device: torch.device
) -> dict[str, Any]:
    """Read a checkpoint and check that it belongs to the run.

    Args:
        path: the file.
        names: the names the run has in each part: `networks`, `optimizers`, `ema`.
        device: where tensors go.

    Returns:
        The saved state.

    Raises:
        CheckpointError: the file is damaged, or its names differ from the run's.
    """
    broken = CheckpointError(
        f"checkpoint {path.name} cannot be read", hint="remove it and resume from the one before"
    )
    if not zipfile.is_zipfile(path):
        raise broken
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise broken from error
    for part, wanted in names.items():
        if set(state[part]) != set(wanted):
            raise CheckpointError(
                f"checkpoint {path.name}: {part}",
                expected=", ".join(wanted) or "none",
                got=", ".join(state[part]) or "none",
                hint="resume with the recipe the run was started with",
            )
    return state
