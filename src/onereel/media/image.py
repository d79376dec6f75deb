"""Still images to RGB arrays, with the pixels ffmpeg would give."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from onereel.core.errors import ConfigError, MediaError, ShapeError
from onereel.media.scale import Pixels, Policy, Scaler

MAX_MEGAPIXELS = 80
_ORIENTATION_TAG = 0x0112
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # which Pillow would clip, not scale
_READABLE = "convert it to PNG or JPEG, for example with an image viewer"


def load_image(
    source: str | Path | Image.Image | Pixels,
    *,
    height: int,
    width: int,
    policy: Policy = "fit",
    apply_orientation: bool = True,
    alpha: Literal["black", "drop"] = "black",
) -> Pixels:
    """Load an image at a given size.

    Args:
        source: a file, a PIL image, or a uint8 RGB array [H, W, 3].
        height: rows wanted.
        width: columns wanted.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" adds black bars.
        apply_orientation: turn the image as its EXIF orientation says.
        alpha: "black" composites transparent images on black; "drop" ignores the alpha channel as
            ffmpeg does, which shows whatever colour the transparent pixels hide.

    Returns:
        uint8 RGB array [height, width, 3].

    Raises:
        MediaError: the file is missing, empty, damaged, too large, or not an image.
        ConfigError: a size, the policy or `alpha` is wrong.
        ShapeError: an array is not uint8 [H, W, 3].
    """
    scaler = Scaler(height=height, width=width, policy=policy)
    if alpha not in ("black", "drop"):
        raise ConfigError("alpha", expected="black or drop", got=alpha)
    if isinstance(source, np.ndarray):
        return _resize_one(source, scaler)
    if isinstance(source, Image.Image):
        pixels = rgb_from_pil(source, apply_orientation=apply_orientation, alpha=alpha)
        return _resize_one(pixels, scaler)
    path = Path(source)
    image_size(path)
    frame = _decode(path)
    if alpha == "black":
        frame = _on_black(frame)
    if apply_orientation:
        frame = _oriented(frame, _orientation(path))
    return scaler(frame)


def read_image(path: str | Path) -> Pixels:
    """Read an image at its own size, upright, of any mode; transparency becomes black.

    Args:
        path: an image file.

    Returns:
        uint8 RGB array [H, W, 3].

    Raises:
        MediaError: the file is missing, empty, damaged, too large, or not an image.
    """
    path = Path(path)
    width, height = image_size(path)
    try:
        with Image.open(path) as image:
            if image.mode not in _DEEP:
                return rgb_from_pil(image)
            turned = _orientation(path) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"image {path} is damaged ({error})", hint=_READABLE) from error
    height, width = (width, height) if turned else (height, width)
    return load_image(path, height=height, width=width)


def resize_frames(frames: Pixels, *, height: int, width: int, policy: Policy = "fit") -> Pixels:
    """Resize RGB frames with ffmpeg's bicubic filter.

    Args:
        frames: uint8 [F, H, W, 3].
        height: rows wanted.
        width: columns wanted.
        policy: "fit" stretches, "crop" fills and cuts the centre, "pad" adds black bars.

    Returns:
        uint8 [F, height, width, 3].

    Raises:
        ShapeError: the frames are not uint8 [F, H, W, 3].
        ConfigError: a size or the policy is wrong.
    """
    check_frames(frames)
    scaler = Scaler(height=height, width=width, policy=policy)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        out[i] = _resize_one(frame, scaler)
    return out


def _resize_one(pixels: Pixels, scaler: Scaler) -> Pixels:
    check_frames(pixels[None])
    return scaler(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"))


def check_frames(frames: Pixels) -> None:
    """Refuse anything but RGB frames.

    Args:
        frames: should be uint8 [F, H, W, 3].

    Raises:
        ShapeError: they are not.
    """
    good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
    if not good or 0 in frames.shape[1:]:
        got = f"{frames.dtype} {list(frames.shape)}"
        raise ShapeError("frames", expected="uint8 pixels of shape [F, H, W, 3]", got=got)


def image_size(path: str | Path) -> tuple[int, int]:
    """Read an image's size from its header, without decoding it.

    Args:
        path: an image file.

    Returns:
        (width, height) as stored, before any EXIF turn.

    Raises:
        MediaError: the file is missing, empty, too large, or not an image.
    """
    path = Path(path)
    require_file(path, "image")
    too_large = f"at most {MAX_MEGAPIXELS} megapixels"
    hint = "scale it down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise MediaError(f"image {path} is too large", expected=too_large, hint=hint) from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{path} is not an image that can be read", hint=_READABLE) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"image {path} is damaged ({error})", hint=_READABLE) from error
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        got = f"{width}x{height}"
        raise MediaError(f"image {path} is too large", expected=too_large, got=got, hint=hint)
    return width, height


def require_file(path: Path, kind: str) -> None:
    """Refuse paths that are missing, folders or empty.

    Args:
        path: a file's path.
        kind: "image" or "video", for the message.

    Raises:
        MediaError: there is nothing to read.
    """
    if path.is_dir():
        raise MediaError(f"{kind} {path} is a folder", hint="name a file inside it")
    if not path.exists():
        raise MediaError(f"{kind} {path} does not exist", hint="check the path's spelling")
    if path.stat().st_size == 0:
        raise MediaError(f"{kind} {path} is empty (0 bytes)", hint="copy or download it again")


def _orientation(path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"image {path} is damaged ({error})", hint=_READABLE) from error
    return orientation if orientation in range(1, 9) else 1


def _decode(path: Path) -> av.VideoFrame:
    """Decode the first picture of a file, refusing damaged data."""
    try:
        # A file object, since ffmpeg would expand a % in a path into an image sequence.
        with path.open("rb") as file, av.open(file, mode="r") as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                return frame
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"image {path} is damaged ({error})", hint=_READABLE) from error
    raise MediaError(f"image {path} is damaged: it holds no picture", hint=_READABLE)


def _composite(rgba: Pixels) -> Pixels:
    """Blend [H, W, 4] with black, rounding to nearest."""
    colour, opacity = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * opacity + 127) // 255).astype(np.uint8)


def _on_black(frame: av.VideoFrame) -> av.VideoFrame:
    may_be_transparent = frame.format.name == "pal8" or any(
        component.is_alpha for component in frame.format.components
    )
    if not may_be_transparent:
        return frame
    rgba = np.asarray(frame.reformat(format="rgba").to_ndarray(), np.uint8)
    if rgba[..., 3].min() == 255:
        return frame
    return av.VideoFrame.from_ndarray(_composite(rgba), "rgb24")


def _oriented(frame: av.VideoFrame, orientation: int) -> av.VideoFrame:
    """Undo an EXIF orientation."""
    if orientation == 1:
        return frame
    pixels = np.asarray(frame.reformat(format="rgb24").to_ndarray(), np.uint8)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")


def rgb_from_pil(
    image: Image.Image,
    *,
    apply_orientation: bool = True,
    alpha: Literal["black", "drop"] = "black",
) -> Pixels:
    """Turn a PIL image of any mode into RGB.

    Args:
        image: the image.
        apply_orientation: turn it as its EXIF orientation says.
        alpha: "black" composites transparent images on black; "drop" ignores the alpha channel.

    Returns:
        uint8 RGB array [H, W, 3].
    """
    if apply_orientation:
        image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"), np.uint8)
    rgba = np.asarray(image.convert("RGBA"), np.uint8)
    return _composite(rgba) if alpha == "black" else np.ascontiguousarray(rgba[..., :3])
