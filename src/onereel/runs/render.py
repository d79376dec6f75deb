"""Renders that are kept in a folder, and how one is gone on with."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from onereel.core.errors import ConfigError
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.prepare import RunPlan, prepare
from onereel.pipelines.record import Recorded, Repeat, sampling_record
from onereel.pipelines.run import RunResult, stream_run
from onereel.pipelines.stream import VideoChunk
from onereel.pipelines.wishes import RunWishes
from onereel.runs.folder import FORMAT, INPUTS, Manifest, RunFolder
from onereel.runs.keeper import (
    FolderKeeper,
    folder_wishes,
    opened,
    relative_output,
    tell_versions,
)
from onereel.runtime.source import MAGI1
from onereel.runtime.verify import model_parts

LARGEST_COPY = 64 * 2**20  # larger inputs are not copied into the folder


class Placed(Recorded, Protocol):
    """What a plan of any family tells of where it runs."""

    @property
    def device(self) -> torch.device:
        """Where networks run."""

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""


class RunKeeper(FolderKeeper):
    """Keeps a run in a folder; see `pipelines.run.Keeper`.

    Args:
        path: the folder.
        plan: the run.
        folder: the run that is gone on with, locked, or None for a new one.
        latents_only: decode nothing; a run that is gone on with stays as it was begun.
        say: is told what came from other processes.

    Raises:
        MediaError: the folder cannot be written.
        OutOfMemory: the disk is too full for the latents.
        ConfigError: the folder holds something else.
    """

    def __init__(
        self,
        path: Path,
        plan: RunPlan,
        *,
        folder: RunFolder | None = None,
        latents_only: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.plan = plan
        super().__init__(
            path,
            chunks=range(plan.num_given_chunks, plan.num_chunks),
            folder=folder,
            num_bytes=plan_bytes(plan),
            latents_only=latents_only,
            say=say,
        )

    @property
    def finished(self) -> range:
        """Chunks that are kept."""
        first = self.plan.num_given_chunks
        return range(first, first + (0 if self.folder is None else len(self.folder.chunks)))

    @property
    def is_cut(self) -> bool:
        """Whether what follows begins anew, because of an edit."""
        return self.folder is not None and self.folder.is_cut

    def begin(self, record: Mapping[str, Any], *, vae_hash: str) -> None:
        """Make the folder, or note that the run is gone on with."""

        def manifest_of(path: Path) -> Manifest:
            return Manifest(
                format=FORMAT,
                record=dict(record),
                output=relative_output(self.plan.output, self.path),
                num_chunks=self.plan.num_chunks,
                num_given_chunks=self.plan.num_given_chunks,
                frames_per_chunk=self.plan.frames_per_chunk,
                hidden_frames=self.plan.hidden_frames,
                inputs=self._copy_inputs(path),
                latents_only=self.latents_only,
                vae_hash=vae_hash,
            )

        self.begin_folder(manifest_of, versions=record["versions"])

    def save(self, chunk: int, state: dict[str, torch.Tensor]) -> None:
        """Keep a finished chunk."""
        assert self.folder is not None
        self.folder.save_chunk(chunk, state)

    def load(self, chunk: int) -> dict[str, torch.Tensor]:
        """Read a finished chunk."""
        assert self.folder is not None
        return self.folder.load_chunk(chunk)

    def _copy_inputs(self, path: Path) -> dict[str, str]:
        names = {}
        for kind in ("image", "video"):
            given = getattr(self.plan.settings, kind)
            if given is not None and Path(given).stat().st_size <= LARGEST_COPY:
                (path / INPUTS).mkdir(parents=True, exist_ok=True)
                names[kind] = Path(given).name
                shutil.copyfile(given, path / INPUTS / names[kind])
        return names


def plan_bytes(plan: RunPlan) -> int:
    """Estimate what a run's latents will take on disk.

    Args:
        plan: the run.

    Returns:
        Bytes: every chunk's file holds the latents in flight beside it.
    """
    request, vae = plan.request, model_parts(plan.source).vae
    assert vae is not None
    _, *factors = vae.config["patch_size"]
    sizes = zip((request.height, request.width), factors, strict=True)
    cells = math.prod(size // factor for size, factor in sizes)
    chunk = 4 * int(vae.config["z_dim"]) * cells * request.config.chunk_width
    return chunk * request.config.window_size * (plan.num_chunks - plan.num_given_chunks)


def stream_resumed(
    path: Path, listener: RunListener, *, output: str | None = None
) -> Generator[VideoChunk, None, RunResult]:
    """Go on with a run to its end, whatever ended it before.

    Chunks that are kept are decoded again, the others are computed: latents and frames are those
    of an unbroken run, to the bit on the same machine.

    Args:
        path: the folder.
        listener: is told how it goes.
        output: another video file.

    Yields:
        Chunks as they are on disk; none where nothing is decoded.

    Returns:
        What was made.

    Raises:
        MediaError: there is no such run, or an input file is another one now.
        ConfigError: device, dtype or sampling settings would be others, or the run is in use.
        CheckpointError: the weights are others now.
    """
    with opened(path, family=MAGI1) as folder:
        for problem in folder.drop_damaged():
            listener.say(f"{problem}; computed again from there")
        record = folder.manifest.record
        wishes = folder_wishes(folder)
        plan = prepare(with_copies(wishes, folder), output or str(folder.output))
        check_same(plan, record, where=str(path))
        Repeat(str(path), record, wishes).check(plan, changed=())
        plan = dataclasses.replace(plan, settings=wishes)  # the record names the files, not copies
        tell_versions(record, listener.say)
        keeper = RunKeeper(path, plan, folder=folder, say=listener.say)
        done, left = len(keeper.finished), plan.num_chunks - keeper.finished.stop
        listener.say(f"{path}: {done} chunks are kept, {left} are left to compute")
        expected = str(record["model_hash"])
        return (yield from stream_run(plan, listener, expected_hash=expected, keeper=keeper))


def with_copies(wishes: RunWishes, folder: RunFolder) -> RunWishes:
    """Name the copies of input files that a run holds, rather than the files.

    Args:
        wishes: of the run.
        folder: the run.

    Returns:
        The wishes.
    """
    names = folder.manifest.inputs
    copies: dict[str, Any] = {kind: str(folder.path / INPUTS / names[kind]) for kind in names}
    return dataclasses.replace(wishes, **copies)


def check_same(plan: Placed, record: Mapping[str, Any], *, where: str) -> None:
    """Refuse to go on where the frames would be others.

    Args:
        plan: what would be run.
        record: of the run before.
        where: what error messages call it.

    Raises:
        ConfigError: with the first difference.
    """
    now: dict[str, Any] = {
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        **{f"sampling.{name}": value for name, value in sampling_record(plan).items()},
    }
    before = {**record, **{f"sampling.{k}": v for k, v in record["sampling"].items()}}
    for name, value in now.items():
        if value != before[name]:
            raise ConfigError(
                f"{where}: {name}", expected=before[name], got=value,
                hint="a run is gone on with as it was begun; a new one may have other settings",
            )  # fmt: skip
