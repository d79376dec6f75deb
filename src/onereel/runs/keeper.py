"""What keeps a render of either family in its folder, and takes what other processes ask of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from onereel.core.errors import ConfigError
from onereel.core.files import replace_folder
from onereel.media.preflight import check_place
from onereel.pipelines.record import installed_versions
from onereel.pipelines.wishes import RunWishes
from onereel.runs.folder import PREVIEW, Manifest, RunFolder

POLL_S = 0.1  # how often a paused run looks for requests


class FolderKeeper:
    """A run in a folder: made, locked, asked things by others, ended.

    Args:
        path: the folder.
        chunks: those that shall be made.
        folder: the run that is gone on with, locked, or None for a new one.
        num_bytes: that a new run will take.
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
        *,
        chunks: range,
        folder: RunFolder | None,
        num_bytes: int,
        latents_only: bool,
        say: Callable[[str], None],
    ) -> None:
        self.path, self.chunks, self.folder, self.say = path, chunks, folder, say
        self.latents_only = latents_only if folder is None else folder.manifest.latents_only
        self._open, self._is_new = contextlib.ExitStack(), folder is None
        if folder is None:
            check_place(path, estimated_bytes=num_bytes)
            if path.exists() and any(path.iterdir()) and not is_replaceable(path):
                raise ConfigError(
                    f"--run {path}", expected="a folder that is new, empty or of a finished run",
                    got="one with other contents",
                    hint=f"`onereel resume {path}` goes on with a run; or name another folder",
                )  # fmt: skip

    @property
    def preview(self) -> Path:
        """The contact sheet."""
        return self.path / PREVIEW

    def begin_folder(
        self, manifest_of: Callable[[Path], Manifest], *, versions: Mapping[str, str]
    ) -> None:
        """Make the folder, or note that the run is gone on with.

        Args:
            manifest_of: puts the inputs into a new folder, and says what is made.
            versions: of packages.
        """
        if self.folder is not None:
            self.folder.journal.append("resume", first=self.folder.end, versions=dict(versions))
            return

        def write(path: Path) -> None:
            RunFolder.create(path, manifest_of(path))

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

    def steered(self, next_chunk: int) -> list[tuple[int, str]]:
        """Take what others asked, note it in the journal, and wait while the run is paused.

        Args:
            next_chunk: the first one that can follow.

        Returns:
            Chunk from which on each prompt holds, and its text.

        Raises:
            KeyboardInterrupt: the run shall stop here.
        """
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
        text, start = str(request["prompt"]), self.chunks.start
        chunk = max(next_chunk, int(request.get("chunk", 0)))
        if chunk >= self.chunks.stop:
            self.too_late(text)
            return []
        wishes = folder_wishes(self.folder).with_prompt_from(chunk - start, text)
        self.folder.edit(chunk, wishes.to_settings())
        self.say(f"from {self.folder.start_of(chunk):g} s on: {text}")
        return [(chunk, text)]

    def too_late(self, prompt: str) -> None:
        """Say that nothing is left to follow a prompt.

        Args:
            prompt: that came too late.
        """
        self.say(f"too late for '{prompt}': all chunks have begun; `onereel extend` adds some")

    def end(self, num_frames: int) -> None:
        """Note that the video is complete.

        Args:
            num_frames: that were written.
        """
        assert self.folder is not None
        self.folder.journal.append("end", num_frames=num_frames)


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
def opened(path: Path, *, family: str | None = None) -> Iterator[RunFolder]:
    """Open a run to go on with it: locked, without damaged chunks.

    Args:
        path: the folder.
        family: of the model that makes it; None takes any.

    Yields:
        The run.

    Raises:
        MediaError: there is no such run.
        ConfigError: another process has it, or it is a run of another family.
    """
    folder = RunFolder(path)
    if family is not None:
        folder.require_family(family)
    with folder.locked():
        yield RunFolder(path)  # read again: the process before may have just ended


def folder_wishes(folder: RunFolder) -> RunWishes:
    """Return what a run shall become.

    Args:
        folder: the run.

    Returns:
        Its wishes, with all edits.
    """
    return RunWishes.from_settings(folder.settings, where=f"settings of {folder.path}")


def tell_versions(record: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say which packages are others than when a run was begun.

    Args:
        record: of the run.
        say: is told a line per package.
    """
    for name, now in installed_versions().items():
        if now != (then := record["versions"].get(name)):
            say(f"begun with {name} {then}, now {now}: rounding may differ")
