"""Settings of a Magic 1-For-1 checkpoint, and one video as a stream of decoded segments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch

from onereel.core.errors import ConfigError
from onereel.core.seeds import chunk_noise
from onereel.media.buckets import Bucket, fit_bucket, pick_bucket
from onereel.media.scale import Pixels
from onereel.models.magic_dit.model import MagicCondition, image_prior, predict_velocity
from onereel.models.magic_vae.model import decode_latent, encode_latent, to_uint8
from onereel.models.magic_vae.streaming import StreamDecoder
from onereel.models.text.llava import (
    IMAGE_TEMPLATE,
    NEGATIVE_PROMPT,
    PROMPT_CROP,
    PROMPT_TEMPLATE,
    PROMPT_TOKENS,
)
from onereel.pipelines.decoding import decode_tile_patiently
from onereel.pipelines.pictures import pixels_to_frames
from onereel.samplers.flow_match import (
    SHIFT,
    guided,
    invert_noise,
    official_noise,
    sample_euler,
    sigma_grid,
)
from onereel.samplers.segments import (
    Segment,
    channel_statistics,
    keep_overlap,
    last_latents,
    match_statistics,
    plan_segments,
    sample_segments,
)

OnStep = Callable[[float, torch.Tensor], torch.Tensor | None]
Continuation = Literal["picture", "latent"]
_WIDE = (16, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicSampleConfig:
    """What changes the pixels; stored with the checkpoint.

    Args:
        num_steps: updates per segment.
        guidance_scale: strength towards the prompt; at most 1 is a single pass, as distilled
            weights want it.
        shift: of the noise levels.
        inversion: start from where the model's own path to a still picture begins; one more call of
            the model per segment (two with guidance).
        num_frames: frames of a video, 4 n + 1.
        segment_frames: longest piece made at once, 4 n + 1; longer videos are made in several.
        continuation: what a segment begins with. `picture`: the last picture before it, encoded
            anew, as the model was trained. `latent`: the last latent frames before it, as they
            are; the whole video is one latent then, decoded as a stream.
        overlap_latents: latent frames that are carried over with `latent`.
        colour_anchor: how far the mean and deviation of every latent channel of a later segment are
            moved to the first segment's, 0 to 1, before it is gone on from and decoded.
        fps: frames per second.
        height: pixels, a multiple of 16; None picks a size by `resolution`.
        width: likewise, both or none.
        resolution: picture sizes to choose from, `540P` or `720P`.
        negative_prompt: used with guidance.
        prompt_template: text around the prompt.
        image_template: text around the picture.
        prompt_crop: tokens before the prompt that the weights were trained with; None counts them.
        prompt_tokens: tokens of a prompt.
    """

    num_steps: int = 4
    guidance_scale: float = 1.0
    shift: float = SHIFT
    inversion: bool = False
    num_frames: int = 81
    segment_frames: int = 121
    continuation: Continuation = "picture"
    overlap_latents: int = 1
    colour_anchor: float = 0.0
    fps: int = 24
    height: int | None = None
    width: int | None = None
    resolution: str = "540P"
    negative_prompt: str = NEGATIVE_PROMPT
    prompt_template: str = PROMPT_TEMPLATE
    image_template: str = IMAGE_TEMPLATE
    prompt_crop: int | None = PROMPT_CROP
    prompt_tokens: int = PROMPT_TOKENS

    def __post_init__(self) -> None:
        """Check lengths."""
        for name in ("num_frames", "segment_frames"):
            frames = getattr(self, name)
            if frames < 1 or frames % 4 != 1:
                near = max(0, round((frames - 1) / 4)) * 4 + 1
                raise ConfigError(
                    name, expected="a multiple of 4 plus 1", got=frames, hint=f"use {near}"
                )
        if self.num_frames > self.segment_frames < 5:
            raise ConfigError("segment_frames", expected="at least 5", got=self.segment_frames)
        if self.continuation not in get_args(Continuation):
            expected = " or ".join(get_args(Continuation))
            raise ConfigError("continuation", expected=expected, got=self.continuation)
        if not (math.isfinite(self.colour_anchor) and 0 <= self.colour_anchor <= 1):
            raise ConfigError("colour_anchor", expected="0 to 1", got=self.colour_anchor)
        if (self.height is None) != (self.width is None):
            got = f"{self.height}, {self.width}"
            raise ConfigError("height, width", expected="both or none", got=got)
        if self.num_frames > self.segment_frames:
            self.segments()  # refuses an overlap that is none

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is used."""
        return self.guidance_scale > 1

    @property
    def spans(self) -> tuple[int, int]:
        """Latent frames of a whole segment, and those that it shares with the one before."""
        # A picture is the last of a segment and the first of the next.
        overlap = self.overlap_latents if self.continuation == "latent" else 1
        return (self.segment_frames - 1) // 4 + 1, overlap

    def segments(self) -> list[Segment]:
        """Plan the passes.

        Returns:
            One or more segments in latent frames.
        """
        total, (longest, overlap) = (self.num_frames - 1) // 4 + 1, self.spans
        longest = longest if total > longest else max(longest, overlap + 1)
        return plan_segments(total, segment_latents=longest, overlap=overlap)


