"""The MAGI-1 pipelines, with the arguments that diffusers users expect."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.media.image import resize_frames
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text import encode_prompts
from onereel.models.text.special_tokens import ConditioningFlags, SpecialTokens
from onereel.pipelines.lora import Magi1LoraLoaderMixin
from onereel.pipelines.stream import (
    MagiParts,
    Prefix,
    VideoChunk,
    VideoRequest,
    check_distillation,
    chunk_captions,
    count_chunks,
    encode_image,
    encode_video,
    make_engine,
    sample_config,
    stream_chunks,
    with_guidance,
)
from onereel.samplers.guidance import GuidanceRuntime
from onereel.samplers.plan import ChunkCall, ChunkSampleConfig

_OUTPUT_TYPES = ("np", "pt", "pil", "latent")
_PR_DEFAULTS = {"height": 480, "width": 832, "num_frames": 81, "num_steps": 50}
_RECOMPILES = 64  # window sizes, with and without history, times guidance passes


@dataclass
class Magi1PipelineOutput(BaseOutput):
    """Frames: a list per video of PIL pictures, or an array or tensor [B, F, ...]."""

    frames: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Text of one video: encoded prompts, one per generated chunk.

    Args:
        features: distinct visible text tokens [S, K].
        per_chunk: index into `features` per generated chunk; the last one goes on.
        negative: visible tokens of the negative prompt, or None.
    """

    features: tuple[torch.Tensor, ...]
    per_chunk: tuple[int, ...] = (0,)
    negative: torch.Tensor | None = None

    def rows(self, num_chunks: int) -> list[torch.Tensor]:
        """List the text of each generated chunk."""
        last = len(self.per_chunk) - 1
        return [self.features[self.per_chunk[min(i, last)]] for i in range(num_chunks)]


