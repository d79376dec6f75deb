"""The recipe of the toybox VAE in HunyuanVideo's shape: causal, its first frame a picture.

Data, losses and validation are those of the other VAE (`vae.py`); the network is diffusers' own.
"""

from __future__ import annotations

import math
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
from onereel.models.magic_vae.preview import fit_colours
from onereel.training.data import BatchStream, to_video
from onereel.training.engine import Method, Stream
from onereel.training.hooks import exported_config
from onereel.training.vae import ToyboxVaeRecipe, VaeMethod
from onereel.training.vae_tiles import VaeBatches

_COLOURS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagicVaeRecipe(ToyboxVaeRecipe):
    """Settings of its training; those not named here are `ToyboxVaeRecipe`'s.

    Args:
        preset: name in `MAGIC_VAE_PRESETS`.
        frames: frames of a tile, 4 n + 1.
        short_frames: likewise.
        crop: convolutions learn from parts of the canvas as well, at a fraction of the cost.
        lr: of AdamW; at 1.5e-3 the latents grow without end and the picture is lost.
        matrix_lr: nothing but attention has matrices.
    """

    preset: str = "toybox-magic"
    frames: int = 13
    short_frames: tuple[int, ...] = (1, 5, 9)
    crop: int | None = 32
    lr: float = 5e-4
    matrix_lr: float | None = None

    def build(self) -> tuple[Method, Stream]:
        """Make the VAE with its optimizer, and the stream of rendered tiles.

        Returns:
            The method and the stream.
        """
        return MagicVaeMethod(self), BatchStream(VaeBatches(self), workers=self.workers)


class MagicVaeMethod(VaeMethod):
    """Trains a VAE of HunyuanVideo's shape to reconstruct tiles.

    Args:
        recipe: the settings.
    """

    recipe: ToyboxMagicVaeRecipe

    decode_options: Mapping[str, Any] = MappingProxyType({})

    def make_vae(self) -> nn.Module:
        """Make the network that is trained."""
        recipe = self.recipe
        if recipe.init:
            vae = AutoencoderKLHunyuanVideo.from_pretrained(recipe.init)
            use_frame_causal_attention(vae)
        else:
            vae = AutoencoderKLHunyuanVideo(**MAGIC_VAE_PRESETS[recipe.preset])
            use_frame_causal_attention(vae)
            start_as_pooling(vae)
        if recipe.decoder_only:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        # Several times faster on a CPU; the numbers are the same.
        return vae.to(memory_format=torch.channels_last_3d)

    def latent_deviations(self, like: Tensor) -> Tensor:
        """Give the deviation of the latents of `init`, one for all channels."""
        return like.new_tensor(1 / float(self.vae.config.scaling_factor))

    def as_input(self, frames: Tensor) -> Tensor:
        """Make the VAE's input [B, 3, F, H, W] of stored frames, uint8 [B, F, H, W, 3]."""
        return to_video(frames)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the VAE in bfloat16 with its latents' scale, and a sheet of pictures.

        Args:
            folder: the diffusers folder; the sheet is `sheet.png` in its parent.
        """
        exported = AutoencoderKLHunyuanVideo.from_config(exported_config(self.vae))
        # Rounded first, measured then: the scale is that of the weights that users load.
        state = {name: value.bfloat16() for name, value in self.vae.state_dict().items()}
        exported.load_state_dict(state)
        exported.to(self.vae.device)
        if not self.recipe.decoder_only:
            latents = [
                exported.encode(self.as_input(part).to(exported.device)).latent_dist.mode()
                for part in torch.split(self.stats_tiles, 16)
            ]
            scale = 1 / float(torch.cat(latents).double().std())
            exported.register_to_config(scaling_factor=scale)
        tiles = self.as_input(self.stats_tiles[:256]).to(exported.device)
        exported.register_to_config(**fit_colours(exported, tiles))
        for parameter in exported.parameters():
            parameter.data = parameter.data.bfloat16()
        exported.save_pretrained(folder)
        self.sheet(folder.parent / "sheet.png")


@torch.no_grad()
def start_as_pooling(vae: AutoencoderKLHunyuanVideo, *, gain: float = 0.5) -> None:
    """Let a fresh VAE start as averaging over a latent's pixels, in three of its channels.

    Every residual branch starts at zero, and a pair of channels (c, -c) per colour passes through:
    silu(c) - silu(-c) = c undoes the last non-linearity of encoder and decoder. One run of 186
    steps of 4 tiles each, lr 3e-4: 20.5 dB (object pixels 16.6 dB), 17.8 dB (10.9 dB) from random
    weights.

    Args:
        vae: changed in place.
        gain: of the last convolution, whose input is normalised; the pixels' deviation.
    """
    for name, module in vae.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("conv2", "to_out"):  # the end of a residual branch
            last = module.conv if kind == "conv2" else module[0]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        elif isinstance(module, nn.Conv3d) and ("samplers" in name or "conv_shortcut" in name):
            _wire(module, [(c, c, 1.0) for c in range(2 * _COLOURS)])
    colours = range(_COLOURS)
    for part, scale in ((vae.encoder, 1.0), (vae.decoder, gain)):
        _wire(part.conv_in.conv, [(2 * c + i, c, 1.0 - 2 * i) for c in colours for i in (0, 1)])
        ends = [(c, 2 * c + i, scale * (1 - 2 * i)) for c in colours for i in (0, 1)]
        _wire(part.conv_out.conv, ends)
    deviation = vae.encoder.conv_out.conv
    deviation.weight[int(vae.config.latent_channels) :] *= 0.1
    nn.init.constant_(deviation.bias[int(vae.config.latent_channels) :], -4.0)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)


def _wire(convolution: nn.Conv3d, wires: list[tuple[int, int, float]]) -> None:
    """Set the rows of some outputs: each the average of one input over the pixels it stands for."""
    rows = sorted({row for row, _, _ in wires})
    convolution.weight[rows] = 0
    if convolution.bias is not None:
        convolution.bias[rows] = 0
    # Causal in time, where the last tap is the newest frame; centred in space.
    taps = []
    for size, stride, causal in zip(
        convolution.kernel_size, convolution.stride, (True, False, False), strict=True
    ):
        newest = size if causal else size // 2 + stride
        taps.append(slice(newest - stride, newest))
    count = math.prod(tap.stop - tap.start for tap in taps)
    for row, column, weight in wires:
        convolution.weight[row, column][tuple(taps)] = weight / count