def made_frames(num_frames: int) -> int:
    """Say how many frames the model makes where some are wanted.

    Args:
        num_frames: at least 1.

    Returns:
        The next number of the form 4 n + 1.
    """
    return 4 * math.ceil((num_frames - 1) / 4) + 1


def usual_size(config: MagicSampleConfig, picture: tuple[int, int] = _WIDE) -> tuple[int, int]:
    """Choose a size where none is asked for.

    Args:
        config: sampling settings.
        picture: width and height of the first picture, in any unit; wide where there is none yet.

    Returns:
        Height and width: the checkpoint's, or the bucket nearest to the picture.
    """
    if config.height is not None and config.width is not None:
        return config.height, config.width
    bucket = pick_bucket(*picture, resolution=config.resolution)
    return bucket.height, bucket.width


def fit_picture(
    pixels: Pixels, config: MagicSampleConfig, *, size: tuple[int | None, int | None]
) -> torch.Tensor:
    """Bring a picture to a video's size: scaled to fill it, the centre kept.

    Args:
        pixels: uint8 [H, W, 3].
        config: sampling settings.
        size: height and width, or None twice for the usual size.

    Returns:
        [1, 3, H, W] in [-1, 1].
    """
    height, width = size
    if height is None or width is None:
        height, width = usual_size(config, (pixels.shape[1], pixels.shape[0]))
    fitted = fit_bucket(pixels, Bucket((width, height), width, height))
    return pixels_to_frames(fitted[None])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MagicRequest:
    """What one video shall be.

    Args:
        picture: its first frame, [1, 3, H, W] in [-1, 1], on the device that computes.
        conditions: texts with the prompt, one per segment; the last one holds for all behind it.
            What they say of the picture stays that of the first picture. Those of segments that
            have not begun may change while the video is made.
        negative: texts with the negative prompt; only read with guidance.
        config: sampling settings.
        seed: of all draws.
        later_seeds: other seeds of the noise, by the segment from which on they hold; what encodes
            pictures stays with `seed`.
        noise: of the whole video [1, C, T, H/8, W/8] instead of drawing it.
        official_compat: draw the first segment's noise as the official code does.
    """

    picture: torch.Tensor
    conditions: Sequence[MagicCondition]
    negative: MagicCondition | None
    config: MagicSampleConfig
    seed: int
    later_seeds: Mapping[int, int] = field(default_factory=dict)
    noise: torch.Tensor | None = None
    official_compat: bool = False

    def condition_of(self, segment: Segment) -> MagicCondition:
        """Return what a segment is told.

        Args:
            segment: one of the config's.

        Returns:
            The condition.
        """
        return self.conditions[min(segment.index, len(self.conditions) - 1)]


@dataclass(frozen=True, slots=True, eq=False)
class MagicSegment:
    """What is new of a video: latents, frames, or both.

    Args:
        latent: [1, C, T, H/8, W/8]; none, where more frames of known latents follow.
        frames: [F, 3, H, W] in [-1, 1]; none, where the decoder waits for more latents.
        index: of the segment.
    """

    latent: torch.Tensor
    frames: torch.Tensor
    index: int = 0


class SegmentKeeper(Protocol):
    """Keeps finished segments, so that another process can go on with the video."""

    def load(self, index: int) -> torch.Tensor | None:
        """Return a segment's latents as they were saved, or None when it is to be made."""
        ...

    def save(self, index: int, latent: torch.Tensor) -> None:
        """Take a finished segment's latents, those shared with the one before included."""
        ...


