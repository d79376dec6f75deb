"""Room `media`: image and video files to and from uint8 arrays `[F, H, W, 3]`.

Read `video.py` first (reading), then `writer.py` (writing while the model still runs).

| file | holds |
|---|---|
| `rate.py` | exact frame rates and the frame-rate conversion rule |
| `scale.py` | resizing as ffmpeg does it, with the policies fit, crop and pad |
| `image.py` | still images |
| `buckets.py` | the sizes of Magic 1-For-1, and how pictures get there |
| `video.py` | probing and streaming reads |
| `fragments.py`, `gif.py` | encoders that turn a chunk of frames into finished bytes |
| `writer.py` | the growing output file |
| `metadata.py` | the record of a run, in the file and beside it |
| `preflight.py` | checks before hours of sampling |
| `sheet.py` | contact sheets |
"""

from __future__ import annotations

from onereel.media.fragments import EncoderSettings
from onereel.media.image import load_image, resize_frames
from onereel.media.metadata import read_metadata, write_metadata
from onereel.media.preflight import check_input_image, check_input_video, check_output
from onereel.media.sheet import frame_sheet
from onereel.media.video import VideoInfo, probe, read_video, resample_indices, stream_video
from onereel.media.writer import VideoWriter

__all__ = [
    "EncoderSettings",
    "VideoInfo",
    "VideoWriter",
    "check_input_image",
    "check_input_video",
    "check_output",
    "frame_sheet",
    "load_image",
    "probe",
    "read_metadata",
    "read_video",
    "resample_indices",
    "resize_frames",
    "stream_video",
    "write_metadata",
]
