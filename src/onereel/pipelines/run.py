"""One run from plan to file: load, encode, stream, write."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from onereel.core.allocator import keep_freed_memory
from onereel.core.device import pin_threads
from onereel.core.errors import CheckpointError
from onereel.media import VideoWriter
from onereel.models.text import encode_prompts
from onereel.pipelines.keeping import Keeper, kept_chunks
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.lora import Magi1LoraLoaderMixin, add_loras
from onereel.pipelines.parts import MagiParts, VaeParts
from onereel.pipelines.pictures import pixels_to_frames
from onereel.pipelines.prepare import RunPlan
from onereel.pipelines.previews import Previews
from onereel.pipelines.prompts import Prompts, encode_chunks
from onereel.pipelines.record import make_record
from onereel.pipelines.stream import (
    Prefix,
    VideoChunk,
    encode_image,
    encode_video,
    make_engine,
    stream_chunks,
)
from onereel.pipelines.watch import RunClock
from onereel.runtime.block_groups import bring_by_block, has_own_memory
from onereel.runtime.load import load_networks, load_text, no_foreign_bars, text_device_of
from onereel.runtime.verify import Parts, hash_parts, model_parts, vae_hash
from onereel.samplers.engine import FinishedChunk
from onereel.samplers.plan import ChunkCall


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run made.

    Args:
        path: the file, or "-"; the folder of a run that is not decoded.
        seed: of the noise.
        num_frames: frames written, or those that the latents hold.
        seconds: of video, likewise.
        elapsed_s: from the first step to the finished file.
        record: everything about the run.
    """

    path: str
    seed: int
    num_frames: int
    seconds: float
    elapsed_s: float
    record: dict[str, Any]


def run(
    plan: RunPlan,
    listener: RunListener,
    *,
    expected_hash: str | None = None,
    keeper: Keeper | None = None,
) -> RunResult:
    """Make a video and write it, chunk by chunk.

    Args:
        plan: from `prepare`.
        listener: is told how it goes.
        expected_hash: of the weights, when only they will do.
        keeper: is given every finished chunk before it is decoded; chunks that it holds already
            are decoded, not computed.

    Returns:
        What was made.

    Raises:
        CheckpointError: the weights do not fit, or are not those expected.
        OutOfMemory: memory ran out, or the disk; what is on disk plays.
        MediaError: the output cannot be written any longer; what is on disk plays.
        KeyboardInterrupt: with a note that says how much is safe; the file is finished.
    """
    return drain(stream_run(plan, listener, expected_hash=expected_hash, keeper=keeper))


def drain(chunks: Generator[VideoChunk, None, RunResult]) -> RunResult:
    """Run a stream to its end.

    Args:
        chunks: such as `stream_run` gives.

    Returns:
        What was made.
    """
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: RunResult = end.value
            return result


def stream_run(
    plan: RunPlan,
    listener: RunListener,
    *,
    expected_hash: str | None = None,
    keeper: Keeper | None = None,
) -> Generator[VideoChunk, None, RunResult]:
    """Make a video and hand out its chunks, each after it was written; see `run`.

    Args:
        plan: from `prepare`.
        listener: is told how it goes.
        expected_hash: of the weights, when only they will do.
        keeper: is given every finished chunk before it is decoded.

    Yields:
        Chunks as they are on disk; none where nothing is decoded.

    Returns:
        What was made.
    """
    pin_threads()
    keep_freed_memory(plan.device)
    listener.say(f"loading model {plan.source.name} on {plan.device}")
    checkpoint = model_parts(plan.source)
    model_hash = hash_parts(checkpoint)
    if expected_hash not in (None, model_hash):
        raise CheckpointError(
            f"the weights of model '{plan.source.name}' have changed since the video was made",
            expected=f"hash {str(expected_hash)[:12]}", got=model_hash[:12],
            hint="bring the old weights back, or give --model to use others",
        )  # fmt: skip
    listener.say("reading the prompt")
    prompts = _encode_texts(plan, checkpoint)
    parts = _load(plan, checkpoint)  # when the text encoder is gone
    record = make_record(plan, model_hash=model_hash)
    if keeper is not None:
        keeper.begin(record, vae_hash=vae_hash(plan.source))
    return (yield from _sample(plan, parts, prompts, listener=listener, record=record,
                               keeper=keeper))  # fmt: skip