class _Magi1Pipeline(DiffusionPipeline, Magi1LoraLoaderMixin):
    """What the three pipelines share.

    Args:
        tokenizer: T5 tokenizer.
        text_encoder: T5 encoder.
        transformer: the velocity network.
        vae: the VAE.
        scheduler: accepted for compatibility, unused: the sampler is MAGI's own.
        sampling: the checkpoint's sampling settings (see ChunkSampleConfig) and its default
            height, width, num_frames and fps.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["scheduler"]
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        *,
        transformer: Magi1Transformer3DModel,
        vae: AutoencoderKLMagi1,
        scheduler: Any = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        self.register_to_config(sampling=dict(sampling or {}))
        self.special_tokens: SpecialTokens | None = None
        self.guidance_runtime = GuidanceRuntime()
        self.vae_scale_factor_temporal = int(vae.config.patch_size[0]) if vae else 4
        self.vae_scale_factor_spatial = int(vae.config.patch_size[1]) if vae else 8
        self._interrupt = False
        self._guidance_scale: float | None = None
        self._attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._current_timestep: float | None = None

    @property
    def guidance_scale(self) -> float | None:
        """Guidance strength of the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call used guidance."""
        return self._guidance_scale is None or self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Model steps of the last video."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> float | None:
        """Flow time of the newest chunk in flight."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after the current step."""
        return self._interrupt

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Arguments passed to the transformer's attention."""
        return self._attention_kwargs

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The checkpoint's sampling settings."""
        stored = self.config.get("sampling")
        return stored if isinstance(stored, Mapping) else {}

    def load_special_tokens_from_file(self, path: str) -> None:
        """Read the table of special tokens (HQ, duration, style).

        Args:
            path: the official .npz or a safetensors file.

        Raises:
            CheckpointError: the file is not such a table.
        """
        self.special_tokens = SpecialTokens.load(path)

    def parts(self) -> MagiParts:
        """Gather the networks for the stream."""
        return MagiParts(
            transformer=self.transformer,
            vae=self.vae,
            device=torch.device(self._execution_device),
            special_tokens=self.special_tokens,
            attention_kwargs=self._attention_kwargs,
            runtime=self.guidance_runtime,
        )

    def encode_features(self, prompts: Sequence[str], max_length: int) -> list[torch.Tensor]:
        """Encode prompts to their visible text tokens [S, K], each distinct prompt once."""
        limit = min(max_length, int(self.transformer.config.caption_max_length))
        device = self._execution_device
        features = encode_prompts(
            list(prompts), self.tokenizer, self.text_encoder, max_length=limit, device=device
        )
        return features.visible()

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        max_sequence_length: int = 800,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode prompts as padded tensors.

        Args:
            prompt: one or more texts.
            negative_prompt: the same number, or None for the learned null caption.
            max_sequence_length: text tokens at most.

        Returns:
            prompt_embeds [B, S, K], negative_prompt_embeds, prompt_mask [B, S], negative_mask.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        positive = self.encode_features(prompts, max_sequence_length)
        if negative_prompt is None:
            captions = chunk_captions(
                self.parts(), positive[:1], num_prefix_chunks=0, flags=ConditioningFlags()
            )
            negative = [captions.null] * len(prompts)
        else:
            texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
            negative = self.encode_features(list(texts), max_sequence_length) * (
                len(prompts) if len(texts) == 1 else 1
            )
        (embeds, mask), (negatives, negative_mask) = _pad(positive), _pad(negative)
        return embeds, negatives, mask, negative_mask

    def check_inputs(self, options: Mapping[str, Any]) -> None:
        """Refuse wrong arguments before any work.

        Args:
            options: the arguments of `__call__`.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
        """
        for name in ("height", "width"):
            size = options[name]
            if size is not None and size % 16:
                raise ConfigError(
                    name, expected="a multiple of 16", got=size,
                    hint=f"use {max(16, round(size / 16) * 16)}",
                )  # fmt: skip
        prompt, embeds = options["prompt"], options["prompt_embeds"]
        if (prompt is None) == (embeds is None):
            raise ConfigError("prompt", expected="exactly one of prompt and prompt_embeds")
        if prompt is not None and not isinstance(prompt, str | list | tuple):
            raise ConfigError("prompt", expected="str or list", got=type(prompt).__name__)
        if options["output_type"] not in _OUTPUT_TYPES:
            expected = f"one of {', '.join(_OUTPUT_TYPES)}"
            raise ConfigError("output_type", expected=expected, got=options["output_type"])
        wrong = set(options["callback_on_step_end_tensor_inputs"]) - set(
            self._callback_tensor_inputs
        )
        if wrong:
            raise ConfigError(
                "callback_on_step_end_tensor_inputs",
                expected=f"some of {self._callback_tensor_inputs}",
                got=sorted(wrong),
            )

    def request(self, options: Mapping[str, Any]) -> VideoRequest:
        """Turn call arguments into a request, filling in the checkpoint's defaults.

        Args:
            options: the arguments of `__call__`.

        Returns:
            The request, without noise.
        """
        defaults = {**_PR_DEFAULTS, **self.sampling}
        distilled = options["enable_distillation"]
        if distilled is None:
            distilled = bool(self.transformer.config.enable_distillation)
        config = sample_config(self.sampling, distilled=distilled, num_steps=4)
        steps = options["num_inference_steps"] or defaults["num_steps"]
        config = with_guidance(
            sample_config(
                self.sampling,
                distilled=distilled,
                num_steps=round_steps(int(steps), config),
                near_clean_threshold=options["distill_nearly_clean_chunk_threshold"],
                official_compat=options["official_compat"],
            ),
            options["guidance_scale"],
            options["prev_chunk_scale"],
        )
        check_distillation(self.transformer, config)
        flags = ConditioningFlags(
            hq=options["use_hq_token"],
            duration=self.special_tokens is not None and options["use_duration_token"],
            three_d_model=options["use_3d_style"],
            two_d_anime=options["use_2d_anime_style"],
            static_first_frames=options["use_static_first_frames"],
            dynamic_first_frames=options["use_dynamic_first_frames"],
        )
        return VideoRequest(
            height=options["height"] or defaults["height"],
            width=options["width"] or defaults["width"],
            num_frames=options["num_frames"] or defaults["num_frames"],
            config=config,
            flags=flags,
            keep_prefix=options["keep_prefix"],
        )

    def stream(
        self,
        request: VideoRequest,
        prompts: Prompts,
        *,
        prefix: Prefix | None = None,
        on_step: Callable[[ChunkCall, torch.Tensor], torch.Tensor | None] | None = None,
    ) -> Iterator[VideoChunk]:
        """Make one video chunk by chunk, with flat memory.

        Args:
            request: what to make.
            prompts: encoded text.
            prefix: given frames.
            on_step: called after every model step.

        Yields:
            Decoded chunks.
        """
        parts = self.parts()
        num_chunks = count_chunks(request, prefix, temporal_factor=parts.temporal_factor)
        given = 0 if prefix is None else prefix.latent.shape[2] // request.config.chunk_width
        captions = chunk_captions(
            parts,
            prompts.rows(max(1, num_chunks - given)),
            num_prefix_chunks=given,
            flags=request.flags,
            negative=prompts.negative,
        )
        engine = make_engine(
            parts,
            request,
            captions=lambda chunk: captions.cond[chunk],
            null_caption=captions.null,
            prefix=prefix,
            on_step=on_step,
        )
        self.engine = engine
        self._num_timesteps = engine.num_steps
        with _recompile_limit(self.transformer):
            yield from stream_chunks(parts, request, engine, prefix)

    def _run(self, options: dict[str, Any], given: Any = None) -> Any:
        """Make all videos of a call."""
        self.check_inputs(options)
        self._interrupt = False
        self._guidance_scale = options["guidance_scale"]
        self._attention_kwargs = options["attention_kwargs"]
        request = self.request(options)
        prompts = self._prompts(options)
        seeds = _seeds(options["generator"], len(prompts), options["latents"])
        videos = []
        for index, (texts, seed) in enumerate(zip(prompts, seeds, strict=True)):
            single = _with(request, seed=seed, noise=_slice(options["latents"], index))
            videos.append(self._one(single, texts, given, options))
        self.maybe_free_model_hooks()
        frames = _collect(videos, options["output_type"])
        return Magi1PipelineOutput(frames=frames) if options["return_dict"] else (frames,)

    def _one(
        self, request: VideoRequest, prompts: Prompts, given: Any, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """Make one video: [F, 3, H, W], or its latent [C, T, h, w]."""
        prefix = self._prefix(given, request)
        callback = options["callback_on_step_end"]
        bar = self.progress_bar(total=self._steps_of(request, prefix))

        def on_step(call: ChunkCall, window: torch.Tensor) -> torch.Tensor | None:
            bar.update()
            self._current_timestep = call.next_times[-1]
            changed = None
            if callback is not None:
                values = {
                    "latents": window,
                    "prompt_embeds": prompts.features[0][None],
                    "negative_prompt_embeds": prompts.negative,
                }
                names = options["callback_on_step_end_tensor_inputs"]
                result = callback(self, call.step, call.next_times[-1], {k: values[k] for k in names})
                changed = (result or {}).get("latents")
            if self._interrupt:
                self.engine.stop()
            return changed

        with bar:
            chunks = list(self.stream(request, prompts, prefix=prefix, on_step=on_step))
        if options["output_type"] == "latent":
            return torch.cat([c.latent[0] for c in chunks], dim=1).cpu()
        return torch.cat([c.frames.cpu() for c in chunks])

    def _steps_of(self, request: VideoRequest, prefix: Prefix | None) -> int:
        config = request.config
        chunks = count_chunks(request, prefix, temporal_factor=self.vae_scale_factor_temporal)
        given = 0 if prefix is None else prefix.latent.shape[2] // config.chunk_width
        return (chunks - given + config.window_size - 1) * config.steps_per_stage

    def _prompts(self, options: Mapping[str, Any]) -> list[Prompts]:
        """Encode the texts of a call, one entry per video."""
        length, repeats = options["max_sequence_length"], options["num_videos_per_prompt"]
        negative = self._negative(options)
        if options["prompt_embeds"] is not None:
            mask = options["prompt_attention_mask"]
            rows = _visible(options["prompt_embeds"], mask)
            return [Prompts(features=(row,), negative=negative) for row in rows for _ in range(repeats)]
        if options["chunk_prompts"] is not None:
            texts = list(dict.fromkeys(options["chunk_prompts"]))
            order = tuple(texts.index(t) for t in options["chunk_prompts"])
            features = tuple(self.encode_features(texts, length))
            return [Prompts(features=features, per_chunk=order, negative=negative)] * repeats
        prompt = options["prompt"]
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = self.encode_features(texts, length)
        return [Prompts(features=(row,), negative=negative) for row in rows for _ in range(repeats)]

    def _negative(self, options: Mapping[str, Any]) -> torch.Tensor | None:
        """Encode the negative prompt; None and the empty string mean the learned null caption."""
        if options["negative_prompt_embeds"] is not None:
            return _visible(options["negative_prompt_embeds"], None)[0]
        text = options["negative_prompt"]
        if isinstance(text, list | tuple):
            if len(set(text)) > 1:
                raise ConfigError("negative_prompt", expected="one text for all videos")
            text = text[0] if text else None
        if text is None or not text.strip():
            return None
        return self.encode_features([text], options["max_sequence_length"])[0]

    def _prefix(self, given: Any, request: VideoRequest) -> Prefix | None:
        del given, request
        return None


class Magi1Pipeline(_Magi1Pipeline):
    """Text to video."""

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the arguments that diffusers users expect
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        prev_chunk_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        chunk_prompts: Sequence[str] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 800,
        use_hq_token: bool = False,
        use_duration_token: bool = True,
        use_3d_style: bool = False,
        use_2d_anime_style: bool = False,
        use_static_first_frames: bool = False,
        use_dynamic_first_frames: bool = False,
        enable_distillation: bool | None = None,
        distill_nearly_clean_chunk_threshold: float = 0.3,
        official_compat: bool = False,
    ) -> Any:
        """Make videos from text.

        Args:
            prompt: one or more texts.
            negative_prompt: replaces the learned null caption.
            height: pixels, a multiple of 16; None takes the checkpoint's.
            width: pixels, a multiple of 16; None takes the checkpoint's.
            num_frames: frames to return; None takes the checkpoint's.
            num_inference_steps: updates per chunk, rounded up to what the window allows.
            guidance_scale: strength towards the text; at most 1 is a single pass.
            prev_chunk_scale: strength towards earlier chunks.
            num_videos_per_prompt: videos per text.
            generator: gives the seed of the noise, which is drawn on the CPU per chunk.
            latents: noise [B, C, T, h, w] instead.
            prompt_embeds: encoded text [B, S, K] instead of `prompt`.
            prompt_attention_mask: its visible tokens [B, S]; None means all non-zero rows.
            negative_prompt_embeds: encoded negative prompt [1, S, K].
            chunk_prompts: a text per chunk of 24 frames; the last one goes on.
            output_type: `np` [B, F, H, W, 3] in [0, 1], `pt` [B, F, 3, H, W] in [0, 1], `pil`, or
                `latent`.
            return_dict: False returns a tuple.
            attention_kwargs: `scale` is the LoRA strength.
            callback_on_step_end: called with (pipeline, step, t, tensors).
            callback_on_step_end_tensor_inputs: names of those tensors.
            max_sequence_length: text tokens at most.
            use_hq_token: ask for high quality (needs special tokens).
            use_duration_token: tell each chunk how many follow (when special tokens are loaded).
            use_3d_style: ask for a rendered look.
            use_2d_anime_style: ask for a drawn look.
            use_static_first_frames: ask for a still beginning.
            use_dynamic_first_frames: ask for a lively beginning.
            enable_distillation: must agree with the checkpoint; None follows it.
            distill_nearly_clean_chunk_threshold: see ChunkSampleConfig.near_clean_threshold.
            official_compat: reproduce the official code's lengths and roundings.

        Returns:
            Magi1PipelineOutput, or a tuple.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
        """
        options = {k: v for k, v in locals().items() if k != "self"}
        return self._run({**options, "keep_prefix": False})


