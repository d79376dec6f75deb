"""Kept renders of Magic 1-For-1: every finished segment's latents are on disk, and gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import PIL.Image
import torch

from onereel.core.errors import CheckpointError, ConfigError
from onereel.core.files import replace_folder, write_atomically
from onereel.media.image import read_image
from onereel.media.preflight import check_place
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.magic_prepare import MagicPlan, prepare_magic
from onereel.pipelines.magic_run import MagicRun
from onereel.pipelines.picture_sources import SourcePicture
from onereel.pipelines.record import installed_versions
from onereel.pipelines.run import RunResult
from onereel.runs.folder import FORMAT, INPUTS, Manifest, RunFolder
from onereel.runs.render import check_same, folder_wishes, is_replaceable, opened, relative_output
from onereel.runtime.source import MAGIC141

PICTURE = "picture.png"  # the first picture, whatever it came from
_LATENT = "latent"


class SegmentFolder:
    """Keeps a run's segments in a folder; see `pipelines.magic_sampling.SegmentKeeper`.

    Args:
        path: the folder.
        plan: the run.
        folder: the run that is gone on with, locked, or None for a new one.

    Raises:
        MediaError: the folder cannot be written.
        OutOfMemory: the disk is too full for the latents.
        ConfigError: the folder holds something else.
    """

    def __init__(self, path: Path, plan: MagicPlan, *, folder: RunFolder | None = None) -> None:
        self.path, self.plan, self.folder = path, plan, folder
        self._open, self._is_new = contextlib.ExitStack(), folder is None
        if folder is None:
            check_place(path, estimated_bytes=latent_bytes(plan))
            if path.exists() and any(path.iterdir()) and not is_replaceable(path):
                raise ConfigError(
                    f"--run {path}", expected="a folder that is new, empty or of a finished run",
                    got="one with other contents",
                    hint=f"`onereel resume {path}` goes on with a run; or name another folder",
                )  # fmt: skip

    def begin(self, record: Mapping[str, Any], picture: SourcePicture) -> None:
        """Make the folder, or note that the run is gone on with.

        Args:
            record: of the run.
            picture: its first picture.
        """
        if self.folder is not None:
            first = len(self.folder.chunks)
            self.folder.journal.append("resume", first=first, versions=record["versions"])
            return
        segments = self.plan.segments

        def write(path: Path) -> None:
            (path / INPUTS).mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            PIL.Image.fromarray(picture.pixels).save(data, "PNG")
            write_atomically(path / INPUTS / PICTURE, lambda file: file.write(data.getvalue()))
            manifest = Manifest(
                format=FORMAT,
                record=dict(record),
                output=relative_output(self.plan.output, self.path),
                num_chunks=len(segments),
                num_given_chunks=0,
                frames_per_chunk=segments[1 if len(segments) > 1 else 0].first_frame() or 1,
                hidden_frames=0,
                inputs={"picture": PICTURE},
            )
            RunFolder.create(path, manifest)

        replace_folder(self.path, write)  # killed meanwhile, nothing is left that blocks the name
        self.folder = RunFolder(self.path)
        self._open.enter_context(self.folder.locked())

    def load(self, index: int) -> torch.Tensor | None:
        """Read a segment, or say that it is to be made."""
        assert self.folder is not None
        if index >= len(self.folder.chunks):
            return None
        state = self.folder.load_chunk(index)
        if set(state) != {_LATENT}:
            raise CheckpointError(f"{self.path}: segment {index}", got=", ".join(state))
        return state[_LATENT]

    def save(self, index: int, latent: torch.Tensor) -> None:
        """Keep a segment."""
        assert self.folder is not None
        self.folder.save_chunk(index, {_LATENT: latent})

    def end(self, num_frames: int) -> None:
        """Note that the video is complete.

        Args:
            num_frames: that were written.
        """
        assert self.folder is not None
        self.folder.journal.append("end", num_frames=num_frames)

    def __enter__(self) -> Self:
        """Take part in a `with` block, at whose end the folder is unlocked."""
        return self

    def __exit__(self, *error: object) -> None:
        """Unlock the folder; one without a segment is of no use and goes."""
        if self._is_new and self.folder is not None and not self.folder.chunks:
            shutil.rmtree(self.folder.path)
        self._open.close()


def latent_bytes(plan: MagicPlan) -> int:
    """Estimate what a run's latents will take on disk.

    Args:
        plan: the run.

    Returns:
        Bytes.
    """
    video, channels = plan.request, 16
    frames = sum(segment.num_latents for segment in plan.segments)
    return 4 * channels * frames * math.ceil(video.height / 8) * math.ceil(video.width / 8)


def keep_run(
    plan: MagicPlan, path: Path, *, listener: RunListener, expected_hash: str | None = None
) -> RunResult:
    """Make a video, and keep its segments as they are finished.

    Args:
        plan: the run.
        path: the folder.
        listener: is told how it goes.
        expected_hash: of the weights, when only they will do.

    Returns:
        What was made.
    """
    with SegmentFolder(path, plan) as keeper:
        return MagicRun(plan, listener, keeper=keeper).run(expected_hash=expected_hash)


def resume_magic(path: Path, listener: RunListener, *, output: str | None = None) -> RunResult:
    """Go on with a run to its end, whatever ended it before.

    Segments that are kept are decoded again, the others are computed: latents and frames are those
    of an unbroken run, to the bit on the same machine.

    Args:
        path: the folder.
        listener: is told how it goes.
        output: another video file.

    Returns:
        What was made.

    Raises:
        MediaError: there is no such run.
        ConfigError: device, dtype or sampling settings would be others, or the run is in use.
        CheckpointError: the weights are others now, or the first picture is gone.
    """
    with opened(path, family=MAGIC141) as folder:
        for problem in folder.drop_damaged():
            listener.say(f"{problem}; computed again from there")
        record = folder.manifest.record
        wishes = folder_wishes(folder)
        first = path / INPUTS / PICTURE
        if not first.is_file():
            raise CheckpointError(f"{first} is gone", hint="copy it back; the run begins with it")
        begun = dataclasses.replace(wishes, image=str(first), image_source=None, clip=None)
        plan = prepare_magic(begun, output or str(folder.output))
        check_same(plan, record, where=str(path))
        plan = dataclasses.replace(plan, settings=wishes)  # the record names no copies
        for name, now in installed_versions().items():
            if now != (then := record["versions"].get(name)):
                listener.say(f"begun with {name} {then}, now {now}: rounding may differ")
        done = len(folder.chunks)
        left = len(plan.segments) - done
        listener.say(f"{path}: {done} segments are kept, {left} are left to compute")
        picture = SourcePicture(read_image(first), str(record["picture"]["origin"]))
        keeper = SegmentFolder(path, plan, folder=folder)
        run = MagicRun(plan, listener, keeper=keeper, picture=picture, record=record)
        return run.run(expected_hash=str(record["model_hash"]))
