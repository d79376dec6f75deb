"""Where the first picture of a text-to-video comes from: four sources, one signature.

A source is called with the prompt, the size and a seed, and gives a picture and a line that says
where it comes from. Anything with that signature will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.media.image import check_frames, rgb_from_pil
from onereel.media.scale import Pixels
from onereel.pipelines.picture_index import PictureIndex


@dataclass(frozen=True, slots=True, eq=False)
class SourcePicture:
    """The picture that a video will start with.

    Args:
        pixels: uint8 [H, W, 3], of any size.
        origin: where it comes from, for people.
        path: its file, where it is one that was found.
    """

    pixels: Pixels
    origin: str
    path: Path | None = None


class PictureSource(Protocol):
    """Makes or finds a picture for a text."""

    def __call__(self, prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        """Give a picture, ideally of that size."""
        ...


@dataclass(frozen=True, slots=True)
class GivenPicture:
    """The user's own picture.

    Args:
        image: a file, a PIL picture, or uint8 [H, W, 3].
    """

    image: Any

    def __call__(self, prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        """Return it as it is."""
        del prompt, height, width, seed
        if isinstance(self.image, str | Path):
            with PIL.Image.open(self.image) as image:
                return SourcePicture(rgb_from_pil(image), str(self.image))
        return SourcePicture(_pixels(self.image), "the given picture")


@dataclass(frozen=True, slots=True)
class FolderPicture:
    """The picture of a folder that fits the prompt best.

    Args:
        index: of the folder.
        least_similarity: refuse a picture below this cosine.
    """

    index: PictureIndex
    least_similarity: float = -1.0

    def __call__(self, prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        """Find it."""
        del height, width, seed
        (found,) = self.index.search(prompt)
        if found.similarity < self.least_similarity:
            raise ConfigError(
                f"no picture in {self.index.folder} fits '{prompt}'",
                expected=f"a similarity of {self.least_similarity:g}",
                got=f"{found.similarity:.3f} of {found.path.name}",
                hint="add pictures, or make one with a text-to-image model",
            )
        with PIL.Image.open(found.path) as image:
            pixels = rgb_from_pil(image)
        origin = f"{found.path} (similarity {found.similarity:.3f})"
        return SourcePicture(pixels, origin, found.path)


@dataclass(frozen=True, slots=True)
class ModelPicture:
    """A picture of any diffusers text-to-image pipeline.

    Args:
        pipeline: called with `prompt`, `height`, `width` and `generator`.
        options: more arguments of its call, such as `num_inference_steps`.
        multiple: sizes are rounded up to multiples of this, which all known pipelines take.
    """

    pipeline: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    multiple: int = 16

    def __call__(self, prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        """Make it."""
        rows, columns = (-(-size // self.multiple) * self.multiple for size in (height, width))
        result = self.pipeline(
            prompt=prompt,
            height=rows,
            width=columns,
            generator=torch.Generator().manual_seed(seed),
            **self.options,
        )
        images = getattr(result, "images", None)
        if images is None or len(images) == 0:
            raise ShapeError(
                "text-to-image pipeline", expected="an output with `images`",
                got=type(result).__name__,
            )  # fmt: skip
        return SourcePicture(_pixels(images[0]), f"{type(self.pipeline).__name__}, seed {seed}")


def _pixels(image: Any) -> Pixels:
    """Turn a PIL picture, uint8 pixels or floats in [0, 1] into uint8 [H, W, 3]."""
    if isinstance(image, PIL.Image.Image):
        return rgb_from_pil(image)
    array = np.asarray(image)
    if np.issubdtype(array.dtype, np.floating):
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    check_frames(array[None])
    return array