class Magi1ImageToVideoPipeline(_Magi1Pipeline):
    """Image and text to video; the image becomes the first latent frame."""

    @torch.no_grad()
    def __call__(
        self, image: Any = None, prompt: str | list[str] | None = None, **options: Any
    ) -> Any:
        """Make videos that start with an image.

        Args:
            image: PIL picture, array [H, W, 3] uint8, or tensor [3, H, W] in [0, 1]; stretched to
                the size.
            prompt: one or more texts.
            options: as for `Magi1Pipeline`.

        Returns:
            Magi1PipelineOutput, or a tuple.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
        """
        if image is None or isinstance(image, list | tuple):
            raise ConfigError("image", expected="one PIL picture, array or tensor", got=image)
        return self._run({**_call_options(options), "prompt": prompt, "keep_prefix": False}, image)

    def _prefix(self, given: Any, request: VideoRequest) -> Prefix | None:
        frames = to_frames([given], request.height, request.width)
        return encode_image(self.parts(), frames[0])


class Magi1VideoToVideoPipeline(_Magi1Pipeline):
    """Video and text to video: continues the end of the given video."""

    @torch.no_grad()
    def __call__(
        self, video: Any = None, prompt: str | list[str] | None = None, **options: Any
    ) -> Any:
        """Continue a video.

        Args:
            video: list of PIL pictures, or uint8 array [F, H, W, 3]; at least 4 frames.
            prompt: one or more texts.
            options: as for `Magi1Pipeline`, and `keep_prefix` (default True: `num_frames` counts
                the given frames, which come first in the result).

        Returns:
            Magi1PipelineOutput, or a tuple.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
        """
        if not isinstance(video, list | np.ndarray) or len(video) == 0:
            raise ConfigError("video", expected="a list of pictures", got=type(video).__name__)
        merged = {"keep_prefix": True, **_call_options(options), "prompt": prompt}
        return self._run(merged, video)

    def _prefix(self, given: Any, request: VideoRequest) -> Prefix | None:
        return encode_video(self.parts(), to_frames(list(given), request.height, request.width))


