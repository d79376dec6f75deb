"""One run from plan to file: load, encode, stream, write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import cpu_offload_with_hook
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from onereel.core.device import pin_threads
from onereel.core.errors import CheckpointError
from onereel.media import VideoWriter
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.text import encode_prompts
from onereel.pipelines.lora import Magi1LoraLoaderMixin
from onereel.pipelines.parts import MagiParts
from onereel.pipelines.pictures import pixels_to_frames
from onereel.pipelines.prepare import RunPlan
from onereel.pipelines.prompts import Prompts, encode_chunks
from onereel.pipelines.record import make_record
from onereel.pipelines.stream import (
    Prefix,
    encode_image,
    encode_video,
    make_engine,
    stream_chunks,
)
from onereel.runtime.load import (
    Components,
    load_components,
    load_text,
    no_foreign_bars,
    text_device_of,
)
from onereel.runtime.verify import model_parts
from onereel.samplers.engine import ChunkEngine, FinishedChunk
from onereel.samplers.plan import ChunkCall


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """How far a run is.

    Args:
        chunk: the oldest chunk in flight, counted from 1, given ones included.
        num_chunks: chunks of the video.
        step: model steps done.
        num_steps: model steps of the video.
        share: part of the work that is done, 0 to 1.
        seconds_done: video that is on disk.
        seconds_total: video when all is done.
        elapsed_s: since sampling began.
        speed: seconds of computing per second of new video.
    """

    chunk: int
    num_chunks: int
    step: int
    num_steps: int
    share: float
    seconds_done: float
    seconds_total: float
    elapsed_s: float
    speed: float

    @property
    def eta_s(self) -> float:
        """Seconds until all is done."""
        return self.elapsed_s * (1 - self.share) / max(self.share, 1e-6)


class RunListener(Protocol):
    """Is told how a run goes."""

    def say(self, text: str) -> None:
        """Take a line of text."""

    def progress(self, state: RunProgress) -> None:
        """Take the state after a step or a written chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run made.

    Args:
        path: the file, or "-".
        seed: of the noise.
        num_frames: frames written.
        seconds: of video written.
        elapsed_s: from the first step to the finished file.
        record: everything about the run.
    """

    path: str
    seed: int
    num_frames: int
    seconds: float
    elapsed_s: float
    record: dict[str, Any]


class Keeper(Protocol):
    """Keeps what a run has finished, so that another process can go on with it."""

    @property
    def finished(self) -> range:
        """Chunks that are kept."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether what follows the kept chunks begins anew, rather than from the last state."""
        ...

    def begin(self, record: Mapping[str, Any]) -> None:
        """Take the run's record before its first step."""

    def save(self, chunk: int, state: dict[str, torch.Tensor]) -> None:
        """Take what `ChunkEngine.latents_dict` gives when a chunk is finished."""

    def load(self, chunk: int) -> dict[str, torch.Tensor]:
        """Return what was saved."""
        ...

    def steered(self, next_chunk: int) -> Sequence[tuple[int, str]]:
        """Return prompts that came while the video is made.

        Args:
            next_chunk: absolute index of the first chunk that has not begun; may be past the end.

        Returns:
            Absolute chunk from which on each holds, and its text.

        Raises:
            KeyboardInterrupt: the run shall stop here.
        """
        ...

    def end(self, num_frames: int) -> None:
        """Be told that the video is complete."""


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
    pin_threads()
    listener.say(f"loading model {plan.source.name} on {plan.device}")
    components = _load(plan)
    if expected_hash not in (None, components.model_hash):
        raise CheckpointError(
            f"the weights of model '{plan.source.name}' have changed since the video was made",
            expected=f"hash {str(expected_hash)[:12]}", got=components.model_hash[:12],
            hint="bring the old weights back, or give --model to use others",
        )  # fmt: skip
    record = make_record(plan, model_hash=components.model_hash)
    if keeper is not None:
        keeper.begin(record)
    _add_loras(components.transformer, plan)
    listener.say("reading the prompt")
    prompts = _encode_texts(plan, components)
    parts = MagiParts(
        transformer=components.transformer,
        vae=components.vae,
        device=plan.device,
        special_tokens=plan.tokens,
    )
    del components  # the text encoder is not needed any longer
    if plan.settings.offload:
        _offload(parts)
    return _sample(plan, parts, prompts, listener=listener, record=record, keeper=keeper)


