"""One video as a stream of decoded chunks: the path that every caller shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.core.seeds import chunk_noise
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.pixels import to_uint8
from onereel.models.text.special_tokens import ConditioningFlags
from onereel.pipelines.captions import Captions
from onereel.pipelines.decoding import decode_patiently, wake
from onereel.pipelines.parts import MagiParts, VaeParts
from onereel.pipelines.prompts import Prompts
from onereel.samplers.engine import ChunkEngine, ChunkTask, FinishedChunk, StepCallback
from onereel.samplers.guidance import VelocityModel
from onereel.samplers.plan import ChunkSampleConfig

Frames = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRequest:
    """What one video shall be.

    Args:
        height: pixels, a multiple of 16.
        width: pixels, a multiple of 16.
        num_frames: frames to return, given ones included where `keep_prefix`.
        fps: frames per second; only the official VAE tiles depend on it.
        config: sampling settings.
        seed: of the noise.
        flags: which special tokens go in front of the caption.
        keep_prefix: return the given frames in front of the new ones (video-to-video).
        noise: noise of the whole video [1, C, T, H, W] instead of drawing it by seed.
        later_seeds: other seeds, by the absolute chunk from which on they hold.
    """

    height: int
    width: int
    num_frames: int
    config: ChunkSampleConfig
    fps: int = 24
    seed: int = 0
    flags: ConditioningFlags = field(default_factory=ConditioningFlags)
    keep_prefix: bool = True
    noise: torch.Tensor | None = None
    later_seeds: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check sizes."""
        for name, size in (("height", self.height), ("width", self.width)):
            if size < 16 or size % 16:
                below, above = max(16, size // 16 * 16), max(16, math.ceil(size / 16) * 16)
                raise ConfigError(
                    name, expected="a multiple of 16", got=size, hint=f"use {below} or {above}"
                )
        if self.num_frames < 1:
            raise ConfigError("num_frames", expected="at least 1", got=self.num_frames)

    @property
    def counts_prefix(self) -> bool:
        """Whether `num_frames` counts the frames of a given video."""
        return self.keep_prefix and not self.config.official_compat


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """Decoded frames of one chunk.

    Args:
        index: absolute chunk index.
        frames: float32 [F, 3, H, W] in [-1, 1]; F may be shorter at the ends.
        latent: [1, C, T, h, w] of these frames, normalised; frames that were cut off at the end
            may share its last latent frame.
    """

    index: int
    frames: torch.Tensor
    latent: torch.Tensor

    def to_uint8(self, *, official_compat: bool = False) -> Frames:
        """Turn the frames into bytes.

        Args:
            official_compat: truncate as the official code does instead of rounding.

        Returns:
            uint8 [F, H, W, 3].
        """
        frames = to_uint8(self.frames, official_compat=official_compat)
        return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())


@dataclass(frozen=True, slots=True)
class Prefix:
    """Given frames.

    Args:
        latent: normalised clean latent [1, C, T, H, W].
        frames: the frames themselves, float32 [F, 3, H, W] in [-1, 1].
        is_image: whether it is one picture rather than a video.
    """

    latent: torch.Tensor
    frames: torch.Tensor
    is_image: bool


def check_distillation(transformer: Magi1Transformer3DModel, config: ChunkSampleConfig) -> None:
    """Refuse guidance passes on distilled weights, and the single pass on base weights.

    Args:
        transformer: the network.
        config: the sampling settings.

    Raises:
        ConfigError: they do not fit.
    """
    distilled = bool(transformer.config.enable_distillation)
    if distilled != config.distilled:
        kind = "distilled" if distilled else "base"
        raise ConfigError(
            f"enable_distillation={config.distilled} on a {kind} checkpoint",
            hint=f"these weights want enable_distillation={distilled}"
            + ("" if distilled else "; or load a distilled checkpoint"),
        )


