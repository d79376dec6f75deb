"""Flow matching over noise levels."""

from __future__ import annotations

import pytest
import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.samplers.flow_match import (
    guided,
    invert_noise,
    loss_weight,
    official_noise,
    sample_euler,
    sample_sigmas,
    sigma_grid,
)

SHAPE = (1, 4, 2, 3, 3)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_the_four_step_grid() -> None:
    want = torch.tensor([1, 0.9375, 0.8333333, 0.625, 0])
    torch.testing.assert_close(sigma_grid(4), want)
    torch.testing.assert_close(sigma_grid(4, reverse=False), 1 - want)


@pytest.mark.parametrize("steps", [1, 8, 30])
def test_grids_fall_from_one_to_zero(steps: int) -> None:
    grid = sigma_grid(steps)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float32
    assert (grid[0].item(), grid[-1].item()) == (1, 0)
    assert bool((grid.diff() < 0).all())
    assert torch.equal(sigma_grid(steps, shift=1), torch.linspace(1, 0, steps + 1))


def test_grids_equal_diffusers_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 31)[:-1].tolist())
    torch.testing.assert_close(sigma_grid(30), scheduler.sigmas, atol=2e-7, rtol=0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        sigma_grid(0)
    with pytest.raises(ConfigError, match="shift"):
        sigma_grid(4, shift=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_straight_path_is_followed_exactly(steps: int) -> None:
    noise, data = draw(0), draw(1)
    seen = []
    out = sample_euler(
        lambda _x, _sigma: noise - data,
        noise,
        sigmas=sigma_grid(steps),
        on_step=lambda step, x, v: seen.append((step, x, v)),
    )
    torch.testing.assert_close(out, data)
    assert [step for step, _, _ in seen] == list(range(steps))
    assert seen[-1][1] is out
    torch.testing.assert_close(seen[0][2], noise - data)


def test_the_model_sees_the_state_and_its_noise_level() -> None:
    noise, data = draw(0), draw(1)
    levels = []

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        levels.append(sigma)
        torch.testing.assert_close(x, (1 - sigma) * data + sigma * noise)
        return (x - data) / sigma

    out = sample_euler(velocity, noise, sigmas=sigma_grid(8))
    torch.testing.assert_close(out, data, atol=1e-5, rtol=1e-5)
    assert levels == sigma_grid(8)[:-1].tolist()


def test_half_precision_latents_are_updated_in_float32() -> None:
    out = sample_euler(lambda x, _: x.bfloat16(), draw(0).bfloat16(), sigmas=sigma_grid(4))
    assert out.dtype == torch.float32
    with pytest.raises(ShapeError, match="velocity"):
        sample_euler(lambda x, _: x[:, :, :1], draw(0), sigmas=sigma_grid(4))


def test_guidance_leads_away_from_the_negative() -> None:
    positive, negative = draw(2), draw(3)
    calls = []

    def one(name: str, value: torch.Tensor) -> torch.Tensor:
        calls.append(name)
        return value

    for scale, made in ((1.0, ["p"]), (1.2, ["n", "p"]), (-2.0, ["n", "p"])):
        calls.clear()
        velocity = guided(
            lambda _x, _s: one("p", positive), lambda _x, _s: one("n", negative), scale=scale
        )
        want = (1 - scale) * negative + scale * positive
        torch.testing.assert_close(velocity(draw(0), 0.5), want)
        assert calls == made
    with pytest.raises(ConfigError, match="guidance_scale"):
        guided(lambda x, _: x, None, scale=1.2)


def test_inversion_moves_by_one_small_step() -> None:
    noise, reference = draw(4), draw(5)[:, :, :1]
    seen = []

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((x, sigma))
        return torch.full_like(x, 3.0)

    out = invert_noise(velocity, noise, reference=reference, sigma=0.9)
    ((x, sigma),) = seen
    assert sigma == 0.9
    torch.testing.assert_close(x, 0.9 * noise + 0.1 * reference)
    torch.testing.assert_close(out, x + 0.3)


@pytest.mark.parametrize(("seed", "drawn"), [(39, 71049), (40, 2438)])
def test_official_noise_comes_from_a_drawn_seed(seed: int, drawn: int) -> None:
    got = official_noise(SHAPE, torch.Generator().manual_seed(seed), dtype=torch.float32)
    assert torch.equal(got, draw(drawn))


def test_densities_have_their_medians() -> None:
    def median(**arguments: object) -> float:
        generator = torch.Generator().manual_seed(0)
        drawn = sample_sigmas(20_001, generator=generator, **arguments)  # type: ignore[arg-type]
        assert 0 <= drawn.min() and drawn.max() <= 1
        return drawn.median().item()

    assert median() == pytest.approx(0.5, abs=0.01)
    assert median(mean=1.0) == pytest.approx(1 / (1 + 2.71828**-1), abs=0.01)
    assert median(density="uniform") == pytest.approx(0.5, abs=0.01)
    assert median(density="mode") == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ConfigError, match="density"):
        sample_sigmas(1, density="normal")  # type: ignore[arg-type]


def test_weights_of_the_data_estimate() -> None:
    sigma = torch.tensor([0.25, 0.5])
    assert loss_weight(sigma).tolist() == [1, 1]
    assert loss_weight(sigma, "sigma_sqrt").tolist() == [16, 4]
    torch.testing.assert_close(loss_weight(sigma, "cosmap")[1], torch.tensor(4 / torch.pi))
    with pytest.raises(ConfigError, match="weighting"):
        loss_weight(sigma, "cosine")  # type: ignore[arg-type]
