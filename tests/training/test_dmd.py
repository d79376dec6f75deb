"""Distribution matching distillation: its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.samplers.flow_match import sample_euler, sigma_grid
from onereel.samplers.schedule import shift_sigma, shift_t, time_grid
from onereel.training.dmd import (
    Noised,
    adversarial_loss,
    check_sampler,
    corrupted,
    critic_adversarial_loss,
    draw_exit,
    draw_sigmas,
    flow_loss,
    guided_velocity,
    matching_gradient,
    matching_loss,
    per_item,
    sample_exits,
    simulate,
)
from onereel.training.latent_distance import frechet_distance, latent_features, moment_errors


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_shift_is_the_same_map_in_both_clocks() -> None:
    sigma = torch.linspace(0, 1, 33).double()
    for shift in (1.0, 3.0, 5.0):
        torch.testing.assert_close(1 - shift_sigma(sigma, shift), shift_t(1 - sigma, 1 / shift))
    torch.testing.assert_close(
        sigma_grid(4), torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]), atol=1e-6, rtol=0
    )
    u = torch.linspace(0, 1, 9)
    torch.testing.assert_close(1 - time_grid(8), shift_sigma(1 - u * u, 3.0))


def test_levels_and_exits_are_drawn_in_range_and_repeated() -> None:
    drawn = draw_sigmas(4000, generator=seeded())
    assert drawn.min() >= 0.02 and drawn.max() <= 0.98 and abs(drawn.mean() - 0.5) < 0.02
    shifted = draw_sigmas(4000, generator=seeded(), shift=5.0)
    assert shifted.max() <= 0.98 and (shifted >= drawn).all()
    exits = [draw_exit(3, step, num_steps=4) for step in range(200)]
    assert exits == [draw_exit(3, step, num_steps=4) for step in range(200)]
    assert {exits.count(k) > 25 for k in range(4)} == {True}


def gaussian(mean: float, std: float) -> Any:
    """The exact velocity of a normal distribution."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = per_item(sigma, x)
        variance = ((1 - s) * std) ** 2 + s**2
        centred = x - (1 - s) * mean
        return s * centred / variance - (mean + (1 - s) * std**2 * centred / variance)

    return velocity


def test_the_gradient_is_that_of_the_divergence_of_two_gaussians() -> None:
    mean, std, wanted_mean, wanted_std = 0.7, 0.5, -0.4, 1.1
    x = mean + std * torch.randn(256, 1, generator=seeded()).double()
    sigma = torch.full((256,), 0.3, dtype=torch.float64)
    noise = torch.randn(256, 1, generator=seeded(1)).double()
    at = Noised(sigma=sigma, noise=noise)
    found = matching_gradient(
        x, real=gaussian(wanted_mean, wanted_std), fake=gaussian(mean, std), at=at
    )
    noisy = corrupted(x, noise, sigma=sigma)

    def score(m: float, s: float) -> Tensor:
        return -(noisy - 0.7 * m) / ((0.7 * s) ** 2 + 0.3**2)

    analytic = score(mean, std) - score(wanted_mean, wanted_std)
    ratio = found / analytic
    assert (ratio > 0).all()  # the direction, sample by sample; the size is normalised
    # On average it moves mean and spread as the divergence's own gradient does.
    assert found.mean() > 0 and (found * (x - mean)).mean() < 0
    unit = (x - (noisy - 0.3 * gaussian(wanted_mean, wanted_std)(noisy, sigma))).abs()
    torch.testing.assert_close(found * unit, analytic * 0.3**2 / 0.7)


def test_the_loss_has_the_gradient_and_leaves_out_what_does_not_count() -> None:
    x = torch.randn(3, 2, 4, generator=seeded()).requires_grad_(True)
    at = Noised(sigma=torch.full((3,), 0.5), noise=torch.randn(3, 2, 4, generator=seeded(1)))
    counted = torch.tensor([0.0, 1.0, 1.0, 1.0])
    gradient = matching_gradient(
        x, real=gaussian(0.0, 1.0), fake=gaussian(1.0, 1.0), at=at, counted=counted
    )
    assert (gradient[..., 0] == 0).all() and (gradient[..., 1:] != 0).all()
    matching_loss(x, gradient).sum().backward()
    torch.testing.assert_close(x.grad, gradient / 8)
    same = matching_gradient(x, real=gaussian(1.0, 1.0), fake=gaussian(1.0, 1.0), at=at)
    assert (same == 0).all()
    broken = matching_gradient(x, real=lambda x, s: x / 0, fake=gaussian(1.0, 1.0), at=at)
    assert torch.isfinite(broken).all()


