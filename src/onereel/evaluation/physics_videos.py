"""The videos of Physics-IQ, made with a model of ours."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

from onereel.core.errors import MediaError
from onereel.core.seeds import derive_seed
from onereel.evaluation.generate import ModelChoice, Order, VideoMaker, describe_model, open_maker
from onereel.evaluation.physics_iq.protocol import GenerationJob
from onereel.media import EncoderSettings, VideoWriter, load_image, read_video

_CRF = 6  # hardly any loss: masks are made of small differences


class PhysicsIqMaker:
    """Makes the video of a job: what follows the switch frame, or the given three seconds.

    Args:
        choice: the model and its settings.
        seed: of the noise.
    """

    def __init__(self, choice: ModelChoice, *, seed: int = 0) -> None:
        self.settings: dict[str, Any] = {**describe_model(choice), "seed": seed}
        self._choice, self._seed = choice, seed
        self._maker: VideoMaker | None = None

    def __call__(self, job: GenerationJob, path: Path) -> None:
        """Make one video.

        Args:
            job: what to make.
            path: the file to write, .mp4.

        Raises:
            MediaError: an input cannot be read, or the model's frames hold NaN.
        """
        if self._maker is None:
            choice = dataclasses.replace(self._choice, fps=job.fps)
            self._maker = open_maker(choice)
        made = self._maker.make(self._order(job))
        if made.problem:
            raise MediaError(f"video of {job.file_name}: {made.problem}")
        # A given picture is frame 0, and the benchmark's first frame is the one after it.
        frames = made.frames[-job.num_frames :]
        height, width = frames.shape[1:3]
        settings = EncoderSettings(crf=_CRF)
        with VideoWriter(path, width=width, height=height, fps=job.fps,
                         settings=settings) as writer:  # fmt: skip
            writer.write(frames)

    def _order(self, job: GenerationJob) -> Order:
        size = {"height": self.settings["height"], "width": self.settings["width"]}
        seed = derive_seed(self._seed, "physics-iq", job.id) % 2**31
        if job.image is not None:
            given = load_image(job.image, policy="crop", **size)[None]
            return Order(texts=(job.prompt,), num_frames=job.num_frames + 1, seed=seed,
                         given=given, is_image=True)  # fmt: skip
        assert job.video is not None
        frames = read_video(
            job.video,
            fps=Fraction(job.fps),
            num_frames=job.conditioning_frames,
            take="end",
            policy="crop",
            **size,
        )
        return Order(texts=(job.prompt,), num_frames=job.num_frames, seed=seed, given=frames)
