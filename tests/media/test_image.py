"""Still images: pixels, orientation, transparency, and every kind of bad input."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import GOLDENS, moving_gradient
from PIL import Image

from onereel.core.errors import ConfigError, MediaError, ShapeError
from onereel.media import check_input_image, load_image, resize_frames

SOURCE = GOLDENS / "img1.jpg"


def _quadrants() -> np.ndarray:
    """Red, green over blue, white: tells every orientation apart; 32 rows, 64 columns."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return corners.repeat(16, 0).repeat(32, 1)


def test_policies_keep_or_stretch_the_aspect(tmp_path: Path) -> None:
    circle = np.zeros((40, 80, 3), np.uint8)
    circle[:, 40:] = 255
    Image.fromarray(circle).save(tmp_path / "half.png")
    fit, crop, pad = (
        load_image(tmp_path / "half.png", height=40, width=40, policy=policy)
        for policy in ("fit", "crop", "pad")
    )
    assert fit[20, 5].tolist() == crop[20, 5].tolist() == [0, 0, 0]
    assert fit[20, 35].tolist() == crop[20, 35].tolist() == [255, 255, 255]
    assert pad[4, 35].tolist() == [0, 0, 0] and pad[20, 35].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(_quadrants())
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    size = (64, 32) if orientation > 4 else (32, 64)
    got = load_image(path, height=size[0], width=size[1])
    with Image.open(path) as opened:
        via_pillow = load_image(opened, height=size[0], width=size[1])
    np.testing.assert_array_equal(got, via_pillow)
    as_stored = load_image(path, height=32, width=64, apply_orientation=False)
    np.testing.assert_array_equal(as_stored, _quadrants())
    assert (orientation == 1) == np.array_equal(got, as_stored)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparency_is_black_or_dropped(tmp_path: Path, mode: str) -> None:
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:8, :, 3], pixels[8:, :, 3] = 255, 0
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.quantize(4)
    elif mode == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "clear.png")
    black = load_image(tmp_path / "clear.png", height=16, width=16)
    assert black[2, 2].tolist() == [200] * 3 and black[13, 13].tolist() == [0, 0, 0]
    with Image.open(tmp_path / "clear.png") as opened:
        np.testing.assert_array_equal(load_image(opened, height=16, width=16), black)
    dropped = load_image(tmp_path / "clear.png", height=16, width=16, alpha="drop")
    if mode != "P":  # Pillow blackens the colour of transparent palette entries
        assert dropped[13, 13].tolist() == [200] * 3


def test_arrays_and_frames_resize_alike() -> None:
    frames = moving_gradient(3)
    small = resize_frames(frames, height=24, width=32)
    assert small.shape == (3, 24, 32, 3)
    np.testing.assert_array_equal(small[1], load_image(frames[1], height=24, width=32))
    np.testing.assert_array_equal(resize_frames(frames, height=48, width=64), frames)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_common_formats_load(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"at 100%03d.{suffix}"  # ffmpeg alone would take this for a sequence
    Image.fromarray(_quadrants()).save(path)
    got = load_image(path, height=32, width=64).astype(int)
    assert np.abs(got[4:12, 8:24] - [255, 0, 0]).max() <= 8
    assert check_input_image(path) == (64, 32)


def _png_bomb(path: Path, side: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(png)


def _bad_image(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.jpg"
    whole = SOURCE.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a picture at all")
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "cut-png":
        png = (GOLDENS / "img0.png").read_bytes()
        path.write_bytes(png[: len(png) // 2])
    elif kind == "huge":
        _png_bomb(path, 9_100)
    elif kind == "bomb":
        _png_bomb(path, 60_000)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "0 bytes"),
        ("text", "not an image"),
        ("cut", "damaged"),
        ("cut-png", "damaged"),
        ("huge", "too large"),
        ("bomb", "too large"),
        ("folder", "is a folder"),
    ],
)
def test_bad_images_are_named_with_a_way_out(tmp_path: Path, kind: str, message: str) -> None:
    path = _bad_image(kind, tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        load_image(path, height=32, width=32)
    assert kind in str(caught.value) and caught.value.hint
    if not kind.startswith("cut"):  # damage further in shows only when decoding
        with pytest.raises(MediaError, match=message):
            check_input_image(path)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="policy"):
        load_image(SOURCE, height=8, width=8, policy="stretch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alpha"):
        load_image(SOURCE, height=8, width=8, alpha="white")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size"):
        load_image(SOURCE, height=0, width=8)
    with pytest.raises(ShapeError, match="uint8"):
        resize_frames(np.zeros((1, 4, 4, 3), np.float32), height=8, width=8)  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        load_image(np.zeros((4, 4), np.uint8), height=8, width=8)
