"""The folder of a run: what is on disk, and what of it can be trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereel.core.config import from_mapping
from onereel.core.errors import CheckpointError, ConfigError, MediaError
from onereel.core.files import write_atomically
from onereel.runs.journal import Journal
from onereel.runtime.source import MAGI1

if TYPE_CHECKING:
    import torch

FORMAT = 2  # 1 had no `latents_only` and no `vae_hash`
MANIFEST, JOURNAL, CHUNKS, INPUTS = "manifest.json", "journal.jsonl", "chunks", "inputs"
REQUESTS = "requests"  # what other processes ask of the one that renders
PREVIEW = "preview.jpg"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a run makes; never changed once it is written.

    Args:
        format: of the folder.
        record: the video's own record (`pipelines/record.py`): settings, seed, hashes, versions.
        output: the video, relative to the folder's parent where it lies beside or below it.
        num_chunks: chunks of the video, given ones included.
        num_given_chunks: those given whole.
        frames_per_chunk: frames of a whole chunk.
        hidden_frames: given frames in front of the video's first; below 0, the first chunk has as
            many frames more than the others.
        inputs: kinds of input files of which the folder holds a copy, and the copies' names.
        latents_only: nothing is decoded until `onereel decode`.
        vae_hash: of the VAE's weights alone; empty in format 1.
    """

    format: int
    record: dict[str, Any]
    output: str
    num_chunks: int
    num_given_chunks: int
    frames_per_chunk: int
    hidden_frames: int
    inputs: dict[str, str]
    latents_only: bool = False
    vae_hash: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class KeptChunk:
    """A finished chunk on disk.

    Args:
        index: absolute chunk index.
        file: name in the folder of chunks.
        sha256: of the file.
        num_bytes: of the file.
    """

    index: int
    file: str
    sha256: str
    num_bytes: int


