"""What stands where in a Toybox clip, on the transformer's own grid of tokens.

Flow matching learns slowly what decides little of the squared error: the shape of a small object,
the way it moves. A linear reading of these maps from the middle of the transformer, trained along
and thrown away afterwards, asks for them directly; the simulator knows the answer.

Source: representation alignment (Yu et al., arXiv 2410.06940), with the simulator's state in the
place of a pretrained encoder's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from onereel.world import COLOURS, SHAPES, Episode, coverage, screen_positions

CELL = 16  # pixels of a token: 8 of the VAE's patch, times 2 of the transformer's
NUM_MAPS = len(SHAPES) + len(COLOURS) + 2
_SPEED_UNIT = 0.35  # canvas widths per second: the world's medium speed


def scene_maps(episode: Episode, frames: Sequence[int]) -> Tensor:
    """Draw the maps of some frames.

    Args:
        episode: the simulated scene; objects behind a slab are in the maps.
        frames: frame numbers, T of them.

    Returns:
        float16 [NUM_MAPS, T, H / 16, W / 16]: the share of every cell that each shape covers, that
        each colour covers, and the covering objects' velocity over the screen (x, y), weighted by
        what they cover, in medium speeds.
    """
    x, y, r = screen_positions(episode)
    size = (episode.height, episode.width)
    step = episode.fps / (_SPEED_UNIT * episode.width)
    maps = np.zeros((NUM_MAPS, len(frames), size[0] // CELL, size[1] // CELL), np.float32)
    last = episode.num_frames - 1
    for t, frame in enumerate(frames):
        before, after = max(frame - 1, 0), min(frame + 1, last)
        for i in np.flatnonzero(episode.opacity[frame] > 0):
            shape, colour = (int(episode.state[frame, i, k]) for k in (6, 7))
            covered = coverage(
                SHAPES[shape],
                centre=(float(x[frame, i]), float(y[frame, i])),
                radius=float(r[frame, i]),
                angle=float(episode.state[frame, i, 5]),
                size=size,
            )
            share = rearrange(covered, "(h p) (w q) -> h w (p q)", p=CELL, q=CELL).mean(-1)
            share = share * episode.opacity[frame, i]
            maps[shape, t] += share
            maps[len(SHAPES) + colour, t] += share
            for axis, place in enumerate((x, y)):
                moved = (place[after, i] - place[before, i]) / max(after - before, 1)
                # The world repeats: a jump over the seam is no motion.
                maps[NUM_MAPS - 2 + axis, t] += share * np.clip(moved * step, -4, 4)
    return torch.from_numpy(maps).half()


def map_loss(
    reading: Tensor, maps: Tensor, *, weight: Tensor, total: Tensor | None = None
) -> Tensor:
    """Compare a reading of the maps with the truth.

    Args:
        reading: [B, T, h, w, NUM_MAPS + 2]: logits of the shapes and of "no shape", of the colours
            and of "no colour", and the velocity.
        maps: [B, NUM_MAPS, T, h, w].
        weight: of every latent frame, [B, T].
        total: sum of the weights of the whole batch, where this is a part of one.

    Returns:
        Scalar: two cross-entropies and a squared error, averaged over cells; of a part, its share
        of the whole batch's.
    """
    reading, maps = reading.float(), rearrange(maps.float(), "b m t h w -> b t h w m")
    shapes, colours = len(SHAPES), len(COLOURS)
    error = torch.zeros_like(reading[..., 0])
    start = 0
    for first, count in ((0, shapes), (shapes, colours)):
        share = maps[..., first : first + count].clamp(0, 1)
        empty = (1 - share.sum(-1, keepdim=True)).clamp(min=0)
        target = torch.cat((share, empty), -1)
        target = target / target.sum(-1, keepdim=True)
        logits = reading[..., start : start + count + 1]
        error = error - (target * F.log_softmax(logits, -1)).sum(-1)
        start += count + 1
    error = error + (reading[..., start:] - maps[..., shapes + colours :]).square().sum(-1)
    total = weight.sum() if total is None else total
    return (error * weight[..., None, None]).sum() / (total * maps[0, 0, ..., 0].numel())
