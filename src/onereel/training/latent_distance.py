"""How far a set of made latents is from another set: moments, and a distance of random features.

For early stopping during a distillation, on a few dozen latents and within seconds. It is no FVD:
the features are random, and the numbers compare runs on one set of latents only.

Legend: N latents, C channels, T latent frames, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEATURES = 8  # of each kind
_SEED = 20250211


def latent_features(latent: Tensor) -> Tensor:
    """Describe latents by what random filters see in them, on average over places and time.

    Half of the features see single frames, half how a frame differs from the one before.

    Args:
        latent: [N, C, T, h, w].

    Returns:
        float64 [N, D]; of single frames the second half is missing.
    """
    channels = latent.shape[1]
    generator = torch.Generator().manual_seed(_SEED)
    latent = latent.detach().double().cpu()
    found = []
    for x in (latent, latent.diff(dim=2)):
        filters = torch.randn(_FEATURES, channels, 1, 3, 3, generator=generator).double()
        if x.shape[2]:
            seen = F.conv3d(x, filters / (9 * channels) ** 0.5, padding=(0, 1, 1))
            found.append(seen.relu().mean(dim=(2, 3, 4)))
    return torch.cat(found, dim=1)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Take the squared Fréchet distance between normal fits, as a share of the spread of `y`.

    Args:
        x: float64 [N, D], N at least 2.
        y: [M, D], M at least 2.

    Returns:
        The distance over the trace of the covariance of `y`, at least 0.

    Source: Heusel et al. (arXiv 1706.08500) equation 6.
    """
    a, b = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    means = (x.mean(0) - y.mean(0)).square().sum()
    distance = means + a.trace() + b.trace() - 2 * shared
    return float(distance.clamp(min=0) / b.trace().clamp(min=1e-12))


def moment_errors(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Compare the channels' means and standard deviations.

    Args:
        x: latents [N, C, T, h, w].
        y: likewise.

    Returns:
        Mean distance of the means in standard deviations of `y`, and mean relative error of the
        standard deviations.
    """
    a, b = (z.detach().double().transpose(0, 1).flatten(1) for z in (x, y))
    spread = b.std(dim=1).clamp(min=1e-6)
    means = (a.mean(1) - b.mean(1)).abs() / spread
    return float(means.mean()), float((a.std(dim=1) / spread - 1).abs().mean())