def encode_image(parts: VaeParts, frame: torch.Tensor, *, request: VideoRequest) -> Prefix:
    """Encode a picture as the first latent frame.

    Args:
        parts: the networks.
        frame: float32 [3, H, W] in [-1, 1].
        request: the video.

    Returns:
        The prefix of one latent frame.
    """
    return Prefix(_encode(parts, frame[None, :, None], request), frame[None], True)


def encode_video(parts: VaeParts, frames: torch.Tensor, *, request: VideoRequest) -> Prefix:
    """Encode given frames, cut at the front to whole latent frames.

    Args:
        parts: the networks.
        frames: float32 [F, 3, H, W] in [-1, 1], at least one latent frame long.
        request: the video.

    Returns:
        The prefix.

    Raises:
        ShapeError: there are too few frames.
        ConfigError: there are as many frames as the whole video shall have.
    """
    factor = parts.temporal_factor
    usable = len(frames) // factor * factor
    if usable == 0:
        raise ShapeError(
            "video", expected=f"at least {factor} frames", got=len(frames),
            hint="give a longer video, or a picture",
        )  # fmt: skip
    if request.counts_prefix and request.num_frames <= usable:
        raise ConfigError(
            "num_frames", expected=f"more than the {usable} given frames, which it counts",
            got=request.num_frames, hint=f"use {usable + request.num_frames}",
        )  # fmt: skip
    frames = frames[len(frames) - usable :]
    return Prefix(_encode(parts, frames.transpose(0, 1)[None], request), frames, False)


def _encode(parts: VaeParts, video: torch.Tensor, request: VideoRequest) -> torch.Tensor:
    compat = request.config.official_compat
    wake(parts.vae)
    return parts.vae.encode_frames(
        video.to(parts.device), official_compat=compat, fps=request.fps
    ).float()


