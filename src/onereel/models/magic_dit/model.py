"""What is ours around diffusers' HunyuanVideo transformer: inputs, velocity, attention.

Legend: B batch, C latent channels, T latent frames, H W latent height and width, S text tokens,
K text width, P pooled width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import nn

from onereel.core.errors import ShapeError

# The transformer's arguments in their order, of which callers may name any.
_TEXT, _MASK = "encoder_hidden_states", "encoder_attention_mask"
_INPUTS = (
    *("hidden_states", "timestep", _TEXT, _MASK),
    *("pooled_projections", "guidance", "attention_kwargs", "return_dict"),
)
TIMESTEPS = 1000.0  # the time embedding counts noise levels in thousandths


@dataclass(frozen=True, slots=True, eq=False)
class MagicCondition:
    """What the transformer is told about the video.

    Args:
        text: image tokens, then text tokens [B, S, K].
        mask: their visible ones [B, S], ones then zeros.
        pooled: CLIP's text vector [B, P].
    """

    text: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor

    def expand(self, batch: int) -> MagicCondition:
        """Repeat one condition for a batch of latents.

        Args:
            batch: number of latents.

        Returns:
            The condition, itself when it has that many rows.

        Raises:
            ShapeError: it has neither one row nor that many.
        """
        rows = self.text.shape[0]
        if rows not in (1, batch):
            raise ShapeError("condition", expected=f"1 or {batch} rows", got=rows)
        tensors = (self.text, self.mask, self.pooled)
        return MagicCondition(*(t.expand(batch, *t.shape[1:]) for t in tensors))


def image_prior(reference: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Lay out the reference latents as the transformer's extra channels.

    Args:
        reference: latents of the given first frames [B, C, R, H, W], 1 <= R <= num_frames.
        num_frames: latent frames T of the video.

    Returns:
        [B, C + 1, T, H, W]: the reference followed by zeros, and a mask of ones on its frames.

    Raises:
        ShapeError: there are more reference frames than the video has, or none.
    """
    batch, _, given, height, width = reference.shape
    if not 1 <= given <= num_frames:
        raise ShapeError("reference frames", expected=f"1 to {num_frames}", got=given)
    channels = torch.cat((reference, reference.new_ones(batch, 1, given, height, width)), dim=1)
    return nn.functional.pad(channels, (0, 0, 0, 0, 0, num_frames - given))


def predict_velocity(
    transformer: HunyuanVideoTransformer3DModel,
    x: torch.Tensor,
    *,
    sigma: torch.Tensor | float,
    condition: MagicCondition,
    prior: torch.Tensor,
) -> torch.Tensor:
    """Ask the transformer for the velocity noise - data.

    Args:
        transformer: with C + (C + 1) input channels.
        x: noisy latents [B, C, T, H, W].
        sigma: noise level in [0, 1], a scalar or [B].
        condition: texts, one row or B.
        prior: see `image_prior`, one row or B.

    Returns:
        [B, C, T, H, W] in float32.

    Raises:
        ShapeError: the sizes of latents, prior or condition do not agree.

    Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/models/magic_141_video.
    """
    batch, dtype = x.shape[0], transformer.dtype
    if prior.shape[2:] != x.shape[2:] or prior.shape[0] not in (1, batch):
        raise ShapeError(
            "image prior", expected=f"[B, C + 1, {list(x.shape[2:])}]", got=list(prior.shape)
        )
    condition = condition.expand(batch)
    prior = prior.expand(batch, *prior.shape[1:])
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(batch)
    velocity: torch.Tensor = transformer(
        hidden_states=torch.cat((x.to(dtype), prior.to(x.device, dtype)), dim=1),
        timestep=sigma * TIMESTEPS,
        encoder_hidden_states=condition.text.to(dtype),
        encoder_attention_mask=condition.mask,
        pooled_projections=condition.pooled.to(dtype),
        return_dict=False,
    )[0]
    return velocity.float()


class TrimmedTextProcessor(HunyuanVideoAttnProcessor2_0):
    """Joint attention of diffusers, without the mask where all of the text is visible.

    A mask keeps PyTorch from its fastest kernels, and a trimmed batch needs none.
    """

    mask_free = False

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend as the base class does, with or without the mask."""
        mask = None if self.mask_free else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


def text_lengths(mask: torch.Tensor) -> list[int]:
    """Count the visible text tokens of every row.

    Args:
        mask: [B, S], ones then zeros.

    Returns:
        B counts, each at least 1.

    Raises:
        ShapeError: a row has no visible token, or one behind a hidden one.
    """
    visible = mask.bool()
    gaps = (visible[:, 1:] & ~visible[:, :-1]).any(dim=1) | ~visible[:, 0]
    counts = torch.where(gaps, 0, visible.sum(dim=1)).tolist()
    if 0 in counts:
        raise ShapeError(
            "text mask", expected="rows of ones, then zeros", got=mask[counts.index(0)].tolist()
        )
    return [int(count) for count in counts]


def use_trimmed_text(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Make a transformer cut the text to its longest row, and drop the mask where rows are equal.

    Padded text never reaches the image, so results stay the same but for the order of sums.

    Args:
        transformer: changed in place; a second call changes nothing.
    """
    processors: dict[str, Any] = dict(transformer.attn_processors)
    if any(isinstance(processor, TrimmedTextProcessor) for processor in processors.values()):
        return
    for name, processor in processors.items():
        if isinstance(processor, HunyuanVideoAttnProcessor2_0):
            processors[name] = TrimmedTextProcessor()
    transformer.set_attn_processor(processors)
    transformer.register_forward_pre_hook(_trim, with_kwargs=True)


# At module level, so that models can be copied and pickled.
def _trim(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut the text of a call, and tell the processors whether the mask still says anything."""
    values = dict(zip(_INPUTS, args, strict=False)) | kwargs
    lengths = text_lengths(values[_MASK])
    longest = max(lengths)
    values[_TEXT], values[_MASK] = values[_TEXT][:, :longest], values[_MASK][:, :longest]
    # Checkpointed blocks run again later, maybe after a call with other texts.
    mask_free = min(lengths) == longest and not module.gradient_checkpointing
    for processor in module.attn_processors.values():
        if isinstance(processor, TrimmedTextProcessor):
            processor.mask_free = mask_free
    return (), values
