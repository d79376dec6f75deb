"""What to generate for a score: one video per scenario and view, from a picture or from a video."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

from onereel.core.errors import ConfigError
from onereel.evaluation.physics_iq.clips import frame_count
from onereel.evaluation.physics_iq.dataset import (
    CONDITIONING_SECONDS,
    PhysicsIqDataset,
    ViewEntry,
    missing_files,
    refuse,
)

Protocol = Literal["i2v", "v2v"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationJob:
    """One video to generate.

    Args:
        id: four digits of the first take.
        scenario: its name.
        view: its name.
        file_name: name of the video in the model's folder.
        prompt: the description.
        image: the switch frame, with protocol i2v.
        video: the conditioning video, with protocol v2v; how many of its frames a model uses is its
            own business.
        video_fps: its rate: the model's own, or 30 where the dataset has no such folder.
        fps: of the video to make.
        num_frames: exactly, starting with the first frame after the switch frame.
    """

    id: str
    scenario: str
    view: str
    file_name: str
    prompt: str
    image: Path | None
    video: Path | None
    video_fps: int | None
    fps: int
    num_frames: int

    @property
    def conditioning_frames(self) -> int:
        """Return how many frames the three given seconds have at the model's rate."""
        return CONDITIONING_SECONDS * self.fps


def plan_generation(
    dataset: PhysicsIqDataset, *, protocol: Protocol, fps: int
) -> tuple[GenerationJob, ...]:
    """Say what is to be generated.

    Args:
        dataset: the scenarios.
        protocol: "i2v" gives a model the switch frame, "v2v" the three seconds before it.
        fps: of the model.

    Returns:
        A job per scenario and view, in the order of the ids.

    Raises:
        ConfigError: the protocol is unknown, or the rate no whole number of at least 1.
        MediaError: input files are missing; all are named.

    Source:
        spec/evaluation.md 1.2.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError("protocol", expected="i2v or v2v", got=protocol)
    if not isinstance(fps, int) or fps < 1:
        raise ConfigError("fps", expected="a whole number, at least 1", got=fps)
    jobs = tuple(_job(dataset, entry, protocol, fps) for entry in dataset.entries)
    inputs = [path for job in jobs for path in (job.image, job.video) if path is not None]
    refuse(missing_files(inputs), f"dataset {dataset.root}")
    return jobs


def _job(
    dataset: PhysicsIqDataset, entry: ViewEntry, protocol: Protocol, fps: int
) -> GenerationJob:
    rate = dataset.conditioning_rate(Fraction(fps))
    is_video = protocol == "v2v"
    return GenerationJob(
        id=entry.ids[0],
        scenario=entry.name,
        view=entry.view,
        file_name=entry.generated_name,
        prompt=entry.description,
        image=None if is_video else dataset.switch_frame(entry),
        video=dataset.conditioning(entry, rate=rate) if is_video else None,
        video_fps=rate if is_video else None,
        fps=fps,
        num_frames=frame_count(Fraction(fps)),
    )
