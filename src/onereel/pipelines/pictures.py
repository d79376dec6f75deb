"""Pictures and tensors at the pipelines' doors: what people hand in, what they get back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.media.image import load_image, resize_frames
from onereel.media.scale import Pixels, Policy

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


def pixels_to_frames(pixels: Pixels) -> torch.Tensor:
    """Turn bytes into the network's frames.

    Args:
        pixels: uint8 [F, H, W, 3].

    Returns:
        float32 [F, 3, H, W] in [-1, 1].
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(
    pictures: Sequence[Any], *, height: int, width: int, policy: Policy = "fit"
) -> torch.Tensor:
    """Turn pictures into frames of the wanted size, scaled as ffmpeg does.

    Args:
        pictures: PIL pictures, uint8 arrays [H, W, 3] or float ones in [0, 1], or tensors
            [3, H, W] in [0, 1].
        height: pixels.
        width: pixels.
        policy: `fit` stretches, `crop` fills and cuts the centre, `pad` adds black bars.

    Returns:
        float32 [F, 3, H, W] in [-1, 1].

    Raises:
        ConfigError: something is not a picture.
    """
    scaled = [_scaled(picture, height, width, policy) for picture in pictures]
    return pixels_to_frames(np.stack(scaled))


def _scaled(picture: Any, height: int, width: int, policy: Policy) -> Pixels:
    if isinstance(picture, PIL.Image.Image):
        return load_image(picture, height=height, width=width, policy=policy)
    if isinstance(picture, torch.Tensor):
        picture = picture.squeeze(0) if picture.ndim == 4 else picture
        picture = picture.movedim(0, -1).float().cpu().numpy()  # [H, W, 3]
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ConfigError(
            "picture", expected="a PIL picture, array [H, W, 3] or tensor [3, H, W]",
            got=f"{type(picture).__name__} {array.shape}",
        )  # fmt: skip
    if np.issubdtype(array.dtype, np.floating):
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return resize_frames(array[None], height=height, width=width, policy=policy)[0]


def collect(videos: Sequence[torch.Tensor], output_type: str) -> Any:
    """Turn finished videos into what was asked for.

    Args:
        videos: frames [F, 3, H, W] in [-1, 1], or latents [C, T, h, w]; interrupted calls may give
            fewer frames in the last one, and then all are cut to its length in arrays.
        output_type: one of `OUTPUT_TYPES`.

    Returns:
        Latents [B, C, T, h, w]; pixels in [0, 1] as tensor [B, F, 3, H, W] or array
        [B, F, H, W, 3]; or lists of PIL pictures.
    """
    if output_type == "latent":
        length = min(video.shape[1] for video in videos)
        return torch.stack([video[:, :length] for video in videos])
    if output_type == "pil":
        return [_to_pil(video) for video in videos]
    length = min(len(video) for video in videos)
    pixels = torch.stack([v[:length] for v in videos]).clamp(-1, 1) / 2 + 0.5  # [B, F, 3, H, W]
    return pixels if output_type == "pt" else pixels.permute(0, 1, 3, 4, 2).numpy()


def _to_pil(video: torch.Tensor) -> list[PIL.Image.Image]:
    levels = (video.clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return [PIL.Image.fromarray(frame) for frame in levels.permute(0, 2, 3, 1).numpy()]


def draw_seeds(generator: Any, count: int, *, num_latents: int | None = None) -> list[int]:
    """Draw a seed per video.

    Args:
        generator: a torch generator, one per video, or None for a random seed.
        count: videos.
        num_latents: how many videos the given noise is for, if any is.

    Returns:
        Seeds of the noise.

    Raises:
        ConfigError: the number of generators or of latents is not `count`.
    """
    if num_latents is not None and num_latents != count:
        raise ConfigError("latents", expected=f"{count} videos", got=num_latents)
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise ConfigError("generator", expected=f"a list of {count}", got=len(generator))
        return [_draw(g) for g in generator]
    first = _draw(generator)
    return [first if i == 0 else derive_seed(first, "video", i) for i in range(count)]


def _draw(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(0, 2**62, (1,), generator=generator, device=device).item())


def visible_rows(embeds: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Cut padded text to its visible tokens.

    Args:
        embeds: [B, S, K].
        mask: visible tokens [B, S]; None means all rows that are not zero.

    Returns:
        One float32 [S_b, K] per text.
    """
    keep = embeds.abs().sum(-1) > 0 if mask is None else mask.bool()
    return [row[kept].float() for row, kept in zip(embeds, keep, strict=True)]


def pad_rows(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad visible tokens to one length.

    Args:
        rows: tensors [S_b, K].

    Returns:
        Tokens [B, S, K] and the mask [B, S].
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    mask = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, mask
