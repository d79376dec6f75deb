"""Weights that the user has on disk: state dicts and TorchScript archives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from onereel.core.errors import CheckpointError


def load_state(path: str | Path, *, hint: str | None = None) -> dict[str, Tensor]:
    """Read a state dict onto the CPU; nothing in the file is executed.

    Args:
        path: a `.safetensors` file, or one written by `torch.save`.
        hint: where to get it, for the message.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    path = _existing(path, hint)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways on a damaged file
        raise CheckpointError(f"{path}: not readable weights ({error})", hint=hint) from error
    if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(str(path), expected="tensors by name", got=type(saved).__name__)
    return {str(name): tensor for name, tensor in saved.items()}


def check_names(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, where: str | Path
) -> None:
    """Refuse a state dict that is not exactly the expected one.

    Args:
        state: tensors by name.
        expected: tensors of the right shapes by the right names.
        where: the file, for the message.

    Raises:
        CheckpointError: a name is missing or left over, or a shape differs.
    """
    wrong = [
        *(f"{name} is missing" for name in expected if name not in state),
        *(f"{name} is unknown" for name in state if name not in expected),
        *(
            f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise CheckpointError(f"{where}: {len(wrong)} tensors do not fit: {shown}")


def load_script(
    path: str | Path,
    *,
    flags: Mapping[str, bool] | None = None,
    device: str | torch.device = "cpu",
    hint: str | None = None,
) -> Callable[[Tensor], Tensor]:
    """Load a TorchScript archive, which is a program: take it only from those you trust.

    Args:
        path: the archive.
        flags: given to every call by name.
        device: where to put it.
        hint: where to get it, for the message.

    Returns:
        The network as a function, ready for inference. It raises CheckpointError where the archive
        cannot be called like that.

    Raises:
        CheckpointError: the file is missing, damaged, or no TorchScript.
    """
    path = _existing(path, hint)
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated, but the published networks exist in no other form.
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*deprecated")
        try:
            network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            got = _last_line(error)
            raise CheckpointError(f"{path}: not a TorchScript archive ({got})", hint=hint) from (
                error
            )

    def call(x: Tensor) -> Tensor:
        try:
            output: Tensor = network(x, **(flags or {}))
        except RuntimeError as error:
            got = _last_line(error)
            raise CheckpointError(f"{path}: the network failed ({got})", hint=hint) from error
        return output

    return call


def _last_line(error: Exception) -> str:
    """The line of torch's long messages that says what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _existing(path: str | Path, hint: str | None) -> Path:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", hint=hint)
    return path