def stream_segments(
    transformer: Any,
    vae: Any,
    *,
    request: MagicRequest,
    on_step: OnStep | None = None,
    keeper: SegmentKeeper | None = None,
    decoded: bool = True,
) -> Iterator[MagicSegment]:
    """Make one video segment by segment, and decode it as it comes.

    With continuation `picture`, a segment begins with the last picture of the one before, encoded
    anew: the first latent frame of a video stands for a single picture, and the model was trained
    to be given that one. With `latent`, it is given the last latent frames of the video so far,
    and the frames are those of decoding the whole video's latent at once, to the bit.

    Args:
        transformer: the velocity network.
        vae: the VAE.
        request: what to make.
        on_step: called after every update with its noise level and the latents; latents that it
            returns take their place.
        keeper: is given every finished segment; segments that it holds are not computed.
        decoded: whether there are frames; with continuation `picture`, segments need them.

    Yields:
        What is new; together the video's latents and frames.
    """
    generator = torch.Generator().manual_seed(request.seed)
    maker = _SegmentMaker(transformer, request, generator, on_step=on_step, keeper=keeper)
    whole = request.config.continuation == "latent"
    pictures = [request.picture]

    def encode_last(_latent: Any = None, _overlap: int = 1) -> torch.Tensor:
        return encode_latent(vae, pictures[-1][:, :, None], generator=generator)

    segments, compat = request.config.segments(), request.official_compat
    decoder = SegmentDecoder(vae, request.config, official_compat=compat)
    for segment, latent in sample_segments(
        segments,
        reference=encode_last(),
        sample=maker.make,
        carry=last_latents if whole else encode_last,
    ):
        new = latent[:, :, segment.overlap :]
        is_last = segment.index + 1 == len(segments)
        for frames in decoder.push(segment, latent, last=is_last) if decoded else ():
            pictures[:] = [frames[-1:].clone()]
            yield MagicSegment(new, frames, segment.index)
            new = new[:, :, :0]
        if new.shape[2]:  # else the latents went out with frames
            nothing = new.new_empty(0, 3, *request.picture.shape[2:], dtype=torch.float32)
            yield MagicSegment(new, nothing, segment.index)


class SegmentDecoder:
    """Decodes the segments of one video in order; when memory runs out, in smaller tiles.

    Args:
        vae: the VAE.
        config: sampling settings that they were made with.
        official_compat: keep the tiles.
    """

    def __init__(
        self, vae: Any, config: MagicSampleConfig, *, official_compat: bool = False
    ) -> None:
        self._vae, self._whole = vae, config.continuation == "latent"
        self._decode = partial(decode_tile_patiently, vae, official_compat=official_compat)
        self._stream = StreamDecoder(vae, decode=self._decode)

    def push(
        self, segment: Segment, latent: torch.Tensor, *, last: bool = False
    ) -> Iterator[torch.Tensor]:
        """Take the next segment, and decode what can be.

        Args:
            segment: what it makes.
            latent: all of its latents, [1, C, T, H/8, W/8].
            last: whether the video ends with it.

        Yields:
            Frames that were not there before, [F, 3, H, W] in [-1, 1].
        """
        if self._whole:
            pieces, skip = self._stream.push(latent[:, :, segment.overlap :], last=last), 0
        else:  # the shared latent frame stands for one picture
            stream = StreamDecoder(self._vae, decode=self._decode)
            pieces, skip = stream.push(latent, last=True), segment.overlap
        for video in pieces:
            yield (video[0, :, skip:] * 2 - 1).transpose(0, 1).float()
            skip = 0


