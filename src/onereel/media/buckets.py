"""Picture sizes that Magic 1-For-1 was trained on, and the way pictures are brought to them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from onereel.core.errors import ConfigError
from onereel.media.image import check_frames, rgb_from_pil
from onereel.media.scale import Pixels


class Bucket(NamedTuple):
    """A nominal aspect ratio and the size that stands for it."""

    ratio: tuple[int, int]
    width: int
    height: int


def _buckets(*sizes: tuple[int, int]) -> tuple[Bucket, ...]:
    ratios = ((9, 16), (3, 4), (1, 1), (4, 3), (16, 9))
    return tuple(Bucket(ratio, *size) for ratio, size in zip(ratios, sizes, strict=True))


# Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d (its test dataset); sizes are width, height.
BUCKETS: Final[Mapping[str, tuple[Bucket, ...]]] = MappingProxyType(
    {
        "540P": _buckets((544, 960), (624, 832), (720, 720), (832, 624), (960, 544)),
        "720P": _buckets((704, 1248), (832, 1104), (960, 960), (1104, 832), (1248, 704)),
    }
)


def pick_bucket(width: int, height: int, *, resolution: str = "540P") -> Bucket:
    """Find the bucket whose nominal ratio is nearest to a picture's.

    Args:
        width: of the picture in pixels.
        height: of the picture.
        resolution: `540P` or `720P`.

    Returns:
        The bucket; of two equally near ones the narrower.

    Raises:
        ConfigError: a size or the resolution is wrong.
    """
    if resolution not in BUCKETS:
        raise ConfigError("resolution", expected=" or ".join(BUCKETS), got=resolution)
    if width < 1 or height < 1:
        raise ConfigError("size", expected="positive width and height", got=f"{width}x{height}")
    wanted = width / height
    return min(BUCKETS[resolution], key=lambda b: abs(b.ratio[0] / b.ratio[1] - wanted))


def fit_bucket(image: Image.Image | Pixels, bucket: Bucket | None = None) -> Pixels:
    """Scale a picture until it fills a bucket, and cut the centre.

    Args:
        image: a PIL image (EXIF orientation is followed, transparency becomes black) or uint8 RGB
            [H, W, 3].
        bucket: the size wanted; None picks the nearest of `540P`.

    Returns:
        uint8 RGB [height, width, 3], scaled with Pillow's antialiased bilinear filter.

    Raises:
        ShapeError: an array is not uint8 [H, W, 3].
    """
    if isinstance(image, Image.Image):
        image = rgb_from_pil(image)
    check_frames(image[None])
    height, width = image.shape[:2]
    if bucket is None:
        bucket = pick_bucket(width, height)
    ratio = width / height
    if ratio > bucket.width / bucket.height:
        size = (int(bucket.height * ratio), bucket.height)
    else:
        size = (bucket.width, int(bucket.width / ratio))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.uint8)
    left, top = round((size[0] - bucket.width) / 2), round((size[1] - bucket.height) / 2)
    # A copy: Pillow's own memory cannot be written to.
    return scaled[top : top + bucket.height, left : left + bucket.width].copy()
