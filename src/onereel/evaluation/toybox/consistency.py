"""Do objects keep their looks, does a video begin with its picture, does a still scene rest?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.quality import psnr, psnr_frames
from onereel.evaluation.toybox.descriptor import descriptors
from onereel.evaluation.toybox.drift import theil_sen
from onereel.evaluation.toybox.tracks import Track, Tracking
from onereel.evaluation.vbench.features import consistency, image_consistency

Video = npt.NDArray[np.uint8]
Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

_MIN_FRAMES = 6  # a track that is whole in fewer frames says nothing about constancy


def subject_consistency_sim(video: Video, tracking: Tracking) -> float:
    """Measure how much objects look as they did one frame before and in their first frame.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video.

    Returns:
        Mean over tracks of VBench's subject consistency, 0 to 1, on the world's own descriptor;
        NaN where no object is whole in six frames.

    Source:
        spec/evaluation.md 9.6 and 2.2.
    """
    found = [descriptors(video, track) for track in tracking.tracks]
    scores = [float(consistency(rows).mean()) for rows in found if len(rows) >= _MIN_FRAMES]
    return float(np.mean(scores)) if scores else math.nan


def i2v_subject_sim(
    video: Video, tracking: Tracking, *, image: Image, image_tracking: Tracking
) -> float:
    """Measure how much objects look as in the picture that the video was made from.

    Args:
        video: uint8 [F, H, W, 3].
        tracking: of the video.
        image: uint8 [H, W, 3].
        image_tracking: of the picture, as a video of one frame.

    Returns:
        Mean over the picture's whole objects of VBench's image-to-video aggregation, 0 to 1; an
        object that the video does not show counts 0. NaN where the picture shows no whole object.

    Source:
        spec/evaluation.md 9.6 and 3.
    """
    scores = []
    for thing in image_tracking.tracks:
        reference = descriptors(image[None], thing)
        if not len(reference):
            continue
        same = _same_object(thing, tracking)
        rows = descriptors(video, same) if same is not None else reference[:0]
        scores.append(image_consistency(reference[0], rows) if len(rows) > 1 else 0.0)
    return float(np.mean(scores)) if scores else math.nan


def _same_object(thing: Track, tracking: Tracking) -> Track | None:
    """Find the track of an object of the picture: same colour, nearest at its start."""
    alike = [track for track in tracking.tracks if track.colour == thing.colour]
    if not alike:
        return None
    return min(alike, key=lambda t: math.hypot(t.x[0] - thing.x[0], t.y[0] - thing.y[0]))


def first_frame_psnr(video: Video, image: Image) -> float:
    """Compare the first frame with the picture that the video was made from.

    Args:
        video: uint8 [F, H, W, 3].
        image: uint8 [H, W, 3].

    Returns:
        Decibels; 100 when they are equal.

    Raises:
        ShapeError: their sizes differ.
    """
    return psnr(video[:1], image[None])


def static_psnr(video: Video, *, fps: int) -> tuple[Floats, float]:
    """Measure how a video that should stand still departs from its first frame.

    Args:
        video: uint8 [F, H, W, 3], at least two frames.
        fps: frames per second.

    Returns:
        PSNR of frames 1 and on against frame 0 in decibels, [F - 1], and the growth of the root
        mean squared error in grey levels per minute.

    Raises:
        ShapeError: it is no video.

    Source:
        spec/evaluation.md 9.6.
    """
    first = np.broadcast_to(video[:1], video[1:].shape)
    errors = video[1:].astype(np.float32) - first.astype(np.float32)
    rms = np.sqrt(np.square(errors).mean(axis=(1, 2, 3)))
    return psnr_frames(video[1:], first), theil_sen(rms, step_s=1.0 / fps)


def motion_smoothness_sim(video: Video) -> float:
    """Measure how well every second frame is the mean of its neighbours.

    VBench's motion smoothness with the plainest interpolation in the place of a network's: still
    videos reach 1, and fast objects lose a little.

    Args:
        video: uint8 [F, H, W, 3].

    Returns:
        1 less the mean absolute difference over 255; NaN of fewer than three frames.

    Source:
        spec/evaluation.md 2.2, motion_smoothness.
    """
    if len(video) < 3:
        return math.nan
    frames = video.astype(np.float32)
    before, after = frames[:-2:2], frames[2::2]
    return float(1 - np.abs((before + after) / 2 - frames[1:-1:2]).mean() / 255)


def dynamic_degree_sim(tracking: Tracking) -> float:
    """Tell whether something in a video moves enough, as VBench's dynamic degree does.

    Its frames are 1/8 s apart, its threshold is 6 pixels of 256, and a fourth of the frames must
    pass it; the fastest tracked object stands for the strongest optical flow, so that a moving
    camera alone does not count.

    Args:
        tracking: of the video.

    Returns:
        1 or 0; NaN of videos shorter than 1/8 s.

    Source:
        spec/evaluation.md 2.2, dynamic_degree.
    """
    stride = max(1, round(tracking.fps / 8))
    pairs = (len(tracking.camera) - 1) // stride
    if pairs < 1:
        return math.nan
    fastest = np.zeros(pairs)
    for thing in tracking.tracks:
        places = {int(f): (x, y) for f, x, y in zip(thing.frames, thing.x, thing.y, strict=True)}
        for pair in range(pairs):
            start, end = places.get(pair * stride), places.get((pair + 1) * stride)
            if start is not None and end is not None:
                fastest[pair] = max(fastest[pair], math.dist(start, end))
    threshold = 6 * min(tracking.height, tracking.width) / 256
    return float((fastest > threshold).sum() >= max(1, round(pairs / 4)))
