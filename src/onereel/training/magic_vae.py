"""The recipe of the toybox VAE in HunyuanVideo's shape: causal, its first frame a picture.

Data, losses and validation are those of the other VAE (`vae.py`); the network is diffusers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from onereel.models.magic_vae.model import use_frame_causal_attention
from onereel.models.magic_vae.presets import MAGIC_VAE_PRESETS
from onereel.training.data import BatchStream, to_video
from onereel.training.engine import Method, Stream
from onereel.training.vae import ToyboxVaeRecipe, VaeBatches, VaeMethod


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagicVaeRecipe(ToyboxVaeRecipe):
    """Settings of its training; those not named here are `ToyboxVaeRecipe`'s.

    Args:
        preset: name in `MAGIC_VAE_PRESETS`.
        frames: frames of a tile, 4 n + 1.
        short_frames: likewise.
        crop: convolutions learn from parts of the canvas as well, at a fraction of the cost.
        matrix_lr: nothing but attention has matrices.
    """

    preset: str = "toybox-magic"
    frames: int = 13
    short_frames: tuple[int, ...] = (1, 5, 9)
    crop: int | None = 32
    matrix_lr: float | None = None

    def build(self) -> tuple[Method, Stream]:
        """Make the VAE with its optimizer, and the stream of rendered tiles.

        Returns:
            The method and the stream.
        """
        return MagicVaeMethod(self), BatchStream(VaeBatches(self), workers=self.workers)


class MagicVaeMethod(VaeMethod):
    """Trains a VAE of HunyuanVideo's shape to reconstruct tiles."""

    decode_options: Mapping[str, Any] = MappingProxyType({})

    def make_vae(self) -> nn.Module:
        """Make the network that is trained."""
        vae = AutoencoderKLHunyuanVideo(**MAGIC_VAE_PRESETS[self.recipe.preset])
        use_frame_causal_attention(vae)
        # Several times faster on a CPU; the numbers are the same.
        return vae.to(memory_format=torch.channels_last_3d)

    def as_input(self, frames: Tensor) -> Tensor:
        """Make the VAE's input [B, 3, F, H, W] of stored frames, uint8 [B, F, H, W, 3]."""
        return to_video(frames)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the VAE in bfloat16 with its latents' scale, and a sheet of pictures.

        Args:
            folder: the diffusers folder; the sheet is `sheet.png` in its parent.
        """
        exported = AutoencoderKLHunyuanVideo.from_config(dict(self.vae.config))
        # Rounded first, measured then: the scale is that of the weights that users load.
        state = {name: value.bfloat16() for name, value in self.vae.state_dict().items()}
        exported.load_state_dict(state)
        exported.to(self.vae.device)
        latents = [
            exported.encode(self.as_input(part).to(exported.device)).latent_dist.mode()
            for part in torch.split(self.stats_tiles, 16)
        ]
        exported.register_to_config(scaling_factor=1 / float(torch.cat(latents).double().std()))
        for parameter in exported.parameters():
            parameter.data = parameter.data.bfloat16()
        exported.save_pretrained(folder)
        self.sheet(folder.parent / "sheet.png")