def test_guidance_is_counted_from_the_velocity_without_text() -> None:
    x, sigma = torch.ones(2, 3), torch.ones(2)
    combined = guided_velocity(lambda x, s: 3 * x, lambda x, s: x, scale=4.0)
    assert (combined(x, sigma) == 1 + 4 * (3 - 1)).all()
    assert guided_velocity(combined, None, scale=1.0) is combined
    added = guided_velocity(lambda x, s: 3 * x, lambda x, s: x, scale=4.0, added=True)
    assert (added(x, sigma) == combined(x, sigma) - 3).all()
    assert not guided_velocity(combined, None, scale=1.0, added=True)(x, sigma).any()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.graphs: list[bool] = []
        self.levels: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = self.scale * x
        self.graphs.append(out.requires_grad)
        self.levels.append(float(sigma[0]))
        assert not x.requires_grad
        return out


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize("exit_step", [0, 2, 3])
def test_only_the_exit_step_has_a_gradient(sampler: str, exit_step: int) -> None:
    net, sigmas = _Net(), sigma_grid(4)
    noises = [torch.randn(2, 3, generator=seeded(i)) for i in range(4)]
    made = simulate(net, noises, sigmas=sigmas, exit_step=exit_step, sampler=sampler)
    assert net.graphs == [False] * exit_step + [True]
    assert net.levels == sigmas[: exit_step + 1].tolist()
    (slope,) = torch.autograd.grad(made.sum(), net.scale)
    x = (made / (1 - sigmas[exit_step] * 0.5)).detach()  # the input of the exit step
    torch.testing.assert_close(slope, -(sigmas[exit_step] * x).sum())
    every = sample_exits(net, noises, sigmas=sigmas, sampler=sampler)
    torch.testing.assert_close(every[exit_step], made.detach())


def test_samples_are_those_of_the_pipelines_sampler() -> None:
    net, sigmas = _Net(), sigma_grid(4)
    noise = torch.randn(2, 3, generator=seeded())
    last = sample_exits(net, [noise], sigmas=sigmas)[-1]
    same = sample_euler(lambda x, s: 0.5 * x, noise, sigmas=sigmas)
    torch.testing.assert_close(last, same)
    with pytest.raises(ConfigError, match="euler or renoise"):
        check_sampler("heun")


def test_the_flow_loss_is_smallest_at_the_truth() -> None:
    x = torch.randn(3, 2, 4, generator=seeded())
    at = Noised(sigma=torch.full((3,), 0.5), noise=torch.randn(3, 2, 4, generator=seeded(1)))
    truth = at.noise - x
    assert (flow_loss(truth, x, at=at) == 0).all()
    wrong = truth.clone()
    wrong[..., 0] += 2
    torch.testing.assert_close(flow_loss(wrong, x, at=at), torch.ones(3))
    counted = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert (flow_loss(wrong, x, at=at, counted=counted) == 0).all()


def test_the_adversarial_gradient_passes_the_judge_and_leaves_it_alone() -> None:
    judge = nn.Linear(3, 1)
    x = torch.randn(4, 3, generator=seeded()).requires_grad_(True)
    value = adversarial_loss(x, lambda z: judge(z)[:, 0])
    plain = nn.functional.softplus(-judge(x)[:, 0])
    torch.testing.assert_close(value, plain)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    value.sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    assert judge.weight.grad is None
    high, low = torch.tensor([5.0]), torch.tensor([-5.0])
    assert critic_adversarial_loss(low, high) < 0.1 < critic_adversarial_loss(high, low)


def test_distances_of_latents() -> None:
    x = torch.randn(64, 3, 4, 5, 5, generator=seeded())
    features = latent_features(x)
    assert features.shape == (64, 16) and latent_features(x[:, :, :1]).shape == (64, 8)
    assert frechet_distance(features, features) < 1e-9
    moved = latent_features(x + 1)
    assert frechet_distance(moved, features) > frechet_distance(latent_features(x + 0.1), features)
    still = x[:, :, :1].expand_as(x)
    assert frechet_distance(latent_features(still), features) > 1  # nothing moves
    assert moment_errors(x, x) == (0.0, 0.0)
    mean, spread = moment_errors(2 * x + 1, x)
    assert abs(mean - 1) < 0.1 and abs(spread - 1) < 0.01
