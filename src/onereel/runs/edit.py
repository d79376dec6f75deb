"""Changes to a kept run: take back, do again, make longer, fork.

An edit is one line in the journal: the first chunk that is taken back, and the settings that hold
from there. What lies before it stays as it is, to the bit; `resume` computes the rest.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from onereel.core.errors import ConfigError
from onereel.pipelines.magic_sampling import made_frames
from onereel.pipelines.wishes import Edit, RunWishes, check_wishes
from onereel.runs.folder import CHUNKS, INPUTS, RunFolder
from onereel.runs.keeper import folder_wishes, opened
from onereel.runtime.source import MAGI1


def undo(path: Path, seconds: float) -> float:
    """Take back everything after a second; the video file changes at the next `resume`.

    Args:
        path: folder of the run.
        seconds: of the video; the chunk in which it lies is taken back whole.

    Returns:
        Seconds that are kept.

    Raises:
        ConfigError: nothing that is kept lies behind that second, or the run is in use.
    """
    with opened(path) as folder:
        first = _chunk_at(folder, seconds)
        folder.edit(first, _before(folder, first).to_settings())
        return folder.start_of(first)


def redo(
    path: Path, seconds: float, *, prompt: str | None = None, seed: int | None = None
) -> float:
    """Take back everything after a second, to be made with another prompt or other noise.

    Args:
        path: folder of the run.
        seconds: of the video; the chunk in which it lies is made anew.
        prompt: what is shown from there on; None keeps the prompts.
        seed: of the noise from there on; None keeps it.

    Returns:
        Seconds that are kept.

    Raises:
        ConfigError: neither is given, or as `undo`.
    """
    if prompt is None and seed is None:
        raise ConfigError(
            "redo", expected="another prompt or seed", hint="`onereel undo` and `resume` repeat"
        )
    with opened(path) as folder:
        first = _chunk_at(folder, seconds)
        folder.edit(first, _changed(folder, first, prompt=prompt, seed=seed).to_settings())
        return folder.start_of(first)


def extend(path: Path, seconds: float, *, prompt: str | None = None) -> float:
    """Make a run longer.

    Args:
        path: folder of the run.
        seconds: more of them.
        prompt: what the new chunks show; None keeps the last prompt. A segment of Magic 1-For-1
            that the end had cut short is made anew, whole, and counts as new.

    Returns:
        The new length in seconds.

    Raises:
        ConfigError: the length is not positive, or the run is in use.
    """
    with opened(path) as folder:
        record = folder.manifest.record
        frames = round(seconds * record["fps"])
        if frames < 1:
            raise ConfigError("--seconds", expected="at least one frame", got=seconds)
        first, wishes = _grown_from(folder, frames), folder_wishes(folder)
        if prompt is not None:
            check_wishes(RunWishes(prompt=prompt))
            wishes = wishes.with_prompt_from(first - folder.manifest.num_given_chunks, prompt)
        assert wishes.num_frames is not None
        wishes = dataclasses.replace(wishes, num_frames=wishes.num_frames + frames)
        check_wishes(wishes)
        folder.edit(first, wishes.to_settings())
        return float((wishes.num_frames + record["given_frames"]) / record["fps"])


def branch(
    path: Path,
    new: Path,
    *,
    output: str,
    seconds: float | None = None,
    prompt: str | None = None,
    seed: int | None = None,
) -> float:
    """Fork a run into a second folder; files that both share are linked, not copied.

    Args:
        path: folder of the run.
        new: the second folder.
        output: its video.
        seconds: where they part; None parts at the end of what is kept.
        prompt: what the second one shows from there on; None keeps the prompts.
        seed: of the second one's noise from there on; None keeps it.

    Returns:
        Seconds that both share.

    Raises:
        ConfigError: the folder exists, or nothing that is kept lies behind that second.
    """
    if new.exists():
        raise ConfigError(f"{new} exists already", hint="name another folder")
    with opened(path) as folder:
        if Path(output).resolve() == folder.output.resolve():
            raise ConfigError(f"output {output}", hint="it is the first run's; set -o")
        first = folder.end if seconds is None else _chunk_at(folder, seconds)
        wishes = _changed(folder, first, prompt=prompt, seed=seed)
        manifest = dataclasses.replace(folder.manifest, output=str(Path(output).absolute()))
        staging = new.with_name(new.name + ".part")
        shutil.rmtree(staging, ignore_errors=True)
        twin = RunFolder.create(staging, manifest)
        if (path / INPUTS).exists():
            shutil.copytree(path / INPUTS, staging / INPUTS)
        for chunk in folder.chunks:
            if chunk.index < first:
                _link(path / CHUNKS / chunk.file, staging / CHUNKS / chunk.file)
                twin.journal.append("chunk", **dataclasses.asdict(chunk))
        twin.edit(first, wishes.to_settings())
        staging.rename(new)
        return folder.start_of(first)


def steer(path: Path, prompt: str, *, seconds: float | None = None) -> None:
    """Ask the process that renders a run to show something else.

    Args:
        path: folder of the run.
        prompt: what is shown.
        seconds: of the video, from which on; earlier than can still be followed means as soon as
            possible, and so does None.

    Raises:
        ConfigError: no process renders the run, or the prompt is empty.
    """
    check_wishes(RunWishes(prompt=prompt))
    folder = _rendering(path)
    manifest = folder.manifest
    frame = (seconds or 0) * manifest.record["fps"] + manifest.hidden_frames
    folder.ask(kind="prompt", prompt=prompt, chunk=int(frame // manifest.frames_per_chunk))


def control(path: Path, what: str) -> None:
    """Ask the process that renders a run to pause, continue or stop after the next chunk.

    Args:
        path: folder of the run.
        what: `pause`, `continue` or `stop`.

    Raises:
        ConfigError: no process renders the run.
    """
    _rendering(path).ask(kind=what)


def _rendering(path: Path) -> RunFolder:
    """Open a run that another process renders."""
    folder = RunFolder(path)
    try:
        with folder.locked():
            pass
    except ConfigError:
        return folder
    raise ConfigError(
        f"{path} is not being rendered",
        hint="`onereel redo` and `extend` change a run that rests; `onereel resume` goes on",
    )


def _link(source: Path, target: Path) -> None:
    """Link a file; chunks are replaced, never changed, so neither run disturbs the other."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _chunk_at(folder: RunFolder, seconds: float) -> int:
    """Find the chunk in which a second of the video lies, among those that are kept."""
    manifest, first = folder.manifest, folder.manifest.num_given_chunks
    frame = seconds * manifest.record["fps"] + manifest.hidden_frames
    chunk = max(first, int(frame // manifest.frames_per_chunk))
    if seconds < 0 or chunk >= folder.end:
        end = folder.start_of(folder.end)
        raise ConfigError(
            "the second", expected=f"0 to less than {end:g}, where what is kept ends", got=seconds,
            hint=f"`onereel runs show {folder.path}` tells what is kept",
        )  # fmt: skip
    return chunk


def _grown_from(folder: RunFolder, more: int) -> int:
    """Find the first chunk that is made anew when frames are added behind the last one."""
    if folder.family == MAGI1:
        return folder.end  # chunks are made whole, whatever is written of them
    made, manifest = made_frames(folder.num_frames), folder.manifest
    behind = made + manifest.hidden_frames  # frames of the video behind the first segment's more
    is_whole = behind > 0 and behind % manifest.frames_per_chunk == 0
    if is_whole or made == made_frames(folder.num_frames + more):
        return folder.end
    return min(folder.end, folder.num_chunks - 1)


def _before(folder: RunFolder, first: int) -> RunWishes:
    """Return the wishes without the edits from a chunk on."""
    wishes, generated = folder_wishes(folder), first - folder.manifest.num_given_chunks
    return dataclasses.replace(
        wishes, edits=tuple(edit for edit in wishes.edits if edit[0] < generated)
    )


def _changed(folder: RunFolder, first: int, *, prompt: str | None, seed: int | None) -> RunWishes:
    """Return the wishes with another prompt or seed from a chunk on."""
    wishes, generated = _before(folder, first), first - folder.manifest.num_given_chunks
    check_wishes(dataclasses.replace(wishes, prompt=prompt or "x", prompts=None, seed=seed))
    new: list[Edit] = []
    if prompt is not None:
        new.append((generated, "prompt", prompt))
    if seed is not None:
        new.append((generated, "seed", seed))
    return dataclasses.replace(wishes, edits=(*wishes.edits, *new))
