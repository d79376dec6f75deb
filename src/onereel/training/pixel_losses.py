"""What counts in a reconstruction: objects and what moves, their edges, and decibels."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

OBJECT_SATURATION = 0.35  # palette colours have at least 0.5, backgrounds at most 0.1


def saturation(video: Tensor) -> Tensor:
    """Give every pixel's saturation.

    Args:
        video: [B, 3, F, H, W] in [-1, 1].

    Returns:
        Largest minus smallest channel, [B, 1, F, H, W] in [0, 1].
    """
    return (video.amax(1, keepdim=True) - video.amin(1, keepdim=True)) / 2


def pixel_weights(
    video: Tensor, *, object_weight: float, motion_weight: float, reach: int = 0
) -> Tensor:
    """Weigh pixels: saturated ones and those that change in time count more.

    Without `reach` an object's own pixels outweigh those around it, and where the network is in
    doubt about an edge it draws the object larger and its corners round.

    Args:
        video: [B, 3, F, H, W] in [-1, 1].
        object_weight: extra weight of a pixel of full saturation.
        motion_weight: extra weight of a pixel that changes by 1 in some channel.
        reach: pixels so near to a saturated one count as it does.

    Returns:
        Weights of mean 1, [B, 1, F, H, W].
    """
    near = saturation(video)
    if reach:
        near = F.max_pool3d(near, (1, 2 * reach + 1, 2 * reach + 1), 1, (0, reach, reach))
    weights = 1 + object_weight * near
    if video.shape[2] > 1:
        change = (video[:, :, 1:] - video[:, :, :-1]).abs().amax(1, keepdim=True)
        # A change concerns both frames: where the object was and where it is.
        both = F.pad(change, (0, 0, 0, 0, 1, 0)) + F.pad(change, (0, 0, 0, 0, 0, 1))
        weights = weights + motion_weight * both
    return weights / weights.mean()


def edge_error(error: Tensor, weights: Tensor) -> Tensor:
    """Take the weighted mean absolute error of the differences between neighbouring pixels.

    Args:
        error: reconstruction minus target, [B, 3, F, H, W]; differences are linear.
        weights: [B, 1, F, H, W].

    Returns:
        Scalar.
    """
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weights[..., 1:, :]
    right = (error[..., 1:] - error[..., :-1]).abs() * weights[..., 1:]
    return down.mean() + right.mean()


def temporal_error(error: Tensor, video: Tensor, *, floor: float | None = None) -> Tensor:
    """Take the mean absolute error of the differences between frames, all pixels alike.

    A zoom changes a fifth of what a pan does from frame to frame. Over the video's own change both
    weigh the same, and frames that stand still where they should move cost 1.

    Args:
        error: reconstruction minus target, [B, 3, F, H, W].
        video: the target, of the same shape, with pixels in [-1, 1].
        floor: the mean change of an item's target, plus this, divides its error; None divides by
            nothing, and 0 would let items that rest outweigh all others.

    Returns:
        Scalar; 0 for a single frame.
    """
    if error.shape[2] < 2:
        return error.new_zeros(())
    wrong = error.diff(dim=2).abs().flatten(1).mean(1)
    if floor is not None:
        wrong = wrong / (video.diff(dim=2).abs().flatten(1).mean(1) + floor)
    return wrong.mean()


def psnr(squared_error: float) -> float:
    """Turn a mean squared error of pixels in [-1, 1] into decibels."""
    return float(10 * np.log10(4 / max(squared_error, 1e-10)))
