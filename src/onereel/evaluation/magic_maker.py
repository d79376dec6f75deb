"""Videos of a Magic 1-For-1 checkpoint for an evaluation: a picture first, then its segments."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch

from onereel.core.allocator import keep_freed_memory
from onereel.core.config import from_mapping
from onereel.core.device import parse_dtype, pick_device, pin_threads
from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.evaluation.generate import Frames, Made, ModelChoice, Order
from onereel.models.magic_vae.model import decode_latent, encode_latent, to_uint8
from onereel.pipelines.magic_parts import MagicParts, Place
from onereel.pipelines.magic_sampling import (
    MagicRequest,
    MagicSampleConfig,
    fit_picture,
    sample_picture,
    stream_segments,
    usual_size,
)
from onereel.pipelines.pictures import pixels_to_frames
from onereel.runtime.magic_source import (
    MagicFiles,
    default_dtype,
    hash_files,
    load_part,
    magic_files,
)
from onereel.runtime.source import resolve_model

_TEXT_FRAMES = 24  # every text of an order holds for so many frames


def describe_magic(choice: ModelChoice) -> dict[str, Any]:
    """Say exactly what would make the videos, without loading it; see `describe_model`."""
    files = magic_files(resolve_model(choice.model))
    config, place = _config(choice, files), _place(choice, files)
    height, width = usual_size(config)
    return {
        "model": files.name,
        "model_hash": hash_files(files),
        **choice.describe_loras(),
        "height": height,
        "width": width,
        "fps": config.fps,
        "device": str(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "sampling": dataclasses.asdict(config),
    }


class MagicMaker:
    """Makes videos with a checkpoint, in the way `onereel generate` does.

    Args:
        choice: the model and its settings.

    Raises:
        ConfigError: there is no such model, or a setting does not fit it.
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, choice: ModelChoice) -> None:
        pin_threads()
        self._files = magic_files(resolve_model(choice.model))
        self._config = _config(choice, self._files)
        place = _place(choice, self._files)
        keep_freed_memory(place.device)
        self._parts = MagicParts(self._files, place, loras=choice.loras)

    @torch.no_grad()
    def make(self, order: Order) -> Made:
        """Make one video.

        Args:
            order: what to make; frames of a video cannot be given.

        Returns:
            The video; numbers that are not finite are named as its problem.

        Raises:
            ConfigError: frames of a video are given, or no picture to a model that makes none.
        """
        start = time.perf_counter()
        if order.given is not None and not order.is_image:
            raise ConfigError(f"model '{self._files.name}': given frames", expected="one picture",
                              got=f"{len(order.given)} frames of a video")  # fmt: skip
        frames = 4 * math.ceil((order.num_frames - 1) / 4) + 1
        config = dataclasses.replace(self._config, num_frames=frames)
        pixels = self._picture(order, config) if order.given is None else order.given[0]
        texts, device = self._parts.texts, self._parts.place.device
        tokens = texts.encode_image(pixels)
        prompts = [_text_at(order, segment.first_frame()) for segment in config.segments()]
        negative = texts.encode_prompt(config.negative_prompt, tokens)[0] if config.guided else None
        request = MagicRequest(
            picture=fit_picture(pixels, config, size=usual_size(config)).to(device),
            conditions=tuple(texts.encode_prompt(prompts, tokens)),
            negative=negative,
            config=config,
            seed=order.seed,
        )
        pieces = []
        for piece in stream_segments(self._parts.transformer, self._parts.vae, request=request):
            pieces.append(piece.frames.cpu())
        video = torch.cat(pieces)[: order.num_frames]
        problem = "" if torch.isfinite(video).all() else "the model's frames hold NaN or infinity"
        made = to_uint8(video / 2 + 0.5).permute(0, 2, 3, 1).numpy()
        return Made(frames=made, seconds=time.perf_counter() - start, problem=problem)

    def _picture(self, order: Order, config: MagicSampleConfig) -> np.ndarray:
        """Let the model make the first picture."""
        if not self._files.makes_pictures:
            raise ConfigError(f"model '{self._files.name}'", expected="a given picture", got="none")
        texts = self._parts.texts
        return sample_picture(
            self._parts.transformer,
            self._parts.vae,
            condition=texts.encode_text(order.texts[0]),
            negative=texts.encode_text(config.negative_prompt) if config.guided else None,
            config=config,
            size=usual_size(config),
            seed=derive_seed(order.seed, "picture"),
        )


class MagicRoundTrip:
    """Encodes and decodes videos whole; the last frame is repeated to fill the last latent one.

    Args:
        choice: the model, and where to run.
    """

    def __init__(self, choice: ModelChoice) -> None:
        files = magic_files(resolve_model(choice.model), needed=("vae",))
        place = _place(choice, files)
        self._vae = load_part(files, "vae", dtype=place.dtype, device=place.device)
        self.name, self.model_hash = files.name, hash_files(files, parts=("vae",))

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Frames:
        """Pass a video through the VAE.

        Args:
            frames: uint8 [F, H, W, 3].

        Returns:
            uint8 of the same shape.
        """
        padding = np.repeat(frames[-1:], -(len(frames) - 1) % 4, axis=0)
        video = pixels_to_frames(np.concatenate((frames, padding))).transpose(0, 1)[None]
        latent = encode_latent(self._vae, video.to(self._vae.device))
        made = to_uint8(decode_latent(self._vae, latent)[0])
        return made.permute(1, 2, 3, 0)[: len(frames)].cpu().numpy()


def _text_at(order: Order, frame: int) -> str:
    return order.texts[min(frame // _TEXT_FRAMES, len(order.texts) - 1)]


def _config(choice: ModelChoice, files: MagicFiles) -> MagicSampleConfig:
    config = from_mapping(MagicSampleConfig, files.sampling, where=f"{files.name}: sampling")
    changes = {
        "num_steps": choice.steps,
        "guidance_scale": choice.guidance,
        "height": choice.height,
        "width": choice.width,
        "fps": choice.fps,
    }
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(config, **given)


def _place(choice: ModelChoice, files: MagicFiles) -> Place:
    device = pick_device(choice.device)
    dtype = parse_dtype(choice.dtype) if choice.dtype else default_dtype(files, device)
    return Place(device=device, dtype=dtype)
