"""One parity case: what our code gave against what was recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Values = torch.Tensor | NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The verdict on one recorded output.

    Args:
        name: case, and output when it has several.
        passed: whether every value is within tolerance.
        max_error: largest absolute difference; infinite when shapes differ or on NaN.
        tolerance: absolute tolerance.
        note: reason or remark, may be empty.
    """

    name: str
    passed: bool
    max_error: float
    tolerance: float
    note: str = ""


def to_float64(values: Values) -> torch.Tensor:
    """Copy values to the CPU in float64, so that differences of any dtype are exact."""
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.asarray(values, dtype=np.float64))
    return values.detach().to("cpu", torch.float64)


def compare(name: str, got: Values, *, want: Values, atol: float, rtol: float = 0.0) -> CaseResult:
    """Compare values elementwise.

    Args:
        name: name of the case.
        got: our values.
        want: recorded values.
        atol: absolute tolerance.
        rtol: tolerance relative to the recorded value.

    Returns:
        Passed when |got - want| <= atol + rtol * |want| everywhere and shapes are equal; equal
        infinities pass, NaN never does.
    """
    if tuple(got.shape) != tuple(want.shape):
        note = f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
        return CaseResult(name, False, float("inf"), atol, note)
    ours, theirs = to_float64(got), to_float64(want)
    error = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
    error = torch.nan_to_num(error, nan=float("inf"), posinf=float("inf"))
    allowed = atol + rtol * theirs.abs()
    # Infinite recorded values would allow anything: they pass only when equal.
    passed = bool(((error <= allowed) & torch.isfinite(error)).all())
    worst = float(error.max()) if error.numel() else 0.0
    note = "" if passed else f"{int((~(error <= allowed)).sum())} of {error.numel()} values differ"
    return CaseResult(name, passed, worst, atol, note)
