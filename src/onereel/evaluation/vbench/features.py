"""VBench's formulas on frames, and on features that a network has made of frames.

F frames, D width of a feature. Everything is computed in float64.

Source:
    spec/evaluation.md 2.2 and 3.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ShapeError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating[Any]]

_BEST, _MEAN, _WORST = 0.4, 0.3, 0.3  # of i2v_subject and i2v_background


def temporal_flickering(frames: Pixels) -> float:
    """Measure how little neighbouring frames differ; frozen videos get 1.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        1 minus the mean absolute difference over 255; NaN for a single frame.
    """
    if len(frames) < 2:
        return float("nan")
    differences = [absolute_difference(a, b) for a, b in pairwise(frames)]
    return 1 - float(np.mean(differences)) / 255


def absolute_difference(first: Pixels, second: Pixels) -> float:
    """Average the absolute difference of two frames.

    Args:
        first: uint8 [H, W, 3].
        second: uint8 [H, W, 3].

    Returns:
        Mean over pixels and channels, in grey levels.
    """
    return float(np.abs(first.astype(np.int16) - second.astype(np.int16)).mean(dtype=np.float64))


def cosine(first: Features, second: Features) -> Floats:
    """Compare features row by row; what points away counts 0.

    Args:
        first: [..., D].
        second: [..., D].

    Returns:
        max(0, cosine), [...].
    """
    return np.maximum(0.0, (normalized(first) * normalized(second)).sum(axis=-1))


def normalized(features: Features) -> Floats:
    """Divide features by their length; a feature of zeros stays zero.

    Args:
        features: [..., D].

    Returns:
        float64 [..., D].
    """
    values = np.asarray(features, dtype=np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def consistency(features: Features) -> Floats:
    """Compare every frame with the one before it and with the first.

    The score of a video is the mean of this; the official overall score is the mean over the
    frames of all videos, so that longer videos count more.

    Args:
        features: [F, D].

    Returns:
        One value per frame after the first, [F - 1].

    Raises:
        ShapeError: the features are not [F, D].
    """
    _check_features(features)
    return 0.5 * (cosine(features[:-1], features[1:]) + cosine(features[:1], features[1:]))


def image_consistency(reference: Features, features: Features) -> float:
    """Compare the frames of a video with the picture it was made from, and with each other.

    Args:
        reference: feature of the picture, [D].
        features: of the frames, [F, D].

    Returns:
        0.4 times the best match with the picture, plus 0.3 times mean and least consistency of
        neighbours; NaN for a single frame.

    Raises:
        ShapeError: the features do not fit.
    """
    _check_features(features)
    if reference.shape != features.shape[1:]:
        raise ShapeError(
            "reference", expected=str(list(features.shape[1:])), got=list(reference.shape)
        )
    if len(features) < 2:
        return float("nan")
    match = cosine(reference[None], features)
    neighbours = cosine(features[:-1], features[1:])
    return float(_BEST * match.max() + _MEAN * neighbours.mean() + _WORST * neighbours.min())


def aesthetic(features: Features, weight: Features, *, bias: float) -> Floats:
    """Apply the aesthetic head to features.

    Args:
        features: image features before normalisation, [F, D].
        weight: of the head, [D].
        bias: of the head.

    Returns:
        One score per frame, the head's 0..10 brought to 0..1.
    """
    return (normalized(features) @ np.asarray(weight, dtype=np.float64) + bias) / 10


def middle_indices(num_frames: int, wanted: int) -> list[int]:
    """Choose the middle frame of each of several equal parts of a video.

    Args:
        num_frames: frames of the video.
        wanted: how many to take; a shorter video repeats its last frame.

    Returns:
        `wanted` ascending indices.

    Raises:
        ShapeError: one of the numbers is not positive.
    """
    if num_frames < 1 or wanted < 1:
        raise ShapeError("frames", expected="at least one", got=min(num_frames, wanted))
    parts = min(wanted, num_frames)
    # linspace, because i * F / parts can round to the other side of a whole number.
    bounds = np.linspace(0, num_frames, parts + 1).astype(int)
    chosen = [int(start + end - 1) // 2 for start, end in pairwise(bounds)]
    return chosen + [chosen[-1]] * (wanted - parts)


def _check_features(features: Features) -> None:
    if features.ndim != 2 or not len(features):
        raise ShapeError("features", expected="shape [F, D]", got=list(features.shape))
