"""Renders that are kept in a folder, and how one is gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from onereel.core.errors import ConfigError
from onereel.core.files import replace_folder
from onereel.media.preflight import check_place
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.prepare import RunPlan, prepare
from onereel.pipelines.record import Recorded, Repeat, installed_versions, sampling_record
from onereel.pipelines.run import RunResult, stream_run
from onereel.pipelines.stream import VideoChunk
from onereel.pipelines.wishes import RunWishes
from onereel.runs.folder import FORMAT, INPUTS, PREVIEW, Manifest, RunFolder
from onereel.runtime.source import MAGI1
from onereel.runtime.verify import model_parts

POLL_S = 0.1  # how often a paused run looks for requests
LARGEST_COPY = 64 * 2**20  # larger inputs are not copied into the folder


def default_folder(output: str) -> Path:
    """Choose the folder beside a video.

    Args:
        output: the video.

    Returns:
        `NAME.run`; where that holds an unfinished run, `NAME-2.run` and so on, for nothing that
        could be resumed is overwritten.
    """
    base = Path(output)
    path, number = base.with_suffix(".run"), 2
    while path.exists() and not is_replaceable(path):
        path = base.with_name(f"{base.stem}-{number}.run")
        number += 1
    return path


def is_replaceable(path: Path) -> bool:
    """Tell whether a folder holds a run of which nothing is left to resume.

    Args:
        path: the folder.

    Returns:
        Whether a new run may take its place.
    """
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is left alone
        folder = RunFolder(path)
        return folder.is_finished or not folder.chunks
    return False


class Placed(Recorded, Protocol):
    """What a plan of any family tells of where it runs."""

    @property
    def device(self) -> torch.device:
        """Where networks run."""

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""


class RunKeeper:
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
        self.path, self.plan, self.folder, self.say = path, plan, folder, say
        self.latents_only = latents_only if folder is None else folder.manifest.latents_only
        self._open, self._is_new = contextlib.ExitStack(), folder is None
        if folder is None:
            check_place(path, estimated_bytes=plan_bytes(plan))
            if path.exists() and any(path.iterdir()) and not is_replaceable(path):
                raise ConfigError(
                    f"--run {path}", expected="a folder that is new, empty or of a finished run",
                    got="one with other contents",
                    hint=f"`onereel resume {path}` goes on with a run; or name another folder",
                )  # fmt: skip

    @property
    def finished(self) -> range:
        """Chunks that are kept."""
        first = self.plan.num_given_chunks
        return range(first, first + (0 if self.folder is None else len(self.folder.chunks)))

    @property
    def is_cut(self) -> bool:
        """Whether what follows begins anew, because of an edit."""
        return self.folder is not None and self.folder.is_cut

    @property
    def preview(self) -> Path:
        """The contact sheet."""
        return self.path / PREVIEW

    def begin(self, record: Mapping[str, Any], *, vae_hash: str) -> None:
        """Make the folder, or note that the run is gone on with."""
        if self.folder is not None:
            self.folder.journal.append(
                "resume", first=self.finished.stop, versions=record["versions"]
            )
            return

        def write(path: Path) -> None:
            manifest = Manifest(
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
            RunFolder.create(path, manifest)

        replace_folder(self.path, write)  # killed meanwhile, nothing is left that blocks the name
        self.folder = RunFolder(self.path)
        self._open.enter_context(self.folder.locked())

    def __enter__(self) -> Self:
        """Take part in a `with` block, at whose end the folder is unlocked."""
        return self

    def __exit__(self, *error: object) -> None:
        """Unlock the folder; one without a chunk is of no use and goes."""
        if self._is_new and self.folder is not None and not self.folder.chunks:
            shutil.rmtree(self.folder.path)
        self._open.close()

    def save(self, chunk: int, state: dict[str, torch.Tensor]) -> None:
        """Keep a finished chunk."""
        assert self.folder is not None
        self.folder.save_chunk(chunk, state)

    def load(self, chunk: int) -> dict[str, torch.Tensor]:
        """Read a finished chunk."""
        assert self.folder is not None
        return self.folder.load_chunk(chunk)

    def steered(self, next_chunk: int) -> list[tuple[int, str]]:
        """Take what others asked, note it in the journal, and wait while the run is paused."""
        assert self.folder is not None
        found: list[tuple[int, str]] = []
        paused = False
        while True:
            for request in self.folder.asked():
                kind = request["kind"]
                self.folder.journal.append("asked", request=request)
                if kind == "stop":
                    raise KeyboardInterrupt
                if kind in ("pause", "continue"):
                    paused = kind == "pause"
                    self.say("paused; `onereel steer --continue` goes on" if paused else "going on")
                if kind == "prompt":
                    found += self._follow(request, next_chunk)
            if not paused:
                return found
            time.sleep(POLL_S)

    def _follow(self, request: Mapping[str, Any], next_chunk: int) -> list[tuple[int, str]]:
        """Note another prompt, from the first chunk on that can still follow it."""
        assert self.folder is not None
        text, start = str(request["prompt"]), self.plan.num_given_chunks
        chunk = max(next_chunk, int(request.get("chunk", 0)))
        if chunk >= self.plan.num_chunks:
            self.say(f"too late for '{text}': all chunks have begun; `onereel extend` adds some")
            return []
        wishes = folder_wishes(self.folder)
        earlier = (edit for edit in wishes.edits if edit[0] < chunk - start)
        wishes = dataclasses.replace(wishes, edits=(*earlier, (chunk - start, "prompt", text)))
        self.folder.edit(chunk, wishes.to_settings())
        self.say(f"from {self.folder.start_of(chunk):g} s on: {text}")
        return [(chunk, text)]

    def end(self, num_frames: int) -> None:
        """Note that the video is complete."""
        assert self.folder is not None
        self.folder.journal.append("end", num_frames=num_frames)

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


def relative_output(output: str, folder: Path) -> str:
    """Name the video so that it is found again when both are moved together.

    Args:
        output: the video.
        folder: of the run.

    Returns:
        A path from the folder's parent, or an absolute one where the video lies elsewhere.
    """
    relative = os.path.relpath(Path(output).absolute(), folder.absolute().parent)
    return str(Path(output).absolute()) if relative.startswith(os.pardir) else relative


@contextlib.contextmanager
def opened(path: Path, *, family: str = MAGI1) -> Iterator[RunFolder]:
    """Open a run to go on with it: locked, without damaged chunks.

    Args:
        path: the folder.
        family: of the model that makes it.

    Yields:
        The run.

    Raises:
        MediaError: there is no such run.
        ConfigError: another process has it, or it is a run of another family.
    """
    folder = RunFolder(path)
    folder.require_family(family)
    with folder.locked():
        yield RunFolder(path)  # read again: the process before may have just ended


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
    with opened(path) as folder:
        for problem in folder.drop_damaged():
            listener.say(f"{problem}; computed again from there")
        record = folder.manifest.record
        wishes = folder_wishes(folder)
        plan = prepare(with_copies(wishes, folder), output or str(folder.output))
        check_same(plan, record, where=str(path))
        Repeat(str(path), record, wishes).check(plan, changed=())
        plan = dataclasses.replace(plan, settings=wishes)  # the record names the files, not copies
        for name, now in installed_versions().items():
            if now != (then := record["versions"].get(name)):
                listener.say(f"begun with {name} {then}, now {now}: rounding may differ")
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


def folder_wishes(folder: RunFolder) -> RunWishes:
    """Return what a run shall become.

    Args:
        folder: the run.

    Returns:
        Its wishes, with all edits.
    """
    return RunWishes.from_settings(folder.settings, where=f"settings of {folder.path}")


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