class _SegmentMaker:
    """Makes the latents of one segment after the other."""

    def __init__(
        self,
        transformer: Any,
        request: MagicRequest,
        generator: torch.Generator,
        *,
        on_step: OnStep | None,
        keeper: SegmentKeeper | None,
    ) -> None:
        self.transformer, self.request, self.generator = transformer, request, generator
        self.on_step, self.keeper = on_step, keeper
        self._anchor: tuple[torch.Tensor, torch.Tensor] | None = None

    def make(self, segment: Segment, reference: torch.Tensor) -> torch.Tensor:
        """Make a segment, or take it from what is kept."""
        noise = _noise(segment, self.request, reference, self.generator)  # kept ones draw, too
        kept = None if self.keeper is None else self.keeper.load(segment.index)
        if kept is None:
            latent = self._make(segment, noise, reference)
            if self.keeper is not None:
                self.keeper.save(segment.index, latent)
        else:
            latent = kept.to(reference.device)
        if self._anchor is None and self.request.config.colour_anchor:
            self._anchor = channel_statistics(latent)
        return latent

    def _make(self, segment: Segment, noise: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        config, condition = self.request.config, self.request.condition_of(segment)
        latent = _sample_segment(
            self.transformer, noise, reference, self.request, condition, self.on_step
        )
        if self._anchor is not None:
            latent = match_statistics(latent, self._anchor, strength=config.colour_anchor)
        if config.continuation == "latent" and segment.overlap:
            latent = keep_overlap(latent, reference)
        return latent


def _noise(
    segment: Segment, request: MagicRequest, reference: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    batch, channels, _, height, width = reference.shape
    shape = (batch, channels, segment.num_latents, height, width)
    changed = [first for first in request.later_seeds if first <= segment.index]
    seed = request.later_seeds[max(changed)] if changed else request.seed
    if request.noise is not None:
        noise = request.noise[:, :, segment.start : segment.stop]
    elif request.official_compat and segment.index == 0:
        source = torch.Generator().manual_seed(seed) if changed else generator
        noise = official_noise(shape, source, dtype=reference.dtype)
    else:
        noise = chunk_noise(seed, segment.index, shape=shape)
    return noise.to(reference.device)


def _sample_segment(
    transformer: Any,
    noise: torch.Tensor,
    reference: torch.Tensor,
    request: MagicRequest,
    condition: MagicCondition,
    on_step: OnStep | None,
) -> torch.Tensor:
    prior = image_prior(reference, noise.shape[2])
    sigmas = sigma_grid(request.config.num_steps, shift=request.config.shift)

    def one(condition: MagicCondition, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return predict_velocity(transformer, x, sigma=sigma, condition=condition, prior=prior)

    def after(step: int, x: torch.Tensor, _velocity: torch.Tensor) -> torch.Tensor | None:
        return None if on_step is None else on_step(float(sigmas[step]), x)

    negative = None if request.negative is None else partial(one, request.negative)
    scale = request.config.guidance_scale if request.config.guided else 1.0
    positive = partial(one, condition)
    if request.config.inversion:
        # The official code guides with the opposite sign here.
        backward = guided(positive, negative, scale=1.0 if scale == 1.0 else -scale)
        noise = invert_noise(backward, noise, reference=reference[:, :, :1])
    velocity = guided(positive, negative, scale=scale)
    return sample_euler(velocity, noise, sigmas=sigmas, on_step=after)


def sample_picture(
    transformer: Any,
    vae: Any,
    *,
    condition: MagicCondition,
    negative: MagicCondition | None,
    config: MagicSampleConfig,
    size: tuple[int, int],
    seed: int,
    device: torch.device | None = None,
) -> Pixels:
    """Make one picture: a video of one latent frame whose image prior is empty.

    Args:
        transformer: the velocity network.
        vae: the VAE.
        condition: texts with the prompt, without a picture's tokens.
        negative: texts with the negative prompt; only read with guidance.
        config: sampling settings.
        size: height and width in pixels, multiples of 16.
        seed: of the noise.
        device: that computes; None takes the VAE's.

    Returns:
        uint8 [H, W, 3].

    Source: spec/training.md 2, text-to-image as the same network at one frame.
    """
    factor, channels = int(vae.config.spatial_compression_ratio), int(vae.config.latent_channels)
    shape = (1, channels, 1, size[0] // factor, size[1] // factor)
    noise = chunk_noise(seed, 0, shape=shape).to(device or vae.device)
    prior = noise.new_zeros(1, channels + 1, *shape[2:])

    def one(condition: MagicCondition, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return predict_velocity(transformer, x, sigma=sigma, condition=condition, prior=prior)

    against = None if negative is None else partial(one, negative)
    scale = config.guidance_scale if config.guided else 1.0
    velocity = guided(partial(one, condition), against, scale=scale)
    latent = sample_euler(velocity, noise, sigmas=sigma_grid(config.num_steps, shift=config.shift))
    frame = decode_latent(vae, latent)[0, :, 0]
    pixels: Pixels = to_uint8(frame).permute(1, 2, 0).cpu().numpy()
    return pixels
