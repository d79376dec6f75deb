"""Frame rates as exact fractions, and the rule that maps frames between rates."""

from __future__ import annotations

import math
from fractions import Fraction

from onereel.core.errors import ConfigError

Rate = int | float | Fraction


def exact_fps(fps: Rate) -> Fraction:
    """Turn a frame rate into an exact fraction; 29.97 means 30000/1001.

    Args:
        fps: frames per second, above 0 and at most 1000.

    Returns:
        The rate.

    Raises:
        ConfigError: the rate is not usable.
    """
    if not math.isfinite(fps) or not 0 < fps <= 1000:
        raise ConfigError("fps", expected="a number above 0 and at most 1000", got=fps)
    if isinstance(fps, float) and not fps.is_integer():
        broadcast = Fraction(math.ceil(fps) * 1000, 1001)
        if abs(float(broadcast) - fps) < 0.005:
            return broadcast
        return Fraction(fps).limit_denominator(1001)
    return Fraction(fps)


def round_half_up(value: Fraction) -> int:
    """Round to the nearest integer, halves upwards.

    Args:
        value: any fraction.

    Returns:
        The integer.
    """
    return math.floor(value + Fraction(1, 2))


def resample_indices(num_frames: int, fps_in: Rate, *, fps_out: Rate) -> list[int]:
    """Map the frames of a constant-rate video to another rate.

    Output slot j shows the last input frame whose slot, round_half_up(k * fps_out / fps_in), is
    not above j; there are round_half_up(num_frames * fps_out / fps_in) outputs.

    Args:
        num_frames: input frames.
        fps_in: their rate.
        fps_out: the rate wanted.

    Returns:
        The input frame shown by each output frame.

    Source: behaviour of ffmpeg's fps filter with its default rounding.
    """
    ratio = exact_fps(fps_out) / exact_fps(fps_in)
    slots = [round_half_up(k * ratio) for k in range(num_frames + 1)]
    indices: list[int] = []
    for k in range(num_frames):
        indices += [k] * (slots[k + 1] - slots[k])
    return indices
