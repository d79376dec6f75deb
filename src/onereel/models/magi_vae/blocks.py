"""The VAE's network: a transformer over patches on each side.

Legend: B batch, C channels, F frames, T latent frames, H W height and width, L tokens, D width,
N heads, E head dim.

Source: SandAI-org/MAGI-1 @6ff822e, inference/model/vae.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from onereel.core.errors import ConfigError
from onereel.nn.attention import attend

Grid = tuple[int, int, int]

# Channels of the full-resolution volume that the last convolution reads after `final_proj`.
FINAL_CHANNELS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeDims:
    """The sizes and switches from which both halves of the VAE are built.

    Args:
        patch: frames, rows and columns of one token.
        grid: tokens along T, H and W of the stored position table.
        num_heads: attention heads N.
        head_dim: E.
        ffn_dim: hidden width of the MLPs.
        num_layers: blocks per half.
        z_dim: latent channels.
        in_channels: image channels.
        qkv_bias: whether queries, keys and values have a bias.
        ln_in_attn: normalise q, k and v per head instead of the block's input.
        with_cls_token: whether a learned token stands before the patches.
        norm_code: scale every moments vector to length 1.
        use_final_proj: project and normalise tokens before they become pixels.
        double_z: whether the encoder also gives log-variances.
    """

    patch: Grid
    grid: Grid
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_layers: int
    z_dim: int
    in_channels: int
    qkv_bias: bool
    ln_in_attn: bool
    with_cls_token: bool
    norm_code: bool
    use_final_proj: bool
    double_z: bool

    def __post_init__(self) -> None:
        """Check that tokens can be laid out as pixels."""
        if not self.use_final_proj and self.width % self.volume:
            raise ConfigError(
                "num_attention_heads * attention_head_dim",
                expected=f"a multiple of the patch's {self.volume} pixels",
                got=self.width,
                hint="or set use_final_proj",
            )

    @property
    def width(self) -> int:
        """Token width D."""
        return self.num_heads * self.head_dim

    @property
    def volume(self) -> int:
        """Pixels of one patch."""
        return self.patch[0] * self.patch[1] * self.patch[2]


def normalize_heads(x: torch.Tensor) -> torch.Tensor:
    """Normalise over the head dim, in float32.

    Args:
        x: [B, N, L, E].

    Returns:
        (x - mean) / (std + 1e-5), the population standard deviation, in the input's dtype.
    """
    wide = x.float()
    deviation, mean = torch.std_mean(wide, dim=-1, correction=0, keepdim=True)
    return ((wide - mean) / (deviation + 1e-5)).to(x.dtype)


class VaeAttention(nn.Module):
    """Full attention over all tokens, no positions.

    Args:
        dims: sizes and switches.
    """

    def __init__(self, dims: VaeDims) -> None:
        super().__init__()
        self.num_heads = dims.num_heads
        self.normalize = dims.ln_in_attn
        self.to_q = nn.Linear(dims.width, dims.width, bias=dims.qkv_bias)
        self.to_k = nn.Linear(dims.width, dims.width, bias=dims.qkv_bias)
        self.to_v = nn.Linear(dims.width, dims.width, bias=dims.qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(dims.width, dims.width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every token to every token.

        Args:
            x: [B, L, D].

        Returns:
            [B, L, D].
        """
        heads = [
            rearrange(project(x), "b l (n e) -> b n l e", n=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        ]
        if self.normalize:
            heads = [normalize_heads(part) for part in heads]  # values too
        query, key, value = heads
        out = attend(query, key, value=value)
        out = self.to_out[0](rearrange(out, "b n l e -> b l (n e)"))
        assert isinstance(out, torch.Tensor)
        return out


class VaeBlock(nn.Module):
    """Attention and an MLP, each added to its input.

    Args:
        dims: sizes and switches.
    """

    def __init__(self, dims: VaeDims) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if dims.ln_in_attn else nn.LayerNorm(dims.width)
        self.attn = VaeAttention(dims)
        self.norm = nn.LayerNorm(dims.width)
        self.proj_out = FeedForward(dims.width, inner_dim=dims.ffn_dim, activation_fn="gelu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform tokens.

        Args:
            x: [B, L, D].

        Returns:
            [B, L, D].
        """
        x = x + self.attn(self.norm1(x))
        return x + self.proj_out(self.norm(x))


class Trunk(nn.Module):
    """What both halves share: class token, position table, blocks, last norm.

    Args:
        dims: sizes and switches.
    """

    def __init__(self, dims: VaeDims) -> None:
        super().__init__()
        self.dims = dims
        t, h, w = dims.grid
        rows = t * h * w + int(dims.with_cls_token)
        token = nn.Parameter(torch.zeros(1, 1, dims.width))
        cls_token = token if dims.with_cls_token else None
        self.cls_token = cls_token
        self.pos_embed = nn.Parameter(torch.randn(1, rows, dims.width) * 0.02)
        self.blocks = nn.ModuleList(VaeBlock(dims) for _ in range(dims.num_layers))
        self.norm_out = nn.LayerNorm(dims.width)
        self.gradient_checkpointing = False
        self._tables: dict[Grid, torch.Tensor] | None = None

    @contextmanager
    def reuse_positions(self) -> Iterator[None]:
        """Keep resized position tables while tiles of one call are processed.

        Weights do not change inside one call, so no table can outlive its source.
        """
        self._tables = {}
        try:
            yield
        finally:
            self._tables = None

    def positions(self, grid: Grid) -> torch.Tensor:
        """Give the position table, resized when the grid is not the stored one.

        Args:
            grid: tokens along T, H and W.

        Returns:
            [1, L, D], the class token's row first when there is one.
        """
        if grid == self.dims.grid:
            return self.pos_embed
        tables = None if torch.is_grad_enabled() else self._tables
        if tables is not None and grid in tables:
            return tables[grid]
        lead = int(self.dims.with_cls_token)
        t, h, _ = self.dims.grid
        volume = rearrange(self.pos_embed[:, lead:], "b (t h w) d -> b d t h w", t=t, h=h)
        volume = F.interpolate(volume.float(), size=grid, mode="trilinear", align_corners=False)
        rows = rearrange(volume, "b d t h w -> b (t h w) d").to(self.pos_embed.dtype)
        table = torch.cat((self.pos_embed[:, :lead], rows), dim=1)
        if tables is not None:
            tables[grid] = table
        return table

    def run_blocks(self, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Run tokens through the trunk.

        Args:
            x: patch tokens in (t, h, w) order, [B, L, D].
            grid: tokens along T, H and W.

        Returns:
            [B, L, D], without the class token.
        """
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x), dim=1)
        x = x + self.positions(grid)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm_out(x)
        return x if self.cls_token is None else x[:, 1:]


