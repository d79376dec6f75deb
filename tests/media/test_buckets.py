"""The picture sizes of Magic 1-For-1."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from onereel.core.errors import ConfigError, ShapeError
from onereel.media.buckets import BUCKETS, fit_bucket, pick_bucket


def test_sizes_fit_the_vae_and_the_patches() -> None:
    assert set(BUCKETS) == {"540P", "720P"}
    for buckets in BUCKETS.values():
        assert all(b.width % 16 == b.height % 16 == 0 for b in buckets)
        assert all(abs(b.width / b.height / (b.ratio[0] / b.ratio[1]) - 1) < 0.01 for b in buckets)


@pytest.mark.parametrize(
    ("size", "resolution", "want"),
    [
        ((1920, 1080), "540P", (960, 544)),
        ((1080, 1920), "720P", (704, 1248)),
        ((500, 510), "540P", (720, 720)),
        ((640, 480), "720P", (1104, 832)),
        ((7, 8), "540P", (624, 832)),  # midway between 3:4 and 1:1: the narrower
        ((4000, 10), "540P", (960, 544)),
    ],
)
def test_the_nearest_nominal_ratio_wins(
    size: tuple[int, int], resolution: str, want: tuple[int, int]
) -> None:
    bucket = pick_bucket(*size, resolution=resolution)
    assert (bucket.width, bucket.height) == want


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="540P or 720P"):
        pick_bucket(4, 4, resolution="1080P")
    with pytest.raises(ConfigError, match="positive"):
        pick_bucket(0, 4)
    with pytest.raises(ShapeError, match="uint8"):
        fit_bucket(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (64, 64), (300, 20), (20, 300), (33, 41)])
def test_pictures_fill_their_bucket(size: tuple[int, int]) -> None:
    bucket = pick_bucket(*size)
    pixels = fit_bucket(np.full((size[1], size[0], 3), 200, np.uint8))
    assert pixels.shape == (bucket.height, bucket.width, 3)
    assert bool((pixels == 200).all())


def test_the_centre_is_kept() -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255  # in 16:9 the outer thirds are mostly cut
    pixels = fit_bucket(image)
    assert np.array_equal(pixels, pixels[:, ::-1])
    assert pixels[0, 480].tolist() == [255] * 3 and pixels[0, 0].tolist() == [0] * 3


def test_pil_images_are_turned_and_put_on_black() -> None:
    image = Image.new("RGBA", (40, 20), (255, 255, 255, 0))
    assert fit_bucket(image).max() == 0
    photo = Image.new("RGB", (40, 20))
    photo.getexif()[0x0112] = 6  # taken upright
    assert fit_bucket(photo).shape == (960, 544, 3)
