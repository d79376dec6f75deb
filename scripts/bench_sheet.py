"""Draw the README's sheet: 16 fixed prompts, then an image, a video and a timeline continued."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from onereel import Magi1ImageToVideoPipeline, Magi1Pipeline, Magi1VideoToVideoPipeline
from onereel.media import frame_sheet
from onereel.world import fixed_prompts, sample_clip

TIMELINE = (
    "a large red disc does not move",
    "a large red disc does not move",
    "a large red disc turns yellow",
    "a large yellow disc does not move",
)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Turn one video in [0, 1] into bytes."""
    return (video * 255).round().astype(np.uint8)


def moving_clip(seed: int) -> tuple[np.ndarray, str]:
    """Render a clip of a moving object, 24 frames, and its caption."""
    clip = sample_clip(seed, num_frames=24, motions=["linear"])
    return clip.video, clip.captions[0]


def main() -> None:
    """Generate all rows and write one PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--out", default="docs/images/sheet.png")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--prev-scale", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipe = Magi1Pipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "prev_chunk_scale": args.prev_scale,
    }

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(args.seed)

    rows, labels = [], []
    started = time.monotonic()
    for number, (prompt, _) in enumerate(fixed_prompts()):
        frames = pipe(prompt, num_frames=args.frames, generator=generator(), **options).frames[0]
        rows.append(to_uint8(frames))
        labels.append(("unseen: " if number >= 12 else "") + prompt)
    seconds = (time.monotonic() - started) / (16 * args.frames / 24)
    print(f"{seconds:.2f} s of compute per second of video")  # noqa: T201
    picture, caption = moving_clip(1004)
    image_pipe = Magi1ImageToVideoPipeline(**pipe.components, sampling=dict(pipe.sampling))
    image_pipe.set_progress_bar_config(disable=True)
    frames = image_pipe(
        picture[0], caption, num_frames=args.frames, generator=generator(), **options
    ).frames[0]
    rows.append(to_uint8(frames))
    labels.append(f"from an image: {caption}")
    video_pipe = Magi1VideoToVideoPipeline(**pipe.components, sampling=dict(pipe.sampling))
    video_pipe.set_progress_bar_config(disable=True)
    frames = video_pipe(picture, caption, num_frames=72, generator=generator(), **options).frames[0]
    rows.append(to_uint8(frames))
    labels.append(f"from a video (first third given): {caption}")
    frames = pipe(chunk_prompts=TIMELINE, num_frames=96, generator=generator(), **options).frames[0]
    rows.append(to_uint8(frames))
    labels.append(f"timeline: {TIMELINE[0]}, then {TIMELINE[-1]}")
    frame_sheet(rows, columns=8, labels=labels, scale=2, path=args.out)


if __name__ == "__main__":
    main()
