"""The files of a run, checked and read without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from onereel.core.errors import ConfigError, MediaError
from onereel.media import (
    check_input_image,
    check_input_video,
    check_output,
    load_image,
    read_video,
)
from onereel.media.scale import Pixels, Policy
from onereel.pipelines.wishes import RunWishes
from onereel.runtime.source import resolve_model

PREFIX_FRAMES = 24


def check_files(wishes: RunWishes, output: str | None) -> None:
    """Look at all files in milliseconds: is the model there, can inputs be read, outputs written?

    Args:
        wishes: name the files.
        output: the file to write, or None for the default.

    Raises:
        ConfigError: no model of that name, or an unknown suffix.
        MediaError: an input cannot be read, or the output not be written.
        CheckpointError: an official config cannot be read.
        BackendUnavailable: the encoder is missing.
    """
    resolve_model(wishes.model)
    if wishes.image is not None:
        check_input_image(wishes.image)
    if wishes.video is not None:
        check_input_video(wishes.video)
    if output is not None:
        check_output(output)


def read_given(wishes: RunWishes, *, factor: int) -> Pixels | None:
    """Read the given picture, or the frames of the given video that are continued.

    Args:
        wishes: from `fill_wishes`.
        factor: frames per latent frame.

    Returns:
        uint8 [F, H, W, 3], whole latent frames of a video; None without an input.

    Raises:
        MediaError: the file cannot be used, or the video is too short.
        ConfigError: fewer frames are wanted than make a latent frame.
    """
    height, width = wishes.height, wishes.width
    assert height is not None and width is not None
    policy = cast("Policy", wishes.policy)
    if wishes.image is not None:
        check_input_image(wishes.image)
        return load_image(wishes.image, height=height, width=width, policy=policy)[None]
    if wishes.video is None:
        return None
    wanted, fps = wishes.prefix_frames or PREFIX_FRAMES, wishes.fps or 24
    if wanted < factor:
        raise ConfigError(
            "--prefix-frames", expected=f"at least {factor}, one latent frame", got=wanted,
            hint=f"use {PREFIX_FRAMES}",
        )  # fmt: skip
    check_input_video(wishes.video)
    frames = read_video(
        wishes.video,
        height=height,
        width=width,
        fps=fps,
        num_frames=wanted,
        take="start" if wishes.prefix_from == "start" else "end",
        policy=policy,
        allow_short=True,
    )
    if len(frames) < wanted:
        usable = len(frames) // factor * factor
        raise MediaError(
            f"video {wishes.video} is too short",
            expected=f"{wanted} frames ({wanted / fps:.2f} s at {fps} fps)",
            got=f"{len(frames)} frames",
            hint="give a longer video"
            + (f", or continue fewer frames with --prefix-frames {usable}" if usable else
               ", or give one picture with --image"),
        )  # fmt: skip
    return frames[len(frames) % factor :]


def describe_inputs(wishes: RunWishes) -> dict[str, dict[str, str]]:
    """Write down which files a run is made from.

    Args:
        wishes: name the files.

    Returns:
        Name and hash per kind.
    """
    paths = {"image": wishes.image, "video": wishes.video, "special_tokens": wishes.special_tokens}
    paths.update({f"lora {i}": path for i, (path, _) in enumerate(wishes.loras)})
    return {
        kind: {"name": Path(path).name, "sha256": file_hash(path)}
        for kind, path in paths.items()
        if path is not None
    }


def file_hash(path: str | Path) -> str:
    """Hash a file.

    Args:
        path: of the file.

    Returns:
        SHA-256 in hexadecimal.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