class Encoder(Trunk):
    """Pixels to posterior moments.

    Args:
        dims: sizes and switches.
    """

    def __init__(self, dims: VaeDims) -> None:
        super().__init__(dims)
        self.patch_embedding = nn.Conv3d(
            dims.in_channels, dims.width, dims.patch, stride=dims.patch
        )
        self.linear_out = nn.Linear(dims.width, dims.z_dim * (2 if dims.double_z else 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode; rows, columns and frames that fill no patch are left out.

        Args:
            x: video, [B, C, F, H, W] in [-1, 1].

        Returns:
            Moments [B, 2 * z_dim, T, h, w], means first.
        """
        x = self.patch_embedding(x)
        t, h, w = x.shape[2:]
        x = self.run_blocks(rearrange(x, "b d t h w -> b (t h w) d"), (t, h, w))
        moments = rearrange(self.linear_out(x), "b (t h w) c -> b c t h w", t=t, h=h)
        if self.dims.norm_code:
            return F.normalize(moments.float(), dim=1).to(moments.dtype)
        return moments


class Decoder(Trunk):
    """Latents to pixels.

    Args:
        dims: sizes and switches.
    """

    def __init__(self, dims: VaeDims) -> None:
        super().__init__(dims)
        self.proj_in = nn.Linear(dims.z_dim, dims.width)
        self.final_proj: nn.Module = nn.Identity()
        self.final_norm: nn.Module = nn.Identity()
        channels = dims.width // dims.volume
        if dims.use_final_proj:
            channels = FINAL_CHANNELS
            self.final_proj = nn.Linear(dims.width, channels * dims.volume)
            self.final_norm = nn.LayerNorm(channels * dims.volume)
        self.conv_out = nn.Conv3d(channels, dims.in_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Decode; every latent frame gives a patch's worth of frames.

        Args:
            z: latent, [B, z_dim, T, h, w].

        Returns:
            Video [B, C, F, H, W], not clamped.
        """
        t, h, w = z.shape[2:]
        tokens = self.proj_in(rearrange(z, "b c t h w -> b (t h w) c"))
        x = self.final_norm(self.final_proj(self.run_blocks(tokens, (t, h, w))))
        q, p, r = self.dims.patch
        x = rearrange(x, "b (t h w) (q p r u) -> b u (t q) (h p) (w r)", t=t, h=h, q=q, p=p, r=r)
        video = self.conv_out(x)
        assert isinstance(video, torch.Tensor)
        return video
