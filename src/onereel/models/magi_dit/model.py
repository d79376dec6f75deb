"""The MAGI-1 diffusion transformer. Read beside section 2.2 of arXiv 2505.13211.

Legend: B batch, C latent channels, T latent frames, H W latent height and width, R chunks of the
call, L tokens, S text tokens, K text width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from einops import rearrange
from torch import nn

from onereel.core.errors import ShapeError
from onereel.models.magi_dit.blocks import (
    BlockContext,
    KeyValue,
    Magi1TransformerBlock,
)
from onereel.models.magi_dit.fp8 import Fp8Linear, quantize_blocks
from onereel.nn.embeddings import place_features, time_features
from onereel.nn.layers import LayerNorm, LinearFp32, PatchEmbeddingFp32
from onereel.nn.rope import RotaryBands

# Marks files whose norm gains, key/value rows and GLU halves are converted right.
LAYOUT_VERSION = 1


@dataclass
class Magi1TransformerOutput(BaseOutput):
    """Velocity [B, C, T, H, W] in float32, and the kept keys and values per layer."""

    sample: torch.Tensor
    key_values: tuple[KeyValue, ...] | None = None


class TimeEmbedder(nn.Module):
    """Two-layer MLP on sinusoidal features."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.linear_1 = LinearFp32(freq_dim, dim)
        self.linear_2 = LinearFp32(dim, dim)

    def forward(self, t: torch.Tensor, feature_dtype: torch.dtype) -> torch.Tensor:
        """Embed scalars of any shape; features are rounded to the network's dtype first."""
        features = time_features(t, dim=self.freq_dim).to(feature_dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


class TextEmbedder(nn.Module):
    """Text projection, and the learned null caption whose last two rows feed the modulation."""

    def __init__(self, text_dim: int, dim: int, *, condition_dim: int, max_length: int) -> None:
        super().__init__()
        self.null_caption_embedding = nn.Parameter(torch.randn(max_length, text_dim) * 0.02)
        self.y_proj_xattn = nn.Sequential(LinearFp32(text_dim, dim), nn.SiLU())
        self.y_proj_adaln = LinearFp32(text_dim, condition_dim)

    def forward(
        self, text: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project text [B, R, S, K]; `dropped` [B, R] picks the rows of the modulation."""
        tokens = self.y_proj_xattn(text)  # [B, R, S, D]
        rows = torch.where(
            dropped[..., None], self.null_caption_embedding[-1], self.null_caption_embedding[-2]
        )
        return tokens, self.y_proj_adaln(rows)


class PlaceEmbedder(nn.Module):
    """Absolute places on the canvas and within the chunk, added to the tokens.

    Not in the official models. Rotary positions reach attention's weights only: tokens of equal
    content stay equal whatever their place, so that a network of a few layers on plain backgrounds
    cannot tell where a thing is, nor where it will be.
    """

    def __init__(self, octaves: int, dim: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.linear = LinearFp32(3 * (1 + 2 * octaves), dim, bias=False)

    def forward(self, grid: tuple[int, int, int], num_chunks: int) -> torch.Tensor:
        """Embed all places of a grid of tokens: [T*H*W, D]."""
        device = self.linear.weight.device
        return self.linear(
            place_features(grid, num_chunks=num_chunks, octaves=self.octaves, device=device)
        )


class ConditionEmbedder(nn.Module):
    """Time, step size and text to tokens and modulation."""

    def __init__(
        self, dim: int, condition_dim: int, *, freq_dim: int, text_dim: int, max_length: int
    ) -> None:
        super().__init__()
        self.time_embedder = TimeEmbedder(freq_dim, condition_dim)
        self.text_embedder = TextEmbedder(
            text_dim, dim, condition_dim=condition_dim, max_length=max_length
        )


class Magi1Transformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """MAGI-1's block-causal video diffusion transformer.

    Args:
        patch_size: latent patch (T, H, W).
        num_attention_heads: query heads N.
        attention_head_dim: head dim E, a multiple of 8.
        num_kv_heads: key and value heads G.
        in_channels: input channels (32 for half-channel checkpoints, fed 16 twice).
        out_channels: output channels.
        cross_attention_dim: text width K.
        freq_dim: features of a scalar time.
        ffn_dim: hidden width of the MLP.
        num_layers: blocks.
        eps: of every LayerNorm.
        x_rescale_factor: multiplies the latent at the input, divides the velocity.
        half_channel_vae: whether a 16-channel latent is concatenated with itself.
        enable_distillation: whether the weights expect the step-size embedding.
        gated_linear_unit: SwiGLU instead of GELU.
        caption_max_length: rows of the null caption.
        cond_hidden_ratio: modulation width / D.
        fp8_quant: whether the inner blocks hold float8 weights.
        place_octaves: octaves of an embedding of absolute places; 0 for none, as in the official
            models.
        layout_version: of the key layout; files without it are refused by the loader.

    Source: SandAI-org/MAGI-1 @6ff822e, inference/model/dit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Magi1TransformerBlock"]
    _repeated_blocks = ["Magi1TransformerBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embedding",
        "condition_embedder",
        "place_embedder",
        "rope",
        "norm",
    ]
    _keep_in_fp32_modules = [
        "patch_embedding",
        "condition_embedder",
        "place_embedder",
        "rope",
        "norm_q",
        "norm_k",
        "norm2",
        "norm4",
        "norm_out",
        "proj_out",
        "weight_scale",
        "input_scale",
        "smooth_scale",
    ]

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers configs are flat
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        num_kv_heads: int = 8,
        in_channels: int = 16,
        out_channels: int = 16,
        cross_attention_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 12288,
        num_layers: int = 34,
        eps: float = 1e-6,
        x_rescale_factor: float = 1.0,
        half_channel_vae: bool = False,
        enable_distillation: bool = False,
        gated_linear_unit: bool = False,
        caption_max_length: int = 800,
        cond_hidden_ratio: float = 0.25,
        fp8_quant: bool = False,
        place_octaves: int = 0,
        layout_version: int = LAYOUT_VERSION,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        condition_dim = int(dim * cond_hidden_ratio)
        _check_heads(num_attention_heads, attention_head_dim, num_kv_heads)
        self.patch_embedding = PatchEmbeddingFp32(
            in_channels, dim, patch_size, stride=patch_size, bias=False
        )
        self.condition_embedder = ConditionEmbedder(
            dim,
            condition_dim,
            freq_dim=freq_dim,
            text_dim=cross_attention_dim,
            max_length=caption_max_length,
        )
        self.place_embedder = PlaceEmbedder(place_octaves, dim) if place_octaves else None
        self.rope = RotaryBands(attention_head_dim // 8)
        self.blocks = nn.ModuleList(
            Magi1TransformerBlock(
                dim,
                num_attention_heads,
                kv_heads=num_kv_heads,
                head_dim=attention_head_dim,
                ffn_dim=ffn_dim,
                condition_dim=condition_dim,
                gated=gated_linear_unit,
                eps=eps,
            )
            for _ in range(num_layers)
        )
        if fp8_quant:
            quantize_blocks(self.blocks)
        self.norm_out = LayerNorm(dim, eps=eps)
        patch = patch_size[0] * patch_size[1] * patch_size[2]
        self.proj_out = LinearFp32(dim, patch * out_channels, bias=False)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a saved model; float8 weights stay float8 whatever `torch_dtype` asks.

        Args:
            pretrained_model_name_or_path: folder or hub name.
            **kwargs: of `ModelMixin.from_pretrained`.

        Returns:
            The model; with `output_loading_info`, a pair of it and the report.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for layer in model.modules():
            if isinstance(layer, Fp8Linear):
                layer.restore_weight()
        return loaded

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast as `ModelMixin.to`; `channels_last` means that of 5-D weights here.

        Args:
            *args: as of torch.
            **kwargs: as of torch.

        Returns:
            The model itself.
        """
        if kwargs.get("memory_format") is torch.channels_last:
            kwargs["memory_format"] = torch.channels_last_3d
        return super().to(*args, **kwargs)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the sampler holds."""
        return self.config.in_channels // (2 if self.config.half_channel_vae else 1)

    @property
    def null_caption(self) -> torch.Tensor:
        """The learned null caption, [caption_max_length, K]."""
        return self.condition_embedder.text_embedder.null_caption_embedding

    @apply_lora_scale("attention_kwargs")
    def forward(  # noqa: PLR0913 - the call of the paper's figure 2 has this many inputs
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        *,
        kv_range: Sequence[tuple[int, int]] | None = None,
        slice_point: int = 0,
        caption_dropout: torch.Tensor | bool = False,
        step_size: float | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        keep_chunks: int = 0,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Magi1TransformerOutput | tuple[torch.Tensor, tuple[KeyValue, ...] | None]:
        """Predict the velocity of a run of chunks.

        Args:
            hidden_states: latents [B, C, T, H, W]; T is a multiple of R.
            timestep: flow time per chunk [B, R], 0 noise, 1 clean.
            encoder_hidden_states: text per chunk [B, R, S, K].
            encoder_attention_mask: visible text [B, R, S] boolean; None means all.
            kv_range: per chunk the visible chunks [start, end), counted from the video's start;
                None means all chunks up to and including its own.
            slice_point: index in the video of the call's first chunk.
            caption_dropout: whether the caption is the null caption: bool, [B] or [B, R].
            step_size: scalar of distilled weights, num_steps / 2; None for base weights.
            past_key_values: per layer the keys and values of the chunks right before this call.
            keep_chunks: number of leading chunks whose keys and values are returned.
            attention_kwargs: `scale` sets the LoRA strength.
            return_dict: return an output object rather than a tuple.

        Returns:
            Velocity [B, C, T, H, W] float32 and the kept keys and values.

        Raises:
            ShapeError: chunks, patches or ranges do not fit.
        """
        grid, num_chunks = self._check(hidden_states, timestep, encoder_hidden_states)
        tokens_per_chunk = grid[0] * grid[1] * grid[2] // num_chunks
        x = self._patchify(hidden_states, grid, num_chunks)
        context = self._context(
            timestep,
            (encoder_hidden_states, encoder_attention_mask),
            dropped=caption_dropout,
            step_size=step_size,
            dtype=x.dtype,
        )._replace(
            rope=self.rope(grid, first_frame=slice_point * (grid[0] // num_chunks)),
            ranges=_key_rows(kv_range, slice_point, num_chunks, tokens_per_chunk, past_key_values),
            keep_tokens=keep_chunks * tokens_per_chunk,
        )
        x, kept = self._run_blocks(x, context, past_key_values)
        velocity = self._unpatchify(x, grid)
        key_values = kept if keep_chunks else None
        if not return_dict:
            return velocity, key_values
        return Magi1TransformerOutput(sample=velocity, key_values=key_values)

    def _run_blocks(
        self, x: torch.Tensor, context: BlockContext, past: Sequence[KeyValue] | None
    ) -> tuple[torch.Tensor, tuple[KeyValue, ...]]:
        """Run tokens [B, L, D] through all blocks; return them and what each block keeps."""
        kept = []
        for i, block in enumerate(self.blocks):
            own = None if past is None else past[i]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, key_value = self._gradient_checkpointing_func(block, x, context, own)
            else:
                x, key_value = block(x, context, own)
            kept.append(key_value)
        return x, tuple(kept)

    def _check(
        self, latent: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> tuple[Any, int]:
        """Return the token grid and the number of chunks."""
        sizes = latent.shape[2:]
        patches = self.config.patch_size
        num_chunks = timestep.shape[1]
        if any(size % patch for size, patch in zip(sizes, patches, strict=True)):
            raise ShapeError("latent", expected=f"[T, H, W] multiples of {patches}", got=sizes)
        frames = num_chunks * patches[0]
        if sizes[0] % frames:
            raise ShapeError("latent frames", expected=f"a multiple of {frames}", got=sizes[0])
        # Text of another number of chunks would be spread over them without an error.
        if text.ndim != 4 or text.shape[:2] != timestep.shape:
            raise ShapeError(
                "text",
                expected=f"[B, R, S, K] with [B, R] = {tuple(timestep.shape)}",
                got=tuple(text.shape),
            )
        if latent.shape[1] != self.latent_channels:
            raise ShapeError(
                "latent channels", expected=str(self.latent_channels), got=latent.shape[1]
            )
        return tuple(s // p for s, p in zip(sizes, patches, strict=True)), num_chunks

    def _context(
        self,
        timestep: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor | None],
        *,
        dropped: torch.Tensor | bool,
        step_size: float | None,
        dtype: torch.dtype,
    ) -> BlockContext:
        """Embed times and text; positions and ranges are filled in by the caller."""
        embedder = self.condition_embedder
        dropped = torch.as_tensor(dropped, device=timestep.device)
        if dropped.ndim < 2:  # one flag for all chunks of a video
            dropped = dropped.expand(timestep.shape[0])[:, None].expand(timestep.shape)
        time = embedder.time_embedder(timestep, dtype)  # [B, R, D/4]
        if step_size is not None:
            size = torch.full_like(timestep[:1, :1], step_size)
            time = time + embedder.time_embedder(size, dtype)
        tokens, row = embedder.text_embedder(text[0], dropped)
        mask = None if text[1] is None else text[1].flatten(0, 1)[:, None, None]
        return BlockContext(
            text=tokens.flatten(0, 1).to(dtype),
            text_mask=mask,
            condition=(time + row).to(dtype),
            rope=(tokens, tokens),
            ranges=(),
            keep_tokens=0,
        )

    def _patchify(
        self, latent: torch.Tensor, grid: tuple[int, int, int], num_chunks: int
    ) -> torch.Tensor:
        """Turn a latent [B, C, T, H, W] into tokens [B, L, D] in the blocks' dtype."""
        dtype = cast(Magi1TransformerBlock, self.blocks[0]).attn1.to_q.weight.dtype
        dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
        x = latent.float() * self.config.x_rescale_factor
        if self.config.half_channel_vae:
            x = torch.cat((x, x), dim=1)
        x = rearrange(self.patch_embedding(x), "b d t h w -> b (t h w) d")
        if self.place_embedder is not None:
            x = x + self.place_embedder(grid, num_chunks)
        return x.to(dtype)

    def _unpatchify(self, x: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Turn tokens [B, L, D] into a velocity [B, C, T, H, W]."""
        x = self.proj_out(self.norm_out(x, torch.float32)).float()
        p, q, r = self.config.patch_size
        x = rearrange(
            x,
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=grid[0],
            h=grid[1],
            p=p,
            q=q,
            r=r,
        )
        return x[:, : self.latent_channels] / self.config.x_rescale_factor


def _check_heads(num_heads: int, head_dim: int, num_kv_heads: int) -> None:
    """Refuse heads that do not divide into key groups and rotary bands."""
    if head_dim % 8 or num_heads % num_kv_heads:
        raise ShapeError(
            "attention heads",
            expected="head dim a multiple of 8 and query heads a multiple of key heads",
            got=f"{num_heads} x {head_dim}, {num_kv_heads} key heads",
        )


def _key_rows(
    kv_range: Sequence[tuple[int, int]] | None,
    slice_point: int,
    num_chunks: int,
    tokens_per_chunk: int,
    past: Sequence[KeyValue] | None,
) -> tuple[tuple[int, int], ...]:
    """Turn ranges in chunks of the video into rows of [past, own] keys."""
    past_chunks = 0 if past is None else past[0][0].shape[2] // tokens_per_chunk
    first = slice_point - past_chunks
    if kv_range is None:
        kv_range = [(first, slice_point + r + 1) for r in range(num_chunks)]
    if len(kv_range) != num_chunks:
        raise ShapeError("kv_range", expected=f"{num_chunks} ranges", got=len(kv_range))
    last = slice_point + num_chunks
    for start, end in kv_range:
        if not first <= start < end <= last:
            raise ShapeError(
                "kv_range", expected=f"chunks within [{first}, {last})", got=(start, end)
            )
    return tuple(
        ((start - first) * tokens_per_chunk, (end - first) * tokens_per_chunk)
        for start, end in kv_range
    )
