"""The encoder's answer: a Gaussian for every latent element."""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


class LatentPosterior(DiagonalGaussianDistribution):
    """Independent Gaussians, given by moments.

    Differs from its base in the sums: images have four dims and videos five, so `kl` and `nll` sum
    over everything but the batch unless told otherwise.

    Args:
        parameters: means and log-variances [B, 2 * C, T, H, W], or means alone [B, C, T, H, W].
        has_variance: False for means alone; then samples are the mean.
    """

    def __init__(self, parameters: torch.Tensor, *, has_variance: bool = True) -> None:
        if not has_variance:
            parameters = torch.cat((parameters, torch.full_like(parameters, -30.0)), dim=1)
        super().__init__(parameters, deterministic=not has_variance)

    def kl(
        self, other: DiagonalGaussianDistribution | None = None, *, dims: tuple[int, ...] = ()
    ) -> torch.Tensor:
        """Give the KL divergence to another posterior or to the unit Gaussian.

        Args:
            other: the other posterior; None for N(0, 1).
            dims: dims to sum over; empty means all but the batch.

        Returns:
            [B] by default, in nats; zeros when there is no variance.
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        if other is None:
            terms = self.mean.square() + self.var - 1 - self.logvar
        else:
            terms = (self.mean - other.mean).square() / other.var + self.var / other.var
            terms = terms - 1 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=dims or self._all_dims())

    def nll(self, sample: torch.Tensor, dims: tuple[int, ...] = ()) -> torch.Tensor:
        """Give the negative log-likelihood of a sample.

        Args:
            sample: [B, C, T, H, W].
            dims: dims to sum over; empty means all but the batch.

        Returns:
            [B] by default, in nats; zeros when there is no variance.
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        squared = (sample - self.mean).square() / self.var
        terms = math.log(2 * math.pi) + self.logvar + squared
        return 0.5 * terms.sum(dim=dims or self._all_dims())

    def _all_dims(self) -> tuple[int, ...]:
        return tuple(range(1, self.mean.ndim))
