"""Kept renders of Magic 1-For-1: every finished segment's latents are on disk, and gone on with."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from onereel.core.config import from_mapping
from onereel.core.device import parse_dtype, pick_device
from onereel.core.errors import CheckpointError, ConfigError
from onereel.core.files import write_atomically
from onereel.media.image import read_image
from onereel.media.preflight import check_output, estimate_bytes
from onereel.pipelines.decoding import TILE_UNIT, tile_pictures
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.magic_prepare import MagicPlan, MagicVideo, prepare_magic, segment_texts
from onereel.pipelines.magic_run import MagicRun
from onereel.pipelines.magic_sampling import (
    MagicSampleConfig,
    MagicSegment,
    SegmentDecoder,
    made_frames,
)
from onereel.pipelines.magic_writing import MagicClock, write_segments
from onereel.pipelines.picture_sources import SourcePicture
from onereel.pipelines.record import command_of
from onereel.pipelines.run import RunResult
from onereel.pipelines.stream import VideoChunk
from onereel.runs.decode import check_hash
from onereel.runs.folder import FORMAT, INPUTS, Manifest, RunFolder
from onereel.runs.keeper import (
    FolderKeeper,
    folder_wishes,
    opened,
    relative_output,
    tell_versions,
)
from onereel.runs.render import check_same
from onereel.runtime.magic_source import NETWORKS, MagicFiles, hash_files, load_part, magic_files
from onereel.runtime.source import MAGIC141, resolve_model

PICTURE = "picture.png"  # the first picture, whatever it came from
_LATENT = "latent"
_OFFICIAL_VAE = {"latent_channels": 16, "spatial_compression_ratio": 8}  # its file has no config


class SegmentFolder(FolderKeeper):
    """Keeps a run's segments in a folder; see `pipelines.magic_run.RunKeeper`.

    Args:
        path: the folder.
        plan: the run.
        folder: the run that is gone on with, locked, or None for a new one.
        latents_only: decode nothing; a run that is gone on with stays as it was begun.
        say: is told what came from other processes.

    Raises:
        MediaError: the folder cannot be written.
        OutOfMemory: the disk is too full for the latents.
        ConfigError: the folder holds something else, or segments need pictures to be made.
    """

    def __init__(
        self,
        path: Path,
        plan: MagicPlan,
        *,
        folder: RunFolder | None = None,
        latents_only: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.plan = plan
        segments = plan.segments
        super().__init__(
            path,
            chunks=range(len(segments)),
            folder=folder,
            num_bytes=latent_bytes(plan),
            latents_only=latents_only,
            say=say,
        )
        if self.latents_only and plan.request.config.continuation == "picture" and segments[1:]:
            if folder is not None:  # it was made longer
                self.latents_only = False
                say("decoded, for a segment begins with the last picture of the one before")
                return
            raise ConfigError(
                "--latents-only with --continuation picture", expected="a video of one segment",
                got=f"{len(segments)} segments, each of which begins with the last picture of the "
                "one before: it must be decoded",
                hint="give --continuation latent, or decode",
            )  # fmt: skip

    def begin_with(
        self, picture: SourcePicture, *, record: Mapping[str, Any], vae_hash: str
    ) -> None:
        """Make the folder, or note that the run is gone on with.

        Args:
            picture: the first picture.
            record: of the run.
            vae_hash: of the VAE alone.
        """
        longest, overlap = self.plan.request.config.spans
        longest = max(longest, overlap + 1)

        def manifest_of(path: Path) -> Manifest:
            (path / INPUTS).mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            PIL.Image.fromarray(picture.pixels).save(data, "PNG")
            write_atomically(path / INPUTS / PICTURE, lambda file: file.write(data.getvalue()))
            return Manifest(
                format=FORMAT,
                record=dict(record),
                output=relative_output(self.plan.output, self.path),
                num_chunks=len(self.chunks),
                num_given_chunks=0,
                frames_per_chunk=4 * (longest - overlap),
                hidden_frames=-(4 * (overlap - 1) + 1),
                inputs={"picture": PICTURE},
                latents_only=self.latents_only,
                vae_hash=vae_hash,
            )

        self.begin_folder(manifest_of, versions=record["versions"])

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
        """Note that the video is complete; what was asked meanwhile comes too late.

        Args:
            num_frames: that were written.
        """
        assert self.folder is not None
        for request in self.folder.asked():
            self.folder.journal.append("asked", request=request)
            if request["kind"] == "prompt":
                self.too_late(request["prompt"])
        super().end(num_frames)


def latent_bytes(plan: MagicPlan) -> int:
    """Estimate what a run's latents will take on disk.

    Args:
        plan: the run.

    Returns:
        Bytes.
    """
    config = _OFFICIAL_VAE | (plan.files.config("vae") or {})
    factor = int(config["spatial_compression_ratio"])
    cells = math.prod(math.ceil(s / factor) for s in (plan.request.height, plan.request.width))
    frames = sum(segment.num_latents for segment in plan.segments)
    return 4 * int(config["latent_channels"]) * frames * cells


def resume_magic(
    path: Path, listener: RunListener, *, output: str | None = None
) -> Generator[VideoChunk, None, RunResult]:
    """Go on with a run to its end, whatever ended it before.

    Segments that are kept are decoded again, the others are computed: latents and frames are those
    of an unbroken run, to the bit on the same machine.

    Args:
        path: the folder.
        listener: is told how it goes.
        output: another video file.

    Yields:
        What is on disk; nothing where nothing is decoded.

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
        wishes = folder_wishes(folder)
        output = output or str(folder.output)
        record = _record_now(folder, video_of(folder), output=output)
        first = path / INPUTS / PICTURE
        if not first.is_file():
            raise CheckpointError(f"{first} is gone", hint="copy it back; the run begins with it")
        begun = dataclasses.replace(wishes, image=str(first), image_source=None, clip=None)
        plan = prepare_magic(begun, output)
        check_same(plan, record, where=str(path))
        plan = dataclasses.replace(plan, settings=wishes)  # the record names no copies
        tell_versions(record, listener.say)
        done = len(folder.chunks)
        left = len(plan.segments) - done
        listener.say(f"{path}: {done} segments are kept, {left} are left to compute")
        picture = SourcePicture(read_image(first), str(record["picture"]["origin"]))
        keeper = SegmentFolder(path, plan, folder=folder, say=listener.say)
        run = MagicRun(plan, listener, keeper=keeper, picture=picture, record=record)
        return (yield from run.stream(expected_hash=str(record["model_hash"])))


