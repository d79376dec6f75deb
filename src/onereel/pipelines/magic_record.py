"""The record of a Magic 1-For-1 run: what is kept in the video, and how it brings the run back."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereel.pipelines.files import file_hash
from onereel.pipelines.picture_sources import SourcePicture
from onereel.pipelines.record import command_of, installed_versions, sampling_record
from onereel.pipelines.wishes import RunWishes
from onereel.runtime.source import MAGIC141

if TYPE_CHECKING:
    from onereel.pipelines.magic_prepare import MagicPlan


def make_magic_record(
    plan: MagicPlan, picture: SourcePicture, *, model_hash: str
) -> dict[str, Any]:
    """Write down everything about a run.

    Args:
        plan: the run.
        picture: its first picture.
        model_hash: of the weights.

    Returns:
        JSON values; a picture that was found in a folder stands in the settings as the image that
        a repetition starts with.
    """
    video, place = plan.request, plan.place
    settings, inputs = plan.settings, dict(plan.inputs)
    found = picture.path
    if found is not None:
        settings = with_image(settings, str(found))
        inputs["image"] = {"name": found.name, "sha256": file_hash(found)}
    prompts = settings.prompts
    pixels = picture.pixels
    return {
        "family": MAGIC141,
        "prompt": settings.prompt,
        **({} if prompts is None else {"timeline": prompts.splitlines()}),
        "segments": list(plan.texts),
        "negative": video.config.negative_prompt if video.config.guided else None,
        "mode": "t2v" if plan.settings.image is None else "i2v",
        "seed": video.seed,
        "width": video.width,
        "height": video.height,
        "fps": video.fps,
        "num_frames": video.num_frames,
        "given_frames": 0,
        "complete": False,
        "device": str(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "sampling": sampling_record(plan),
        "picture": {
            "origin": picture.origin,
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        },
        "model": plan.source.name,
        "model_hash": model_hash,
        "versions": installed_versions(),
        "inputs": inputs,
        "command": command_of(settings, plan.output),
        "settings": settings.to_settings(),
    }


def with_image(settings: RunWishes, path: str | Path) -> RunWishes:
    """Name the picture of a run instead of the way to it.

    Args:
        settings: complete wishes.
        path: the picture's file.

    Returns:
        The wishes.
    """
    return dataclasses.replace(settings, image=str(path), image_source=None, clip=None)
