"""Checks that belong before hours of sampling: can the output be written, the input be read?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError, MediaError, OutOfMemory
from onereel.media.fragments import EncoderSettings
from onereel.media.image import image_size
from onereel.media.video import VideoInfo, probe

SUFFIXES = (".mp4", ".mov", ".mkv", ".gif")
STDOUT = "-"


def estimate_bytes(width: int, height: int, *, num_frames: int) -> int:
    """Guess, generously, how large a video becomes at the default quality.

    Args:
        width: columns.
        height: rows.
        num_frames: frames.

    Returns:
        Bytes: a tenth of a byte per pixel, about three times what ordinary footage takes.
    """
    return width * height * num_frames // 10


def check_output(
    path: str | Path,
    *,
    estimated_bytes: int = 0,
    settings: EncoderSettings | None = None,
) -> None:
    """Make sure that a video can be written; nothing is left on disk.

    Args:
        path: the output file, or "-" for standard output.
        estimated_bytes: size of the video; twice that is needed while it is finalised.
        settings: the encoder to look for.

    Raises:
        ConfigError: the suffix is not known.
        MediaError: the path is a folder, or its folder cannot be created or written.
        OutOfMemory: the disk is too full.
        BackendUnavailable: the encoder is missing.
    """
    if str(path) == STDOUT:
        (settings or EncoderSettings()).require_encoder()
        return
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        near = nearest_name(suffix, SUFFIXES)
        raise ConfigError(
            f"output {path}",
            expected=f"a name ending in {', '.join(SUFFIXES)}",
            got=suffix or "no suffix",
            hint=f"did you mean {path.with_suffix(near).name}?" if near else None,
        )
    if suffix != ".gif":
        (settings or EncoderSettings()).require_encoder()
    if path.is_dir():
        raise MediaError(f"output {path} is a folder", hint="name a file inside it")
    check_place(path, estimated_bytes=estimated_bytes)


def check_place(path: Path, *, estimated_bytes: int) -> None:
    """Look whether a file can be written and the disk has room for it.

    Args:
        path: the file, or a folder that does not exist yet.
        estimated_bytes: what will be written; twice as much must be free.

    Raises:
        MediaError: nothing can be written there.
        OutOfMemory: the disk is too full.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        # Rights bits do not tell about read-only disks or a full quota; trying does.
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise MediaError(
            f"cannot write to {folder} ({error.strerror})",
            hint="choose another place for the output",
        ) from error
    if free < 2 * estimated_bytes:
        raise OutOfMemory(
            f"the disk of {folder} is too full",
            expected=f"about {2 * estimated_bytes / 1e6:.0f} MB free",
            got=f"{free / 1e6:.0f} MB",
            hint="free some space or choose another place for the output",
        )


def check_input_image(path: str | Path) -> tuple[int, int]:
    """Look at an image's header.

    Args:
        path: an image file.

    Returns:
        (width, height) as stored.

    Raises:
        MediaError: it cannot be used.
    """
    return image_size(path)


def check_input_video(path: str | Path, *, min_seconds: float = 0.0) -> VideoInfo:
    """Look at a video's header and first frame.

    Args:
        path: a video file.
        min_seconds: shortest duration that will do; not checked when the file declares none.

    Returns:
        What it holds.

    Raises:
        MediaError: it cannot be used.
    """
    info = probe(path)
    if not info.has_video:
        raise MediaError(f"{path} holds no video", hint="give a file with a video stream")
    if 0 < info.duration_s < min_seconds:
        raise MediaError(
            f"video {path} is too short",
            expected=f"at least {min_seconds:.2f} s",
            got=f"{info.duration_s:.2f} s",
            hint="give a longer video or ask for a shorter prefix",
        )
    return info
