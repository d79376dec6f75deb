"""The MAGI-1 VAE: a transformer on patches, with the interface of diffusers.

Not causal: four frames make one latent frame, the first frame is nothing special, and a picture is
encoded as four equal frames.

Legend: B batch, C channels, F frames, T latent frames, H W height and width.

Source: SandAI-org/MAGI-1 @6ff822e, inference/model/vae.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.magi_vae.blocks import Decoder, Encoder, VaeDims
from onereel.models.magi_vae.pixels import from_uint8, latent_statistics
from onereel.models.magi_vae.posterior import LatentPosterior
from onereel.models.magi_vae.tiling import OfficialTiles, TileConfig

IMAGE_FRAMES = 4  # a picture is repeated to this many frames, whatever the patch
TILE_FRAMES = 12  # half a second at 24 fps, which is what the released VAE was used with
LATENT_AXES = "[B, C, T, H, W]"
Tiling = TileConfig | OfficialTiles


class AutoencoderKLMagi1(ModelMixin, AutoencoderMixin, ConfigMixin):
    """The VAE. Without arguments it has the released sizes.

    Args:
        patch_size: frames, rows and columns of one token.
        num_attention_heads: heads.
        attention_head_dim: head dim; their product is the token width.
        z_dim: latent channels.
        height: rows of the grid that the position table is stored for, in pixels.
        width: its columns, in pixels.
        num_frames: its frames.
        ffn_dim: hidden width of the MLPs.
        num_layers: blocks per half.
        eps: kept for config compatibility, unused.
        temporal_compression_ratio: frames per latent frame; None derives it from the patch.
        spatial_compression_ratio: pixels per latent row; None derives it from the patch.
        latents_mean: mean per latent channel, None for zeros.
        latents_std: deviation per latent channel, None for ones.
        scaling_factor: factor of the model's latents, after mean and deviation.
        qkv_bias: whether queries, keys and values have a bias.
        ln_in_attn: normalise q, k and v per head instead of the block's input.
        with_cls_token: whether a learned token stands before the patches.
        norm_code: scale every moments vector to length 1.
        use_final_proj: project and normalise tokens before they become pixels.
        double_z: whether the encoder also gives log-variances.
        conv_last_layer: must be True.
        in_channels: image channels.
        latent_rgb_factors: [z_dim][3], colours of normalised latents for previews, or None.
        latent_rgb_bias: [3], what is added to them.

    Raises:
        ConfigError: values contradict each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VaeBlock"]

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers configs are flat
        self,
        patch_size: Sequence[int] = (4, 8, 8),
        num_attention_heads: int = 16,
        attention_head_dim: int = 64,
        z_dim: int = 16,
        height: int = 256,
        width: int = 256,
        num_frames: int = 16,
        ffn_dim: int = 4096,
        num_layers: int = 24,
        eps: float = 1e-6,
        temporal_compression_ratio: int | None = None,
        spatial_compression_ratio: int | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        scaling_factor: float = 0.18215,
        qkv_bias: bool = True,
        ln_in_attn: bool = True,
        with_cls_token: bool = True,
        norm_code: bool = False,
        use_final_proj: bool = False,
        double_z: bool = True,
        conv_last_layer: bool = True,
        in_channels: int = 3,
        latent_rgb_factors: Sequence[Sequence[float]] | None = None,
        latent_rgb_bias: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        q, p = _check_config(self.config)
        dims = VaeDims(
            patch=(q, p, p),
            grid=(num_frames // q, height // p, width // p),
            num_heads=num_attention_heads,
            head_dim=attention_head_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            z_dim=z_dim,
            in_channels=in_channels,
            qkv_bias=qkv_bias,
            ln_in_attn=ln_in_attn,
            with_cls_token=with_cls_token,
            norm_code=norm_code,
            use_final_proj=use_final_proj,
            double_z=double_z,
        )
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
        self.use_slicing = False
        self.use_tiling = False
        self.tiling: Tiling = self._default_tiles()

    @property
    def factors(self) -> tuple[int, int, int]:
        """Frames, rows and columns per latent element."""
        return self.encoder.dims.patch

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return self.factors[0]

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent row and column."""
        return self.factors[1]

    def _default_tiles(self) -> TileConfig:
        q, p, _ = self.factors
        height, width = self.config.height, self.config.width
        length = max(q, TILE_FRAMES // q * q)
        return TileConfig(
            height=height,
            width=width,
            length=length,
            stride_height=max(p, height * 3 // 4 // p * p),
            stride_width=max(p, width * 3 // 4 // p * p),
            stride_length=length,
        )

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        *,
        tile_sample_min_length: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        tile_sample_stride_length: int | None = None,
    ) -> None:
        """Encode and decode in tiles whenever the input is larger than one tile.

        Args:
            tile_sample_min_height: rows of a tile in pixels; the native height by default.
            tile_sample_min_width: columns of a tile in pixels; the native width by default.
            tile_sample_min_length: frames of a tile; 12 by default.
            tile_sample_stride_height: distance of tiles; three quarters by default.
            tile_sample_stride_width: distance of tiles; three quarters by default.
            tile_sample_stride_length: distance of tiles; the length by default.

        Raises:
            ShapeError: the tiles do not fit the patch grid.
        """
        default, p = self._default_tiles(), self.spatial_factor
        height = tile_sample_min_height or default.height
        width = tile_sample_min_width or default.width
        length = tile_sample_min_length or default.length
        tiling = TileConfig(
            height=height,
            width=width,
            length=length,
            stride_height=tile_sample_stride_height or max(p, height * 3 // 4 // p * p),
            stride_width=tile_sample_stride_width or max(p, width * 3 // 4 // p * p),
            stride_length=tile_sample_stride_length or length,
        )
        tiling.check(self.factors)
        self.tiling, self.use_tiling = tiling, True

    def enable_official_tiling(self, tiles: OfficialTiles) -> None:
        """Encode and decode in exactly the official tiles, whatever the input's size.

        Args:
            tiles: the official parameters.
        """
        self.tiling, self.use_tiling = tiles, True

    def encode_moments(self, x: torch.Tensor) -> torch.Tensor:
        """Run the encoder on one tile; a single frame is repeated to a picture's frames.

        Args:
            x: video [B, C, F, H, W] in [-1, 1].

        Returns:
            Moments [B, 2 * z_dim, T, h, w] of all latent frames.

        Raises:
            ShapeError: the video has another rank or channel count, or is smaller than a patch.
        """
        self._check(x, self.config.in_channels, "video")
        if x.shape[2] == 1 and self.temporal_factor > 1:
            x = x.expand(-1, -1, max(IMAGE_FRAMES, self.temporal_factor), -1, -1)
        return self._encode_all(x)

    def _encode_all(self, x: torch.Tensor) -> torch.Tensor:
        """Run the encoder without the rule for pictures."""
        for name, size, factor in zip(("F", "H", "W"), x.shape[2:], self.factors, strict=True):
            if size < factor:
                raise ShapeError(f"{name} of the video", expected=f"at least {factor}", got=size)
        moments = self.encoder(x)
        assert isinstance(moments, torch.Tensor)
        return moments

    def _posterior(self, x: torch.Tensor) -> LatentPosterior:
        moments = self.encode_moments(x)
        if x.shape[2] == 1:
            moments = moments[:, :, :1]
        return LatentPosterior(moments, has_variance=self.config.double_z)

    def _tiled_posterior(self, x: torch.Tensor, tiling: Tiling) -> LatentPosterior:
        """Encode in tiles; means blend linearly, variances with squared weights."""
        self._check(x, self.config.in_channels, "video")
        plan = tiling.encode_plan(self.factors)
        if isinstance(tiling, TileConfig):
            self._check_multiples(x)
        with self.encoder.reuse_positions():
            tiles = [self._posterior(tile) for tile in plan.cut(x)]
        counts = plan.counts(x)
        mean = plan.assemble((tile.mean.float() for tile in tiles), counts)
        if not self.config.double_z:
            return LatentPosterior(mean, has_variance=False)
        variance = plan.assemble((tile.var.float() for tile in tiles), counts, squared=True)
        return LatentPosterior(torch.cat((mean, variance.log()), dim=1))

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Encode a video or a picture.

        Without tiling, frames, rows and columns at the end that fill no patch are left out, as
        officially; tiles refuse them.

        Args:
            x: [B, C, F, H, W] in [-1, 1]; F = 1 is a picture and gives one latent frame.
            return_dict: False returns a tuple of one.

        Returns:
            `AutoencoderKLOutput` with the posterior `latent_dist` over raw latents,
            [B, z_dim, T, h, w].

        Raises:
            ShapeError: the video does not fit.
        """
        self._check(x, self.config.in_channels, "video")
        run = self._posterior
        if self._wants_tiles(x.shape[2:], (1, 1, 1)):
            run = functools.partial(self._tiled_posterior, tiling=self.tiling)
        if self.use_slicing and x.shape[0] > 1:
            parts = torch.cat([run(part).parameters for part in torch.split(x, 1)])
            if not self.config.double_z:
                parts = parts.chunk(2, dim=1)[0]
            posterior = LatentPosterior(parts, has_variance=self.config.double_z)
        else:
            posterior = run(x)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _wants_tiles(self, size: Sequence[int], factors: Sequence[int]) -> bool:
        if not self.use_tiling or isinstance(self.tiling, OfficialTiles):
            return self.use_tiling
        t, h, w = (n * factor for n, factor in zip(size, factors, strict=True))
        return self.tiling.exceeded_by((t, h, w))

    def _decode_tile(self, z: torch.Tensor, as_image: bool) -> torch.Tensor:
        video = self.decoder(z)
        assert isinstance(video, torch.Tensor)
        return video[:, :, :1] if as_image else video

    def _tiled_video(self, z: torch.Tensor, as_image: bool, tiling: Tiling) -> torch.Tensor:
        """Decode in tiles and blend in float32."""
        plan = tiling.decode_plan(self.factors)
        with self.decoder.reuse_positions():
            tiles = (
                self._decode_tile(tile, plan.image_tiles and tile.shape[2] == 1).float()
                for tile in plan.cut(z)
            )
            video = plan.assemble(tiles, plan.counts(z))
        return video[:, :, :1] if as_image else video

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, *, as_image: bool | None = None
    ) -> Any:
        """Decode raw latents.

        Args:
            z: [B, z_dim, T, h, w].
            return_dict: False returns a tuple of one.
            as_image: return only the first frame. None does so when T = 1, as officially; False
                always keeps every frame.

        Returns:
            `DecoderOutput` with the video `sample`, [B, C, F, H, W], not clamped.

        Raises:
            ShapeError: the latent does not fit, or is a video though `as_image` is True.
        """
        self._check(z, self.config.z_dim, "latent")
        if as_image and z.shape[2] != 1:
            raise ShapeError("as_image", expected="one latent frame", got=z.shape[2])
        image = z.shape[2] == 1 if as_image is None else as_image
        run = functools.partial(self._decode_tile, as_image=image)
        if self._wants_tiles(z.shape[2:], self.factors):
            run = functools.partial(self._tiled_video, as_image=image, tiling=self.tiling)
        if self.use_slicing and z.shape[0] > 1:
            video = torch.cat([run(part) for part in torch.split(z, 1)])
        else:
            video = run(z)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = True,
        *,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Encode and decode without the rules for pictures.

        Args:
            sample: video [B, C, F, H, W] in [-1, 1].
            sample_posterior: draw the latent; False takes the mean.
            return_dict: False returns a tuple of one.
            generator: source of the draw.

        Returns:
            `DecoderOutput` with the reconstruction `sample`, [B, C, F, H, W].

        Raises:
            ShapeError: the video does not fit.
        """
        self._check(sample, self.config.in_channels, "video")
        posterior = LatentPosterior(self._encode_all(sample), has_variance=self.config.double_z)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        video = self._decode_tile(latent, as_image=False)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def normalize_latent(self, z: torch.Tensor) -> torch.Tensor:
        """Turn raw latents into what the transformer works on.

        Args:
            z: raw latent [B, z_dim, T, h, w].

        Returns:
            (z - latents_mean) / latents_std * scaling_factor.
        """
        mean, std = latent_statistics(self.config, z)
        return (z - mean) / std * float(self.config.scaling_factor)

    def denormalize_latent(self, x: torch.Tensor) -> torch.Tensor:
        """Undo `normalize_latent`.

        Args:
            x: the transformer's latent [B, z_dim, T, h, w].

        Returns:
            The raw latent.
        """
        mean, std = latent_statistics(self.config, x)
        return x / float(self.config.scaling_factor) * std + mean

    @torch.no_grad()
    def encode_frames(
        self,
        video: torch.Tensor,
        *,
        tiling: Tiling | None = None,
        official_compat: bool = False,
        fps: int = 24,
    ) -> torch.Tensor:
        """Encode pixels to the transformer's latents: posterior means, in tiles.

        Args:
            video: [B, C, F, H, W], uint8 or floats in [-1, 1]; F = 1 is a picture.
            tiling: tiles to use; the VAE's own by default.
            official_compat: use the official pipeline's tiles unless `tiling` is given.
            fps: frame rate, of which only official tiles depend.

        Returns:
            Normalised latents [B, z_dim, T, h, w] in float32, on the VAE's device.

        Raises:
            ShapeError: the video is not a multiple of the patch, or tiles do not fit.
        """
        video = video.to(self.device)
        if video.dtype == torch.uint8:
            video = from_uint8(video)
        tiling = tiling or self._pipeline_tiles(official_compat, fps)
        posterior = self._tiled_posterior(video.to(self.dtype), tiling)
        return self.normalize_latent(posterior.mode().float())

    @torch.no_grad()
    def decode_chunk(
        self,
        latent: torch.Tensor,
        *,
        tiling: Tiling | None = None,
        as_image: bool = False,
        official_compat: bool = False,
        fps: int = 24,
    ) -> torch.Tensor:
        """Decode the transformer's latents to pixels, in tiles.

        Every latent frame gives all its frames, save that an official tile of one latent frame
        gives one.

        Args:
            latent: normalised latents [B, z_dim, T, h, w].
            tiling: tiles to use; the VAE's own by default.
            as_image: return the first frame of one latent frame.
            official_compat: use the official pipeline's tiles unless `tiling` is given.
            fps: frame rate, of which only official tiles depend.

        Returns:
            Video [B, C, F, H, W] in float32, not clamped, on the VAE's device.

        Raises:
            ShapeError: the latent does not fit, or is a video though `as_image` is True.
        """
        self._check(latent, self.config.z_dim, "latent")
        if as_image and latent.shape[2] != 1:
            raise ShapeError("as_image", expected="one latent frame", got=latent.shape[2])
        z = self.denormalize_latent(latent.to(self.device).float()).to(self.dtype)
        return self._tiled_video(z, as_image, tiling or self._pipeline_tiles(official_compat, fps))

    def _pipeline_tiles(self, official_compat: bool, fps: int) -> Tiling:
        """Give the tiles of the helpers: the official pipeline passes half a second's frames."""
        return OfficialTiles(length=fps // 2) if official_compat else self.tiling

    def _check(self, x: torch.Tensor, channels: int, name: str) -> None:
        if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
            raise ShapeError(name, expected=f"{LATENT_AXES} with C = {channels}", got=list(x.shape))

    def _check_multiples(self, x: torch.Tensor) -> None:
        for name, size, factor in zip(
            ("frames", "height", "width"), x.shape[2:], self.factors, strict=True
        ):
            if size % factor and not (name == "frames" and size == 1):
                raise ShapeError(
                    f"{name} of the video",
                    expected=f"a multiple of {factor}",
                    got=size,
                    hint=f"use {max(factor, size // factor * factor)}",
                )


def _check_config(config: dict[str, object]) -> tuple[int, int]:
    """Check a VAE config and give the temporal and the spatial patch."""
    patch = config["patch_size"]
    assert isinstance(patch, Sequence)
    if len(patch) != 3 or patch[1] != patch[2]:
        raise ConfigError("patch_size", expected="(frames, n, n)", got=list(patch))
    q, p = int(patch[0]), int(patch[1])
    if not config["conv_last_layer"]:
        raise ConfigError("conv_last_layer", expected="True", got=False)
    wanted = {"temporal_compression_ratio": q, "spatial_compression_ratio": p}
    for name, value in wanted.items():
        if config[name] not in (None, value):
            raise ConfigError(name, expected=f"the patch's {value}", got=config[name])
    for name, factor in (("num_frames", q), ("height", p), ("width", p)):
        size = config[name]
        assert isinstance(size, int)
        if size < factor:
            raise ConfigError(name, expected=f"at least the patch's {factor}", got=size)
    for name in ("latents_mean", "latents_std"):
        values = config[name]
        if isinstance(values, Sequence) and len(values) != config["z_dim"]:
            raise ConfigError(name, expected=f"{config['z_dim']} numbers", got=len(values))
    return q, p
