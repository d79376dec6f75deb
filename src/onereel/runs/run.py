"""A kept render as an object: make it, watch it, change it, go on with it.

    run = Run.create("disc.run", prompt="a red disc bounces", seconds=4, output="disc.mp4")
    for chunk in run:
        frames = chunk.to_uint8()
        if chunk.index == 1:
            run.steer("the disc turns blue")
    run.undo(2.0)
    run.finish()

Iterating again goes on with what is not done, in this process or another: `Run("disc.run")`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onereel.core.errors import ConfigError
from onereel.pipelines.families import family_of
from onereel.pipelines.listeners import RunListener, SilentListener
from onereel.pipelines.magic_prepare import MagicPlan, prepare_magic
from onereel.pipelines.magic_run import MagicRun
from onereel.pipelines.prepare import RunPlan, prepare
from onereel.pipelines.run import RunResult, drain, stream_run
from onereel.pipelines.stream import VideoChunk
from onereel.pipelines.wishes import RunWishes
from onereel.runs import edit
from onereel.runs.decode import decode
from onereel.runs.folder import RunFolder
from onereel.runs.magic import SegmentFolder, decode_magic, resume_magic
from onereel.runs.render import RunKeeper, stream_resumed
from onereel.runtime.source import MAGIC141


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """How far a run is.

    Args:
        name: `new` before the first chunk is asked for, `unfinished`, `latents` when all of them
            are there and the video is not, or `finished`.
        num_kept: chunks that are kept, given ones not counted.
        num_chunks: chunks that shall be made.
        seconds_kept: of the video, up to the end of the last kept chunk.
        seconds: of the whole video.
        output: the video.
    """

    name: str
    num_kept: int
    num_chunks: int
    seconds_kept: float
    seconds: float
    output: Path


class Run:
    """A render that is kept in a folder.

    Args:
        path: the folder of a run that was begun.
        listener: is told how it goes; None tells nobody.

    Raises:
        MediaError: there is no such run.
        CheckpointError: its manifest is damaged, or of a newer onereel.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, listener: RunListener | None = None
    ) -> None:
        self._new: RunKeeper | SegmentFolder | None = None
        self._expected_hash: str | None = None
        self.path, self.listener = Path(path), listener or SilentListener()
        RunFolder(self.path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        output: str | None = None,
        latents_only: bool = False,
        listener: RunListener | None = None,
        **wishes: Any,
    ) -> Run:
        """Check a new run; nothing is loaded or written before it is iterated.

        Args:
            path: its folder.
            output: the video; None takes `onereel-<seed>.mp4`.
            latents_only: decode nothing until `decode`.
            listener: is told how it goes.
            wishes: of `RunWishes`: prompt, seconds, model, seed, image and so on.

        Returns:
            The run.

        Raises:
            ConfigError: a setting is wrong, or the folder holds something else.
            MediaError: an input cannot be read, or the output not be written.
            CheckpointError: the checkpoint is incomplete or damaged.
            OutOfMemory: memory or disk does not suffice.
        """
        asked = RunWishes(**wishes)
        plan: RunPlan | MagicPlan
        if family_of(asked.model) == MAGIC141:
            plan = prepare_magic(asked, output, given=wishes)
        else:
            plan = prepare(asked, output)
        return cls.of_plan(plan, path, latents_only=latents_only, listener=listener)

    @classmethod
    def of_plan(
        cls,
        plan: RunPlan | MagicPlan,
        path: str | os.PathLike[str],
        *,
        latents_only: bool = False,
        listener: RunListener | None = None,
        expected_hash: str | None = None,
    ) -> Run:
        """Make a new run of what `prepare` or `prepare_magic` returned.

        Args:
            plan: the run.
            path: its folder.
            latents_only: decode nothing until `decode`.
            listener: is told how it goes.
            expected_hash: of the weights, when only they will do.

        Returns:
            The run.
        """
        run = cls.__new__(cls)
        run.path, run.listener = Path(path), listener or SilentListener()
        run._expected_hash = expected_hash
        say = run.listener.say
        if isinstance(plan, MagicPlan):
            run._new = SegmentFolder(run.path, plan, latents_only=latents_only, say=say)
        else:
            run._new = RunKeeper(run.path, plan, latents_only=latents_only, say=say)
        return run

    def __iter__(self) -> Generator[VideoChunk, None, RunResult]:
        """Make what is missing, and write the video.

        Yields:
            Chunks in order as they are on disk, those that were kept before among them; none where
            nothing is decoded. A segment of Magic 1-For-1 may come in several pieces. Leaving the
            loop breaks the run off; it can be gone on with.

        Returns:
            What was made.
        """
        return self._stream()

    def finish(self, *, output: str | None = None) -> RunResult:
        """Make what is missing.

        Args:
            output: another video file.

        Returns:
            What was made.
        """
        return drain(self._stream(output))

    def _stream(self, output: str | None = None) -> Generator[VideoChunk, None, RunResult]:
        if self._new is None:
            go_on = resume_magic if self._is_magic else stream_resumed
            return (yield from go_on(self.path, self.listener, output=output))
        keeper, self._new = self._new, None
        if output is not None:
            raise ConfigError("output", hint="the run has not begun: give it to `Run.create`")
        listener, expected = self.listener, self._expected_hash
        with keeper:
            if isinstance(keeper, SegmentFolder):
                run = MagicRun(keeper.plan, listener, keeper=keeper)
                return (yield from run.stream(expected_hash=expected))
            plan = keeper.plan
            return (yield from stream_run(plan, listener, expected_hash=expected, keeper=keeper))

    @property
    def state(self) -> RunState:
        """How far it is, as it is on disk now."""
        if self._new is not None:
            plan, count = self._new.plan, len(self._new.chunks)
            seconds = plan.request.num_frames / plan.request.fps
            return RunState(
                name="new", num_kept=0, num_chunks=count, seconds_kept=0.0,
                seconds=seconds, output=Path(plan.output),
            )  # fmt: skip
        folder = RunFolder(self.path)
        seconds = folder.num_frames / folder.manifest.record["fps"]
        return RunState(
            name=folder.state,
            num_kept=len(folder.chunks),
            num_chunks=folder.num_chunks - folder.manifest.num_given_chunks,
            seconds_kept=min(seconds, folder.start_of(folder.end)),
            seconds=seconds,
            output=folder.output,
        )

    def steer(self, prompt: str, *, seconds: float | None = None) -> None:
        """Show something else from the next chunk on that has not begun.

        Args:
            prompt: what is shown.
            seconds: not before this second of the video.

        Raises:
            ConfigError: nobody is iterating the run, or the prompt is empty.
        """
        edit.steer(self._begun(), prompt, seconds=seconds)

    def control(self, what: str) -> None:
        """Ask whoever iterates the run to wait, go on, or end after the next chunk.

        Args:
            what: `pause`, `continue` or `stop`.

        Raises:
            ConfigError: nobody is iterating the run.
        """
        edit.control(self._begun(), what)

    def undo(self, seconds: float) -> float:
        """Take back everything after a second; see `edit.undo`.

        Args:
            seconds: of the video; the chunk in which it lies is taken back whole.

        Returns:
            Seconds that are kept.
        """
        return edit.undo(self._begun(), seconds)

    def redo(self, seconds: float, *, prompt: str | None = None, seed: int | None = None) -> float:
        """Take back everything after a second, to be made differently; see `edit.redo`.

        Args:
            seconds: of the video; the chunk in which it lies is made anew.
            prompt: what is shown from there on; None keeps the prompts.
            seed: of the noise from there on; None keeps it.

        Returns:
            Seconds that are kept.
        """
        return edit.redo(self._begun(), seconds, prompt=prompt, seed=seed)

    def extend(self, seconds: float, *, prompt: str | None = None) -> float:
        """Make the video longer; see `edit.extend`.

        Args:
            seconds: more of them.
            prompt: what they show; None keeps the last prompt.

        Returns:
            The new length in seconds.
        """
        return edit.extend(self._begun(), seconds, prompt=prompt)

    def branch(
        self,
        path: str | os.PathLike[str],
        *,
        output: str,
        seconds: float | None = None,
        prompt: str | None = None,
        seed: int | None = None,
    ) -> Run:
        """Fork the run; files that both share are linked, not copied.

        Args:
            path: folder of the second run.
            output: its video.
            seconds: where they part; None parts at the end of what is kept.
            prompt: what the second one shows from there on.
            seed: of the second one's noise from there on.

        Returns:
            The second run.
        """
        new = Path(path)
        edit.branch(self._begun(), new, output=output, seconds=seconds, prompt=prompt, seed=seed)
        return Run(new, listener=self.listener)

    def decode(
        self, *, output: str | None = None, tile: int | None = None, device: str | None = None
    ) -> RunResult:
        """Decode what is kept; see `decode.decode`.

        Args:
            output: another video file.
            tile: rows and columns of the VAE's tiles in pixels.
            device: where to decode.

        Returns:
            What was made.
        """
        path = self._begun()
        way = decode_magic if self._is_magic else decode
        return drain(way(path, self.listener, output=output, tile=tile, device=device))

    @property
    def _is_magic(self) -> bool:
        return RunFolder(self.path).family == MAGIC141

    def _begun(self) -> Path:
        if self._new is not None:
            raise ConfigError(f"{self.path} has not begun", hint="iterate it first")
        return self.path
