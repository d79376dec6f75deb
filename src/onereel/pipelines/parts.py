"""The networks that make a video, and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text.special_tokens import SpecialTokens
from onereel.samplers.guidance import GuidanceRuntime


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeParts:
    """What turns latents into frames and back.

    Args:
        vae: the VAE (hooked is fine).
        device: where to run.
    """

    vae: AutoencoderKLMagi1
    device: torch.device

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame."""
        return int(self.vae.config.patch_size[0])

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel."""
        return int(self.vae.config.patch_size[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class MagiParts(VaeParts):
    """The networks that make a video.

    Args:
        transformer: the velocity network (compiled or hooked is fine).
        vae: the VAE.
        device: where to run.
        special_tokens: table of special tokens, or None.
        attention_kwargs: passed to the transformer; `scale` is the LoRA strength.
        runtime: how guidance passes are run.
    """

    transformer: Magi1Transformer3DModel
    special_tokens: SpecialTokens | None = None
    attention_kwargs: dict[str, Any] | None = None
    runtime: GuidanceRuntime = field(default_factory=GuidanceRuntime)
