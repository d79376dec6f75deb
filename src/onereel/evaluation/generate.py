"""Videos for an evaluation: one model, loaded once, that makes one video per call."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from onereel.core.allocator import keep_freed_memory
from onereel.core.device import parse_dtype, pick_device, pin_threads
from onereel.core.errors import ConfigError
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.pixels import to_uint8
from onereel.models.text import encode_prompts
from onereel.pipelines.files import file_hash
from onereel.pipelines.lora import Magi1LoraLoaderMixin, add_loras
from onereel.pipelines.parts import MagiParts
from onereel.pipelines.pictures import pixels_to_frames
from onereel.pipelines.prepare import check_lora, fill_wishes, make_request
from onereel.pipelines.prompts import Prompts, encode_chunks
from onereel.pipelines.stream import (
    Prefix,
    VideoRequest,
    encode_image,
    encode_video,
    make_engine,
    stream_chunks,
)
from onereel.pipelines.wishes import RunWishes
from onereel.runtime.load import default_dtype, load_components, load_part, no_foreign_bars
from onereel.runtime.source import MAGIC141, ModelSource, resolve_model
from onereel.runtime.verify import Parts, hash_parts, model_parts

Frames = npt.NDArray[np.uint8]

_DEFAULTS = {"height": 720, "width": 720, "num_frames": 96, "fps": 24}
_TEXT_FRAMES = 24  # every text holds for so many frames, which are one chunk of MAGI


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which model makes the videos, and how it samples; None leaves it to the checkpoint.

    Args:
        model: shipped name, folder or official JSON config.
        steps: updates per chunk.
        guidance: strength towards the text; 1 is a single pass.
        height: pixels.
        width: pixels.
        fps: frames per second.
        device: where to run.
        dtype: of the weights.
        loras: files of adapters for the transformer, with their strengths.
    """

    model: str
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    fps: int | None = None
    device: str | None = None
    dtype: str | None = None
    loras: tuple[tuple[str, float], ...] = ()

    def describe_loras(self) -> dict[str, Any]:
        """Check the adapters, and write down which they are.

        Returns:
            Under `loras`, their hashes and strengths; nothing where there are none.

        Raises:
            CheckpointError: one is missing, damaged, or no LoRA.
        """
        for path, _ in self.loras:
            check_lora(path)
        found = [{"sha256": file_hash(path), "scale": scale} for path, scale in self.loras]
        return {"loras": found} if found else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One video that shall be made.

    Args:
        texts: prompt of every 24 frames to be made; the last one goes on.
        num_frames: frames to make; a given picture counts, given frames of a video do not.
        seed: of the noise.
        given: true frames uint8 [F, H, W, 3] in front, or None.
        is_image: the one given frame is the first frame of the video.
    """

    texts: tuple[str, ...]
    num_frames: int
    seed: int
    given: Frames | None = None
    is_image: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A finished video.

    Args:
        frames: without the given ones of a continued video, uint8 [F, H, W, 3].
        seconds: of computing, loading left out.
        problem: what is wrong with it; empty when nothing is.
    """

    frames: Frames
    seconds: float
    problem: str = ""


class VideoMaker(Protocol):
    """Whatever makes videos: a model, or the world itself."""

    def make(self, order: Order) -> Made:
        """Make one video."""
        ...


def describe_model(choice: ModelChoice) -> dict[str, Any]:
    """Say exactly what would make the videos, without loading it.

    Args:
        choice: the model and its settings.

    Returns:
        JSON values: name, hash of the weights, size, frame rate, device, dtype and every field of
        the sampling settings.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """
    if resolve_model(choice.model).family == MAGIC141:
        from onereel.evaluation.magic_maker import describe_magic

        return describe_magic(choice)
    source, parts = _open(choice)
    request = _request(choice, parts, num_frames=_TEXT_FRAMES, seed=0, tokens=None)
    device, dtype = _place(choice, source, parts)
    sampling = dataclasses.asdict(request.config)
    return {
        "model": source.name,
        "model_hash": hash_parts(parts),
        **choice.describe_loras(),
        "height": request.height,
        "width": request.width,
        "fps": request.fps,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "sampling": {k: list(v) if isinstance(v, tuple) else v for k, v in sampling.items()},
    }


def open_maker(choice: ModelChoice) -> VideoMaker:
    """Load a model of either family.

    Args:
        choice: the model and its settings.

    Returns:
        What makes its videos.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """
    if resolve_model(choice.model).family == MAGIC141:
        from onereel.evaluation.magic_maker import MagicMaker

        return MagicMaker(choice)
    return PipelineMaker(choice)


