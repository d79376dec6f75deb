"""How many chunks of a training piece are given, and how noisy the others are.

Layouts are those that the sampler meets: the window filling up, full, and running empty, with no
chunk given or with clean ones in front. Half the pieces get noise levels exactly as the window
has them, half get random levels that rise along the piece. Of those half are MAGI's, most of them
near the noise, and half are uniform: at a few tokens per frame shapes are decided late.

Source: MAGI-1 report (arXiv 2505.13211) sections 2.2 and 2.3; the joint law of the levels is not
published and is ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from onereel.samplers.schedule import shift_t

MAGI_SHIFT = 1.0 / 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Shape of a training piece, shared by a batch.

    Args:
        num_clean: whole given chunks in front.
        ages: window positions of the noisy chunks, oldest first (0 is the noisiest part).
        aligned: whether noise levels follow the window exactly.
        window: chunks in flight when videos are made.
        shift: of the sampler's time grid.
    """

    num_clean: int
    ages: tuple[int, ...]
    aligned: bool
    window: int = 4
    shift: float = 3.0

    @property
    def num_chunks(self) -> int:
        """Chunks of the piece."""
        return self.num_clean + len(self.ages)

    def kv_range(self) -> list[tuple[int, int]]:
        """List the visible chunks of every chunk.

        A clean chunk sees itself alone. A noisy one sees the oldest that may be in flight with it
        and the clean one before that: 5, 4, 3 or 2 chunks, its own included, in a window of four.
        """
        clean = [(c, c + 1) for c in range(self.num_clean)]
        noisy = [
            (max(0, c + age - self.window), c + 1)
            for c, age in enumerate(self.ages, start=self.num_clean)
        ]
        return clean + noisy


def sample_layout(
    rng: np.random.Generator,
    *,
    t2v_share: float = 0.65,
    window: int = 4,
    shift: float = 3.0,
    max_chunks: int | None = None,
) -> Layout:
    """Draw a layout.

    Args:
        rng: source of randomness.
        t2v_share: share of pieces that start a video; the others continue clean chunks.
        window: chunks in flight when videos are made; more than half of the pieces fill it.
        shift: of the sampler's time grid.
        max_chunks: longest piece, at least 1; None for no limit. Longer ones are drawn again.

    Returns:
        The layout.
    """
    if max_chunks == 1:
        t2v_share = 1.0  # a single chunk continues nothing
    while True:
        layout = _sample_any_layout(rng, t2v_share, window)
        if max_chunks is None or layout.num_chunks <= max_chunks:
            return dataclasses.replace(layout, shift=shift)


def _sample_any_layout(rng: np.random.Generator, t2v_share: float, window: int) -> Layout:
    aligned = bool(rng.random() < 0.5)
    num_noisy = window if rng.random() < 0.55 else int(rng.integers(1, max(window, 2)))
    starts = rng.random() < t2v_share
    # In a window of one, only the last clean chunk is visible.
    num_clean = 0 if starts else 1 if window == 1 or rng.random() < 0.8 else 2
    youngest = 0
    if rng.random() < (0.3 if starts else 0.4):  # the window running empty
        # Without clean chunks that is a video shorter than the window, at any position.
        youngest = int(rng.integers(0 if starts else window - num_noisy, window - num_noisy + 1))
    ages = tuple(range(youngest, youngest + num_noisy))[::-1]
    return Layout(num_clean=num_clean, ages=ages, aligned=aligned, window=window)


def magi_times(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw flow times from MAGI's marginal: sigmoid(z / 2), warped towards the noise.

    Args:
        shape: of the result.
        generator: source of randomness.

    Returns:
        float32 in (0, 1); about 69 % lie below 0.3.

    Source: MAGI-1 report section 2.3.
    """
    z = torch.randn(shape, generator=generator)
    return shift_t(torch.sigmoid(0.5 * z), MAGI_SHIFT)


def random_times(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw flow times, for half of the rows by `magi_times` and for half uniformly.

    Args:
        shape: rows and columns.
        generator: source of randomness.

    Returns:
        float32 in [0, 1).
    """
    is_uniform = torch.rand((shape[0], 1), generator=generator) < 0.5
    uniform = torch.rand(shape, generator=generator)
    return torch.where(is_uniform, uniform, magi_times(shape, generator))


def sample_times(layout: Layout, batch: int, *, generator: torch.Generator) -> torch.Tensor:
    """Draw the flow times of every chunk of a batch; clean ones get up to 5 % of noise.

    Args:
        layout: of the pieces.
        batch: number of pieces B.
        generator: source of randomness.

    Returns:
        float32 [B, chunks].
    """
    clean = 0.95 + 0.05 * torch.rand((batch, layout.num_clean), generator=generator)
    if layout.aligned:
        phase = torch.rand((batch, 1), generator=generator)
        u = (torch.tensor([layout.ages]) + phase) / layout.window
        noisy = shift_t(u * u, 1 / layout.shift)
    else:
        noisy = random_times((batch, len(layout.ages)), generator)
        noisy = noisy.sort(dim=1, descending=True).values
    return torch.cat((clean, noisy), dim=1)
