"""Decoding apart from denoising: frames of the latents that a run keeps, on any machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path

from onereel.core.device import parse_dtype, pick_device
from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.parts import VaeParts
from onereel.pipelines.prepare import RunPlan, prepare_decoding
from onereel.pipelines.record import make_record
from onereel.pipelines.run import RunResult, given_prefix, write_video
from onereel.pipelines.stream import Prefix, VideoChunk
from onereel.pipelines.watch import RunClock
from onereel.runs.folder import RunFolder
from onereel.runs.keeper import folder_wishes, opened
from onereel.runs.render import with_copies
from onereel.runtime.layout import vae_part
from onereel.runtime.load import load_part
from onereel.runtime.source import MAGI1, ModelSource
from onereel.runtime.verify import hash_parts, model_parts, vae_hash
from onereel.samplers.engine import FinishedChunk, finish_chunk


def decode(
    path: Path,
    listener: RunListener,
    *,
    output: str | None = None,
    tile: int | None = None,
    device: str | None = None,
) -> Generator[VideoChunk, None, RunResult]:
    """Decode what a run keeps; latents are read and never touched.

    Of the checkpoint, only the VAE is loaded. When memory runs out, tiles become smaller.

    Args:
        path: the folder.
        listener: is told how it goes.
        output: another video file.
        tile: rows and columns of the VAE's tiles in pixels; None takes the VAE's own.
        device: where to decode; None takes the best one.

    Yields:
        Chunks as they are on disk.

    Returns:
        What was made; the video is incomplete when chunks are missing, and says so.

    Raises:
        MediaError: there is no such run, or no chunk is kept.
        ConfigError: the tile does not fit, or the run is in use.
        CheckpointError: the VAE's weights are others now.
        OutOfMemory: the smallest tiles need too much.
    """
    with opened(path, family=MAGI1) as folder:
        record, plan = folder.manifest.record, _plan(folder, output, device)
        check_vae(folder, plan.source)
        chunks = folder.whole_chunks(listener.say)
        vae = _load_vae(plan, tile)
        if str(plan.device) != record["device"]:
            listener.say(
                f"made on {record['device']}, decoded on {plan.device}: rounding may differ"
            )
        listener.say(f"{path}: decoding {len(chunks)} of {folder.num_chunks} chunks")
        parts = VaeParts(vae=vae, device=plan.device)
        prefix, clock = given_prefix(plan, parts), RunClock(plan, listener)
        result = yield from write_video(
            plan,
            parts,
            chunks=_finished(folder, chunks, prefix=prefix, plan=plan, clock=clock),
            prefix=prefix,
            clock=clock,
            record=make_record(plan, model_hash=str(record["model_hash"])),
        )
        if chunks.stop == folder.num_chunks:
            folder.journal.append("end", num_frames=result.num_frames)
        return result


def _plan(folder: RunFolder, output: str | None, device: str | None) -> RunPlan:
    """Plan the decoding as the run was begun."""
    record, wishes = folder.manifest.record, folder_wishes(folder)
    plan = prepare_decoding(
        with_copies(wishes, folder),
        output or str(folder.output),
        device=pick_device(device),
        dtype=parse_dtype(record["dtype"]),
        distilled=bool(record["sampling"]["distilled"]),
    )
    return dataclasses.replace(plan, settings=wishes)  # the record names the files, not copies


def _load_vae(plan: RunPlan, tile: int | None) -> AutoencoderKLMagi1:
    if plan.request.config.official_compat and tile is not None:
        raise ConfigError("--tile", hint="this run was made with the official tiles")
    vae = load_part(vae_part(plan.source), dtype=plan.dtype, device=plan.device)
    assert isinstance(vae, AutoencoderKLMagi1)
    if tile is not None:
        vae.enable_tiling(tile, tile)
    return vae


def check_vae(folder: RunFolder, source: ModelSource) -> None:
    """Refuse to decode with another VAE.

    Args:
        folder: the run.
        source: the checkpoint.

    Raises:
        CheckpointError: its weights are not those that the run was made with.
    """
    known = folder.manifest.vae_hash
    wanted, found = (
        (known, vae_hash(source))
        if known
        else (str(folder.manifest.record["model_hash"]), hash_parts(model_parts(source)))
    )
    check_hash(wanted, found, path=folder.path, name=source.name)


def check_hash(wanted: str, found: str, *, path: Path, name: str) -> None:
    """Refuse to decode with other weights than a run was made with.

    Args:
        wanted: their hash.
        found: of those that are there.
        path: of the run.
        name: of the checkpoint.

    Raises:
        CheckpointError: they differ.
    """
    if wanted != found:
        raise CheckpointError(
            f"the weights of model '{name}' have changed since {path} was made",
            expected=f"hash {wanted[:12]}", got=found[:12], hint="bring the old weights back",
        )  # fmt: skip


def _finished(
    folder: RunFolder, chunks: range, *, prefix: Prefix | None, plan: RunPlan, clock: RunClock
) -> Iterator[FinishedChunk]:
    """Read chunks; given frames in them are exact again."""
    latent = None if prefix is None else prefix.latent
    for chunk in chunks:
        clock.skip_chunk()
        saved = folder.load_chunk(chunk)[f"latent.{chunk}"]
        yield finish_chunk(chunk, saved, prefix=latent, config=plan.request.config)
