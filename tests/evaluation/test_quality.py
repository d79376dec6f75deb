"""PSNR and SSIM: values worked out by hand, variants, and inputs that are no pictures."""

from __future__ import annotations

import numpy as np
import pytest

from onereel.core.errors import ConfigError, ShapeError
from onereel.evaluation.quality import psnr, psnr_frames, ssim, ssim_frames

WIDTH = 20


def _noise(num: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 16, WIDTH, 3), np.uint8)


def test_psnr_of_a_constant_error() -> None:
    a = np.full((2, 4, 4, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-5)
    assert psnr(a, a + 0.01) == pytest.approx(40, abs=1e-4)


def test_psnr_without_error_is_100() -> None:
    a = _noise()
    np.testing.assert_array_equal(psnr_frames(a, a), [100, 100])
    assert psnr(a, a, variant="global") == 100


def test_the_variants_differ_when_frames_do() -> None:
    a = np.full((2, 4, 4, 3), 0.5)
    b = np.stack([a[0] + 0.1, a[1] + 0.01])
    assert psnr(a, b) == pytest.approx(30, abs=1e-4)
    want = -10 * np.log10((0.01 + 0.0001) / 2)
    assert psnr(a, b, variant="global") == pytest.approx(want, abs=1e-4)


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b = np.full((1, 16, 16, 3), 0.25), np.full((1, 16, 16, 3), 0.5)
    want = (2 * 0.25 * 0.5 + 1e-4) / (0.25**2 + 0.5**2 + 1e-4)
    assert ssim(a, b) == pytest.approx(want, rel=1e-6)


def test_ssim_sees_only_where_the_window_lies_inside() -> None:
    a = _noise(1)
    b = a.copy()
    b[0, :, -1] = 255 - b[0, :, -1]
    changed = ssim(a, b)
    # The last column weighs least in the window: dropping it leaves exactly the rest.
    kept = WIDTH - 10
    whole = ssim_frames(a[:, :, :-1], b[:, :, :-1])[0] * (kept - 1) / kept
    assert ssim(a[:, :, :-1], b[:, :, :-1]) == pytest.approx(1)
    assert changed == pytest.approx(whole + ssim(a[:, :, -11:], b[:, :, -11:]) / kept)


def test_ssim_is_symmetric_and_1_for_the_same() -> None:
    a, b = _noise(), _noise(seed=1)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(ssim_frames(a, b), ssim_frames(b, a), atol=1e-14)
    assert ssim(a, b) < 0.1


def test_lists_and_floats_give_what_arrays_give() -> None:
    a, b = _noise(), _noise(seed=1)
    assert psnr(list(a), list(b)) == psnr(a, b)
    assert ssim(a.astype(np.float32) / 255, b) == ssim(a, b)


def test_what_does_not_fit_is_refused() -> None:
    a = _noise()
    with pytest.raises(ShapeError, match="as its reference"):
        psnr(a, a[:1])
    with pytest.raises(ShapeError, match="one size"):
        psnr([a[0], a[1, :8]], a)
    with pytest.raises(ShapeError, match="no frames"):
        psnr([], a)
    with pytest.raises(ShapeError, match="11 pixels"):
        ssim(a[:, :10], a[:, :10])
    with pytest.raises(ShapeError, match=r"\[F, H, W, 3\]"):
        psnr(a[0], a[0])
    with pytest.raises(ConfigError, match="variant"):
        psnr(a, a, variant="mean")


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_values_that_are_no_pictures_are_refused(value: float) -> None:
    a = np.full((1, 16, 16, 3), 0.5)
    broken = a.copy()
    broken[0, 3, 3, 0] = value
    with pytest.raises(ConfigError, match="video"):
        psnr(broken, a)
    with pytest.raises(ConfigError, match="reference"):
        ssim(a, broken)