def _load(plan: RunPlan) -> Components:
    """Load the components; with offloading, networks wait on the CPU."""
    device = torch.device("cpu") if plan.settings.offload else plan.device
    text_device = plan.device if plan.settings.offload else None
    with no_foreign_bars():
        return load_components(
            plan.source, device=device, dtype=plan.dtype, text_device=text_device
        )


def _add_loras(transformer: Magi1Transformer3DModel, plan: RunPlan) -> None:
    """Load all adapters, each with its strength."""
    names = []
    for index, (path, _) in enumerate(plan.settings.loras):
        names.append(f"lora{index}")
        state = Magi1LoraLoaderMixin.lora_state_dict(path)
        Magi1LoraLoaderMixin.load_lora_into_transformer(
            state, transformer=transformer, adapter_name=names[-1]
        )
    if names:
        transformer.set_adapters(names, [scale for _, scale in plan.settings.loras])


def _encode_texts(plan: RunPlan, components: Components) -> Prompts:
    limit = int(components.transformer.config.caption_max_length)

    def encode(texts: list[str]) -> list[torch.Tensor]:
        # One by one: rounding must not depend on which other prompts there are.
        text = (components.tokenizer, components.text_encoder)
        return [_encode(prompt, *text, limit=limit) for prompt in texts]

    return encode_chunks(plan.texts, encode, negative=plan.settings.negative)


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, *, limit: int
) -> torch.Tensor:
    return encode_prompts([text], tokenizer, encoder=encoder, max_length=limit).visible()[0]


def _encode_later(plan: RunPlan, parts: MagiParts, text: str) -> torch.Tensor:
    """Encode a prompt that comes while the video is made; the encoder is loaded for it."""
    device = plan.device if plan.settings.offload else text_device_of(plan.source, plan.device)
    with no_foreign_bars():
        loaded = load_text(plan.source, model_parts(plan.source), dtype=plan.dtype, device=device)
    return _encode(text, *loaded, limit=int(parts.transformer.config.caption_max_length))


def _offload(parts: MagiParts) -> None:
    """Let transformer and VAE take turns on the device."""
    _, first = cpu_offload_with_hook(parts.transformer, parts.device)
    _, second = cpu_offload_with_hook(parts.vae, parts.device, first)
    first.hook.prev_module_hook = second


def _given_prefix(plan: RunPlan, parts: MagiParts) -> Prefix | None:
    if plan.given is None:
        return None
    frames = pixels_to_frames(plan.given)
    if plan.settings.image is not None:
        return encode_image(parts, frames[0], request=plan.request)
    return encode_video(parts, frames, request=plan.request)


class _Clock:
    """Measures the work of a run; a step's work is the number of chunks it moves."""

    def __init__(self, plan: RunPlan, listener: RunListener) -> None:
        self.plan, self.listener = plan, listener
        new_chunks = plan.num_chunks - plan.num_given_chunks
        self.total = new_chunks * plan.request.config.num_steps
        self.work, self.step, self.chunk = 0, 0, plan.num_given_chunks
        self.seconds_done = 0.0
        self.start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def on_step(self, call: ChunkCall, window: torch.Tensor) -> None:
        del window
        self.work += len(call.chunks)
        self.step, self.chunk = call.step + 1, call.chunks[0]
        self.tell()

    def skip_chunk(self) -> None:
        """Count the steps of a chunk that need not be computed."""
        self.work += self.plan.request.config.num_steps

    def tell(self) -> None:
        plan, elapsed = self.plan, self.elapsed_s
        share = self.work / self.total
        fps = plan.request.fps
        self.listener.progress(
            RunProgress(
                chunk=self.chunk + 1,
                num_chunks=plan.num_chunks,
                step=self.step,
                num_steps=plan.num_steps,
                share=share,
                seconds_done=self.seconds_done,
                seconds_total=plan.request.num_frames / fps,
                elapsed_s=elapsed,
                speed=elapsed / max(share * plan.new_frames / fps, 1e-6),
            )
        )


