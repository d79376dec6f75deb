"""Clock values of the samplers. t: 0 noise, 1 clean (MAGI); sigma = 1 - t (Magic)."""

from __future__ import annotations

import torch

from onereel.core.errors import ConfigError

_PATTERNS = {"8,16,16": (0, 2 / 16, 3 / 16), "16,16,8": (0, 1 / 16, 2 / 16)}
_INTERVALS = {"8,16,16": (2.0, 1.0, 1.0), "16,16,8": (1.0, 1.0, 2.0)}
SHORTCUT_MODES = tuple(_PATTERNS)


def shift_t(z: torch.Tensor, w: float) -> torch.Tensor:
    """Warp flow time; w < 1 spends more steps near the noise.

    Args:
        z: time in [0, 1].
        w: 1 / shift.

    Returns:
        w * z / (1 + (w - 1) * z).

    Source: MAGI-1 report (arXiv 2505.13211) section 2.4.2.
    """
    return (w * z) / (1 + (w - 1) * z)


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Warp a noise level; the same map as `shift_t` under sigma = 1 - t and shift = 1 / w.

    Args:
        sigma: noise level in [0, 1].
        shift: at least 1; larger spends more steps near the noise.

    Returns:
        shift * sigma / (1 + (shift - 1) * sigma).
    """
    return (shift * sigma) / (1 + (shift - 1) * sigma)


def time_grid(
    num_steps: int, *, shortcut_mode: str = "8,16,16", kind: str = "sd3", shift: float = 3.0
) -> torch.Tensor:
    """Compute the flow times of one chunk's updates.

    Args:
        num_steps: updates per chunk; 12 takes the uneven grid of `shortcut_mode`.
        shortcut_mode: `8,16,16` or `16,16,8`.
        kind: warp of the even grid: `sd3` (all released models), `square`, `piecewise`, `identity`.
        shift: of kind `sd3`.

    Returns:
        float32 [num_steps + 1], from 0 (noise) to 1 (clean).

    Raises:
        ConfigError: an argument is not known.

    Source: SandAI-org/MAGI-1 @6ff822e, inference/pipeline/video_generate.py.
    """
    if num_steps < 1:
        raise ConfigError("num_steps", expected="at least 1", got=num_steps)
    check_shortcut_mode(shortcut_mode)
    if num_steps == 12:
        quarters = torch.arange(5, dtype=torch.float32)[:, None] / 4
        u = (quarters + torch.tensor(_PATTERNS[shortcut_mode])).flatten()[:13]
    else:
        u = torch.linspace(0, 1, num_steps + 1)
    if kind == "sd3":
        return shift_t(u * u, 1.0 / shift)
    if kind == "square":
        return u * u
    if kind == "piecewise":
        return torch.where(u < 0.875, u * (0.5 / 0.875), 0.5 + (u - 0.875) * (0.5 / 0.125))
    if kind == "identity":
        return u
    raise ConfigError("schedule kind", expected="sd3, square, piecewise or identity", got=kind)


def check_shortcut_mode(mode: str) -> None:
    """Refuse an unknown shortcut mode.

    Args:
        mode: the name.

    Raises:
        ConfigError: it is not known.
    """
    if mode not in _PATTERNS:
        raise ConfigError("shortcut_mode", expected=" or ".join(_PATTERNS), got=mode)


def step_intervals(num_steps: int, shortcut_mode: str = "8,16,16") -> tuple[float, ...]:
    """List the relative length of every step of an uneven grid.

    Args:
        num_steps: updates per chunk; a multiple of 3 repeats the pattern, others are even.
        shortcut_mode: `8,16,16` or `16,16,8`.

    Returns:
        One interval per step, 2 for a step of the 8-step model, 1 otherwise.
    """
    check_shortcut_mode(shortcut_mode)
    if num_steps % 3:
        return (1.0,) * num_steps
    return _INTERVALS[shortcut_mode] * (num_steps // 3)


def step_size(num_steps: int, interval: float = 1.0) -> float:
    """Compute the scalar that tells distilled weights how long their step is.

    Args:
        num_steps: updates per chunk.
        interval: of this step, only used by the 12-step grid.

    Returns:
        num_steps / 2, or 8 / interval on the 12-step grid.
    """
    return 8.0 / interval if num_steps == 12 else num_steps / 2.0
