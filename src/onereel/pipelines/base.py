"""What the three MAGI-1 pipelines share: components, prompts, and the loop over videos."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from onereel.core.errors import ConfigError
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text import encode_prompts
from onereel.models.text.special_tokens import ConditioningFlags, SpecialTokens
from onereel.pipelines.captions import Captions
from onereel.pipelines.loading import find_source, official_components
from onereel.pipelines.lora import Magi1LoraLoaderMixin
from onereel.pipelines.parts import MagiParts
from onereel.pipelines.pictures import (
    OUTPUT_TYPES,
    collect,
    draw_seeds,
    pad_rows,
)
from onereel.pipelines.prompts import Prompts, prompts_of_call
from onereel.pipelines.sampling import SamplingWishes, make_config, round_steps
from onereel.pipelines.stream import (
    Prefix,
    VideoChunk,
    VideoRequest,
    check_distillation,
    chunks_of,
    make_engine,
    stream_chunks,
)
from onereel.runtime.verify import preflight
from onereel.samplers.engine import StepCallback
from onereel.samplers.guidance import GuidanceRuntime
from onereel.samplers.plan import ChunkCall, num_stages

_FALLBACK = {"height": 480, "width": 832, "num_frames": 81, "num_steps": 50, "fps": 24}
_RECOMPILES = 64  # window sizes, with and without history, times guidance passes
_TOKENS_FILE = "special_tokens.safetensors"


@dataclass
class Magi1PipelineOutput(BaseOutput):
    """Frames: a list per video of PIL pictures, or an array or tensor [B, F, ...]."""

    frames: Any


class Magi1BasePipeline(DiffusionPipeline, Magi1LoraLoaderMixin):
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a pipeline.

        Args:
            pretrained_model_name_or_path: a shipped name such as `toybox-magi`, a folder that
                `save_pretrained` or `onereel models convert` wrote, an official JSON config, or a
                hub id of such a folder (which diffusers downloads).
            **kwargs: components to use instead of the stored ones, `dtype` (or `torch_dtype`), and
                whatever else diffusers takes.

        Returns:
            The pipeline.

        Raises:
            ConfigError: nothing is known under the name.
            CheckpointError: a file is missing, damaged or does not fit.
        """
        source = find_source(pretrained_model_name_or_path)
        if source is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        names = ("tokenizer", "text_encoder", "transformer", "vae")
        given = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if source.official is not None:
            others = set(kwargs) - set(names) - {"torch_dtype", "dtype"}
            if others:
                raise ConfigError(
                    f"arguments {', '.join(sorted(others))}", expected="components or dtype",
                    hint="an official checkpoint knows no others",
                )  # fmt: skip
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            pipeline = cls(**official_components(source, given, dtype=dtype))
        else:
            if not given:
                preflight(source)
            pipeline = super().from_pretrained(str(source.path), **kwargs)
            if not {"dtype", "torch_dtype", "text_encoder"} & set(kwargs):
                # transformers keeps the file's dtype where diffusers takes float32.
                pipeline.text_encoder.to(torch.float32)
        tokens = source.special_tokens_file()
        if tokens is not None:
            pipeline.load_special_tokens_from_file(str(tokens))
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save all components, the sampling settings, and the special tokens if there are any.

        Args:
            save_directory: folder to write.
            **kwargs: as of diffusers.
        """
        super().save_pretrained(save_directory, **kwargs)
        if self.special_tokens is not None:
            self.special_tokens.save(Path(save_directory) / _TOKENS_FILE)

    @property
    def guidance_scale(self) -> float | None:
        """Guidance strength of the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call used guidance."""
        distilled = bool(self.transformer.config.enable_distillation)
        return not distilled and (self._guidance_scale is None or self._guidance_scale > 1)

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
            list(prompts),
            self.tokenizer,
            encoder=self.text_encoder,
            max_length=limit,
            device=device,
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
            captions = Captions(
                self.parts(),
                Prompts(features=(positive[0],)),
                num_chunks=1,
                num_given=0,
                flags=ConditioningFlags(),
            )
            negative = [captions.null] * len(prompts)
        else:
            texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
            negative = self.encode_features(list(texts), max_sequence_length) * (
                len(prompts) if len(texts) == 1 else 1
            )
        (embeds, mask), (negatives, negative_mask) = pad_rows(positive), pad_rows(negative)
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
            if size is not None and (size % 16 or size < 16):
                raise ConfigError(
                    name, expected="a multiple of 16", got=size,
                    hint=f"use {max(16, round(size / 16) * 16)}",
                )  # fmt: skip
        prompt = options["prompt"]
        names = ("prompt", "prompt_embeds", "chunk_prompts")
        given = [name for name in names if options[name] is not None]
        if len(given) != 1:
            expected = f"exactly one of {', '.join(names)}"
            raise ConfigError("prompt", expected=expected, got=" and ".join(given) or "none")
        if prompt is not None and not isinstance(prompt, str | list | tuple):
            raise ConfigError("prompt", expected="str or list", got=type(prompt).__name__)
        if options["output_type"] not in OUTPUT_TYPES:
            expected = f"one of {', '.join(OUTPUT_TYPES)}"
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
        defaults = {**_FALLBACK, **self.sampling}
        distilled = options["enable_distillation"]
        if distilled is None:
            distilled = bool(self.transformer.config.enable_distillation)
        steps = _either(options["num_inference_steps"], defaults["num_steps"])
        wishes = SamplingWishes(
            num_steps=round_steps(int(steps), self.sampling),
            guidance_scale=options["guidance_scale"],
            prev_chunk_scale=options["prev_chunk_scale"],
            near_clean_threshold=options["distill_nearly_clean_chunk_threshold"],
            official_compat=options["official_compat"],
        )
        config = make_config(self.sampling, wishes, distilled=distilled)
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
            fps=defaults["fps"],
            height=_either(options["height"], defaults["height"]),
            width=_either(options["width"], defaults["width"]),
            num_frames=_either(options["num_frames"], defaults["num_frames"]),
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
        on_step: StepCallback | None = None,
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
        engine = make_engine(parts, request, prompts=prompts, prefix=prefix, on_step=on_step)
        self.engine = engine
        self._num_timesteps = engine.num_steps
        with _recompile_limit(self.transformer):
            yield from stream_chunks(parts, request, chunks=engine.run(), prefix=prefix)

    def _run(self, options: dict[str, Any], given: Any = None) -> Any:
        """Make all videos of a call."""
        self.check_inputs(options)
        self._interrupt = False
        self._guidance_scale = options["guidance_scale"]
        self._attention_kwargs = options["attention_kwargs"]
        request = self.request(options)
        prompts = prompts_of_call(options, self.encode_features)
        latents = options["latents"]
        num_latents = None if latents is None else len(latents)
        seeds = draw_seeds(options["generator"], len(prompts), num_latents=num_latents)
        videos = []
        for index, (texts, seed) in enumerate(zip(prompts, seeds, strict=True)):
            noise = None if latents is None else latents[index : index + 1].float()
            single = dataclasses.replace(request, seed=seed, noise=noise)
            videos.append(self._one(single, texts, given, options))
            if self._interrupt:
                break
        self.maybe_free_model_hooks()
        frames = collect(videos, options["output_type"])
        return Magi1PipelineOutput(frames=frames) if options["return_dict"] else (frames,)

    def _one(
        self, request: VideoRequest, prompts: Prompts, given: Any, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """Make one video: [F, 3, H, W], or its latent [C, T, h, w]."""
        prefix = self._prefix(given, request)
        callback = options["callback_on_step_end"]
        config = request.config
        num_chunks, num_given = chunks_of(self.parts(), request, prefix=prefix)
        stages = num_stages(config, num_chunks=num_chunks, num_prefix_chunks=num_given)
        bar = self.progress_bar(total=stages * config.steps_per_stage)

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
                wanted = {name: values[name] for name in names}
                result = callback(self, call.step, call.next_times[-1], wanted)
                changed = (result or {}).get("latents")
            if self._interrupt:
                self.engine.stop()
            return changed

        with bar:
            chunks = list(self.stream(request, prompts, prefix=prefix, on_step=on_step))
        if options["output_type"] == "latent":
            if not chunks:  # interrupted before the first chunk was clean
                return torch.empty(self.vae.config.z_dim, 0, *self._latent_size(request))
            return torch.cat([c.latent[0] for c in chunks], dim=1).cpu()
        if not chunks:
            return torch.empty(0, 3, request.height, request.width)
        return torch.cat([c.frames.cpu() for c in chunks])

    def _latent_size(self, request: VideoRequest) -> tuple[int, int]:
        factor = self.vae_scale_factor_spatial
        return request.height // factor, request.width // factor

    def _prefix(self, given: Any, request: VideoRequest) -> Prefix | None:
        del given, request
        return None


def _either(wanted: Any, default: Any) -> Any:
    """Take what was asked for, also if it is zero."""
    return default if wanted is None else wanted


@contextlib.contextmanager
def _recompile_limit(transformer: Any) -> Iterator[None]:
    """Let a compiled transformer see every window size; the default limit of 8 is too low."""
    if not hasattr(transformer, "_orig_mod"):
        yield
        return
    import torch._dynamo  # noqa: PLC0415 - only where something is compiled

    with torch._dynamo.config.patch(recompile_limit=_RECOMPILES):
        yield
