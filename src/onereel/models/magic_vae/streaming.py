"""Decode latents that arrive piece by piece, to the numbers of decoding them all at once.

The VAE cuts long videos into temporal tiles, each blended with the end of the one before. A tile is
decoded as soon as its latents are there; held are the latents that later tiles read and the end of
one decoded tile, whatever the length of the video.

Legend: B batch, C channels, F frames, T latent frames, H W height and width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.errors import ConfigError, ShapeError


class StreamDecoder:
    """Decodes one video's latents in order.

    A video that is no longer than a tile, or of a VAE that does not cut time, is decoded when its
    last latents are there.

    Args:
        vae: the VAE (hooked is fine), its tiles set; see `set_tiles`.
        decode: makes a tile of latents [B, C, T, H, W] a video; None takes the VAE's own way.

    Raises:
        ConfigError: tiles do not begin at a latent frame.
    """

    def __init__(
        self,
        vae: AutoencoderKLHunyuanVideo,
        *,
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.vae, self._decode = vae, decode or (lambda latents: vae.decode(latents).sample)
        factor = int(vae.temporal_compression_ratio)
        frames, stride = vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames
        if frames % factor or stride % factor or not 0 < stride <= frames:
            raise ConfigError(
                "VAE tiles", expected=f"frames and strides that are multiples of {factor}",
                got=f"{frames} and {stride}",
            )  # fmt: skip
        self._frames, self._stride = frames // factor, stride // factor  # of a tile, in latents
        self._stride_frames, self._blend = stride, frames - stride
        self._latents: torch.Tensor | None = None  # from the next tile's first one on
        self._before: torch.Tensor | None = None  # end of the tile before
        self._tiles = 0

    def push(self, latents: torch.Tensor, *, last: bool = False) -> Iterator[torch.Tensor]:
        """Take the next latents, and decode what can be.

        Args:
            latents: [B, C, T, H, W], scaled, on the VAE's device.
            last: whether the video ends with them.

        Yields:
            Videos [B, 3, F, 8 * H, 8 * W] in [0, 1], one after the other; those of all calls
            make `decode_latent` of all latents.

        Raises:
            ShapeError: there are no latents at all.
        """
        held = latents if self._latents is None else torch.cat((self._latents, latents), dim=2)
        self._latents = held
        if last and not self._tiles and self._is_one_piece(held.shape[2]):
            self._latents = None
            if not held.shape[2]:
                raise ShapeError("latents", expected="at least one frame", got=0)
            yield (self._decode(self._scaled(held)) / 2 + 0.5).clamp(0, 1)
            return
        # The first tile must know that it is not the only one.
        while self._is_ready(held.shape[2], last=last):
            yield from self._tile(held[:, :, : self._frames + 1])
            held = self._latents = held[:, :, self._stride :].clone()
        if last:
            self._latents = self._before = None

    def _is_one_piece(self, num_latents: int) -> bool:
        return not self.vae.use_framewise_decoding or num_latents <= self._frames

    def _is_ready(self, num_latents: int, *, last: bool) -> bool:
        if not self.vae.use_framewise_decoding:
            return False
        return num_latents > (0 if last else self._frames)

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents / self.vae.config.scaling_factor).to(self.vae.dtype)

    def _tile(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Decode a tile; the first frame of all but the first belongs to the tile before."""
        with _whole(self.vae):
            tile = self._decode(self._scaled(latents))
        keep = self._stride_frames
        if self._before is None:
            keep += 1
        else:
            tile = self.vae.blend_t(self._before, tile[:, :, 1:], self._blend)
        self._tiles += 1
        # Of a short tile the blended frames, too: the tile behind is shorter still.
        self._before = tile[:, :, -self._blend :].clone() if self._blend else tile[:, :, :0]
        if tile.shape[2]:
            yield (tile[:, :, :keep] / 2 + 0.5).clamp(0, 1)


@contextlib.contextmanager
def _whole(vae: AutoencoderKLHunyuanVideo) -> Iterator[None]:
    """Let a VAE cut space alone."""
    before, vae.use_framewise_decoding = vae.use_framewise_decoding, False
    try:
        yield
    finally:
        vae.use_framewise_decoding = before