def count_chunks(
    request: VideoRequest, given: int, *, is_image: bool = False, temporal_factor: int = 4
) -> int:
    """Count the chunks of a video, given ones included.

    Args:
        request: the video.
        given: given latent frames.
        is_image: whether they are a picture.
        temporal_factor: frames per latent frame.

    Returns:
        Chunks; with `official_compat`, as the official code counts (it adds the prefix on top).
    """
    width = request.config.chunk_width
    if request.config.official_compat:
        return math.ceil((request.num_frames // temporal_factor + given) / width)
    frames = request.num_frames
    if not is_image and not request.counts_prefix:
        frames += given * temporal_factor
    return math.ceil(frames / (width * temporal_factor))


def chunks_of(parts: VaeParts, request: VideoRequest, *, prefix: Prefix | None) -> tuple[int, int]:
    """Count all chunks of a video, and those given whole.

    Args:
        parts: the networks.
        request: the video.
        prefix: given frames.

    Returns:
        Both counts.
    """
    if prefix is None:
        return count_chunks(request, 0, temporal_factor=parts.temporal_factor), 0
    given = prefix.latent.shape[2]
    total = count_chunks(
        request, given, is_image=prefix.is_image, temporal_factor=parts.temporal_factor
    )
    return total, given // request.config.chunk_width


def make_engine(
    parts: MagiParts,
    request: VideoRequest,
    *,
    prompts: Prompts,
    prefix: Prefix | None = None,
    on_step: StepCallback | None = None,
) -> ChunkEngine:
    """Set up the engine of one video.

    Args:
        parts: the networks.
        request: the video.
        prompts: encoded text.
        prefix: given frames.
        on_step: called after every step with the call and the latents in flight, which it may
            replace by what it returns.

    Returns:
        The engine.

    Raises:
        ConfigError: the settings do not fit the weights, or nothing is left to generate.
        ShapeError: the noise has another shape.
    """
    check_distillation(parts.transformer, request.config)
    factor, width = parts.spatial_factor, request.config.chunk_width
    num_chunks, given = chunks_of(parts, request, prefix=prefix)
    size = (int(parts.vae.config.z_dim), request.height // factor, request.width // factor)
    noise = request.noise
    wanted = (1, size[0], num_chunks * width, *size[1:])
    if noise is not None and tuple(noise.shape) != wanted:
        raise ShapeError("latents", expected=str(wanted), got=tuple(noise.shape))
    captions = Captions(parts, prompts, num_chunks=num_chunks, num_given=given, flags=request.flags)
    task = ChunkTask(
        num_chunks=num_chunks,
        latent_shape=size,
        condition=captions.of_chunk,
        null_caption=captions.null,
        seed=request.seed,
        prefix=None if prefix is None else prefix.latent,
        noise=_noise_by_chunk(request, (1, size[0], width, *size[1:])),
    )
    return ChunkEngine(
        _bound(parts.transformer, parts.attention_kwargs),
        request.config,
        task=task,
        runtime=parts.runtime,
        device=parts.device,
        on_step=on_step,
    )


def _noise_by_chunk(
    request: VideoRequest, shape: tuple[int, ...]
) -> Callable[[int], torch.Tensor] | None:
    """Say where a chunk's noise comes from, unless it is the request's one seed."""
    given, width = request.noise, shape[2]
    if given is not None:
        return lambda chunk: given[:, :, chunk * width : (chunk + 1) * width]
    if not request.later_seeds:
        return None
    seeds = {0: request.seed, **request.later_seeds}
    return lambda chunk: chunk_noise(
        seeds[max(first for first in seeds if first <= chunk)], chunk, shape=shape
    )


def _bound(model: Magi1Transformer3DModel, kwargs: dict[str, Any] | None) -> VelocityModel:
    """Pass the attention arguments along with every call."""
    if not kwargs:
        return model

    def call(*args: Any, **options: Any) -> Any:
        return model(*args, attention_kwargs=kwargs, **options)

    return call


@torch.no_grad()
def stream_chunks(
    parts: VaeParts,
    request: VideoRequest,
    *,
    chunks: Iterable[FinishedChunk],
    prefix: Prefix | None = None,
) -> Iterator[VideoChunk]:
    """Decode chunks as they are finished.

    Args:
        parts: the networks.
        request: the video.
        chunks: what the engine of `make_engine` finishes, in order.
        prefix: given frames.

    Yields:
        Chunks in order, cut so that exactly `num_frames` frames come out (with `official_compat`
        all frames come out, as officially).
    """
    compat = request.config.official_compat
    left = 10**12 if compat else request.num_frames
    if prefix is not None and not prefix.is_image and request.counts_prefix:
        left -= len(prefix.frames)
        yield VideoChunk(-1, prefix.frames, prefix.latent)
    factor = parts.temporal_factor
    for chunk in chunks:
        given = _given_frames(chunk, prefix)
        frames = decode_finished(parts, request, chunk=chunk, prefix=prefix)[:left]
        left -= len(frames)
        if len(frames):
            end = given + (chunk.latent.shape[2] if compat else math.ceil(len(frames) / factor))
            yield VideoChunk(chunk.index, frames, chunk.latent[:, :, given:end])
        if left <= 0:
            return


def _given_frames(chunk: FinishedChunk, prefix: Prefix | None) -> int:
    """Count the leading latent frames that are not new; a given picture counts as new."""
    return 0 if prefix is not None and prefix.is_image else chunk.num_given


def decode_finished(
    parts: VaeParts, request: VideoRequest, *, chunk: FinishedChunk, prefix: Prefix | None
) -> torch.Tensor:
    """Decode a finished chunk to the frames that are new.

    Args:
        parts: the networks.
        request: the video.
        chunk: what the engine yielded.
        prefix: given frames.

    Returns:
        float32 [F, 3, H, W] in [-1, 1]; a given picture stays in front of its video.
    """
    given = _given_frames(chunk, prefix)
    compat = request.config.official_compat
    latent = chunk.latent[:, :, given:] if compat else chunk.latent
    wake(parts.vae)
    latent = latent.to(parts.device)
    video = decode_patiently(parts.vae, latent, official_compat=compat, fps=request.fps)
    frames = video[0].transpose(0, 1).float()  # [F, 3, H, W]
    return frames if compat else frames[given * parts.temporal_factor :]
