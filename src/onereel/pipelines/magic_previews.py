"""What a video of Magic 1-For-1 will look like, before it is decoded: see `previews.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from onereel.media.scale import Pixels
from onereel.models.magic_vae.preview import colours_of
from onereel.pipelines.magic_sampling import MagicSampleConfig, MagicSegment
from onereel.pipelines.previews import LatentSheet
from onereel.samplers.flow_match import sigma_grid


class SegmentPreviews(LatentSheet):
    """Pictures of a run's segments; nothing where the VAE has no map of colours.

    Args:
        vae: the VAE.
        config: sampling settings.
        show: is given the pictures in flight.
        sheet: file of the contact sheet, or None.
    """

    def __init__(
        self,
        vae: Any,
        config: MagicSampleConfig,
        *,
        show: Callable[[Pixels], None],
        sheet: Path | None,
    ) -> None:
        super().__init__(colours_of(vae), show=show, sheet=sheet)
        self.segments = config.segments()
        self._sigmas = sigma_grid(config.num_steps, shift=config.shift).tolist()
        self._position: torch.Tensor | None = None

    def step_done(self, index: int, *, step: int, latents: torch.Tensor) -> None:
        """Look at the segment in flight.

        Args:
            index: of the segment.
            step: that was made, counted from 0.
            latents: after it, [1, C, T, h, w].
        """
        before, self._position = self._position if step else None, latents
        if before is None or not self.is_due:
            return
        now, following = self._sigmas[step : step + 2]
        clean = latents + (latents - before) * (following / (now - following))
        segment = self.segments[index]
        self.fly({segment.start + segment.overlap: clean[:, :, segment.overlap :]})

    def watch(self, parts: Iterable[MagicSegment]) -> Iterator[MagicSegment]:
        """Show finished segments on the contact sheet as they pass.

        Args:
            parts: of the video, in order.

        Yields:
            The same.
        """
        try:
            for part in parts:
                if part.latent.shape[2]:
                    segment = self.segments[part.index]
                    self.done(segment.start + segment.overlap, part.latent)
                yield part
        finally:
            self.close()