def decode_magic(
    path: Path,
    listener: RunListener,
    *,
    output: str | None = None,
    tile: int | None = None,
    device: str | None = None,
) -> Generator[VideoChunk, None, RunResult]:
    """Decode what a run keeps; of the checkpoint, only the VAE is loaded.

    Args:
        path: the folder.
        listener: is told how it goes.
        output: another video file.
        tile: rows and columns of the VAE's tiles in pixels; None takes the VAE's own.
        device: where to decode; None takes the best one.

    Yields:
        What is on disk.

    Returns:
        What was made; the video is incomplete when segments are missing.

    Raises:
        MediaError: there is no such run.
        ConfigError: no segment is kept, the tile does not fit, or the run is in use.
        CheckpointError: the VAE's weights are others now.
    """
    with opened(path, family=MAGIC141) as folder:
        video, place = video_of(folder), pick_device(device)
        output = output or str(folder.output)
        size = estimate_bytes(video.width, video.height, num_frames=video.num_frames)
        check_output(output, estimated_bytes=size)
        record = _record_now(folder, video, output=output)
        files = _vae_files(folder)
        vae = load_part(files, "vae", dtype=parse_dtype(record["dtype"]), device=place)
        compat = folder_wishes(folder).official_compat
        if tile is not None:
            _tile(vae, tile, official_compat=compat)
        count = folder.whole_chunks(listener.say).stop
        if str(place) != record["device"]:
            listener.say(f"made on {record['device']}, decoded on {place}: rounding may differ")
        listener.say(f"{path}: decoding {count} of {folder.num_chunks} segments")
        clock = MagicClock(video, listener)
        result = yield from write_segments(
            _decoded(folder, vae, count=count, config=video.config, device=place, clock=clock),
            video=video,
            output=output,
            record=record,
            clock=clock,
            official_compat=compat,
        )
        if count == folder.num_chunks:
            folder.journal.append("end", num_frames=result.num_frames)
        return result


def video_of(folder: RunFolder) -> MagicVideo:
    """Say what a run makes, with all edits.

    Args:
        folder: the run.

    Returns:
        The video.
    """
    record, frames = folder.manifest.record, folder.num_frames
    config = from_mapping(MagicSampleConfig, record["sampling"], where=str(folder.path))
    return MagicVideo(
        height=record["height"],
        width=record["width"],
        num_frames=frames,
        fps=record["fps"],
        seed=record["seed"],
        config=dataclasses.replace(config, num_frames=made_frames(frames)),
    )


def _record_now(folder: RunFolder, video: MagicVideo, *, output: str) -> dict[str, Any]:
    """Write the run's record anew, with all edits."""
    wishes = folder_wishes(folder)
    return {
        **folder.manifest.record,
        "num_frames": video.num_frames,
        "segments": list(segment_texts(wishes, video)),
        "sampling": dataclasses.asdict(video.config),
        "command": command_of(wishes, output),
        "settings": wishes.to_settings(),
    }


def _vae_files(folder: RunFolder) -> MagicFiles:
    """Find the VAE, and refuse another one."""
    source = resolve_model(folder_wishes(folder).model)
    known, record = folder.manifest.vae_hash, folder.manifest.record
    parts = ("vae",) if known else NETWORKS
    files = magic_files(source, needed=parts)
    wanted = known or str(record["model_hash"])
    check_hash(wanted, hash_files(files, parts=parts), path=folder.path, name=source.name)
    return files


def _tile(vae: Any, size: int, *, official_compat: bool) -> None:
    """Set the tiles of pictures; those of time stay."""
    if official_compat:
        raise ConfigError("--tile", hint="this run was made with the official tiles")
    if size < TILE_UNIT or size % TILE_UNIT:
        near = max(1, round(size / TILE_UNIT)) * TILE_UNIT
        expected = f"a multiple of {TILE_UNIT}"
        raise ConfigError("--tile", expected=expected, got=size, hint=f"use {near}")
    tile_pictures(vae, size)


def _decoded(
    folder: RunFolder,
    vae: Any,
    *,
    count: int,
    config: MagicSampleConfig,
    device: torch.device,
    clock: MagicClock,
) -> Iterator[MagicSegment]:
    """Decode the first segments of a run."""
    compat = folder_wishes(folder).official_compat
    decoder = SegmentDecoder(vae, config, official_compat=compat)
    for segment in config.segments()[:count]:
        clock.skip_segment()
        latent = folder.load_chunk(segment.index)[_LATENT].to(device)
        with torch.no_grad():
            for frames in decoder.push(segment, latent, last=segment.index + 1 == count):
                yield MagicSegment(latent[:, :, segment.overlap :], frames, segment.index)
