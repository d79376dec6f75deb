"""Small inputs for the media tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GOLDENS = Path(__file__).parents[1] / "parity" / "magi1_io"


def moving_gradient(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose every pixel tells the frame's number; [F, H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([columns + 3 * t, 2 * rows + t, np.full_like(rows, 10 + 4 * t)], -1)
        for t in range(num_frames)
    ]
    return (np.stack(frames) % 256).astype(np.uint8)


def decode(path: Path) -> np.ndarray:
    """All frames of a file as RGB, by the tags in the file; [F, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def write_counting_video(path: Path, num_frames: int, fps: Fraction | int = 24) -> None:
    """Lossless 16x16 video; frame k is grey level 5k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": "0", "g": "12"})
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        for k in range(num_frames):
            pixels = np.full((16, 16, 3), 5 * k % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


def write_sound(path: Path) -> None:
    """A tenth of a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
