"""Latents and encoded captions of somebody's files, made once and kept in the run's folder.

`clips/KEY-0000.safetensors` holds the latents of up to 32 chunks of a video, or of one picture,
`clips/KEY.json` says how many there are and is written last; `texts/KEY.safetensors` holds what the
text encoder says about a caption. A key is a fingerprint of the file (path, size and time of its
last change), of the network that encoded it and of the settings: what has changed gets another key
and is made again, what is complete is not. Videos are read chunk by chunk, so that memory does not
grow with their length.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from onereel.core.errors import ConfigError, MediaError
from onereel.core.files import write_atomically
from onereel.media import load_image, stream_video
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.training.latent_cache import CHUNK_FRAMES, encode_chunks, encode_images
from onereel.training.own_files import DataReport, DataShape, Finding, OwnFile, too_short

SEGMENT_CHUNKS = 32
_SMALL_FRAME, _AT_ONCE = 128 * 128, 8  # chunks of small frames that are encoded together

Encode = Callable[[str], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnClip:
    """Up to 32 chunks of a video, or a picture, in the cache.

    Args:
        name: of the file it comes from.
        kind: `video` or `picture`.
        num_chunks: chunks of it; 1 of a picture, though that has one latent frame.
        latents: file of the latents.
        text: file of the encoded caption.
        prior: it shows what the model makes already.
    """

    name: str
    kind: str
    num_chunks: int
    latents: Path
    text: Path
    prior: bool = False

    def latent(self, start: int, stop: int) -> Tensor:
        """Read latent frames.

        Args:
            start: the first.
            stop: one past the last.

        Returns:
            Normalised, float32 [C, T, h, w].
        """
        with safe_open(self.latents, "pt") as file:
            part: Tensor = file.get_slice("latent")[:, start:stop].float()
        return part

    def image(self, chunk: int) -> Tensor:
        """Read the first frame of a chunk, encoded as a picture.

        Args:
            chunk: number of the chunk.

        Returns:
            Normalised, float32 [C, 1, h, w].
        """
        with safe_open(self.latents, "pt") as file:
            part: Tensor = file.get_slice("images")[:, chunk : chunk + 1].float()
        return part

    def caption(self) -> Tensor:
        """Read what the text encoder says about the caption: visible tokens [S, K]."""
        with safe_open(self.text, "pt") as file:
            hidden: Tensor = file.get_tensor("hidden")
        return hidden


def fingerprint(*parts: Any) -> str:
    """Hash plain values.

    Args:
        *parts: anything JSON can hold; other values count by their text.

    Returns:
        32 hexadecimal digits.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class OwnCache:
    """The cache of a run.

    Args:
        folder: where it is; created when something is written.
        shape: what videos and pictures are brought to.
        vae_hash: of the VAE that encodes them.
        text_hash: of the text encoder, its tokenizer and the longest caption.
    """

    def __init__(self, folder: Path, *, shape: DataShape, vae_hash: str, text_hash: str) -> None:
        self.folder, self.shape = folder, shape
        self.vae_hash, self.text_hash = vae_hash, text_hash

    def file_key(self, file: OwnFile) -> str:
        """Fingerprint a file as it is now, with what it is made into."""
        state = file.path.stat()
        place = (str(file.path.resolve()), state.st_size, state.st_mtime_ns)
        return fingerprint(place, self.vae_hash, asdict(self.shape))

    def text_key(self, caption: str) -> str:
        """Fingerprint a caption, with what reads it."""
        return fingerprint(caption, self.text_hash)

    def missing_files(self, files: Sequence[OwnFile]) -> list[OwnFile]:
        """List the files whose latents are not there, each once."""
        distinct = {self.file_key(file): file for file in files}
        return [file for key, file in distinct.items() if not self._entry(key).is_file()]

    def missing_texts(self, files: Sequence[OwnFile]) -> list[str]:
        """List the captions that are not encoded, each once."""
        captions = dict.fromkeys(file.caption for file in files)
        return [text for text in captions if not self._text(self.text_key(text)).is_file()]

    def add_files(self, report: DataReport, vae: AutoencoderKLMagi1, *, tell: Progress) -> None:
        """Encode the files that are missing; those that turn out broken are left out.

        Args:
            report: lists them; takes what is found out.
            vae: encodes them.
            tell: is told files done and wanted.

        Raises:
            OutOfMemory: the disk is full.
        """
        missing = self.missing_files(report.files)
        for done, file in enumerate(missing):
            tell(done, len(missing))
            try:
                self._add_file(file, vae)
            except MediaError as error:
                report.skip(file.name, str(error))
        if missing:
            tell(len(missing), len(missing))

    def add_texts(self, report: DataReport, encode: Encode, *, tell: Progress) -> None:
        """Encode the captions that are missing; what the encoder cannot read is left out.

        Args:
            report: lists the files; takes what is found out.
            encode: gives the visible tokens [S, K] of a caption; warns of what it drops.
            tell: is told captions done and wanted.

        Raises:
            OutOfMemory: the disk is full.
        """
        missing = self.missing_texts(report.files)
        for done, caption in enumerate(missing):
            tell(done, len(missing))
            names = [file.name for file in report.files if file.caption == caption]
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    hidden = encode(caption)
            except ConfigError as error:
                for name in names:
                    report.skip(name, f"caption: {error}")
                continue
            notes = [str(warning.message) for warning in caught]
            report.notes += [Finding(file=n, text=f"caption: {t}") for n in names for t in notes]
            _write(self._text(self.text_key(caption)), {"hidden": hidden.float().cpu()}, notes)
        if missing:
            tell(len(missing), len(missing))

    def recall_notes(self, report: DataReport) -> None:
        """Repeat what was said when a caption was encoded in an earlier run of the command.

        Args:
            report: takes the notes.
        """
        said = {(note.file, note.text) for note in report.notes}
        for file in report.files:
            path = self._text(self.text_key(file.caption))
            with safe_open(path, "pt") as stored:
                notes = json.loads((stored.metadata() or {}).get("notes", "[]"))
            found = ((file.name, f"caption: {note}") for note in notes)
            report.notes += [Finding(file=f, text=t) for f, t in found if (f, t) not in said]

    def clips(self, files: Sequence[OwnFile]) -> list[OwnClip]:
        """List what the files were made into, in order.

        Args:
            files: all of them in the cache.

        Returns:
            A clip per picture and per 32 chunks of a video.
        """
        found = []
        for file in files:
            key = self.file_key(file)
            for part, chunks in enumerate(json.loads(self._entry(key).read_text("utf-8"))):
                found.append(
                    OwnClip(
                        name=file.name,
                        kind=file.kind,
                        num_chunks=chunks,
                        latents=self._latents(key, part),
                        text=self._text(self.text_key(file.caption)),
                        prior=file.prior,
                    )
                )
        return found

    def remove_stale(self, clips: Sequence[OwnClip]) -> int:
        """Remove what belongs to files, captions or networks that have changed.

        Args:
            clips: what is in use.

        Returns:
            The number of files removed.
        """
        used = {clip.text for clip in clips} | {clip.latents for clip in clips}
        used |= {self._entry(clip.latents.name.partition("-")[0]) for clip in clips}
        stale = [path for path in self.folder.glob("*/*") if path not in used]
        for path in stale:
            path.unlink()
        return len(stale)

    def _entry(self, key: str) -> Path:
        return self.folder / "clips" / f"{key}.json"

    def _latents(self, key: str, part: int) -> Path:
        return self.folder / "clips" / f"{key}-{part:04d}.safetensors"

    def _text(self, key: str) -> Path:
        return self.folder / "texts" / f"{key}.safetensors"

    def _add_file(self, file: OwnFile, vae: AutoencoderKLMagi1) -> None:
        """Encode a file segment by segment; its entry is written when all are there."""
        key, shape, counts = self.file_key(file), self.shape, []
        if file.kind == "picture":
            pixels = load_image(
                file.path, height=shape.height, width=shape.width, policy=shape.policy
            )
            image = encode_images(vae, torch.from_numpy(pixels)[None, None])
            parts = iter([(image, image.clone())])
        else:
            parts = _encode_video(file.path, vae, shape)
        for part, (latent, images) in enumerate(parts):
            counts.append(len(latent))
            tensors = {
                "latent": rearrange(latent, "n c t h w -> c (n t) h w"),
                "images": rearrange(images, "n c 1 h w -> c n h w"),
            }
            _write(self._latents(key, part), {k: v.half() for k, v in tensors.items()}, [])
        text = json.dumps(counts).encode()
        write_atomically(self._entry(key), lambda out: out.write(text))