def _load(plan: RunPlan, checkpoint: Parts) -> MagiParts:
    """Load the networks; where they take turns, they wait on the CPU."""
    device = torch.device("cpu") if _in_turn(plan) else plan.device
    with no_foreign_bars():
        transformer, vae = load_networks(
            checkpoint, dtype=plan.dtype, device=device, level=plan.settings.quantize
        )
    add_loras(Magi1LoraLoaderMixin, transformer, loras=plan.settings.loras)
    parts = MagiParts(
        transformer=transformer, vae=vae, device=plan.device, special_tokens=plan.tokens
    )
    if plan.settings.low_memory and has_own_memory(plan.device):
        bring_by_block(parts.transformer, plan.device)
        parts.vae.to(plan.device)
    elif _in_turn(plan):
        _offload(parts)
    return parts


def _in_turn(plan: RunPlan) -> bool:
    return plan.settings.offload or plan.settings.low_memory


def _encode_texts(plan: RunPlan, checkpoint: Parts) -> Prompts:
    """Encode all prompts; the text encoder is let go at the end."""
    loaded = _load_text(plan, checkpoint)
    assert checkpoint.transformer is not None
    limit = int(checkpoint.transformer.config["caption_max_length"])

    def encode(texts: list[str]) -> list[torch.Tensor]:
        # One by one: rounding must not depend on which other prompts there are.
        return [_encode(prompt, *loaded, limit=limit) for prompt in texts]

    return encode_chunks(plan.texts, encode, negative=plan.settings.negative)


def _load_text(plan: RunPlan, checkpoint: Parts) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    device = plan.device if _in_turn(plan) else text_device_of(plan.source, plan.device)
    with no_foreign_bars():
        return load_text(
            plan.source, checkpoint, dtype=plan.dtype, device=device, level=plan.settings.quantize
        )


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, *, limit: int
) -> torch.Tensor:
    return encode_prompts([text], tokenizer, encoder=encoder, max_length=limit).visible()[0]


def _encode_later(plan: RunPlan, parts: MagiParts, text: str) -> torch.Tensor:
    """Encode a prompt that comes while the video is made; the encoder is loaded for it."""
    loaded = _load_text(plan, model_parts(plan.source))
    return _encode(text, *loaded, limit=int(parts.transformer.config.caption_max_length))


def _offload(parts: MagiParts) -> None:
    """Let transformer and VAE take turns on the device."""
    _, first = cpu_offload_with_hook(parts.transformer, parts.device)
    _, second = cpu_offload_with_hook(parts.vae, parts.device, first)
    first.hook.prev_module_hook = second


def given_prefix(plan: RunPlan, parts: VaeParts) -> Prefix | None:
    """Encode the given picture or frames of a run.

    Args:
        plan: the run.
        parts: the VAE.

    Returns:
        The prefix, or None without an input.
    """
    if plan.given is None:
        return None
    frames = pixels_to_frames(plan.given)
    if plan.settings.image is not None:
        return encode_image(parts, frames[0], request=plan.request)
    return encode_video(parts, frames, request=plan.request)


