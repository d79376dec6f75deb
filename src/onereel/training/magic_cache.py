"""What a cache of the Magic 1-For-1 family holds of a clip; see `latent_cache.py`.

The VAE is causal: the first latent frame stands for one picture and every later one for four, so a
clip of n seconds is cut to 24 n - 3 frames, 6 n latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from onereel.core.device import computes_bfloat16
from onereel.models.magic_vae.model import (
    VaeTiles,
    encode_latent,
    set_tiles,
    use_frame_causal_attention,
)
from onereel.training.data import to_video
from onereel.training.scene_maps import scene_maps
from onereel.world import Clip

LATENTS_PER_SECOND = 6


def load_magic_vae(folder: str) -> AutoencoderKLHunyuanVideo:
    """Load a VAE to encode clips of one size.

    Args:
        folder: of the VAE.

    Returns:
        The VAE, in float32.
    """
    vae: AutoencoderKLHunyuanVideo = AutoencoderKLHunyuanVideo.from_pretrained(folder)
    vae = vae.float().eval()
    use_frame_causal_attention(vae)
    # Whole: the pipeline encodes pictures only, so no tile of its own has to be met.
    set_tiles(vae, VaeTiles(temporal=False))
    return vae.to(memory_format=torch.channels_last_3d)


def frame_of(latent: int) -> int:
    """Give the frame that is shown as a latent frame: the only one, or the third of four."""
    return max(0, 4 * latent - 1)


@torch.no_grad()
def encode_clip(vae: AutoencoderKLHunyuanVideo, clip: Clip) -> dict[str, Tensor]:
    """Encode a clip of whole seconds.

    Args:
        vae: see `load_magic_vae`.
        clip: 24 n frames.

    Returns:
        `latent` [C, 6 n, h, w], scaled; `images` [C, 1, h, w], the first picture encoded alone;
        `maps` and `image_maps` of both, see `scene_maps`; `first`, that picture, uint8 [H, W, 3].
    """
    frames = torch.as_tensor(clip.video)
    length = len(frames) // 24 * LATENTS_PER_SECOND
    shown = [frame_of(latent) for latent in range(length)]
    return {
        "latent": _encode(vae, frames[: 4 * (length - 1) + 1]),
        "images": _encode(vae, frames[:1]),
        "maps": scene_maps(clip.episode, shown),
        "image_maps": scene_maps(clip.episode, [0]),
        "first": frames[0].clone(),
    }


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKLHunyuanVideo, clips: Sequence[Clip]
) -> list[dict[str, Tensor]]:
    """Encode the first frame of every clip: the picture that its video would be made from.

    Args:
        vae: see `load_magic_vae`.
        clips: all of one size.

    Returns:
        Of every clip what `encode_clip` returns, with one latent frame.
    """
    pixels = [torch.as_tensor(clip.video)[0] for clip in clips]
    latents = _encode(vae, torch.stack(pixels)[:, None]).unbind()
    found = []
    for clip, first, latent in zip(clips, pixels, latents, strict=True):
        maps = scene_maps(clip.episode, [0])
        images, image_maps = latent.clone(), maps.clone()  # a file holds no tensor twice
        found.append({"latent": latent, "images": images, "maps": maps, "image_maps": image_maps,
                      "first": first.clone()})  # fmt: skip
    return found


def _encode(vae: Any, frames: Tensor) -> Tensor:
    """Encode frames, uint8 [F, H, W, 3] or [B, F, H, W, 3], to halves without the missing axis."""
    video = to_video(frames if frames.ndim == 5 else frames[None])
    fast = computes_bfloat16(vae.device)
    with torch.autocast(vae.device.type, dtype=torch.bfloat16, enabled=fast):
        latent = encode_latent(vae, video.to(vae.device)).half().cpu()
    return latent.contiguous() if frames.ndim == 5 else latent[0].contiguous()
