"""PSNR and SSIM of a video against a reference of the same size, in the variants named here.

| variant | is |
|---|---|
| `per_frame` (default) | mean over frames of each frame's value, as in common_metrics |
| `global` | value of the mean error over all frames; lower where frames differ in quality |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError, ShapeError

Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8] | npt.NDArray[np.floating[Any]]
PsnrVariant = Literal["per_frame", "global"]

PSNR_CEILING = 100.0
SSIM_WINDOW = 11
_NO_ERROR = 1e-10
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(
    video: Frames | Sequence[Frames],
    reference: Frames | Sequence[Frames],
    *,
    variant: PsnrVariant = "per_frame",
) -> float:
    """Take the peak signal-to-noise ratio.

    Args:
        video: frames [F, H, W, 3], uint8 or floats in [0, 1]; or a list of frames.
        reference: as many frames of the same size.
        variant: see the table above.

    Returns:
        Decibels; 100 when there is no error.

    Raises:
        ShapeError: the two do not fit.
        ConfigError: values that are no pictures, or an unknown variant.

    Source: -10 log10 of the mean squared error on [0, 1].
    """
    if variant not in get_args(PsnrVariant):
        raise ConfigError("variant", expected="per_frame or global", got=variant)
    if variant == "per_frame":
        return float(psnr_frames(video, reference).mean())
    errors = _squared_errors(video, reference)
    return float(_decibels(errors.mean(keepdims=True))[0])


def psnr_frames(video: Frames | Sequence[Frames], reference: Frames | Sequence[Frames]) -> Floats:
    """Take the peak signal-to-noise ratio of every frame.

    Args:
        video: frames [F, H, W, 3], uint8 or floats in [0, 1]; or a list of frames.
        reference: as many frames of the same size.

    Returns:
        Decibels, [F]; 100 for a frame without error.

    Raises:
        ShapeError: the two do not fit.
        ConfigError: values that are no pictures.
    """
    return _decibels(_squared_errors(video, reference))


def ssim(video: Frames | Sequence[Frames], reference: Frames | Sequence[Frames]) -> float:
    """Take the structural similarity: mean of `ssim_frames`.

    Args:
        video: frames [F, H, W, 3], uint8 or floats in [0, 1]; or a list of frames.
        reference: as many frames of the same size.

    Returns:
        At most 1.

    Raises:
        ShapeError: the two do not fit, or are smaller than 11 x 11.
        ConfigError: values that are no pictures.
    """
    return float(ssim_frames(video, reference).mean())


def ssim_frames(video: Frames | Sequence[Frames], reference: Frames | Sequence[Frames]) -> Floats:
    """Take the structural similarity of every frame.

    The window is a Gaussian of 11 x 11 pixels and sigma 1.5, only where it lies wholly inside;
    covariances are biased, K1 = 0.01, K2 = 0.03; per RGB channel, then the mean, in float64.

    Args:
        video: frames [F, H, W, 3], uint8 or floats in [0, 1]; or a list of frames.
        reference: as many frames of the same size, at least 11 x 11.

    Returns:
        At most 1 each, [F].

    Raises:
        ShapeError: the two do not fit, or are smaller than 11 x 11.
        ConfigError: values that are no pictures.

    Source:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity
        (2004), equations 13 to 17.
    """
    x, y = _pair(video, reference)
    if min(x.shape[1:3]) < SSIM_WINDOW:
        got = f"{x.shape[2]}x{x.shape[1]}"
        raise ShapeError("frames", expected=f"at least {SSIM_WINDOW} pixels each way", got=got)
    return np.array([_similarity(a, b) for a, b in zip(x, y, strict=True)])


def _similarity(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
    a, b = x.astype(np.float64), y.astype(np.float64)
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    cov = _smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * cov + _C2) / (var_a + var_b + _C2)
    return float((luminance * structure).mean())


def _smooth(image: Floats) -> Floats:
    """Gaussian mean at every place where the window lies inside: [H, W, 3] to [H-10, W-10, 3]."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    rows, columns = (n - SSIM_WINDOW + 1 for n in image.shape[:2])
    across: Floats = sum(w * image[i : i + rows] for i, w in enumerate(weights))
    result: Floats = sum(w * across[:, i : i + columns] for i, w in enumerate(weights))
    return result


def _squared_errors(
    video: Frames | Sequence[Frames], reference: Frames | Sequence[Frames]
) -> Floats:
    x, y = _pair(video, reference)
    # Summed in float32, frame by frame, which is where common_metrics rounds.
    return np.array([np.square(a - b).mean() for a, b in zip(x, y, strict=True)], np.float64)


def _decibels(errors: Floats) -> Floats:
    exact = errors < _NO_ERROR
    return np.where(exact, PSNR_CEILING, -10 * np.log10(np.where(exact, 1.0, errors)))


def _pair(
    video: Frames | Sequence[Frames], reference: Frames | Sequence[Frames]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    x, y = unit_frames(video, name="video"), unit_frames(reference, name="reference")
    if x.shape != y.shape:
        raise ShapeError("video", expected=f"{list(y.shape)} as its reference", got=list(x.shape))
    return x, y


def unit_frames(
    frames: Frames | Sequence[Frames], *, name: str = "frames"
) -> npt.NDArray[np.float32]:
    """Put frames into [0, 1].

    Args:
        frames: [F, H, W, 3], uint8 or floats in [0, 1]; or a list of frames of one size.
        name: for the message.

    Returns:
        float32 [F, H, W, 3].

    Raises:
        ShapeError: another shape, or frames of several sizes.
        ConfigError: NaN, or values outside the range.
    """
    array = frames if isinstance(frames, np.ndarray) else _stacked(frames, name)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ShapeError(name, expected="frames [F, H, W, 3]", got=list(array.shape))
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise ConfigError(name, expected="uint8 or floats in [0, 1]", got=array.dtype)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # written so that NaN fails, too
        raise ConfigError(name, expected="floats in [0, 1]", got=f"{low:g} to {high:g}")
    return array.astype(np.float32)


def _stacked(frames: Sequence[Frames], name: str) -> npt.NDArray[Any]:
    sizes = {tuple(frame.shape) for frame in frames}
    if len(sizes) != 1:
        got = ", ".join(str(list(size)) for size in sorted(sizes)) or "no frames"
        raise ShapeError(name, expected="frames of one size", got=got)
    return np.stack(list(frames))
