"""Files of a run: atomic checkpoints, of which the last few are kept.

One process, or several with whole networks, write a file `step-00000120.pt`; sharded networks a
folder `step-00000120` in the format of `torch.distributed.checkpoint`. Any number of processes can
read either. `state.py` says what is in them.
"""

from __future__ import annotations

import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onereel.core.errors import CheckpointError

_NAME = re.compile(r"step-(\d+)(\.pt)?")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that cannot be read, where an older one may be."""


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators.

    Args:
        seed: at least 0.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    np.random.set_state(("MT19937", keys.cpu().numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])


def checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints of a folder.

    Args:
        folder: folder of the checkpoints.

    Returns:
        Files and folders, the oldest first.
    """
    found = [
        (match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][1]), pair[1].name))]


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint of a folder.

    Args:
        folder: folder of the checkpoints.

    Returns:
        The file or folder of the highest step, or None.
    """
    found = checkpoints(folder)
    return found[-1] if found else None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written.

    Args:
        folder: folder of the checkpoints.
    """
    for path in (*folder.glob("step-*.tmp"), *folder.glob("step-*.part")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder.

    Args:
        path: the checkpoint.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def keep_last(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints.

    Args:
        folder: folder of the checkpoints.
        keep: how many to keep.
    """
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def read_file(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint file, every byte of it checked.

    Args:
        path: the file.
        device: where tensors go.

    Returns:
        The saved state.

    Raises:
        DamagedCheckpoint: the file is not whole, or a byte of it has changed.
    """
    try:
        # torch does not look at the checksums that its format has.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            return state
        raise zipfile.BadZipFile(f"{damaged} has changed")
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise damage(path, error) from error


def damage(path: Path, error: BaseException) -> DamagedCheckpoint:
    """Describe damage.

    Args:
        path: the checkpoint.
        error: what came of reading it.

    Returns:
        The error to raise.
    """
    return DamagedCheckpoint(
        f"checkpoint {path.name} cannot be read ({error})",
        hint="remove it and resume from the one before",
    )
