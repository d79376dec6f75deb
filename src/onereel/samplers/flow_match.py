"""Flow matching over noise levels: grid, Euler steps, guidance, inversion, training weights.

x_sigma = (1 - sigma) * data + sigma * noise; the velocity is noise - data. A velocity function
takes latents [B, C, T, H, W] and a noise level.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.samplers.schedule import shift_sigma

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
OnStep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]
Density = Literal["logit_normal", "mode", "uniform"]
Weighting = Literal["logit_normal", "sigma_sqrt", "cosmap", "uniform"]

SHIFT = 5.0
# A model that was never shown pure noise together with its own picture inverts from just below.
INVERSION_SIGMA = 0.9999
_NOISE_SEEDS = 100_000


def sigma_grid(num_steps: int, *, shift: float = SHIFT, reverse: bool = True) -> torch.Tensor:
    """Compute the noise levels of a video's updates.

    Args:
        num_steps: updates, at least 1.
        shift: larger spends more steps near the noise.
        reverse: from noise to data; otherwise 1 - sigma.

    Returns:
        float32 [num_steps + 1] from 1 to 0; for four steps 1, 0.9375, 0.8333, 0.625, 0.

    Raises:
        ConfigError: a number is out of range.
    """
    if num_steps < 1:
        raise ConfigError("num_steps", expected="at least 1", got=num_steps)
    if shift <= 0:
        raise ConfigError("shift", expected="more than 0", got=shift)
    sigmas = shift_sigma(torch.linspace(1, 0, num_steps + 1), shift)
    return sigmas if reverse else 1 - sigmas


def sample_euler(
    velocity: Velocity,
    x: torch.Tensor,
    *,
    sigmas: torch.Tensor,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Follow the velocity from the first noise level to the last; no noise is added on the way.

    Args:
        velocity: the model.
        x: latents at the first noise level.
        sigmas: noise levels [num_steps + 1].
        on_step: called with the step's number, its latents after the update, and its velocity;
            latents that it returns take their place.

    Returns:
        Latents at the last noise level, float32.

    Raises:
        ShapeError: the velocity has another shape than the latents.
    """
    x = x.float()
    levels = sigmas.to("cpu", torch.float32)
    for step in range(len(levels) - 1):
        v = velocity(x, float(levels[step])).float()
        if v.shape != x.shape:
            raise ShapeError("velocity", expected=f"{list(x.shape)}", got=list(v.shape))
        x = x + v * float(levels[step + 1] - levels[step])
        if on_step is not None:
            changed = on_step(step, x, v)
            x = x if changed is None else changed
    return x


def guided(positive: Velocity, negative: Velocity | None, *, scale: float) -> Velocity:
    """Combine two velocities: negative + scale * (positive - negative).

    Args:
        positive: with the prompt.
        negative: with the negative prompt, not called when `scale` is 1; None for no guidance.
        scale: guidance scale.

    Returns:
        The combined velocity.

    Raises:
        ConfigError: the scale asks for a negative velocity that is not there.
    """
    if scale == 1:
        return positive
    if negative is None:
        raise ConfigError("guidance_scale", expected="1 without a negative prompt", got=scale)

    def combined(x: torch.Tensor, sigma: float) -> torch.Tensor:
        base = negative(x, sigma)
        return base + scale * (positive(x, sigma) - base)

    return combined


def invert_noise(
    velocity: Velocity,
    noise: torch.Tensor,
    *,
    reference: torch.Tensor,
    sigma: float = INVERSION_SIGMA,
) -> torch.Tensor:
    """Move noise to where the model's own path to a still video of the reference begins.

    Args:
        velocity: the model. The official code guides with the opposite sign here: pass
            `guided(positive, negative, scale=-s)` to follow it.
        noise: standard normal [B, C, T, H, W].
        reference: latents of the first frame [B, C, 1, H, W], repeated over time.
        sigma: noise level of the one evaluation.

    Returns:
        Latents to start sampling from, float32.

    Source: alisson-anjos/Magic-1-For-1-UI @09ec251 (an earlier public revision).
    """
    x = sigma * noise.float() + (1 - sigma) * reference.float()
    return x + velocity(x, sigma).float() * (1 - sigma)


def official_noise(
    shape: tuple[int, ...], generator: torch.Generator, *, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Draw a video's first noise as the official code does.

    Args:
        shape: [B, C, T, H, W].
        generator: on the CPU; a seed is drawn from it, and the noise from that.
        dtype: the image latent's.

    Returns:
        Standard normal on the CPU.
    """
    seed = int(torch.randint(0, _NOISE_SEEDS, (1,), generator=generator))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sample_sigmas(
    size: int,
    *,
    density: Density = "logit_normal",
    mean: float = 0.0,
    std: float = 1.0,
    mode_scale: float = 1.29,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw noise levels for training, before any shift.

    Args:
        size: how many.
        density: `logit_normal`, `mode` or `uniform`.
        mean: of the normal whose sigmoid is taken.
        std: its deviation.
        mode_scale: how far `mode` departs from uniform.
        generator: source of randomness, on the CPU.

    Returns:
        float32 [size] in [0, 1].

    Raises:
        ConfigError: the density is not known.

    Source: Esser et al. 2024 (arXiv 2403.03206) section 3.1.
    """
    if density == "logit_normal":
        return torch.sigmoid(mean + std * torch.randn(size, generator=generator))
    u = torch.rand(size, generator=generator)
    if density == "mode":
        return 1 - u - mode_scale * (torch.cos(torch.pi * u / 2) ** 2 - 1 + u)
    if density == "uniform":
        return u
    raise ConfigError("density", expected=f"one of {get_args(Density)}", got=density)


def loss_weight(sigma: torch.Tensor, weighting: Weighting = "logit_normal") -> torch.Tensor:
    """Weigh the squared error of the data estimate x - sigma * velocity.

    Args:
        sigma: noise levels in (0, 1), any shape.
        weighting: `sigma_sqrt`, `cosmap`, or `logit_normal` and `uniform`, which weigh alike.

    Returns:
        Weights, as `sigma`.

    Raises:
        ConfigError: the weighting is not known.

    Source: Esser et al. 2024 (arXiv 2403.03206) section 3.1.
    """
    if weighting == "sigma_sqrt":
        return sigma**-2.0
    if weighting == "cosmap":
        return 2 / (torch.pi * (1 - 2 * sigma + 2 * sigma**2))
    if weighting in ("logit_normal", "uniform"):
        return torch.ones_like(sigma)
    raise ConfigError("weighting", expected=f"one of {get_args(Weighting)}", got=weighting)
