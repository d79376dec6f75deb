"""Resize frames exactly as ffmpeg's scale, crop and pad filters do by default."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

from onereel.core.errors import ConfigError, MediaError

Policy = Literal["fit", "crop", "pad"]
Pixels = npt.NDArray[np.uint8]


def check_target(height: int, width: int, *, policy: str) -> None:
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


def _scale_graph(source: str, height: int, width: int) -> Graph:
    graph = Graph()
    chain = [
        graph.add("buffer", source),
        graph.add("scale", f"{width}:{height}:flags=bicubic"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for first, second in pairwise(chain):
        first.link_to(second)
    graph.configure()
    return graph


class Scaler:
    """Turns decoded frames into RGB arrays of one size.

    It runs ffmpeg's own scale filter: the bare scaling call places the chroma samples of 4:2:0
    video differently when one of the two sizes does not change.

    Args:
        height: rows wanted.
        width: columns wanted.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" fits inside black bars.

    Raises:
        ConfigError: a size or the policy is wrong.
    """

    def __init__(self, *, height: int, width: int, policy: Policy = "fit") -> None:
        check_target(height, width, policy=policy)
        self._target = (height, width)
        self._policy = policy
        self._graph: Graph | None = None
        self._source = ""

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Resize one frame.

        Args:
            frame: a decoded frame in any pixel format.

        Returns:
            uint8 RGB array [height, width, 3].

        Raises:
            MediaError: the frame's pixel format cannot be converted.
        """
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        try:
            if self._graph is None or self._source != source:
                size = _scaled_size((frame.height, frame.width), self._target, self._policy)
                self._graph, self._source = _scale_graph(source, *size), source
            self._graph.push(frame)
            scaled = self._graph.pull()
        except av.FFmpegError as error:
            raise MediaError(f"cannot scale {frame.format.name} pixels ({error})") from error
        assert isinstance(scaled, av.VideoFrame)
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