class RunFolder:
    """A run on disk.

    Args:
        path: the folder.

    Raises:
        MediaError: there is no such run.
        CheckpointError: its manifest is damaged, or of a newer onereel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path / MANIFEST)
        self.journal = Journal(path / JOURNAL)

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: the folder; it may exist, without a run.
            manifest: what is made.

        Returns:
            The run.

        Raises:
            OutOfMemory: the disk is full.
        """
        (path / CHUNKS).mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=2) + "\n"
        write_atomically(path / MANIFEST, lambda file: file.write(text.encode()))
        return cls(path)

    @property
    def family(self) -> str:
        """Family of the model that makes it; chunks are segments where that is Magic 1-For-1."""
        return str(self.manifest.record.get("family", MAGI1))

    def require_family(self, family: str) -> None:
        """Refuse what this run's family does not know.

        Args:
            family: that knows it.

        Raises:
            ConfigError: it is another one.
        """
        if self.family != family:
            raise ConfigError(
                f"{self.path} is a run of model family {self.family}", expected=family,
                hint="`onereel resume`, `runs` and a new `generate` know both families",
            )  # fmt: skip

    @property
    def output(self) -> Path:
        """The video."""
        return Path(os.path.normpath(self.path.absolute().parent / self.manifest.output))

    @property
    def num_frames(self) -> int:
        """Frames of the video with all edits, given ones included."""
        record = self.manifest.record
        more = self.settings["num_frames"] - record["settings"]["num_frames"]
        return int(record["num_frames"] + more)

    @property
    def num_chunks(self) -> int:
        """Chunks of the video with all edits, given ones included."""
        manifest = self.manifest
        if self.num_frames == manifest.record["num_frames"]:
            return manifest.num_chunks
        frames = self.num_frames + manifest.hidden_frames
        return max(1, math.ceil(frames / manifest.frames_per_chunk))

    @property
    def state(self) -> str:
        """`finished`, `latents` when all of them are there but no video, or `unfinished`."""
        if self.is_finished:
            return "finished"
        return "latents" if self.end == self.num_chunks else "unfinished"

    @property
    def is_finished(self) -> bool:
        """Whether the video was completed."""
        return self._last_of("end", "drop", "edit") == "end"

    @property
    def settings(self) -> dict[str, Any]:
        """What is wanted, with all edits."""
        edits = [event for event in self.journal.events if event["kind"] == "edit"]
        settings = edits[-1]["settings"] if edits else self.manifest.record["settings"]
        return dict(settings)

    @property
    def is_cut(self) -> bool:
        """Whether chunks were taken back, and none was computed since.

        The states before the cut may then hold latents in flight that shall not be gone on with.
        """
        return self._last_of("chunk", "drop", "edit") in ("drop", "edit")

    def _last_of(self, *kinds: str) -> str | None:
        """Return the kind of the last event that is of one of these."""
        found = (event["kind"] for event in reversed(self.journal.events))
        return next((kind for kind in found if kind in kinds), None)

    def edit(self, first: int, settings: Mapping[str, Any]) -> None:
        """Take back chunks, and go on with other settings from there.

        Args:
            first: absolute index of the first chunk that is taken back.
            settings: what is wanted from then on, complete.
        """
        self.journal.append("edit", first=first, settings=dict(settings))

    @property
    def chunks(self) -> list[KeptChunk]:
        """Finished chunks as the journal names them, in order and without a gap."""
        kept: list[KeptChunk] = []
        first = self.manifest.num_given_chunks
        for event in self.journal.events:
            if event["kind"] in ("drop", "edit"):
                kept = [chunk for chunk in kept if chunk.index < event["first"]]
            if event["kind"] == "chunk" and event["index"] == first + len(kept):
                kept.append(
                    KeptChunk(event["index"], event["file"], event["sha256"], event["num_bytes"])
                )
        return kept

    @property
    def end(self) -> int:
        """Absolute index of the first chunk that is not kept."""
        return self.manifest.num_given_chunks + len(self.chunks)

    def start_of(self, chunk: int) -> float:
        """Find where a chunk starts.

        Args:
            chunk: absolute chunk index.

        Returns:
            Seconds of the video.
        """
        if chunk == 0:
            return 0.0
        frame = chunk * self.manifest.frames_per_chunk - self.manifest.hidden_frames
        return float(max(0, frame) / self.manifest.record["fps"])

    def problem_of(self, chunk: KeptChunk) -> str | None:
        """Check a chunk's file.

        Args:
            chunk: the chunk.

        Returns:
            What is wrong with it, or None.
        """
        return self._read(chunk)[1]

    def _read(self, chunk: KeptChunk) -> tuple[bytes, str | None]:
        """Read a chunk's file; returns its bytes, and what is wrong with them."""
        path = self.path / CHUNKS / chunk.file
        try:
            data = path.read_bytes()
        except OSError as error:
            return b"", f"{path} cannot be read ({error.strerror})"
        if len(data) != chunk.num_bytes:
            return data, f"{path}: expected {chunk.num_bytes} bytes, got {len(data)}"
        if hashlib.sha256(data).hexdigest() != chunk.sha256:
            return data, f"{path} is damaged: its hash is not the journal's"
        return data, None

    def whole_chunks(self, say: Callable[[str], None]) -> range:
        """Find the chunks up to the first damaged one.

        Args:
            say: is told of that one.

        Returns:
            Their absolute indices, at least one.

        Raises:
            ConfigError: there is none.
        """
        first = self.manifest.num_given_chunks
        stop = first
        for chunk in self.chunks:
            problem = self.problem_of(chunk)
            if problem is not None:
                say(f"{problem}; decoding what lies before, `onereel resume` mends it")
                break
            stop += 1
        if stop == first:
            raise ConfigError(
                f"{self.path} keeps no chunk", hint=f"`onereel resume {self.path}` computes them"
            )
        return range(first, stop)

    def problems(self) -> list[str]:
        """Check all that is on disk.

        Returns:
            What is wrong, one line each; none of it keeps the run from being resumed.
        """
        found = [text for chunk in self.chunks if (text := self.problem_of(chunk)) is not None]
        if self.journal.lost_bytes:
            found.append(f"{self.journal.path}: {self.journal.lost_bytes} bytes at the end are "
                         "no whole event")  # fmt: skip
        return found

    def drop_damaged(self) -> list[str]:
        """Forget the first damaged chunk and those after it; they will be computed again.

        Returns:
            What was wrong.
        """
        for chunk in self.chunks:
            problem = self.problem_of(chunk)
            if problem is not None:
                self.journal.append("drop", first=chunk.index, reason=problem)
                return [problem]
        return []

    def save_chunk(self, index: int, state: Mapping[str, torch.Tensor]) -> None:
        """Keep a finished chunk: first its file, then its line in the journal.

        Args:
            index: absolute chunk index.
            state: what `ChunkEngine.latents_dict` returned.

        Raises:
            OutOfMemory: the disk is full; the chunks before are kept.
        """
        from safetensors.torch import save

        data = save({name: tensor.cpu().contiguous() for name, tensor in state.items()})
        file = f"{index:06d}.safetensors"
        write_atomically(self.path / CHUNKS / file, lambda out: out.write(data))
        digest = hashlib.sha256(data).hexdigest()
        self.journal.append("chunk", index=index, file=file, sha256=digest, num_bytes=len(data))

    def load_chunk(self, index: int) -> dict[str, torch.Tensor]:
        """Read a finished chunk.

        Args:
            index: absolute chunk index.

        Returns:
            Tensors by name.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from safetensors.torch import load

        chunk = self.chunks[index - self.manifest.num_given_chunks]
        data, problem = self._read(chunk)
        if problem is not None:
            raise CheckpointError(problem, hint="run `onereel resume` again: it will be recomputed")
        return load(data)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from going on with the run; nothing where files cannot be locked.

        Raises:
            ConfigError: another process has it.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        with (self.path / MANIFEST).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path} is in use by another process",
                    hint="wait until it ends, or stop it",
                ) from error
            yield

    def ask(self, **request: Any) -> None:
        """Ask something of the process that renders; it looks after every chunk.

        Args:
            request: JSON values.
        """
        text = json.dumps(request, ensure_ascii=False)
        path = self.path / REQUESTS / f"{time.time_ns():020d}.json"
        write_atomically(path, lambda file: file.write(text.encode()))

    def asked(self) -> Iterator[dict[str, Any]]:
        """Take the requests that came, oldest first.

        Yields:
            JSON values; their files are gone by then.
        """
        for path in sorted((self.path / REQUESTS).glob("*.json")):
            request = json.loads(path.read_text("utf-8"))
            path.unlink()
            yield request

    def num_bytes(self) -> int:
        """Measure the folder."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise MediaError(
            f"{path.parent} holds no run", hint="`onereel runs list FOLDER` shows those of a folder"
        )
    try:
        data = json.loads(path.read_text("utf-8"))
        version = data["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged", expected="JSON with a format", got=error
        ) from error
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise CheckpointError(
            f"{path}: format", expected=f"1 to {FORMAT}", got=version, hint="use a newer onereel"
        )
    return from_mapping(Manifest, data, where=str(path))
