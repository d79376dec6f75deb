"""The recipe of the toybox VAE.

What it is trained to be: sharp on small saturated objects (they are what the world's tracker
measures), steady in time, with bounded latents of which every channel is known by mean and
deviation. Losses are taken in float32; the network runs under autocast when the trainer says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magi_vae import VAE_PRESETS, pixels
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.preview import fit_latent_rgb
from onereel.training.data import BatchStream, to_video
from onereel.training.distributed import through
from onereel.training.engine import Method, Stream, TrainerConfig, step_generator
from onereel.training.hooks import exported_config
from onereel.training.optim import build_optimizers
from onereel.training.pixel_losses import (
    OBJECT_SATURATION,
    edge_error,
    pixel_weights,
    psnr,
    saturation,
    temporal_error,
)
from onereel.training.vae_tiles import VaeBatches, fixed_tiles


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxVaeRecipe:
    """Settings of the toybox VAE's training.

    Args:
        preset: name in `VAE_PRESETS`.
        height: canvas height in pixels.
        width: canvas width in pixels.
        frames: frames of a tile, as the pipeline encodes and decodes them.
        batch_size: tiles per step.
        reuse: batches in a row that share their clips, each with another second of them.
        crowd: scenes whose objects three of four clips show together; 1 for lawful clips only.
        camera_share: share of clips that are lawful ones whose camera moves.
        short_share: share of batches with `short_frames` instead.
        short_frames: lengths that these choose from.
        crop: rows and columns of a random part of the canvas that is trained on; None takes all.
        lr: AdamW's learning rate.
        matrix_lr: Muon's for the blocks' matrices; None gives them to AdamW.
        weight_decay: of matrices.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        edge: weight of the absolute error of the spatial differences.
        chroma: weight of the absolute error with the grey part taken off; without it all colours
            fall onto one axis for a long time, because objects are few pixels.
        temporal: weight of the absolute error of frame differences; without it a faint background
            that moves is drawn anew once per latent frame.
        temporal_floor: takes that error over each tile's own change plus this, so that a slow zoom
            weighs as much as a pan; none for the plain error.
        kl: weight of the mean KL divergence per latent element.
        object_weight: extra weight of a pixel of full saturation.
        motion_weight: extra weight of a pixel that changes by 1 between frames.
        reach: pixels so near to an object count as it does.
        latent_noise: largest deviation of noise on the latents that are decoded, in their own
            deviations and drawn per tile: what transformers make is never quite on the mark.
        init: folder of a VAE to start from, or empty.
        decoder_only: train the decoder for the latents of `init`, so that transformers trained on
            them stay of use.
        workers: background processes that render.
        validation_clips: clips of the fixed validation set.
        stats_clips: clips over which the latents' statistics are taken.
        trainer: settings of the loop.
    """

    preset: str = "toybox"
    height: int = 64
    width: int = 64
    frames: int = 12
    batch_size: int = 8
    reuse: int = 4
    crowd: int = 5
    camera_share: float = 0.0
    short_share: float = 0.15
    short_frames: tuple[int, ...] = (1, 4, 8)
    crop: int | None = None
    lr: float = 1.5e-3
    matrix_lr: float | None = 1.5e-3
    weight_decay: float = 0.01
    l1: float = 1.0
    l2: float = 1.0
    edge: float = 1.0
    chroma: float = 3.0
    temporal: float = 0.0
    temporal_floor: float | None = None
    kl: float = 1e-5
    object_weight: float = 16.0
    motion_weight: float = 4.0
    reach: int = 0
    latent_noise: float = 0.0
    init: str = ""
    decoder_only: bool = False
    workers: int = 1
    validation_clips: int = 64
    stats_clips: int = 512
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_minutes=31.0,
            schedule="time",
            hold=0.3,
            warmup_steps=50,
            ema_decay=0.998,
            bf16=None,
            validate_minutes=3.0,
        )
    )

    def __post_init__(self) -> None:
        """Check what a decoder is trained for."""
        if self.decoder_only and not self.init:
            raise ConfigError("decoder_only", expected="init, whose latents stay", got="none")
        if self.temporal_floor is not None and self.temporal_floor <= 0:
            raise ConfigError(
                "temporal_floor", expected="above 0, or none", got=self.temporal_floor
            )
        if self.latent_noise and not self.decoder_only:
            hint = "the deviations of latents that are still learned are not known"
            raise ConfigError("latent_noise", expected="decoder_only", got="false", hint=hint)

    def build(self) -> tuple[Method, Stream]:
        """Make the VAE with its optimizers, and the stream of rendered tiles.

        Returns:
            The method and the stream.
        """
        return VaeMethod(self), BatchStream(VaeBatches(self), workers=self.workers)


def as_tiles(frames: Tensor) -> Tensor:
    """Make the VAE's input of stored frames: one frame alone is repeated to one latent frame.

    Args:
        frames: uint8, [B, F, H, W, 3].

    Returns:
        Video [B, 3, F, H, W] in [-1, 1], with F = 4 for images.

    Source: training spec, section 3.3.
    """
    video = to_video(frames)
    return video.expand(-1, -1, 4, -1, -1) if video.shape[2] == 1 else video


@torch.no_grad()
def pass_colours_through(convolution: nn.Conv3d, gain: float = 0.3) -> None:
    """Let the last convolution start as the identity on its first three channels.

    From random weights the tokens would first have to undo a blur of 27 taps that mixes colours.
    Measured with this recipe after 250 steps of 8 tiles: 26.1 dB (object pixels 21.6 dB) against
    23.9 dB (13.2 dB). With `chroma=1, object_weight=8` it does not suffice: 15.0 dB after 388.

    Args:
        convolution: at least 3 channels to 3 channels, with a centre tap.
        gain: weight of the centre tap; the pixels' deviation, since the input is normalised.
    """
    centre = [size // 2 for size in convolution.kernel_size]
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    for channel in range(3):
        convolution.weight[channel, channel, centre[0], centre[1], centre[2]] = gain


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLMagi1, frames: Tensor) -> tuple[list[float], list[float]]:
    """Measure every latent channel's mean and standard deviation.

    Args:
        vae: the VAE.
        frames: uint8, [N, F, H, W, 3].

    Returns:
        Two lists of z_dim numbers.
    """
    latents = [
        vae.encode(as_tiles(part).to(vae.device)).latent_dist.mode().float()
        for part in torch.split(frames, 64)
    ]
    values = torch.cat(latents).transpose(0, 1).flatten(1).double()  # [C, everything]
    return values.mean(1).tolist(), values.std(1).tolist()


class VaeMethod(Method):
    """Trains a VAE to reconstruct tiles.

    Args:
        recipe: the settings.
    """

    splits = True
    decode_options: Mapping[str, Any] = MappingProxyType({"as_image": False})

    def __init__(self, recipe: ToyboxVaeRecipe) -> None:
        torch.manual_seed(derive_seed(recipe.trainer.seed, "vae-init"))
        self.recipe = recipe
        self.vae: Any = self.make_vae()
        self.networks = {"vae": self.vae}
        self.ema_names = ("vae",)
        self.optimizers = build_optimizers(
            self.vae,
            lr=recipe.lr,
            matrix_lr=recipe.matrix_lr,
            weight_decay=recipe.weight_decay,
            name="vae",
        )

    def make_vae(self) -> nn.Module:
        """Make the network that is trained."""
        recipe = self.recipe
        if recipe.init:
            vae = AutoencoderKLMagi1.from_pretrained(recipe.init).float()
        else:
            vae = AutoencoderKLMagi1(**VAE_PRESETS[recipe.preset])
            pass_colours_through(vae.decoder.conv_out)
        vae.encoder.requires_grad_(not recipe.decoder_only)
        # Four times faster on a CPU, forward and backward; the numbers are the same.
        vae.decoder.conv_out.to(memory_format=torch.channels_last_3d)
        return vae

    def latent_deviations(self, like: Tensor) -> Tensor:
        """Give the deviation of every channel of the latents of `init`, to broadcast to `like`."""
        return pixels.latent_statistics(self.vae.config, like)[1]

    def as_input(self, frames: Tensor) -> Tensor:
        """Make the VAE's input [B, 3, F, H, W] of stored frames, uint8 [B, F, H, W, 3]."""
        return as_tiles(frames)

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Reconstruct a batch from a posterior sample.

        Args:
            batch: uint8 frames, [B, F, H, W, 3].
            step: number of the step.

        Returns:
            `loss` and its parts.
        """
        recipe = self.recipe
        whole = self.as_input(batch)
        rows = self.part.rows(len(whole))
        # Their mean is 1 over the whole batch, of which this may be a part.
        weights = pixel_weights(
            whole,
            object_weight=recipe.object_weight,
            motion_weight=recipe.motion_weight,
            reach=recipe.reach,
        )[rows]
        video = whole[rows]
        mean, std = through(self.vae, lambda vae: _posterior(vae, video))
        generator = step_generator(recipe.trainer.seed, step, tag="posterior")
        noise = torch.randn((len(whole), *mean.shape[1:]), generator=generator)[rows].to(mean)
        if recipe.latent_noise:
            level = recipe.latent_noise * torch.rand((len(whole), 1, 1, 1, 1), generator=generator)
            extra = level[rows].to(mean) * self.latent_deviations(mean)
            std = (std.square() + extra.square()).sqrt()
        latent = mean + std * noise
        decode = functools.partial(_decode, latent=latent, options=self.decode_options)
        output = through(self.vae, decode).float()
        error = output - video
        terms = {
            "l1": (error.abs() * weights).mean(),
            "l2": (error.square() * weights).mean(),
            "edge": edge_error(error, weights),
            "chroma": ((error - error.mean(1, keepdim=True)).abs() * weights).mean(),
            "temporal": temporal_error(error, video, floor=recipe.temporal_floor),
            "kl": 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean(),
        }
        loss = sum(getattr(recipe, name) * value for name, value in terms.items())
        values = mean.detach()
        terms |= {"latent_mean": values.mean(), "latent_square": values.square().mean()}
        share = len(video) / len(whole)
        return {name: value * share for name, value in {"loss": loss, **terms}.items()}

    def finish(self, scalars: dict[str, float]) -> dict[str, float]:
        """Take what is no mean over items from the means over the whole batch.

        Args:
            scalars: of `train_step`, summed over the parts of the batch.

        Returns:
            The same with the latents' deviation and the PSNR.
        """
        mean, square = scalars.pop("latent_mean"), scalars.pop("latent_square")
        decibels = psnr(scalars["l2"]) if math.isfinite(scalars["l2"]) else math.nan
        return {**scalars, "latent_std": max(square - mean**2, 0.0) ** 0.5, "psnr": decibels}

    @functools.cached_property
    def validation_tiles(self) -> Tensor:
        """The fixed validation set, uint8 [N, F, H, W, 3]."""
        return fixed_tiles(self.recipe, "validation", count=self.recipe.validation_clips)

    @functools.cached_property
    def stats_tiles(self) -> Tensor:
        """The clips whose latents' statistics are taken, uint8 [N, F, H, W, 3]."""
        return fixed_tiles(self.recipe, "stats", count=self.recipe.stats_clips)

    def validate(self, step: int) -> dict[str, float]:
        """Measure the reconstruction from the posterior's mean.

        Args:
            step: number of the step.

        Returns:
            `psnr` and `psnr_object` in dB (over clamped pixels), and `flicker`: the mean absolute
            error of frame differences in grey levels of 255.
        """
        total = objects = flicker = covered = 0.0
        count = len(self.validation_tiles)
        for video, output in self._reconstructed(self.validation_tiles):
            squared = (output - video).square()
            mask = (saturation(video) > OBJECT_SATURATION).float()
            total += squared.mean().item() * len(video) / count
            objects += (squared.mean(1, keepdim=True) * mask).sum().item()
            covered += mask.sum().item()
            change = temporal_error(output - video, video).item()
            flicker += change * 127.5 * len(video) / count
        return {
            "val_psnr": psnr(total),
            "val_psnr_object": psnr(objects / max(covered, 1.0)),
            "val_flicker": flicker,
        }

    def export(self, folder: Path) -> None:
        """Write the VAE in bfloat16 with its latents' statistics, and a sheet of pictures.

        Args:
            folder: the diffusers folder; the sheet is `sheet.png` in its parent.
        """
        exported = AutoencoderKLMagi1.from_config(exported_config(self.vae))
        # Rounded first, measured then: the statistics are those of the weights that users load.
        rounded = {name: value.bfloat16() for name, value in self.vae.state_dict().items()}
        exported.load_state_dict(rounded)
        exported.to(self.vae.device)
        if not self.recipe.decoder_only:
            mean, std = latent_statistics(exported, self.stats_tiles)
            exported.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=1.0)
            tiles = as_tiles(self.stats_tiles[:256]).to(self.vae.device)
            factors, bias = fit_latent_rgb(exported.encode_frames(tiles), tiles)
            exported.register_to_config(latent_rgb_factors=factors, latent_rgb_bias=bias)
        for parameter in exported.parameters():
            parameter.data = parameter.data.bfloat16()
        exported.save_pretrained(folder)
        self.sheet(folder.parent / "sheet.png")

    def sheet(self, path: Path, *, clips: int = 8, scale: int = 3) -> None:
        """Write originals above reconstructions; per clip its first, middle and last frame.

        Args:
            path: the PNG.
            clips: number of clips shown.
            scale: pixel magnification.
        """
        video, output = next(self._reconstructed(self.validation_tiles[:clips]))
        shown = [0, video.shape[2] // 2, video.shape[2] - 1]
        rows = [
            tensor[start : start + 4, :, shown]
            for start in range(0, len(video), 4)
            for tensor in (video, output)
        ]
        pictures = torch.cat([rearrange(row, "b c f h w -> h (b f w) c") for row in rows])
        pixels = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        image = Image.fromarray(pixels)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
            path
        )

    @torch.no_grad()
    def _reconstructed(self, tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (video, reconstruction) in small batches, [B, 3, F, H, W], pixels clamped."""
        for part in torch.split(tiles, 16):
            video = self.as_input(part).to(self.vae.device)
            run = functools.partial(_round_trip, video=video, options=self.decode_options)
            yield video, through(self.vae, run)


def _posterior(vae: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """Encode a video to the mean and the deviation of its latent, float32."""
    posterior = vae.encode(video).latent_dist
    return posterior.mean.float(), posterior.std.float()


def _decode(vae: Any, *, latent: Tensor, options: Mapping[str, Any]) -> Tensor:
    video: Tensor = vae.decode(latent, **options).sample
    return video


def _round_trip(vae: Any, *, video: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Encode and decode a video, with its pixels clamped."""
    latent = vae.encode(video).latent_dist.mode()
    return _decode(vae, latent=latent, options=options).float().clamp(-1, 1)
