"""Device and dtype by name."""

from __future__ import annotations

import torch

from onereel.core.errors import BackendUnavailable, ConfigError

_CPU_WORDS = ("can't allocate memory", "not enough memory")
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def parse_dtype(name: str) -> torch.dtype:
    """Turn a name such as `bf16` or `torch.bfloat16` into a dtype.

    Args:
        name: the dtype's name.

    Returns:
        The torch dtype.

    Raises:
        ConfigError: the name is not known.
    """
    key = name.removeprefix("torch.")
    if key not in _DTYPES:
        raise ConfigError("dtype", expected=f"one of {', '.join(_DTYPES)}", got=name)
    return _DTYPES[key]


def pick_device(name: str | None = None) -> torch.device:
    """Choose the device to run on.

    Args:
        name: a torch device name, or None or `auto` for the best one present.

    Returns:
        The device.

    Raises:
        BackendUnavailable: the named device is not present.
    """
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("device", expected="auto, cpu, cuda or mps", got=name) from error
    absent = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise BackendUnavailable(
            f"device '{name}' is not present", hint="use --device cpu or --device auto"
        )
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16; without them float32 is faster.

    Args:
        device: where to compute.

    Returns:
        Whether it has; of a CPU, `avx512_bf16`, `amx_bf16` or what other makers call theirs.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return bool(torch.cpu._is_avx512_bf16_supported())
    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise exhausted memory; torch has no class of its own for that of the CPU.

    Args:
        error: what was raised.

    Returns:
        Whether memory ran out, on whatever device.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _CPU_WORDS)


def pin_threads() -> None:
    """Keep the number of CPU threads from changing while a video is made.

    Some matrix libraries may take fewer threads when the machine is busy, and then sum in another
    order.
    """
    torch.set_num_threads(torch.get_num_threads())
