"""The MAGI-1 pipelines, with the arguments that diffusers users expect."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from onereel.core.config import check_keys
from onereel.core.errors import ConfigError
from onereel.pipelines.base import Magi1BasePipeline, Magi1PipelineOutput
from onereel.pipelines.pictures import to_frames
from onereel.pipelines.stream import Prefix, VideoRequest, encode_image, encode_video

__all__ = [
    "Magi1ImageToVideoPipeline",
    "Magi1Pipeline",
    "Magi1PipelineOutput",
    "Magi1VideoToVideoPipeline",
]


class Magi1Pipeline(Magi1BasePipeline):
    """Text to video.

    Arguments of a call:
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
    """

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
        """Make videos from text; the arguments are described at the class.

        Returns:
            Magi1PipelineOutput, or a tuple.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
        """
        options = {k: v for k, v in locals().items() if k != "self"}
        return self._run({**options, "keep_prefix": False})


class Magi1ImageToVideoPipeline(Magi1BasePipeline):
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
        frames = to_frames([given], height=request.height, width=request.width)
        return encode_image(self.parts(), frames[0], request=request)


class Magi1VideoToVideoPipeline(Magi1BasePipeline):
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
        frames = to_frames(list(given), height=request.height, width=request.width)
        return encode_video(self.parts(), frames, request=request)


def _call_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of `Magi1Pipeline.__call__`, refusing unknown names."""
    parameters = inspect.signature(Magi1Pipeline.__call__).parameters
    defaults = {n: p.default for n, p in parameters.items() if n not in ("self", "prompt")}
    check_keys(options, {*defaults, "keep_prefix"}, where="arguments")
    return {**defaults, **options}