def round_steps(num_steps: int, config: ChunkSampleConfig) -> int:
    """Round a step count up to what window and kv ranges allow, warning when it changes.

    Args:
        num_steps: what was asked for.
        config: window size and kv ranges.

    Returns:
        The number of steps to run.
    """
    unit = math.lcm(config.window_size, max(1, len(config.noise2clean_kvrange)))
    rounded = max(1, math.ceil(num_steps / unit)) * unit
    if rounded != num_steps:
        warnings.warn(
            f"num_inference_steps: {num_steps} is not a multiple of {unit}; using {rounded}",
            stacklevel=2,
        )
    return rounded


def to_frames(pictures: Sequence[Any], height: int, width: int) -> torch.Tensor:
    """Turn pictures into frames of the wanted size, scaled as ffmpeg does.

    Args:
        pictures: PIL pictures, uint8 arrays [H, W, 3], or tensors [3, H, W] in [0, 1].
        height: pixels.
        width: pixels.

    Returns:
        float32 [F, 3, H, W] in [-1, 1].
    """
    arrays = [_to_array(picture) for picture in pictures]
    resized = resize_frames(np.stack(arrays), height=height, width=width)
    return torch.from_numpy(np.ascontiguousarray(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _to_array(picture: Any) -> np.ndarray[Any, Any]:
    if isinstance(picture, PIL.Image.Image):
        return np.asarray(picture.convert("RGB"))
    if isinstance(picture, torch.Tensor):
        picture = picture.squeeze(0) if picture.ndim == 4 else picture
        return (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ConfigError("picture", expected="uint8 [H, W, 3]", got=f"{array.dtype} {array.shape}")
    return array


def _call_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of `Magi1Pipeline.__call__`, refusing unknown names."""
    from onereel.core.config import check_keys  # noqa: PLC0415

    defaults = dict(Magi1Pipeline.__call__.__kwdefaults__)
    names = {*defaults, "negative_prompt", "keep_prefix"}
    check_keys(options, names, "arguments")
    return {"negative_prompt": None, **defaults, **options}


def _with(request: VideoRequest, **changes: Any) -> VideoRequest:
    import dataclasses  # noqa: PLC0415

    return dataclasses.replace(request, **changes)


def _slice(latents: torch.Tensor | None, index: int) -> torch.Tensor | None:
    return None if latents is None else latents[index : index + 1].float()


def _seeds(generator: Any, count: int, latents: torch.Tensor | None) -> list[int]:
    """Draw a seed per video; without a generator a random one."""
    if latents is not None and len(latents) != count:
        raise ConfigError("latents", expected=f"{count} videos", got=len(latents))
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise ConfigError("generator", expected=f"a list of {count}", got=len(generator))
        return [_draw(g) for g in generator]
    first = _draw(generator)
    return [first if i == 0 else derive_seed(first, "video", i) for i in range(count)]


def _draw(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(0, 2**62, (1,), generator=generator, device=device).item())


def _visible(embeds: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Cut padded text [B, S, K] to visible tokens."""
    keep = embeds.abs().sum(-1) > 0 if mask is None else mask.bool()
    return [row[kept].float() for row, kept in zip(embeds, keep, strict=True)]


def _pad(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    mask = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, mask


def _collect(videos: Sequence[torch.Tensor], output_type: str) -> Any:
    """Turn videos [F, 3, H, W] in [-1, 1] into the wanted form."""
    if output_type == "latent":
        return torch.stack(list(videos))
    pixels = torch.stack(list(videos)).clamp(-1, 1) / 2 + 0.5  # [B, F, 3, H, W]
    if output_type == "pt":
        return pixels
    arrays = pixels.permute(0, 1, 3, 4, 2).numpy()
    if output_type == "np":
        return arrays
    rounded = (arrays * 255).round().astype(np.uint8)
    return [[PIL.Image.fromarray(frame) for frame in video] for video in rounded]


@contextlib.contextmanager
def _recompile_limit(transformer: Any) -> Iterator[None]:
    """Let a compiled transformer see every window size; the default limit of 8 is too low."""
    if not hasattr(transformer, "_orig_mod"):
        yield
        return
    import torch._dynamo  # noqa: PLC0415 - only where something is compiled

    with torch._dynamo.config.patch(recompile_limit=_RECOMPILES):
        yield