class PipelineMaker:
    """Makes videos with a MAGI-1 checkpoint, in the way `onereel generate` does.

    Args:
        choice: the model and its settings.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, choice: ModelChoice) -> None:
        pin_threads()
        self.choice = choice
        source, self._headers = _open(choice)
        device, dtype = _place(choice, source, self._headers)
        keep_freed_memory(device)
        with no_foreign_bars():
            self._components = load_components(source, device=device, dtype=dtype)
        add_loras(Magi1LoraLoaderMixin, self._components.transformer, loras=choice.loras)
        self._parts = MagiParts(
            transformer=self._components.transformer,
            vae=self._components.vae,
            device=device,
            special_tokens=self._components.special_tokens,
        )

    @torch.no_grad()
    def make(self, order: Order) -> Made:
        """Make one video.

        Args:
            order: what to make.

        Returns:
            The video; numbers that are not finite are named as its problem.

        Raises:
            ConfigError: the order does not fit the checkpoint.
        """
        start = time.perf_counter()
        request = _request(
            self.choice,
            self._headers,
            num_frames=order.num_frames,
            seed=order.seed,
            tokens=self._components.special_tokens,
        )
        prefix = self._prefix(order, request)
        engine = make_engine(self._parts, request, prompts=self._texts(order, request),
                             prefix=prefix)  # fmt: skip
        pieces, finite = [], True
        for chunk in stream_chunks(self._parts, request, chunks=engine.run(), prefix=prefix):
            finite = finite and bool(torch.isfinite(chunk.frames).all())
            pieces.append(chunk.to_uint8())
        frames = np.concatenate(pieces)
        problem = "" if finite else "the model's frames hold NaN or infinity"
        return Made(frames=frames, seconds=time.perf_counter() - start, problem=problem)

    def _prefix(self, order: Order, request: VideoRequest) -> Prefix | None:
        if order.given is None:
            return None
        size = (request.height, request.width)
        if order.given.shape[1:3] != size:
            raise ConfigError("given frames", expected=f"{size[0]} x {size[1]} pixels",
                              got=list(order.given.shape))  # fmt: skip
        frames = pixels_to_frames(order.given)
        if order.is_image:
            return encode_image(self._parts, frames[0], request=request)
        return encode_video(self._parts, frames, request=request)

    def _texts(self, order: Order, request: VideoRequest) -> Prompts:
        """Encode the text that holds in the middle of every chunk."""
        chunk = request.config.chunk_width * self._parts.temporal_factor
        count, last = -(-order.num_frames // chunk), len(order.texts) - 1
        texts = [
            order.texts[min(int((i + 0.5) * chunk / _TEXT_FRAMES), last)] for i in range(count)
        ]
        components = self._components
        limit = int(components.transformer.config.caption_max_length)

        def encode(distinct: Sequence[str]) -> list[torch.Tensor]:
            return encode_prompts(
                list(distinct),
                components.tokenizer,
                encoder=components.text_encoder,
                max_length=limit,
            ).visible()

        return encode_chunks(texts, encode)


def _open(choice: ModelChoice) -> tuple[ModelSource, Parts]:
    source = resolve_model(choice.model)
    return source, model_parts(source)


def _place(
    choice: ModelChoice, source: ModelSource, parts: Parts
) -> tuple[torch.device, torch.dtype]:
    device = pick_device(choice.device)
    if choice.dtype is not None:
        return device, parse_dtype(choice.dtype)
    return device, default_dtype(source, parts, device=device)


def _request(
    choice: ModelChoice, parts: Parts, *, num_frames: int, seed: int, tokens: Any
) -> VideoRequest:
    wishes = RunWishes(
        num_frames=num_frames,
        seed=seed,
        steps=choice.steps,
        guidance=choice.guidance,
        height=choice.height,
        width=choice.width,
        fps=choice.fps,
    )
    wishes = fill_wishes(wishes, {**_DEFAULTS, **parts.sampling})
    # Given frames are never part of what is returned, so none are counted here.
    return make_request(wishes, parts, given=0, tokens=tokens)


class RoundTrip(Protocol):
    """Passes videos through a VAE and back: the least a model can lose."""

    name: str
    model_hash: str

    def __call__(self, frames: Frames) -> Frames:
        """Encode and decode a video."""
        ...


def open_round_trip(model: str, *, device: str | None = None) -> RoundTrip:
    """Load the VAE of a model of either family.

    Args:
        model: shipped name, folder or official JSON config.
        device: where to run.

    Returns:
        What passes videos through it.

    Raises:
        ConfigError: there is no such model.
        CheckpointError: a file is missing or damaged.
    """
    choice = ModelChoice(model=model, device=device)
    if resolve_model(model).family == MAGIC141:
        from onereel.evaluation.magic_maker import MagicRoundTrip

        return MagicRoundTrip(choice)
    return VaeRoundTrip(choice)


class VaeRoundTrip:
    """Encodes and decodes videos as a MAGI-1 pipeline would, chunk by chunk.

    Args:
        choice: the model, and where to run.
    """

    def __init__(self, choice: ModelChoice) -> None:
        source, parts = _open(choice)
        place, dtype = _place(choice, source, parts)
        assert parts.vae is not None
        self._vae = cast(AutoencoderKLMagi1, load_part(parts.vae, dtype=dtype, device=place))
        self.name, self.model_hash = source.name, hash_parts(parts)

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Frames:
        """Pass a video through the VAE.

        Args:
            frames: uint8 [F, H, W, 3]; F a multiple of the latent frames' length.

        Returns:
            uint8 of the same shape.
        """
        made = []
        for start in range(0, len(frames), _TEXT_FRAMES):
            part = torch.from_numpy(frames[start : start + _TEXT_FRAMES])
            latent = self._vae.encode_frames(part.permute(3, 0, 1, 2)[None])
            video = to_uint8(self._vae.decode_chunk(latent))[0]  # [3, F, H, W]
            made.append(video.permute(1, 2, 3, 0).cpu().numpy())
        return np.concatenate(made)