@torch.no_grad()
def _sample(
    plan: RunPlan,
    parts: MagiParts,
    prompts: Prompts,
    *,
    listener: RunListener,
    record: dict[str, Any],
    keeper: Keeper | None,
) -> RunResult:
    """Sample, decode and write."""
    request, clock = plan.request, _Clock(plan, listener)
    compat = request.config.official_compat
    prefix = _given_prefix(plan, parts)
    engine = make_engine(parts, request, prompts=prompts, prefix=prefix, on_step=clock.on_step)
    writer = VideoWriter(
        plan.output,
        width=request.width,
        height=request.height,
        fps=request.fps,
        metadata=record,
    )
    assert writer.metadata is not None
    record = writer.metadata  # entries added until the end reach the finished file
    with _noting(writer), writer:
        try:
            if keeper is None:
                finished = engine.run()
            else:

                def steer(chunk: int, text: str) -> None:
                    row = _encode_later(plan, parts, text)
                    prompts.change_from(chunk - plan.num_given_chunks, row)

                finished = _kept(engine, keeper, clock=clock, steer=steer)
            for chunk in stream_chunks(parts, request, chunks=finished, prefix=prefix):
                writer.write(chunk.to_uint8(official_compat=compat))
                clock.seconds_done = writer.seconds_written
                clock.tell()
        finally:  # before the writer finishes the file, whatever ended the loop
            record["frames_written"] = writer.frames_written
        record.update(complete=True, elapsed_s=round(clock.elapsed_s, 3))
    if keeper is not None:
        keeper.end(writer.frames_written)
    return RunResult(
        path=plan.output,
        seed=request.seed,
        num_frames=writer.frames_written,
        seconds=writer.seconds_written,
        elapsed_s=clock.elapsed_s,
        record=record,
    )


def _kept(
    engine: ChunkEngine, keeper: Keeper, *, clock: _Clock, steer: Callable[[int, str], None]
) -> Iterator[FinishedChunk]:
    """Hand out the chunks that are kept, then keep and hand out those that follow."""
    done = keeper.finished
    for chunk in done:
        clock.skip_chunk()
        yield engine.restored(chunk, keeper.load(chunk))
    if done.stop == engine.task.num_chunks:
        return
    # After a cut, the next chunk must enter the window where it would have: the ones before it are
    # in flight then, and are computed along, but stay what they were.
    last = done.stop - (engine.config.window_size if keeper.is_cut else 1)
    if last >= done.start:
        engine.rebuild(last, keeper.load)
    for finished in engine.run():
        if finished.index in done:
            engine.pin(finished.index, keeper.load(finished.index))
            continue
        keeper.save(finished.index, engine.latents_dict())
        for chunk, text in keeper.steered(finished.index + engine.config.window_size):
            steer(chunk, text)
        yield finished


@contextlib.contextmanager
def _noting(writer: VideoWriter) -> Iterator[None]:
    """Say in an interrupt how much of the video is safe."""
    try:
        yield
    except KeyboardInterrupt as stop:
        seconds, frames = writer.seconds_written, writer.frames_written
        if frames:
            stop.add_note(f"{seconds:.2f} s ({frames} frames) are safe in {writer.path or '-'}")
        else:
            stop.add_note("no chunk was finished, so nothing was written")
        raise
