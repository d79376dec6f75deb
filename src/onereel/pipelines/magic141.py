"""Magic 1-For-1 from a picture and a prompt, with the arguments that diffusers users expect."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_pipeline import HunyuanVideoLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from transformers import CLIPTextModel, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from onereel.core.config import from_mapping
from onereel.core.errors import ConfigError, ShapeError
from onereel.media.image import check_frames, rgb_from_pil
from onereel.media.scale import Pixels
from onereel.models.magic_dit.model import MagicCondition, use_trimmed_text
from onereel.models.magic_vae.model import VaeTiles, set_tiles, use_frame_causal_attention
from onereel.models.text.llava import (
    encode_image_tokens,
    encode_pooled,
    encode_prompt_tokens,
    join_tokens,
)
from onereel.pipelines.loading import find_source
from onereel.pipelines.magic_sampling import (
    MagicRequest,
    MagicSampleConfig,
    fit_picture,
    stream_segments,
)
from onereel.pipelines.pictures import OUTPUT_TYPES, collect, draw_seeds
from onereel.runtime.magic_rounded import ROUNDED_PARTS
from onereel.runtime.magic_source import load_part, magic_files
from onereel.runtime.source import MAGIC141, ModelSource


@dataclass
class Magic141PipelineOutput(BaseOutput):
    """Frames: a list per video of PIL pictures, or an array or tensor [B, F, ...]."""

    frames: Any


class Magic141ImageToVideoPipeline(DiffusionPipeline, HunyuanVideoLoraLoaderMixin):
    """Picture and text to video; LoRA adapters of HunyuanVideo load in either layout.

    Args:
        tokenizer: Llama's.
        text_encoder: LLaVA, which reads the prompt and looks at the picture.
        image_processor: CLIP's, for LLaVA.
        tokenizer_2: CLIP's.
        text_encoder_2: CLIP's text tower.
        transformer: the velocity network, with 33 input channels.
        vae: the VAE.
        sampling: the checkpoint's sampling settings, see `MagicSampleConfig`.

    Arguments of a call:
        image: PIL picture or uint8 array [H, W, 3]; scaled to fill the size, centre kept.
        prompt: one or more texts.
        negative_prompt: used where `guidance_scale` is above 1; None takes the checkpoint's.
        height: pixels, a multiple of 16; None takes the checkpoint's, or where it has none the
            bucket nearest to the picture.
        width: likewise, both or none.
        num_frames: frames to return, 4 n + 1; above the checkpoint's `segment_frames` the video is
            made in several segments.
        num_inference_steps: updates per segment.
        guidance_scale: strength towards the prompt.
        num_videos_per_prompt: videos per text.
        generator: gives the seeds.
        latents: noise [B, C, T, h, w] instead of drawn noise.
        output_type: `np` [B, F, H, W, 3] in [0, 1], `pt` [B, F, 3, H, W] in [0, 1], `pil`, or
            `latent` [B, C, T, h, w].
        return_dict: False returns a tuple.
        callback_on_step_end: called with (pipeline, step, timestep, tensors).
        callback_on_step_end_tensor_inputs: names of those tensors: `latents`.
        official_compat: draw noise as the official code does; a generator's initial seed is the
            official seed.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: LlavaForConditionalGeneration,
        *,
        image_processor: Any,
        tokenizer_2: PreTrainedTokenizerBase,
        text_encoder_2: CLIPTextModel,
        transformer: HunyuanVideoTransformer3DModel,
        vae: AutoencoderKLHunyuanVideo,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            image_processor=image_processor,
            tokenizer_2=tokenizer_2,
            text_encoder_2=text_encoder_2,
            transformer=transformer,
            vae=vae,
        )
        self.register_to_config(sampling=dict(sampling or {}))
        if transformer is not None:
            use_trimmed_text(transformer)
        if vae is not None:
            use_frame_causal_attention(vae)
            set_tiles(vae, VaeTiles())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a pipeline.

        Args:
            pretrained_model_name_or_path: a shipped name such as `toybox-magic`, a folder that
                `save_pretrained` wrote, or a hub id of such a folder (which diffusers downloads).
            **kwargs: components to use instead of the stored ones, `dtype`, and whatever else
                diffusers takes.

        Returns:
            The pipeline.

        Raises:
            ConfigError: nothing is known under the name, or it is a checkpoint of MAGI-1.
        """
        source = find_source(pretrained_model_name_or_path)
        if source is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if source.family != MAGIC141:
            raise ConfigError(
                f"{pretrained_model_name_or_path}", expected="a Magic 1-For-1 checkpoint",
                got="one of MAGI-1", hint="load it with Magi1Pipeline",
            )  # fmt: skip
        kwargs = _rounded_parts(source, kwargs) | kwargs
        pipeline = super().from_pretrained(str(source.path), **kwargs)
        if not {"dtype", "torch_dtype"} & set(kwargs):
            # transformers keeps the file's dtype where diffusers takes float32.
            for name in ("text_encoder", "text_encoder_2"):
                if name not in kwargs:
                    getattr(pipeline, name).to(torch.float32)
        return pipeline

    @property
    def sampling(self) -> MagicSampleConfig:
        """The checkpoint's sampling settings."""
        return from_mapping(MagicSampleConfig, dict(self.config.sampling), where="sampling")

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | Sequence[str], image_tokens: torch.Tensor
    ) -> list[MagicCondition]:
        """Encode prompts for one picture.

        Args:
            prompt: one or more texts.
            image_tokens: LLaVA's view of the picture [1, S, K], see `encode_image`.

        Returns:
            A condition per prompt, of one row.
        """
        texts, device = (
            [prompt] if isinstance(prompt, str) else list(prompt),
            self._execution_device,
        )
        settings = self.sampling
        features = encode_prompt_tokens(
            texts,
            self.tokenizer,
            language_model=self.text_encoder,
            template=settings.prompt_template,
            crop=settings.prompt_crop,
            num_tokens=settings.prompt_tokens,
            device=device,
        )
        joined = join_tokens(image_tokens, features)
        pooled = encode_pooled(texts, self.tokenizer_2, encoder=self.text_encoder_2, device=device)
        rows = zip(joined.embeds, joined.mask, pooled, strict=True)
        return [MagicCondition(*(tensor[None] for tensor in row)) for row in rows]

    @torch.no_grad()
    def encode_image(self, pixels: Pixels) -> torch.Tensor:
        """Let LLaVA look at a picture.

        Args:
            pixels: uint8 [H, W, 3], not cut to the video's shape.

        Returns:
            [1, S, K].
        """
        return encode_image_tokens(
            PIL.Image.fromarray(pixels),
            self.tokenizer,
            image_processor=self.image_processor,
            llava=self.text_encoder,
            template=self.sampling.image_template,
            device=self._execution_device,
        )

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the arguments that diffusers users expect
        self,
        image: PIL.Image.Image | Pixels | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        official_compat: bool = False,
    ) -> Any:
        """Make videos that start with a picture; the arguments are described at the class.

        Returns:
            Magic141PipelineOutput, or a tuple.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
            ShapeError: (also a ValueError) an array is no picture, or `latents` has another shape
                than the video.
        """
        return self._run({k: v for k, v in locals().items() if k != "self"})

    def _run(self, options: dict[str, Any]) -> Any:
        """Make all videos of a call."""
        self.check_inputs(options)
        config = self._config(options)
        image, prompt, latents = options["image"], options["prompt"], options["latents"]
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [text for text in texts for _ in range(options["num_videos_per_prompt"])]
        seeds = self._seeds(options, len(texts))
        pixels = rgb_from_pil(image) if isinstance(image, PIL.Image.Image) else image
        picture = self._picture(pixels, options, config)
        self._check_latents(latents, config, count=len(texts), picture=picture)
        tokens = self.encode_image(pixels)
        conditions = self.encode_prompt(texts, tokens)
        negative = self.encode_prompt(config.negative_prompt, tokens)[0] if config.guided else None
        videos = []
        for index, (condition, seed) in enumerate(zip(conditions, seeds, strict=True)):
            request = MagicRequest(
                picture=picture,
                conditions=(condition,),
                negative=negative,
                config=config,
                seed=seed,
                noise=None if latents is None else latents[index : index + 1],
                official_compat=options["official_compat"],
            )
            videos.append(self._one(request, options))
        self.maybe_free_model_hooks()
        frames = collect(videos, options["output_type"])
        return Magic141PipelineOutput(frames=frames) if options["return_dict"] else (frames,)

    def check_inputs(self, options: Mapping[str, Any]) -> None:
        """Refuse wrong arguments before any work.

        Args:
            options: the arguments of `__call__`.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
            ShapeError: (also a ValueError) an array is not uint8 [H, W, 3].
        """
        image, prompt = options["image"], options["prompt"]
        if not isinstance(image, PIL.Image.Image | np.ndarray):
            got = type(image).__name__
            raise ConfigError("image", expected="a PIL picture or array [H, W, 3]", got=got)
        if isinstance(image, np.ndarray):
            check_frames(image[None])
        if not prompt or not isinstance(prompt, str | list | tuple):
            raise ConfigError("prompt", expected="one or more texts", got=repr(prompt))
        height, width = options["height"], options["width"]
        if (height is None) != (width is None):
            raise ConfigError("height, width", expected="both or none", got=f"{height}, {width}")
        for name, size in (("height", height), ("width", width)):
            if size is not None and (size < 16 or size % 16):
                near = max(16, round(size / 16) * 16)
                raise ConfigError(name, expected="a multiple of 16", got=size, hint=f"use {near}")
        if options["output_type"] not in OUTPUT_TYPES:
            expected = f"one of {', '.join(OUTPUT_TYPES)}"
            raise ConfigError("output_type", expected=expected, got=options["output_type"])
        if set(options["callback_on_step_end_tensor_inputs"]) - set(self._callback_tensor_inputs):
            raise ConfigError(
                "callback_on_step_end_tensor_inputs",
                expected=f"some of {self._callback_tensor_inputs}",
                got=list(options["callback_on_step_end_tensor_inputs"]),
            )

    def _config(self, options: Mapping[str, Any]) -> MagicSampleConfig:
        """Change the checkpoint's settings where the call says so."""
        wishes = {
            "num_frames": options["num_frames"],
            "num_steps": options["num_inference_steps"],
            "guidance_scale": options["guidance_scale"],
            "negative_prompt": options["negative_prompt"],
        }
        given = {name: value for name, value in wishes.items() if value is not None}
        return dataclasses.replace(self.sampling, **given)

    def _seeds(self, options: Mapping[str, Any], count: int) -> list[int]:
        generator, latents = options["generator"], options["latents"]
        if options["official_compat"] and isinstance(generator, torch.Generator):
            return [generator.initial_seed() + i for i in range(count)]
        return draw_seeds(generator, count, num_latents=None if latents is None else len(latents))

    def _picture(
        self, pixels: Pixels, options: Mapping[str, Any], config: MagicSampleConfig
    ) -> torch.Tensor:
        """Bring the picture to the video's size: [1, 3, H, W]."""
        size = (options["height"], options["width"])
        return fit_picture(pixels, config, size=size).to(self._execution_device)

    def _check_latents(
        self,
        latents: torch.Tensor | None,
        config: MagicSampleConfig,
        *,
        count: int,
        picture: torch.Tensor,
    ) -> None:
        factor = int(self.vae.config.spatial_compression_ratio)
        sizes = [size // factor for size in picture.shape[2:]]
        channels = int(self.vae.config.latent_channels)
        wanted = (count, channels, config.segments()[-1].stop, *sizes)
        if latents is not None and tuple(latents.shape) != wanted:
            raise ShapeError("latents", expected=str(wanted), got=tuple(latents.shape))

    def _one(self, request: MagicRequest, options: Mapping[str, Any]) -> torch.Tensor:
        """Make one video: [F, 3, H, W], or its latent [C, T, h, w]."""
        steps = request.config.num_steps * len(request.config.segments())
        bar, callback = self.progress_bar(total=steps), options["callback_on_step_end"]
        numbers = itertools.count()

        def on_step(sigma: float, latents: torch.Tensor) -> torch.Tensor | None:
            bar.update()
            if callback is None:
                return None
            tensors = {"latents": latents}
            names = options["callback_on_step_end_tensor_inputs"]
            shown = {name: tensors[name] for name in names}
            result = callback(self, next(numbers), sigma * 1000, shown)
            changed: torch.Tensor | None = (result or {}).get("latents")
            return changed

        with bar:
            segments = list(
                stream_segments(self.transformer, self.vae, request=request, on_step=on_step)
            )
        if options["output_type"] == "latent":
            return torch.cat([segment.latent[0] for segment in segments], dim=1).cpu()
        return torch.cat([segment.frames.cpu() for segment in segments])


def _rounded_parts(source: ModelSource, given: Mapping[str, Any]) -> dict[str, Any]:
    """Load the parts whose weights are stored in few bits, which diffusers cannot."""
    files = magic_files(source)
    dtype = given.get("dtype", given.get("torch_dtype", torch.float32))
    return {
        part: load_part(files, part, dtype=dtype, device=torch.device("cpu"))
        for part in ROUNDED_PARTS
        if part not in given and files.level(part) is not None
    }
