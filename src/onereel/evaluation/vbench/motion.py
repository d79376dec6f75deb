"""VBench's formulas on motion: smoothness, dynamic degree, and the filter for still videos.

F frames, H W height and width. Both networks are passed in: an interpolator that makes the frame
between two frames, and an estimator of optical flow.

Source:
    spec/evaluation.md 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from onereel.evaluation.networks.raft import pad_frames
from onereel.evaluation.vbench.features import Pixels, absolute_difference
from onereel.evaluation.vbench.networks import PairNetwork
from onereel.evaluation.vbench.preprocess import to_tensor

_PADDING = 16  # what the official interpolator needs
_SAMPLED_FPS = 8
_MOVING, _STILL = 0.05, 0.02  # share of the pixels that counts
_MOVING_PIXELS, _STILL_PIXELS = 6.0, 3.0  # threshold at a short side of 256
_LONG_FACTOR = 2  # a drift over the whole video may be twice the threshold per pair that may move


def motion_smoothness(frames: Pixels, interpolate: PairNetwork) -> float:
    """Measure how well the odd frames can be guessed from the even ones; frozen videos get 1.

    Args:
        frames: uint8 [F, H, W, 3].
        interpolate: takes two frames float32 [1, 3, H, W] in 0..1, sides multiples of 16, and
            gives the frame half way between them.

    Returns:
        1 minus the mean absolute difference over 255; NaN with fewer than three frames.
    """
    even, odd = frames[0::2], frames[1::2]
    if len(even) < 2:
        return float("nan")
    guesses = [midpoint(a, b, interpolate=interpolate) for a, b in pairwise(even)]
    # With an even number of frames the last one has no right neighbour.
    pairs = zip(odd[: len(guesses)], guesses, strict=True)
    return 1 - float(np.mean([absolute_difference(a, b) for a, b in pairs])) / 255


def midpoint(first: Pixels, second: Pixels, *, interpolate: PairNetwork) -> Pixels:
    """Make the frame between two frames.

    Args:
        first: uint8 [H, W, 3].
        second: uint8 [H, W, 3].
        interpolate: see `motion_smoothness`.

    Returns:
        uint8 [H, W, 3]; values are cut to whole grey levels, not rounded.
    """
    height, width = first.shape[:2]
    pair = to_tensor(np.stack((first, second))) / 255
    padded, (top, left) = pad_frames(pair, _PADDING)
    with torch.inference_mode():
        guess = interpolate(padded[:1], padded[1:]).to("cpu", torch.float32)
    guess = guess[0, :, top : top + height, left : left + width]
    levels = (guess * 255).clamp(0, 255).to(torch.uint8)
    return np.asarray(levels.permute(1, 2, 0).numpy(), dtype=np.uint8)


def sampled(frames: Pixels, fps: float) -> Pixels:
    """Take about eight frames per second.

    Args:
        frames: uint8 [F, H, W, 3].
        fps: of the video.

    Returns:
        Every max(1, round(fps / 8))-th frame.
    """
    return frames[:: max(1, round(fps / _SAMPLED_FPS))]


def flow_strength(flow: Tensor, share: float = _MOVING) -> float:
    """Average the largest lengths of a flow field.

    Args:
        flow: (x, y) in pixels, [1, 2, H, W], of the padded frame.
        share: of the pixels that count.

    Returns:
        Mean length of that share in pixels; at least one pixel counts.
    """
    lengths = torch.linalg.vector_norm(flow[0].to("cpu", torch.float32), dim=0).flatten()
    count = max(1, int(share * lengths.numel()))
    return float(lengths.topk(count).values.double().mean())


def pair_strengths(frames: Pixels, flow: PairNetwork, *, share: float = _MOVING) -> Iterator[float]:
    """Measure the motion between neighbouring frames, one pair at a time.

    Args:
        frames: uint8 [F, H, W, 3].
        flow: takes two frames float32 [1, 3, H, W] in 0..255, sides multiples of 8, and gives the
            flow [1, 2, H, W].
        share: of the pixels that count.

    Yields:
        What `flow_strength` gives for each pair.
    """
    for first, second in pairwise(range(len(frames))):
        padded, _ = pad_frames(to_tensor(frames[[first, second]]))
        with torch.inference_mode():
            field = flow(padded[:1], padded[1:])
        yield flow_strength(field, share)


def moving_threshold(height: int, width: int) -> float:
    """Tell how strong the flow of a moving pair is.

    Args:
        height: of the frames.
        width: of the frames.

    Returns:
        Pixels.
    """
    return _MOVING_PIXELS * min(height, width) / 256


def moving_count(num_frames: int) -> int:
    """Tell how many pairs must move.

    Args:
        num_frames: sampled frames.

    Returns:
        A quarter, half rounded to even; 0 for one or two frames, which therefore always move.
    """
    return round(4 * num_frames / 16)


def is_dynamic(frames: Pixels, fps: float, *, flow: PairNetwork) -> tuple[bool, list[float]]:
    """Decide whether a video moves.

    Args:
        frames: uint8 [F, H, W, 3].
        fps: of the video.
        flow: see `pair_strengths`.

    Returns:
        The verdict, and the strengths of the pairs that were needed for it.
    """
    frames = sampled(frames, fps)
    needed, threshold = moving_count(len(frames)), moving_threshold(*frames.shape[1:3])
    strengths: list[float] = []
    moving = 0
    for strength in pair_strengths(frames, flow):
        if moving >= needed:
            break
        strengths.append(strength)
        moving += strength > threshold
    return moving >= needed, strengths


def is_still(frames: Pixels, flow: PairNetwork) -> bool:
    """Decide whether a video belongs into temporal_flickering, which is meant for still scenes.

    Args:
        frames: uint8 [F, H, W, 3].
        flow: see `pair_strengths`.

    Returns:
        Whether few neighbours move and first and last frame agree.
    """
    threshold = _STILL_PIXELS * min(frames.shape[1:3]) / 256
    allowed = round(2 * len(frames) / 16)
    ends = frames[[0, -1]]
    for pair in (ends, ends[::-1]):
        strength = next(pair_strengths(pair, flow, share=_STILL))
        if strength > _LONG_FACTOR * threshold * allowed:
            return False
    moving = 0
    for strength in pair_strengths(frames, flow, share=_STILL):
        moving += strength > threshold
        if moving > allowed:
            return False
    return True
