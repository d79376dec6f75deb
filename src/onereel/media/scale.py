"""Resize frames exactly as ffmpeg's scale, crop and pad filters do by default."""

from __future__ import annotations

from typing import Literal, get_args

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from onereel.core.errors import ConfigError

Policy = Literal["fit", "crop", "pad"]
Pixels = npt.NDArray[np.uint8]


def check_target(height: int, width: int, policy: str) -> None:
    """Refuse sizes and policies that cannot work.

    Args:
        height: rows wanted.
        width: columns wanted.
        policy: how to treat another aspect ratio.

    Raises:
        ConfigError: one of them is wrong.
    """
    if height < 1 or width < 1:
        raise ConfigError("size", expected="positive width and height", got=f"{width}x{height}")
    if policy not in get_args(Policy):
        raise ConfigError("policy", expected="fit, crop or pad", got=policy)


def _scaled_size(source: tuple[int, int], target: tuple[int, int], policy: str) -> tuple[int, int]:
    """Size (rows, columns) to scale to before cropping or padding to `target`."""
    (rows, columns), (height, width) = source, target
    if policy == "fit":
        return target
    same_aspect = (
        (2 * width * rows + columns) // (2 * columns),
        (2 * height * columns + rows) // (2 * rows),
    )
    choose = max if policy == "crop" else min
    return max(1, choose(height, same_aspect[0])), max(1, choose(width, same_aspect[1]))


def rotated(frame: av.VideoFrame, quarter_turns: int) -> av.VideoFrame:
    """Turn a frame clockwise.

    Args:
        frame: a decoded frame in any pixel format.
        quarter_turns: how often to turn by 90 degrees, 0 to 3.

    Returns:
        The frame itself for 0, else a new RGB frame.
    """
    if quarter_turns == 0:
        return frame
    pixels = np.asarray(frame.reformat(format="rgb24").to_ndarray(), np.uint8)
    turned = np.ascontiguousarray(np.rot90(pixels, -quarter_turns))
    return av.VideoFrame.from_ndarray(turned, "rgb24")


class Scaler:
    """Turns decoded frames into RGB arrays of one size; keeps swscale's tables between frames.

    Args:
        height: rows wanted.
        width: columns wanted.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" fits inside black bars.

    Raises:
        ConfigError: a size or the policy is wrong.
    """

    def __init__(self, *, height: int, width: int, policy: Policy = "fit") -> None:
        check_target(height, width, policy)
        self._target = (height, width)
        self._policy = policy
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Resize one frame.

        Args:
            frame: a decoded frame in any pixel format.

        Returns:
            uint8 RGB array [height, width, 3].
        """
        source = (frame.height, frame.width)
        height, width = _scaled_size(source, self._target, self._policy)
        scaled = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC
        )
        return self._place(np.asarray(scaled.to_ndarray(), np.uint8))

    def _place(self, pixels: Pixels) -> Pixels:
        """Crop or pad the centre, with the offsets that ffmpeg's filters compute."""
        height, width = self._target
        rows, columns = pixels.shape[:2]
        # The crop filter rounds half offsets to even, the pad filter cuts them.
        top, left = round(max(0, rows - height) / 2), round(max(0, columns - width) / 2)
        pixels = pixels[top : top + height, left : left + width]
        rows, columns = pixels.shape[:2]
        if (rows, columns) == (height, width):
            return np.ascontiguousarray(pixels)
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - rows) // 2, (width - columns) // 2
        canvas[top : top + rows, left : left + columns] = pixels
        return canvas
