"""Distribution matching distillation (DMD2): its formulas, which know no architecture.

A *student* makes samples in few steps. The frozen *teacher*, with guidance, says where a sample of
the data would lie, and the *critic*, which is trained along, where a sample of the student does;
their difference moves the student. Nothing here knows what a network is: all are functions of
latents and noise levels.

Legend: B batch, S steps of the student, k the exit step, counted from 0. sigma is a noise level
(1 noise, 0 clean), x_sigma = (1 - sigma) x + sigma noise, velocity = noise - x. Latents are
[B, ...] with any number of further dimensions. Everything is float32.

Source: DMD2 (arXiv 2405.14867); Self-Forcing (arXiv 2506.08009) for the flow form. Telling the
critic the exit step is ours, see `dmd_critic.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from onereel.core.errors import ConfigError
from onereel.samplers.schedule import shift_sigma
from onereel.training.method import step_generator

# Latents [B, ...] and noise levels [B] to the velocity noise - clean, as the latents.
Velocity = Callable[[Tensor, Tensor], Tensor]
StudentSampler = Literal["euler", "renoise"]
SIGMA_RANGE = (0.02, 0.98)  # at both ends clean estimates say nothing


def check_sampler(name: str) -> None:
    """Refuse an unknown sampler.

    Args:
        name: of the sampler.

    Raises:
        ConfigError: it is not known.
    """
    if name not in get_args(StudentSampler):
        expected = " or ".join(get_args(StudentSampler))
        raise ConfigError("student_sampler", expected=expected, got=name)


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per item so that it multiplies latents.

    Args:
        values: [B].
        like: latents [B, ...].

    Returns:
        [B, 1, ...].
    """
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))


def corrupted(x: Tensor, noise: Tensor, *, sigma: Tensor) -> Tensor:
    """Mix latents with noise.

    Args:
        x: clean latents [B, ...].
        noise: standard normal, as `x`.
        sigma: noise levels [B].

    Returns:
        (1 - sigma) x + sigma noise.
    """
    level = per_item(sigma, x)
    return (1 - level) * x + level * noise


def clean_estimate(x: Tensor, velocity: Tensor, *, sigma: Tensor) -> Tensor:
    """Say which clean latents a velocity means.

    Args:
        x: noisy latents [B, ...].
        velocity: noise - clean, as `x`.
        sigma: noise levels [B].

    Returns:
        x - sigma velocity.
    """
    return x - per_item(sigma, x) * velocity


def guided_velocity(
    with_text: Velocity, without: Velocity | None, *, scale: float, added: bool = False
) -> Velocity:
    """Combine two velocities: without + scale (with_text - without).

    Args:
        with_text: with the caption.
        without: without it; not called where `scale` is 1.
        scale: guidance scale.
        added: give only what guidance adds to `with_text`.

    Returns:
        The combined velocity.
    """
    if scale == 1 or without is None:
        return (lambda x, sigma: torch.zeros_like(x)) if added else with_text

    def combined(x: Tensor, sigma: Tensor) -> Tensor:
        base = without(x, sigma)
        difference = with_text(x, sigma) - base
        return (scale - 1) * difference if added else base + scale * difference

    return combined


def draw_exit(seed: int, step: int, *, num_steps: int) -> int:
    """Draw the step at which the student's way ends; every process draws the same.

    Args:
        seed: the run's.
        step: of the training.
        num_steps: S.

    Returns:
        k, in [0, S).
    """
    generator = step_generator(seed, step, tag="exit")
    return int(torch.randint(0, num_steps, (1,), generator=generator))


