"""Any maker of videos as the callable that `generate_videos` wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onereel.core.errors import MediaError
from onereel.evaluation.physics_iq.protocol import GenerationJob
from onereel.media import VideoWriter, load_image, read_video

if TYPE_CHECKING:
    from onereel.evaluation.generate import Order, VideoMaker


@dataclass(frozen=True, kw_only=True, slots=True)
class MakerGenerate:
    """Reads a job's input, lets a maker make the video, and writes what is new.

    Args:
        maker: makes the videos.
        height: of its videos; inputs are stretched to fit, for the score does the same.
        width: of its videos.
        seed: of the first job; every job has its own, however often a run is resumed.
        prefix_frames: given frames that are continued, the last ones; None takes all three seconds.
        picture_frames: frames at the start that show the given picture, and are made on top and cut
            off: for MAGI one latent frame.
    """

    maker: VideoMaker
    height: int
    width: int
    seed: int = 0
    prefix_frames: int | None = None
    picture_frames: int = 4

    def __call__(self, job: GenerationJob, path: Path) -> None:
        """Make one video.

        Args:
            job: what to make.
            path: where to write it, ending in .mp4.

        Raises:
            MediaError: the input cannot be used, or the model made no proper frames.
        """
        order, skip = self._order(job)
        made = self.maker.make(order)
        if made.problem:
            raise MediaError(f"no video for {job.file_name}: {made.problem}")
        frames = made.frames[skip:]
        record = {"job": job.id, "prompt": job.prompt, "seed": order.seed, "seconds": made.seconds}
        height, width = frames.shape[1:3]
        with VideoWriter(path, width=width, height=height, fps=job.fps, metadata=record) as writer:
            writer.write(frames)

    def _order(self, job: GenerationJob) -> tuple[Order, int]:
        """What to make, and how many frames in front of it are not new."""
        from onereel.evaluation.generate import Order  # brings torch along

        if job.image is not None:
            given = load_image(job.image, height=self.height, width=self.width)[None]
            skip = self.picture_frames
        else:
            assert job.video is not None
            skip = 0
            given = read_video(
                job.video,
                height=self.height,
                width=self.width,
                fps=job.fps,
                num_frames=self.prefix_frames or job.conditioning_frames,
                take="end",
            )
        order = Order(
            texts=(job.prompt,),
            num_frames=job.num_frames + skip,
            seed=self.seed + int(job.id),
            given=given,
            is_image=job.image is not None,
        )
        return order, skip
