"""Flow matching on chunks: what is corrupted, what the network is told, what the loss counts.

B batch, C channels, T latent frames, R chunks, S text tokens, K text width. Time runs from noise
(0) to clean (1). Given chunks and a given first frame are shown and not counted.

Source: MAGI-1 report (arXiv 2505.13211) sections 2.2 and 2.3; see `magi_layout.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onereel.models.text.special_tokens import NULL_VISIBLE
from onereel.training.magi_layout import Layout, random_times, sample_times

_CLEAN_DROP_SHARE = 0.75  # of clean chunks, whose text is the null caption always
SINGLE_FRAME = Layout(num_clean=0, ages=(0,), aligned=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowShares:
    """How often the network is shown less, or more, than the caption.

    Args:
        i2v: share of the pieces that start a video whose first latent frame is given.
        drop: share of items with the null caption.
    """

    i2v: float
    drop: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FlowBatch:
    """A corrupted batch: the network's input and what it shall say.

    Args:
        x: noisy latents [B, C, T, h, w].
        times: flow time per chunk [B, R].
        layout: of the pieces.
        velocity: the true velocity, as `x`.
        weight: what counts, [B, 1, T, 1, 1].
        null_text: chunks that are shown the null caption, [B, R].
        caption_dropout: chunks whose modulation says so, [B, R].
    """

    x: Tensor
    times: Tensor
    layout: Layout
    velocity: Tensor
    weight: Tensor
    null_text: Tensor
    caption_dropout: Tensor

    def predict(
        self, dit: Any, text: tuple[Tensor, Tensor], *, step_size: float | None = None
    ) -> Tensor:
        """Ask a transformer for the velocity.

        Args:
            dit: a `Magi1Transformer3DModel`.
            text: per chunk rows [B, R, S, K] and visible tokens [B, R, S].
            step_size: of distilled weights, see `samplers.schedule.step_size`.

        Returns:
            The velocity, as `x`.
        """
        velocity: Tensor = dit(
            self.x,
            self.times,
            *text,
            kv_range=self.layout.kv_range(),
            caption_dropout=self.caption_dropout,
            step_size=step_size,
        ).sample
        return velocity

    def loss(self, velocity: Tensor, target: Tensor | None = None) -> Tensor:
        """Compare a velocity with the truth, on the frames that are not given.

        Args:
            velocity: as `x`.
            target: what it shall be; None for the true velocity.

        Returns:
            Mean squared error, a scalar.
        """
        target = self.velocity if target is None else target
        error = (velocity - target).square().mean(dim=(1, 3, 4), keepdim=True)
        return (error * self.weight).sum() / self.weight.sum()


def corrupt(
    latent: Tensor,
    given: Tensor,
    *,
    layout: Layout | None,
    shares: FlowShares,
    generator: torch.Generator,
    device: torch.device,
    times: Tensor | None = None,
) -> FlowBatch:
    """Draw noise levels and noise, and mix them into a batch.

    Args:
        latent: clean latents [B, C, T, h, w].
        given: the first frame encoded as a picture, [B, C, 1, h, w].
        layout: of the pieces; None for single frames.
        shares: how often the first frame is given, and the caption dropped.
        generator: source of randomness, on the CPU.
        device: where the batch goes.
        times: flow time per chunk [B, R] instead of drawn ones.

    Returns:
        The batch.
    """
    size = latent.shape[0]
    if layout is None:
        layout = SINGLE_FRAME
        drawn = random_times((size, 1), generator)
        is_given = torch.zeros(size, dtype=torch.bool)
    else:
        drawn = sample_times(layout, size, generator=generator)
        share = 0.0 if layout.num_clean else shares.i2v
        is_given = torch.rand(size, generator=generator) < share
    times = drawn if times is None else times
    frames = latent.shape[2] // layout.num_chunks
    noise = torch.randn(latent.shape, generator=generator)
    dropped = torch.rand(size, generator=generator) < shares.drop
    clean_dropped = torch.rand(size, generator=generator) < _CLEAN_DROP_SHARE
    latent, noise = latent.to(device), noise.to(device)
    t = times.to(device).repeat_interleave(frames, dim=1)[:, None, :, None, None]
    x = (1 - t) * noise + t * latent
    weight = torch.ones_like(t.expand(size, 1, -1, 1, 1))
    weight[:, :, : layout.num_clean * frames] = 0
    pasted = is_given.to(device)[:, None, None, None, None]
    x[:, :, :1] = torch.where(pasted, given.to(device), x[:, :, :1])
    weight[:, :, :1] = torch.where(pasted, 0.0, weight[:, :, :1])
    null_text = dropped[:, None].repeat(1, layout.num_chunks)
    caption_dropout = null_text.clone()
    null_text[:, : layout.num_clean] = True
    caption_dropout[:, : layout.num_clean] |= clean_dropped[:, None]
    return FlowBatch(
        x=x,
        times=times.to(device),
        layout=layout,
        velocity=latent - noise,
        weight=weight,
        null_text=null_text.to(device),
        caption_dropout=caption_dropout.to(device),
    )


def gather_text(
    hidden: Tensor, mask: Tensor, *, numbers: Tensor, null: Tensor, null_text: Tensor
) -> tuple[Tensor, Tensor]:
    """Give every chunk its caption's row, or the null caption.

    Args:
        hidden: encoded captions [P, S, K].
        mask: their visible tokens [P, S], boolean.
        numbers: caption of every chunk [B, R], below P; of no meaning where the text is null.
        null: the learned null caption, of which the first rows are shown.
        null_text: chunks that are shown the null caption [B, R].

    Returns:
        Rows [B, R, S', K] in float32 and visible tokens [B, R, S'].
    """
    # One table of captions with the null caption last; gathering rows is one operation, where
    # padding them one by one would copy all of them once per row on the way back.
    null = null[:NULL_VISIBLE].to(hidden.dtype)
    longest = max(hidden.shape[1], len(null))
    rows = [F.pad(x, (0, 0, 0, longest - x.shape[-2])) for x in (hidden, null[None])]
    null_mask = torch.arange(longest, device=mask.device)[None] < len(null)
    visible = torch.cat((F.pad(mask, (0, longest - mask.shape[1])), null_mask))
    index = torch.where(null_text, len(hidden), numbers)
    return torch.cat(rows).float()[index], visible[index]