def draw_sigmas(size: int, *, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """Draw noise levels, one per item.

    Args:
        size: how many.
        generator: source of randomness, on the CPU.
        shift: larger draws more of them near the noise; 1 draws uniformly.

    Returns:
        float32 [size] in [0.02, 0.98].
    """
    low, high = SIGMA_RANGE
    uniform = low + (high - low) * torch.rand(size, generator=generator)
    return shift_sigma(uniform, shift).clamp(low, high)


def simulate(
    student: Velocity,
    noises: Sequence[Tensor],
    *,
    sigmas: Tensor,
    exit_step: int,
    sampler: str = "euler",
) -> Tensor:
    """Let the student make samples by its own steps, as far as the exit step (backward simulation).

    Only the exit step has a gradient. No data is needed: the first input is pure noise.

    Args:
        student: the network.
        noises: standard normal [B, ...]; the first one is where the way begins, the one of step k
            is mixed in before it where `sampler` is `renoise`.
        sigmas: the student's noise levels [S + 1], from 1 to 0.
        exit_step: k.
        sampler: `euler` follows the velocity, `renoise` mixes the clean estimate with new noise.

    Returns:
        The clean estimate at the exit step, as a noise.
    """
    with torch.no_grad():
        x = noises[0]
        for step in range(exit_step):
            x = _advanced(student, x, noises, sigmas=sigmas, step=step, sampler=sampler)[0]
    level = _level(sigmas, exit_step, x)
    return clean_estimate(x, student(x, level), sigma=level)


@torch.no_grad()
def sample_exits(
    student: Velocity, noises: Sequence[Tensor], *, sigmas: Tensor, sampler: str = "euler"
) -> list[Tensor]:
    """Go all of the student's steps, and keep the clean estimate of each; the last is the sample.

    Args:
        student: the network.
        noises: see `simulate`.
        sigmas: the noise levels [S + 1].
        sampler: see `simulate`.

    Returns:
        S clean estimates.
    """
    x, estimates = noises[0], []
    for step in range(len(sigmas) - 1):
        x, estimate = _advanced(student, x, noises, sigmas=sigmas, step=step, sampler=sampler)
        estimates.append(estimate)
    return estimates


@torch.no_grad()
def mean_velocity(network: Velocity, x: Tensor, *, levels: Sequence[Tensor]) -> Tensor:
    """Say which velocity leads in one step where a network goes in several Euler steps.

    Args:
        network: the one that is followed, guided where it needs that.
        x: noisy latents [B, ...].
        levels: their noise levels [B], those that are passed on the way, and those to be reached.

    Returns:
        As `x`; of one step the network's velocity itself.

    Source: progressive distillation (arXiv 2202.00512), with several steps in one; of a network's
    own steps shortcut models (arXiv 2410.12557).
    """
    start, stop = levels[0], levels[-1]
    total, now = torch.zeros_like(x), x
    for sigma, after in itertools.pairwise(levels):
        velocity = network(now, sigma)
        total = total + per_item((after - sigma) / (stop - start), x) * velocity
        now = now + per_item(after - sigma, x) * velocity
    return total


def _advanced(
    student: Velocity,
    x: Tensor,
    noises: Sequence[Tensor],
    *,
    sigmas: Tensor,
    step: int,
    sampler: str,
) -> tuple[Tensor, Tensor]:
    """Take one step; return the latents behind it and the clean estimate before it."""
    now, after = _level(sigmas, step, x), _level(sigmas, step + 1, x)
    velocity = student(x, now)
    estimate = clean_estimate(x, velocity, sigma=now)
    if step + 2 == len(sigmas):
        return estimate, estimate
    if sampler == "renoise":
        return corrupted(estimate, noises[step + 1], sigma=after), estimate
    return x + per_item(after - now, x) * velocity, estimate


def _level(sigmas: Tensor, step: int, x: Tensor) -> Tensor:
    return sigmas[step].to(x.device, torch.float32).expand(len(x))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Noised:
    """Where a sample is looked at.

    Args:
        sigma: noise levels [B].
        noise: standard normal [B, ...].
    """

    sigma: Tensor
    noise: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Mix latents [B, ...] with the noise."""
        return corrupted(x, self.noise, sigma=self.sigma)


@torch.no_grad()
def matching_gradient(
    x: Tensor, *, real: Velocity, fake: Velocity, at: Noised, counted: Tensor | None = None
) -> Tensor:
    """Say in which direction the student's samples are likelier than the teacher's.

    The difference of the two scores at a noise level, s_fake - s_real, is a positive multiple of
    the difference of the clean estimates; the mean distance between a sample and the teacher's
    estimate takes the multiple's place.

    Args:
        x: samples [B, ...].
        real: the teacher, guided.
        fake: the critic.
        at: noise levels and noise.
        counted: ones where samples are to change, broadcastable to `x`; None for everywhere.

    Returns:
        The gradient, as `x`; zero where an estimate is not finite.

    Source: DMD2 (arXiv 2405.14867) section 3 and appendix; DMD (arXiv 2311.18828) equation 8.
    """
    noisy = at.of(x)
    of_teacher = clean_estimate(noisy, real(noisy, at.sigma), sigma=at.sigma)
    of_critic = clean_estimate(noisy, fake(noisy, at.sigma), sigma=at.sigma)
    dims = tuple(range(1, x.ndim))
    distance = (x - of_teacher).abs().mean(dim=dims, keepdim=True)
    gradient = ((of_critic - of_teacher) / distance).nan_to_num(0.0, 0.0, 0.0)
    return gradient if counted is None else gradient * counted


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """Make a loss whose gradient is that of the distributions, per item.

    Args:
        x: samples [B, ...], with a graph.
        gradient: as `x`.

    Returns:
        [B]; half the mean square of the gradient, differentiable in `x` only.
    """
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().flatten(1).mean(1)


def flow_loss(velocity: Tensor, x: Tensor, *, at: Noised, counted: Tensor | None = None) -> Tensor:
    """Compare a velocity with the true one, per item.

    Args:
        velocity: what a network says of `at.of(x)`.
        x: clean latents [B, ...].
        at: noise levels and noise.
        counted: ones where it matters, broadcastable to `x`; None for everywhere.

    Returns:
        Mean squared error over what matters, [B].
    """
    return velocity_error(velocity, at.noise - x, counted=counted)


def velocity_error(velocity: Tensor, target: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """Compare two velocities, per item.

    Args:
        velocity: of a network, [B, ...].
        target: what it should be.
        counted: ones where it matters, broadcastable; None for everywhere.

    Returns:
        Mean squared error over what matters, [B].
    """
    error = (velocity - target).square()
    if counted is None:
        return error.flatten(1).mean(1)
    weight = counted.expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1)


def critic_adversarial_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Teach the critic's head to tell samples of the student from the data, per item.

    Args:
        fake: logits of samples [B].
        real: logits of data [B].

    Returns:
        softplus(fake) + softplus(-real), [B].
    """
    return F.softplus(fake) + F.softplus(-real)


def adversarial_loss(x: Tensor, logit: Callable[[Tensor], Tensor]) -> Tensor:
    """Make samples look like data to the critic's head, per item.

    The gradient is taken through the critic and at once; none of it reaches the critic's weights.

    Args:
        x: samples [B, ...], with a graph.
        logit: the critic's head as a function of samples, [B].

    Returns:
        softplus(-logit), [B]; differentiable in `x` only.
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = F.softplus(-logit(leaf))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    along = (x * gradient).flatten(1).sum(1)
    return value.detach() + along - along.detach()
