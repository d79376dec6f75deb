"""Distances between two sets of feature vectors: Fréchet distance and polynomial MMD.

Everything here is float64 and knows nothing of where the features come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError, ShapeError

Features = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
_DEGREE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Mean and covariance of a set of feature vectors.

    Args:
        mean: [d].
        cov: unbiased covariance (divided by num - 1), [d, d]; zeros for a single vector.
        num: how many vectors these are of.
    """

    mean: Floats
    cov: Floats
    num: int


class RunningMoments:
    """Mean and covariance of vectors that come in batches, none of which is kept.

    Batches are merged about their own means, so nothing cancels when means are large.

    Source:
        Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances (1979).
    """

    def __init__(self) -> None:
        self.num = 0
        self._mean: Floats = np.zeros(0)
        self._scatter: Floats = np.zeros((0, 0))

    def update(self, features: Features) -> None:
        """Take in a batch.

        Args:
            features: [n, d], d as in the batches before; n may be 0.

        Raises:
            ShapeError: not [n, d], or another d.
            ConfigError: a value is not finite.
        """
        batch = _checked("features", features)
        if self.num and batch.shape[1] != len(self._mean):
            got = f"{batch.shape[1]} columns"
            raise ShapeError("features", expected=f"{len(self._mean)} columns", got=got)
        if not len(batch):
            return
        mean = batch.mean(axis=0)
        centred = batch - mean
        if not self.num:
            self._mean, self._scatter = mean, centred.T @ centred
        else:
            step = mean - self._mean
            total = self.num + len(batch)
            weight = self.num * len(batch) / total
            self._scatter += centred.T @ centred + weight * np.outer(step, step)
            self._mean = self._mean + step * (len(batch) / total)
        self.num += len(batch)

    def result(self) -> Moments:
        """Give the moments of all vectors so far.

        Returns:
            The moments.

        Raises:
            ConfigError: there were no vectors.
        """
        if not self.num:
            raise ConfigError("features", expected="at least one vector", got="none")
        cov = self._scatter / max(1, self.num - 1)
        return Moments(mean=self._mean.copy(), cov=cov, num=self.num)


def moments(features: Features) -> Moments:
    """Take the mean and the unbiased covariance.

    Args:
        features: [n, d], n at least 1.

    Returns:
        The moments in float64.

    Raises:
        ShapeError: not [n, d].
        ConfigError: no vectors, or a value is not finite.
    """
    running = RunningMoments()
    running.update(features)
    return running.result()


def frechet_distance(x: Features, y: Features) -> float:
    """Take the squared Fréchet distance between normal fits of two sets.

    With fewer vectors than dimensions the value is biased upwards: always state n and d beside it.

    Args:
        x: [n, d].
        y: [m, d].

    Returns:
        The distance, at least 0; only the mean term when either set is a single vector.

    Raises:
        ShapeError: not two sets of vectors of one length.
        ConfigError: an empty set, or a value is not finite.

    Source:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), equation 6.
    """
    return frechet_from_moments(moments(x), moments(y))


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Take the squared Fréchet distance of two normal distributions.

    The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric: it never becomes
    complex, whatever the ranks.

    Args:
        a: mean [d] and covariance [d, d].
        b: mean [d] and covariance [d, d].

    Returns:
        The distance, at least 0; only the mean term when either is of a single vector.

    Raises:
        ShapeError: the lengths of the means differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeError("moments", expected=f"means {a.mean.shape}", got=str(b.mean.shape))
    means = float(np.square(a.mean - b.mean).sum())
    if min(a.num, b.num) < 2:
        return means
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ b.cov @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    return max(0.0, means + float(np.trace(a.cov) + np.trace(b.cov) - 2 * shared))


def polynomial_mmd(x: Features, y: Features) -> float:
    """Take the unbiased squared MMD with the kernel (x·y/d + 1)³ over all vectors.

    Args:
        x: [n, d], n at least 2.
        y: [m, d], m at least 2.

    Returns:
        The distance; below 0 by chance when the sets are alike.

    Raises:
        ShapeError: not two sets of vectors of one length, or fewer than two vectors.
        ConfigError: a value is not finite.

    Source:
        Bińkowski et al., Demystifying MMD GANs (2018), section 3.
    """
    a, b = _pair(x, y)
    n, m = len(a), len(b)
    inside_a, inside_b = _kernel(a, a), _kernel(b, b)
    within = (inside_a.sum() - np.trace(inside_a)) / (n * (n - 1))
    within += (inside_b.sum() - np.trace(inside_b)) / (m * (m - 1))
    return float(within - 2 * _kernel(a, b).mean())


def polynomial_mmd_subsets(
    x: Features,
    y: Features,
    *,
    num_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> Floats:
    """Take the squared MMD of random subsets, whose mean and spread are reported as KID or KVD.

    Args:
        x: [n, d], n at least 2.
        y: [m, d], m at least 2.
        num_subsets: how many subsets, at least 1.
        subset_size: vectors per subset, drawn without repetition; at most n and m are taken.
        seed: of the draws.

    Returns:
        One value per subset, [num_subsets].

    Raises:
        ShapeError: not two sets of vectors of one length, or fewer than two vectors.
        ConfigError: a value is not finite, or a count is too small.
    """
    a, b = _pair(x, y)
    if num_subsets < 1 or subset_size < 2:
        got = f"{num_subsets} subsets of {subset_size}"
        raise ConfigError("subsets", expected="at least 1 subset of 2 vectors", got=got)
    size = min(subset_size, len(a), len(b))
    generator = np.random.default_rng(seed)
    drawn = (
        (
            generator.choice(len(a), size, replace=False),
            generator.choice(len(b), size, replace=False),
        )
        for _ in range(num_subsets)
    )
    return np.array([polynomial_mmd(a[i], b[j]) for i, j in drawn])


def _kernel(a: Floats, b: Floats) -> Floats:
    return (a @ b.T / a.shape[1] + 1) ** _DEGREE


def _pair(x: Features, y: Features) -> tuple[Floats, Floats]:
    a, b = _checked("x", x), _checked("y", y)
    if a.shape[1] != b.shape[1]:
        got = f"{a.shape[1]} and {b.shape[1]} columns"
        raise ShapeError("features", expected="vectors of one length", got=got)
    if min(len(a), len(b)) < 2:
        got = f"{len(a)} and {len(b)}"
        raise ShapeError("features", expected="at least 2 vectors in each set", got=got)
    return a, b


def _checked(name: str, features: Features) -> Floats:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise ShapeError(name, expected="vectors [n, d]", got=str(list(values.shape)))
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise ConfigError(
            name,
            expected="finite numbers",
            got=f"NaN or infinity in {len(broken)} of {len(values)} vectors, first {broken[0]}",
        )
    return values
