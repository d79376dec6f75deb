"""Colours as people tell them apart: CIELAB, and the distance of 1976."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

# Linear sRGB to CIE XYZ under D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_DELTA = 6 / 29


def srgb_to_lab(rgb: Floats) -> Floats:
    """Turn sRGB into CIELAB under D65.

    Args:
        rgb: [..., 3] in 0..255.

    Returns:
        L*, a*, b*, [..., 3]; white is (100, 0, 0).

    Source:
        IEC 61966-2-1 (transfer curve and primaries of sRGB); CIE 15:2004, section 8.2.1.
    """
    encoded = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    # relative to white, which is the sum of the primaries: (1, 1, 1) becomes exactly neutral
    xyz = linear @ (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)).T
    f = np.where(xyz > _DELTA**3, np.cbrt(xyz), xyz / (3 * _DELTA**2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    red_green, yellow_blue = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.stack([lightness, red_green, yellow_blue], axis=-1)


def delta_e76(first: Floats, second: Floats) -> Floats:
    """Measure how different two colours look.

    Args:
        first: sRGB [..., 3] in 0..255.
        second: the same.

    Returns:
        Euclidean distance in CIELAB, [...]; about 2 can just be seen.

    Source:
        CIE 15:2004, section 8.2.1.3: the CIE 1976 colour difference.
    """
    return np.asarray(np.linalg.norm(srgb_to_lab(first) - srgb_to_lab(second), axis=-1))
