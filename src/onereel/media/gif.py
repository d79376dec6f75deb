"""Animated GIF with a palette per frame, encoded as the frames come."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from onereel.core.errors import MediaError
from onereel.media.scale import Pixels


class GifEncoder:
    """Encodes chunks of frames to pieces of one endless GIF.

    GIF counts time in hundredths of a second: at 24 fps frames last 4 or 5 of them in turn.

    Args:
        width: columns.
        height: rows.
        fps: exact frame rate, at most 50.
    """

    def __init__(self, *, width: int, height: int, fps: Fraction) -> None:
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="gif")
        self._stream = self._container.add_stream("gif", rate=fps)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "pal8"
        self._time_base = 1 / fps
        self._num_frames = 0
        self._graph = self._palette_graph(width, height)

    def _palette_graph(self, width: int, height: int) -> Graph:
        graph = Graph()
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=self._time_base
        )
        split = graph.add("split")
        make = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(make, 1, 0)
        make.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        return graph

    def encode(self, frames: Pixels) -> bytes:
        """Encode one chunk.

        Args:
            frames: uint8 RGB [F, H, W, 3].

        Returns:
            Bytes to append to the file; the last frame may follow with the next call.

        Raises:
            MediaError: the encoder refuses.
        """
        try:
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                frame.pts = self._num_frames
                frame.time_base = self._time_base
                self._num_frames += 1
                self._graph.push(frame)
                painted = self._graph.pull()
                assert isinstance(painted, av.VideoFrame)
                self._container.mux(self._stream.encode(painted))
        except av.FFmpegError as error:
            raise MediaError(f"the GIF encoder failed ({error})") from error
        return self._drain()

    def finish(self) -> bytes:
        """End the file.

        Returns:
            The last bytes.
        """
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._drain()

    def _drain(self) -> bytes:
        data = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        return data
