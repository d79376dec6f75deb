"""How VBench brings frames to a network's size: resizing and normalising with torch alone.

F frames, H W height and width. Frames are [F, 3, H, W] with values 0..255, as float (the official
way for every network but ViCLIP) or uint8. What comes out is float32, normalised. Images go
through Pillow, which always filters before it makes an image smaller; tensors are filtered only
where the official code asks for it, in the three dimensions that are new in VBench-I2V.

Source:
    spec/evaluation.md 2.3 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from onereel.core.errors import ConfigError, ShapeError

Filter = Literal["bilinear", "bicubic"]
MusiqMode = Literal["longer", "shorter", "shorter_centercrop", "None"]
Transform = Callable[[Tensor], Tensor]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MUSIQ_SIDE = 512
_DETECTOR_LIMIT, _DETECTOR_SIDE = 768, 720
_PIL_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def to_tensor(frames: np.ndarray) -> Tensor:
    """Turn frames as they are decoded into what the functions here take.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        float32 [F, 3, H, W] in 0..255.
    """
    return rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "f h w c -> f c h w").float()


def clip_frames(frames: Tensor, size: int = 224, *, antialias: bool = False) -> Tensor:
    """Prepare frames for CLIP and ViCLIP: short side, centre crop, CLIP's normalisation.

    Args:
        frames: [F, 3, H, W] in 0..255; uint8 frames are rounded to grey levels after resizing.
        size: side of the result.
        antialias: filter before making the frames smaller (the VBench-I2V variant).

    Returns:
        float32 [F, 3, size, size].
    """
    height, width = short_side(frames.shape[-2], frames.shape[-1], side=size)
    frames = resize(frames, (height, width), mode="bicubic", antialias=antialias)
    return _normalised(centre_crop(frames, size), CLIP_MEAN, CLIP_STD)


def dino_frames(frames: Tensor, size: int = 224) -> Tensor:
    """Prepare frames for subject_consistency: short side, no crop.

    Args:
        frames: [F, 3, H, W] in 0..255.
        size: short side of the result.

    Returns:
        float32 [F, 3, h, w], of the frames' own aspect ratio.
    """
    height, width = short_side(frames.shape[-2], frames.shape[-1], side=size)
    frames = resize(frames, (height, width), mode="bilinear", antialias=False)
    return _normalised(frames, IMAGENET_MEAN, IMAGENET_STD)


def i2v_dino_frames(frames: Tensor, size: int = 224, *, side: int = 256) -> Tensor:
    """Prepare frames for i2v_subject: short side, filtered, centre crop.

    Args:
        frames: [F, 3, H, W] in 0..255.
        size: side of the result.
        side: short side before the crop.

    Returns:
        float32 [F, 3, size, size].
    """
    height, width = short_side(frames.shape[-2], frames.shape[-1], side=side)
    frames = resize(frames, (height, width), mode="bicubic", antialias=True)
    return _normalised(centre_crop(frames, size), IMAGENET_MEAN, IMAGENET_STD)


def dreamsim_frames(frames: Tensor, size: int = 224) -> Tensor:
    """Prepare frames for i2v_background: a square whatever the aspect ratio, values near 0..1.

    Args:
        frames: [F, 3, H, W] in 0..255.
        size: side of the result.

    Returns:
        float32 [F, 3, size, size].
    """
    return resize(frames, (size, size), mode="bicubic", antialias=True).float() / 255


def musiq_frames(frames: Tensor, mode: MusiqMode = "longer") -> Tensor:
    """Prepare frames for imaging_quality.

    Args:
        frames: [F, 3, H, W] in 0..255.
        mode: which side is brought down to 512 when it is longer; "None" resizes nothing.

    Returns:
        float32 [F, 3, h, w] in 0..1.

    Raises:
        ConfigError: the mode is not known.
    """
    height, width = frames.shape[-2:]
    if mode not in ("longer", "shorter", "shorter_centercrop", "None"):
        raise ConfigError("mode", expected="longer, shorter, shorter_centercrop or None", got=mode)
    side = {"longer": max(height, width), "None": 0}.get(mode, min(height, width))
    if side > _MUSIQ_SIDE:
        # The size is cut, not rounded, after multiplying: 576x960 becomes 307x512.
        scale = _MUSIQ_SIDE / side
        size = (int(scale * height), int(scale * width))
        frames = resize(frames, size, mode="bilinear", antialias=False)
        if mode == "shorter_centercrop":
            frames = centre_crop(frames, _MUSIQ_SIDE)
    return frames.float() / 255


def clip_image(image: Image.Image, size: int = 224) -> Tensor:
    """Prepare a picture for CLIP as CLIP itself does, which appearance_style uses for every frame.

    Args:
        image: an RGB picture.
        size: side of the result.

    Returns:
        float32 [3, size, size].
    """
    picture = _pil_short_side(image, size, "bicubic")
    return _normalised(centre_crop(_from_pil(picture), size), CLIP_MEAN, CLIP_STD)


def dino_image(image: Image.Image, size: int = 224) -> Tensor:
    """Prepare a picture as `dino_frames` does frames.

    Args:
        image: an RGB picture.
        size: short side of the result.

    Returns:
        float32 [3, h, w].
    """
    picture = _pil_short_side(image, size, "bilinear")
    return _normalised(_from_pil(picture), IMAGENET_MEAN, IMAGENET_STD)


def i2v_dino_image(image: Image.Image, size: int = 224, *, side: int = 256) -> Tensor:
    """Prepare the reference picture of i2v_subject.

    Args:
        image: an RGB picture.
        size: side of the result.
        side: short side before the crop.

    Returns:
        float32 [3, size, size].
    """
    picture = _pil_short_side(image, side, "bicubic")
    return _normalised(centre_crop(_from_pil(picture), size), IMAGENET_MEAN, IMAGENET_STD)


def dreamsim_image(image: Image.Image, size: int = 224) -> Tensor:
    """Prepare the reference picture of i2v_background.

    Args:
        image: an RGB picture.
        size: side of the result.

    Returns:
        float32 [3, size, size] in 0..1.
    """
    picture = image.convert("RGB").resize((size, size), _PIL_FILTERS["bicubic"])
    return _from_pil(picture).float() / 255


def detector_size(height: int, width: int) -> tuple[int, int]:
    """Tell the size at which frames go to the object detector.

    Args:
        height: of the frames.
        width: of the frames.

    Returns:
        (height, width): with a short side above 768, that of the same ratio with short side 720.
    """
    if min(height, width) <= _DETECTOR_LIMIT:
        return height, width
    return short_side(height, width, side=_DETECTOR_SIDE)


def short_side(height: int, width: int, *, side: int) -> tuple[int, int]:
    """Tell the size with a given short side; the long side is cut to whole pixels.

    Args:
        height: of the source.
        width: of the source.
        side: short side wanted.

    Returns:
        (height, width).
    """
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def resize(frames: Tensor, size: tuple[int, int], *, mode: Filter, antialias: bool) -> Tensor:
    """Resize frames; float values are not clamped, uint8 ones come back as uint8.

    Args:
        frames: [F, 3, H, W].
        size: (height, width) wanted.
        mode: the kernel.
        antialias: widen the kernel when making the frames smaller.

    Returns:
        [F, 3, height, width], uint8 when the input was, else float32.

    Raises:
        ShapeError: the frames are not [F, 3, H, W].
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ShapeError("frames", expected="shape [F, 3, H, W]", got=list(frames.shape))
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames if frames.dtype == torch.uint8 else frames.float()
    values = functional.interpolate(
        frames.float(), size=size, mode=mode, align_corners=False, antialias=antialias
    )
    if frames.dtype != torch.uint8:
        return values
    return values.clamp(0, 255).round().to(torch.uint8)


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """Cut a square out of the middle; half offsets go to the even pixel.

    Args:
        frames: [..., H, W], both sides at least `size`.
        size: side of the square.

    Returns:
        [..., size, size].
    """
    top, left = (round((length - size) / 2) for length in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]


def _normalised(
    frames: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    values = frames.float() / 255
    centre, spread = (torch.tensor(v, device=values.device)[:, None, None] for v in (mean, std))
    return (values - centre) / spread


def _pil_short_side(image: Image.Image, side: int, mode: Filter) -> Image.Image:
    height, width = short_side(image.height, image.width, side=side)
    return image.convert("RGB").resize((width, height), _PIL_FILTERS[mode])


def _from_pil(image: Image.Image) -> Tensor:
    return rearrange(torch.from_numpy(np.array(image, dtype=np.uint8)), "h w c -> c h w")