@torch.no_grad()
def _sample(
    plan: RunPlan,
    parts: MagiParts,
    prompts: Prompts,
    *,
    listener: RunListener,
    record: dict[str, Any],
    keeper: Keeper | None,
) -> Generator[VideoChunk, None, RunResult]:
    """Sample, keep, decode and write."""
    clock, prefix = RunClock(plan, listener), given_prefix(plan, parts)
    previews = Previews(
        parts.vae,
        plan.request.config.chunk_width,
        show=listener.preview,
        sheet=None if keeper is None else keeper.preview,
    )

    def on_step(call: ChunkCall, window: torch.Tensor) -> None:
        clock.step_done(call)
        previews.step_done(call, window)

    def steer(chunk: int, text: str) -> None:
        prompts.change_from(chunk - plan.num_given_chunks, _encode_later(plan, parts, text))

    engine = make_engine(parts, plan.request, prompts=prompts, prefix=prefix, on_step=on_step)
    if keeper is None:
        chunks = engine.run()
    else:
        chunks = kept_chunks(engine, keeper, clock=clock, steer=steer)
    chunks = _previewed(chunks, previews)
    if keeper is None or not keeper.latents_only:
        result = yield from write_video(
            plan, parts, chunks=chunks, prefix=prefix, clock=clock, record=record
        )
        if keeper is not None:
            keeper.end(result.num_frames)
        return result
    frames = 0
    try:
        for chunk in chunks:
            end = (chunk.index + 1) * plan.frames_per_chunk - plan.hidden_frames
            frames = min(end, plan.request.num_frames)
            clock.chunk_done(frames / plan.request.fps)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the latents of {frames / plan.request.fps:.2f} s are safe in {keeper.path}")
        raise
    return _result(plan, str(keeper.path), frames, elapsed_s=clock.elapsed_s, record=record)


def _previewed(chunks: Iterable[FinishedChunk], previews: Previews) -> Iterator[FinishedChunk]:
    """Show chunks on the contact sheet as they pass."""
    try:
        for chunk in chunks:
            previews.chunk_done(chunk)
            yield chunk
    finally:
        previews.close()


def _result(
    plan: RunPlan, path: str, frames: int, *, elapsed_s: float, record: dict[str, Any]
) -> RunResult:
    return RunResult(
        path=path,
        seed=plan.request.seed,
        num_frames=frames,
        seconds=frames / plan.request.fps,
        elapsed_s=elapsed_s,
        record=record,
    )


@torch.no_grad()
def write_video(
    plan: RunPlan,
    parts: VaeParts,
    *,
    chunks: Iterable[FinishedChunk],
    prefix: Prefix | None,
    clock: RunClock,
    record: dict[str, Any],
) -> Generator[VideoChunk, None, RunResult]:
    """Decode chunks and write them.

    Args:
        plan: the run.
        parts: the VAE.
        chunks: clean latents in order; when some are missing at the end, the video is incomplete.
        prefix: given frames.
        clock: is told what is on disk.
        record: goes into the file.

    Yields:
        Chunks as they are on disk.

    Returns:
        What was made.
    """
    request = plan.request
    writer = VideoWriter(
        plan.output,
        width=request.width,
        height=request.height,
        fps=request.fps,
        metadata=record,
    )
    assert writer.metadata is not None
    record = writer.metadata  # entries added until the end reach the finished file
    last = -1
    with noting(writer), writer:
        try:
            for chunk in stream_chunks(parts, request, chunks=chunks, prefix=prefix):
                writer.write(chunk.to_uint8(official_compat=request.config.official_compat))
                clock.chunk_done(writer.seconds_written)
                last = chunk.index
                yield chunk
        finally:  # before the writer finishes the file, whatever ended the loop
            record["frames_written"] = writer.frames_written
        complete = last + 1 == plan.num_chunks or writer.frames_written == request.num_frames
        record.update(complete=complete, elapsed_s=round(clock.elapsed_s, 3))
    frames = writer.frames_written
    return _result(plan, plan.output, frames, elapsed_s=clock.elapsed_s, record=record)


@contextlib.contextmanager
def noting(writer: VideoWriter) -> Iterator[None]:
    """Say in an interrupt how much of the video is safe.

    Args:
        writer: of the video.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        seconds, frames = writer.seconds_written, writer.frames_written
        if frames:
            stop.add_note(f"{seconds:.2f} s ({frames} frames) are safe in {writer.path or '-'}")
        else:
            stop.add_note("no chunk was finished, so nothing was written")
        raise
