"""Magic 1-For-1 from a prompt alone: first a picture, then its video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magic_dit.model import MagicCondition
from onereel.pipelines.magic141 import Magic141ImageToVideoPipeline, Magic141PipelineOutput
from onereel.pipelines.magic_sampling import sample_picture, usual_size
from onereel.pipelines.picture_sources import GivenPicture, PictureSource, SourcePicture


@dataclass
class Magic141TextPipelineOutput(Magic141PipelineOutput):
    """Frames, the pictures that they start with, and where those come from."""

    images: list[PIL.Image.Image]
    origins: list[str]


class Magic141Pipeline(Magic141ImageToVideoPipeline):
    """Text to video as text to image, then image to video; the picture in between is shown.

    The picture comes from `source`: a text-to-image pipeline, a folder that is searched, a given
    picture (`pipelines.picture_sources`), or, where none is set, this model itself at one frame,
    which needs weights that were trained for that.

    Arguments of a call: those of `Magic141ImageToVideoPipeline` without `image` as the first, and
        source: of this call; None takes the pipeline's.
        image: the picture itself, for instance one of an earlier call's `images`.
    """

    source: PictureSource | None = None

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # noqa: PLR0913 - what diffusers users expect
        self,
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
        source: PictureSource | None = None,
        image: Any = None,
    ) -> Any:
        """Make videos of texts; the arguments are described at the class.

        Returns:
            Magic141TextPipelineOutput, or a tuple of frames, images and origins.

        Raises:
            ConfigError: (also a ValueError) an argument is wrong.
            ShapeError: (also a ValueError) a source's picture is none, or `latents` has another
                shape than the video.
        """
        given = {k: v for k, v in locals().items() if k != "self"}
        if given.pop("image") is not None and given.pop("source", None) is not None:
            raise ConfigError("image and source", expected="one of them", got="both")
        given.pop("source", None)
        options = {**given, "num_videos_per_prompt": 1, "return_dict": True}
        if not prompt or not isinstance(prompt, str | list | tuple):
            raise ConfigError("prompt", expected="one or more texts", got=repr(prompt))
        if latents is not None:
            raise ConfigError("latents", hint="give them to Magic141ImageToVideoPipeline")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [text for text in texts for _ in range(num_videos_per_prompt)]
        seeds = self._seeds(given, len(texts))
        size = self._size(given)
        chosen = GivenPicture(image) if image is not None else source or self.source or self.picture
        frames, pictures = [], []
        for text, seed in zip(texts, seeds, strict=True):
            picture = chosen(text, **size, seed=derive_seed(seed, "picture"))
            pictures.append(picture)
            video = options | size | {"prompt": text, "image": picture.pixels}
            video["generator"] = torch.Generator().manual_seed(seed)
            frames.append(self._run(video).frames)
        images = [PIL.Image.fromarray(picture.pixels) for picture in pictures]
        origins = [picture.origin for picture in pictures]
        joined = _join(frames)
        if not return_dict:
            return joined, images, origins
        return Magic141TextPipelineOutput(frames=joined, images=images, origins=origins)

    @torch.no_grad()
    def picture(self, prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        """Make a picture with this model, as a video of one frame without a first picture.

        Args:
            prompt: what it shows.
            height: pixels, a multiple of 16.
            width: pixels, a multiple of 16.
            seed: of the noise.

        Returns:
            The picture.
        """
        config = self.sampling
        pixels = sample_picture(
            self.transformer,
            self.vae,
            condition=self.encode_text(prompt),
            negative=self.encode_text(config.negative_prompt) if config.guided else None,
            config=config,
            size=(height, width),
            seed=seed,
            device=self._execution_device,
        )
        self.maybe_free_model_hooks()
        return SourcePicture(pixels, f"{type(self).__name__} at one frame, seed {seed}")

    def encode_text(self, prompt: str) -> MagicCondition:
        """Encode a prompt without a picture.

        Args:
            prompt: the text.

        Returns:
            A condition of one row.
        """
        nothing = torch.empty(1, 0, int(self.text_encoder.config.text_config.hidden_size))
        return self.encode_prompt(prompt, nothing)[0]

    def _size(self, options: dict[str, Any]) -> dict[str, int]:
        """Choose the size: the one asked for, the checkpoint's, or the widest bucket."""
        height, width = options["height"], options["width"]
        if height is None or width is None:
            usual = usual_size(self.sampling)
            height, width = height or usual[0], width or usual[1]
        return {"height": height, "width": width}


def _join(videos: list[Any]) -> Any:
    """Put the outputs of one-video calls together."""
    if isinstance(videos[0], list):
        return [video[0] for video in videos]
    if isinstance(videos[0], torch.Tensor):
        return torch.cat(videos)
    import numpy as np

    return np.concatenate(videos)
