"""Settings of a Magic 1-For-1 checkpoint, and one video as a stream of decoded segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from onereel.core.errors import ConfigError
from onereel.core.seeds import chunk_noise
from onereel.media.scale import Pixels
from onereel.models.magic_dit.model import MagicCondition, image_prior, predict_velocity
from onereel.models.magic_vae.model import decode_latent, encode_latent
from onereel.models.text.llava import (
    IMAGE_TEMPLATE,
    NEGATIVE_PROMPT,
    PROMPT_CROP,
    PROMPT_TEMPLATE,
    PROMPT_TOKENS,
)
from onereel.samplers.flow_match import (
    SHIFT,
    guided,
    invert_noise,
    official_noise,
    sample_euler,
    sigma_grid,
)
from onereel.samplers.segments import Segment, plan_segments, sample_segments

OnStep = Callable[[float, torch.Tensor], torch.Tensor | None]
_OVERLAP = 1  # the last picture of a segment is the first of the next


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

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is used."""
        return self.guidance_scale > 1

    def segments(self) -> list[Segment]:
        """Plan the passes.

        Returns:
            One or more segments in latent frames.
        """
        total, longest = (self.num_frames - 1) // 4 + 1, (self.segment_frames - 1) // 4 + 1
        return plan_segments(total, segment_latents=max(longest, 2), overlap=_OVERLAP)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MagicRequest:
    """What one video shall be.

    Args:
        picture: its first frame, [1, 3, H, W] in [-1, 1], on the device that computes.
        condition: texts with the prompt.
        negative: texts with the negative prompt; only read with guidance.
        config: sampling settings.
        seed: of all draws.
        noise: of the whole video [1, C, T, H/8, W/8] instead of drawing it.
        official_compat: draw the first segment's noise as the official code does.
    """

    picture: torch.Tensor
    condition: MagicCondition
    negative: MagicCondition | None
    config: MagicSampleConfig
    seed: int
    noise: torch.Tensor | None = None
    official_compat: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class MagicSegment:
    """New frames of a finished segment.

    Args:
        latent: [1, C, T, H/8, W/8].
        frames: [F, 3, H, W] in [-1, 1].
    """

    latent: torch.Tensor
    frames: torch.Tensor


def stream_segments(
    transformer: Any, vae: Any, *, request: MagicRequest, on_step: OnStep | None = None
) -> Iterator[MagicSegment]:
    """Make one video; each segment begins with the last picture of the one before, encoded anew.

    Latent frames are not carried over: the first one of a video stands for a single picture, and
    the model was trained to be given that one.

    Args:
        transformer: the velocity network.
        vae: the VAE.
        request: what to make.
        on_step: called after every update with its noise level and the latents; latents that it
            returns take their place.

    Yields:
        Segments, without the frame they share with the one before.
    """
    generator = torch.Generator().manual_seed(request.seed)
    pictures = [request.picture]

    def encode_last(_latent: Any = None, _overlap: int = 1) -> torch.Tensor:
        return encode_latent(vae, pictures[-1][:, :, None], generator=generator)

    def sample(segment: Segment, reference: torch.Tensor) -> torch.Tensor:
        noise = _noise(segment, request, reference, generator)
        return _sample_segment(transformer, noise, reference, request, on_step)

    reference = encode_last()
    for segment, latent in sample_segments(
        request.config.segments(), reference=reference, sample=sample, carry=encode_last
    ):
        video = decode_latent(vae, latent) * 2 - 1
        pictures[:] = [video[:, :, -1]]
        skip = segment.overlap  # one latent frame, which stands for one picture
        yield MagicSegment(latent[:, :, skip:], video[0, :, skip:].transpose(0, 1).float())


def _noise(
    segment: Segment, request: MagicRequest, reference: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    batch, channels, _, height, width = reference.shape
    shape = (batch, channels, segment.num_latents, height, width)
    if request.noise is not None:
        noise = request.noise[:, :, segment.start : segment.stop]
    elif request.official_compat and segment.index == 0:
        noise = official_noise(shape, generator, dtype=reference.dtype)
    else:
        noise = chunk_noise(request.seed, segment.index, shape=shape)
    return noise.to(reference.device)


def _sample_segment(
    transformer: Any,
    noise: torch.Tensor,
    reference: torch.Tensor,
    request: MagicRequest,
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
    positive = partial(one, request.condition)
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

    Returns:
        uint8 [H, W, 3].

    Source: spec/training.md 2, text-to-image as the same network at one frame.
    """
    factor, channels = int(vae.config.spatial_compression_ratio), int(vae.config.latent_channels)
    shape = (1, channels, 1, size[0] // factor, size[1] // factor)
    noise = chunk_noise(seed, 0, shape=shape).to(vae.device)
    prior = noise.new_zeros(1, channels + 1, *shape[2:])

    def one(condition: MagicCondition, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return predict_velocity(transformer, x, sigma=sigma, condition=condition, prior=prior)

    against = None if negative is None else partial(one, negative)
    scale = config.guidance_scale if config.guided else 1.0
    velocity = guided(partial(one, condition), against, scale=scale)
    latent = sample_euler(velocity, noise, sigmas=sigma_grid(config.num_steps, shift=config.shift))
    frame = decode_latent(vae, latent)[0, :, 0].float().clamp(0, 1)
    pixels: Pixels = (frame * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels
