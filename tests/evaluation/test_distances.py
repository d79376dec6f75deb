"""Fréchet distance and MMD: closed forms, streaming, ranks, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from onereel.core.errors import ConfigError, ShapeError
from onereel.evaluation.distances import (
    Moments,
    RunningMoments,
    frechet_distance,
    frechet_from_moments,
    moments,
    polynomial_mmd,
    polynomial_mmd_subsets,
)


def _normal(num: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


def test_normals_with_common_axes_have_a_closed_form() -> None:
    # For diagonal covariances each axis adds (difference of means)² + (difference of spreads)².
    a = Moments(mean=np.array([1.0, 2.0]), cov=np.diag([4.0, 9.0]), num=10)
    b = Moments(mean=np.array([1.0, 5.0]), cov=np.diag([1.0, 25.0]), num=10)
    assert frechet_from_moments(a, b) == pytest.approx(9 + 1 + 4, rel=1e-12)


def test_the_root_is_that_of_the_product_of_covariances() -> None:
    a, b = moments(_normal(50, 6)), moments(_normal(40, 6, seed=1) @ _normal(6, 6, seed=2))
    roots = np.sqrt(np.linalg.eigvals(a.cov @ b.cov).real).sum()
    plain = np.square(a.mean - b.mean).sum() + np.trace(a.cov + b.cov) - 2 * roots
    assert frechet_from_moments(a, b) == pytest.approx(plain, rel=1e-10)
    assert frechet_from_moments(b, a) == pytest.approx(plain, rel=1e-10)


def test_fewer_vectors_than_dimensions_give_a_real_distance() -> None:
    x, y = _normal(4, 30), _normal(5, 30, seed=1)
    assert np.isfinite(frechet_distance(x, y)) and frechet_distance(x, y) > 0
    assert 0 <= frechet_distance(x, x) < 1e-4


def test_a_single_vector_leaves_the_mean_term() -> None:
    x, y = _normal(1, 3), _normal(20, 3, seed=1)
    want = np.square(x[0] - y.mean(axis=0)).sum()
    assert frechet_distance(x, y) == pytest.approx(want)


def test_batches_give_the_moments_of_the_whole_even_far_from_zero() -> None:
    x = _normal(101, 5) + 1e6
    running = RunningMoments()
    for start in (0, 1, 40, 40, 99):
        stop = {0: 1, 1: 40, 40: 99, 99: 101}[start]
        running.update(x[start:stop] if running.num <= start else x[:0])
    got, want = running.result(), moments(x)
    assert got.num == 101
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-14)
    np.testing.assert_allclose(got.cov, np.cov(x, rowvar=False), atol=1e-8)


def test_the_mmd_of_two_vectors_each_is_worked_out_by_hand() -> None:
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
    # Pairs within x: k(0, 1) = 1; within y: k(2, 0) = 1; across: 1, 1, 27, 1.
    assert polynomial_mmd(x, y) == pytest.approx(1 + 1 - 2 * 30 / 4)


def test_subsets_of_everything_equal_the_whole() -> None:
    x, y = _normal(12, 4), _normal(12, 4, seed=1) + 1
    whole = polynomial_mmd(x, y)
    np.testing.assert_allclose(polynomial_mmd_subsets(x, y, num_subsets=3), whole, rtol=1e-10)


def test_subsets_vary_about_the_whole_and_repeat() -> None:
    x, y = _normal(60, 4), _normal(80, 4, seed=1) + 1
    values = polynomial_mmd_subsets(x, y, num_subsets=200, subset_size=20)
    assert values.std() > 0
    error = values.std() / np.sqrt(200)
    assert values.mean() == pytest.approx(polynomial_mmd(x, y), abs=5 * error)
    again = polynomial_mmd_subsets(x, y, num_subsets=200, subset_size=20)
    np.testing.assert_array_equal(values, again)


def test_other_lengths_and_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="means"):
        frechet_distance(_normal(5, 3), _normal(5, 4))
    with pytest.raises(ShapeError, match="one length"):
        polynomial_mmd(_normal(5, 3), _normal(5, 4))
    with pytest.raises(ShapeError, match="at least 2"):
        polynomial_mmd(_normal(1, 3), _normal(5, 3))
    with pytest.raises(ShapeError, match=r"\[n, d\]"):
        moments(np.zeros(3))
    running = RunningMoments()
    running.update(_normal(2, 3))
    with pytest.raises(ShapeError, match="3 columns"):
        running.update(_normal(2, 4))


def test_nan_and_empty_sets_are_refused() -> None:
    broken = _normal(5, 3)
    broken[3, 1] = np.nan
    with pytest.raises(ConfigError, match="1 of 5 vectors, first 3"):
        frechet_distance(broken, _normal(5, 3))
    with pytest.raises(ConfigError, match="at least one vector"):
        moments(np.zeros((0, 3)))
    with pytest.raises(ConfigError, match="subset"):
        polynomial_mmd_subsets(_normal(5, 3), _normal(5, 3), subset_size=1)
