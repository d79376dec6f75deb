"""What is ours around diffusers' HunyuanVideo VAE: tile sizes, attention, latents, bytes.

Legend: B batch, C channels, F frames, T latent frames, H W height and width, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoMidBlock3D
from einops import rearrange
from torch import nn

from onereel.core.errors import ConfigError
from onereel.nn.attention import attend_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeTiles:
    """Sizes of the pieces that the VAE works on, in pixels and frames.

    diffusers' own defaults cut time into 16 frames, which gives other numbers and more seams.

    Args:
        size: height and width of a tile; larger pictures are cut.
        num_frames: frames of a tile; longer videos are cut.
        overlap: share of a tile that is blended with its neighbour.
        spatial: whether pictures are cut.
        temporal: whether time is cut.

    Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d (VAE tiling, on in its pipeline).
    """

    size: int = 256
    num_frames: int = 64
    overlap: float = 0.25
    spatial: bool = True
    temporal: bool = True

    def __post_init__(self) -> None:
        """Refuse tiles without a stride."""
        if not 0 <= self.overlap < 1 or self.size < 1 or self.num_frames < 1:
            raise ConfigError("VAE tiles", expected="sizes >= 1, overlap in [0, 1)", got=self)

    def stride(self, size: int) -> int:
        """Distance of the beginnings of two neighbours.

        Args:
            size: of the tile along the axis.

        Returns:
            The same unit.
        """
        return int(size * (1 - self.overlap))


def set_tiles(vae: AutoencoderKLHunyuanVideo, tiles: VaeTiles) -> None:
    """Set how a VAE cuts its input.

    Args:
        vae: changed in place.
        tiles: the sizes.
    """
    vae.enable_tiling(
        tile_sample_min_height=tiles.size,
        tile_sample_min_width=tiles.size,
        tile_sample_min_num_frames=tiles.num_frames,
        tile_sample_stride_height=tiles.stride(tiles.size),
        tile_sample_stride_width=tiles.stride(tiles.size),
        tile_sample_stride_num_frames=tiles.stride(tiles.num_frames),
    )
    vae.use_tiling = tiles.spatial
    vae.use_framewise_encoding = vae.use_framewise_decoding = tiles.temporal


class FrameCausalMidBlock(nn.Module):
    """The middle of encoder and decoder, each frame attending to itself and those before.

    diffusers builds a mask of (T*H*W)^2 values, 0.6 GB in bfloat16 for a full tile; intervals of
    keys need none.

    Args:
        block: whose layers are taken over; names of tensors stay.
    """

    def __init__(self, block: HunyuanVideoMidBlock3D) -> None:
        super().__init__()
        self.attentions, self.resnets = block.attentions, block.resnets

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run features [B, C, T, H, W]."""
        x = self.resnets[0](x)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(x if attention is None else self._attend(attention, x))
        return x

    @staticmethod
    def _attend(attention: Attention, x: torch.Tensor) -> torch.Tensor:
        num_frames, height, width = x.shape[2:]
        normed = rearrange(attention.group_norm(x.flatten(2)), "b c l -> b l c")
        query, key, value = (
            rearrange(project(normed), "b l (n e) -> b n l e", n=attention.heads)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        ranges = [(0, (t + 1) * height * width) for t in range(num_frames)]
        out = attend_ranges(query, key, value=value, ranges=ranges)
        out = attention.to_out[0](rearrange(out, "b n l e -> b l (n e)"))
        return x + rearrange(out, "b (t h w) c -> b c t h w", t=num_frames, h=height, w=width)


def use_frame_causal_attention(vae: AutoencoderKLHunyuanVideo) -> None:
    """Make a VAE attend without building masks; results stay the same but for the order of sums.

    Args:
        vae: changed in place; a second call changes nothing.
    """
    for part in (vae.encoder, vae.decoder):
        if isinstance(part.mid_block, HunyuanVideoMidBlock3D):
            part.mid_block = FrameCausalMidBlock(part.mid_block)


def encode_latent(
    vae: AutoencoderKLHunyuanVideo,
    video: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encode pixels into the latents that the transformer sees.

    Args:
        vae: the VAE.
        video: [B, 3, F, H, W] in [-1, 1], on the VAE's device.
        generator: source of the posterior's noise, drawn as the official code does; None takes
            the posterior's mean.

    Returns:
        [B, C, T, H/8, W/8], scaled.
    """
    posterior = vae.encode(video.to(vae.dtype)).latent_dist
    latent: torch.Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    return latent * vae.config.scaling_factor


def decode_latent(vae: AutoencoderKLHunyuanVideo, latent: torch.Tensor) -> torch.Tensor:
    """Decode the transformer's latents.

    Args:
        vae: the VAE.
        latent: [B, C, T, H, W], scaled, on the VAE's device.

    Returns:
        Video [B, 3, 4 * (T - 1) + 1, 8 * H, 8 * W] in [0, 1].
    """
    unscaled = (latent / vae.config.scaling_factor).to(vae.dtype)
    video: torch.Tensor = vae.decode(unscaled).sample
    return (video / 2 + 0.5).clamp(0, 1)


def to_uint8(video: torch.Tensor, *, official_compat: bool = False) -> torch.Tensor:
    """Turn pixels into bytes, in float32.

    Args:
        video: floats in [0, 1], any shape.
        official_compat: truncate as the official code does, which darkens by half a level.

    Returns:
        uint8, rounded to nearest unless `official_compat`.
    """
    levels = video.float().clamp(0, 1) * 255
    return (levels if official_compat else levels.round()).to(torch.uint8)