def _encode_video(
    path: Path, vae: AutoencoderKLMagi1, shape: DataShape
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield latents [N, C, 6, h, w] and first frames [N, C, 1, h, w] of up to 32 chunks."""
    frames = stream_video(
        path, height=shape.height, width=shape.width, fps=shape.fps, policy=shape.policy
    )
    at_once = _AT_ONCE if shape.height * shape.width <= _SMALL_FRAME else 1
    pieces: list[tuple[Tensor, Tensor]] = []
    total = stored = 0
    while batch := list(itertools.islice(frames, at_once * CHUNK_FRAMES)):
        total += len(batch)
        count = len(batch) // CHUNK_FRAMES
        if count:
            video = torch.from_numpy(np.stack(batch[: count * CHUNK_FRAMES]))
            chunks = rearrange(video, "(n f) h w c -> n f h w c", f=CHUNK_FRAMES)
            pieces.append(encode_chunks(vae, chunks))
            stored += count
        if stored >= SEGMENT_CHUNKS:
            yield _joined(pieces)
            pieces, stored = [], 0
    if total < CHUNK_FRAMES:
        raise too_short(total, shape.fps)
    if pieces:
        yield _joined(pieces)


def _joined(pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    latents, images = zip(*pieces, strict=True)
    return torch.cat(latents), torch.cat(images)


def _write(path: Path, tensors: dict[str, Tensor], notes: Sequence[str]) -> None:
    """Write a file whole or not at all."""
    data = save({k: v.contiguous() for k, v in tensors.items()}, {"notes": json.dumps(notes)})
    write_atomically(path, lambda file: file.write(data))
