"""Parity of whole sampling loops of Magic 1-For-1: picture in, every velocity and the video out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.parity.magic141_folder import (
    NETWORK_ATOL,
    VAE_ATOL,
    MagicFolder,
    Tensors,
    condition,
)
from onereel.models.magic_dit.model import image_prior, predict_velocity
from onereel.models.magic_vae.model import decode_latent, encode_latent, set_tiles
from onereel.samplers.flow_match import (
    Velocity,
    guided,
    invert_noise,
    official_noise,
    sample_euler,
    sigma_grid,
)

Results = Iterator[CaseResult]

_NOISE_ATOL = 1e-6  # the same draws; their logarithms and cosines may round elsewhere


def _velocity(folder: MagicFolder, tensors: Tensors, *, scale: float) -> Velocity:
    prior = image_prior(tensors["image_latents"], tensors["noise"].shape[2])

    def one(prefix: str, x: torch.Tensor, sigma: float) -> torch.Tensor:
        told = condition(tensors, prefix)
        return predict_velocity(folder.transformer, x, sigma=sigma, condition=told, prior=prior)

    return guided(partial(one, ""), partial(one, "neg_"), scale=scale)


def sampling(folder: MagicFolder, name: str) -> Results:
    """Run a recorded loop from its picture and seed to its video.

    Args:
        folder: the recordings.
        name: of the case.

    Yields:
        Results for the picture's latent, the noise, every velocity and update, and the video.
    """
    tensors, words = folder.case(name), folder.words(name)
    set_tiles(folder.vae, folder.tiles)
    generator = torch.Generator().manual_seed(folder.seed(name))
    picture = tensors["image"][:, :, None] * 2 - 1
    latent = encode_latent(folder.vae, picture, generator=generator)
    yield compare(f"{name}.image_latents", latent, want=tensors["image_latents"], atol=VAE_ATOL)
    noise = official_noise(tuple(tensors["noise"].shape), generator, dtype=latent.dtype)
    yield compare(f"{name}.noise", noise, want=tensors["noise"], atol=_NOISE_ATOL)
    trace: Tensors = {}

    def record(step: int, x: torch.Tensor, velocity: torch.Tensor) -> None:
        trace.update({f"v{step}": velocity, f"x{step + 1}": x})

    x = sample_euler(
        _velocity(folder, tensors, scale=words["guidance_scale"]),
        tensors["noise"],
        sigmas=sigma_grid(words["steps"]),
        on_step=record,
    )
    for key, got in trace.items():
        yield compare(f"{name}.{key}", got, want=tensors[key], atol=NETWORK_ATOL)
    video = decode_latent(folder.vae, x)
    yield compare(f"{name}.video", video, want=tensors["video"], atol=VAE_ATOL)


def inversion(folder: MagicFolder, name: str) -> Results:
    """Run the recorded noise inversion.

    Args:
        folder: the recordings.
        name: of the case.

    Yields:
        Results for the latents that went in, and for those that came out.
    """
    tensors, inputs = folder.case(name), folder.case(folder.inputs(name))
    velocity = _velocity(folder, inputs, scale=1.0)
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(x)
        return velocity(x, sigma)

    out = invert_noise(watched, inputs["noise"], reference=inputs["image_latents"])
    yield compare(f"{name}.x", seen[0], want=tensors["x"], atol=NETWORK_ATOL)
    yield compare(f"{name}.out", out, want=tensors["out"], atol=NETWORK_ATOL)


def official_seed(folder: MagicFolder, name: str) -> Results:
    """Draw the noise of a seed in every recorded dtype.

    Args:
        folder: the recordings.
        name: of the case, which ends in the seed.

    Yields:
        One result per dtype, and one for the seed that the noise is drawn from.
    """
    seed = int(name.removeprefix("noise_seed"))
    for dtype, want in folder.case(name).items():
        generator = torch.Generator().manual_seed(seed)
        got = official_noise(tuple(want.shape), generator, dtype=getattr(torch, dtype))
        yield compare(f"{name}.{dtype}", got, want=want, atol=_NOISE_ATOL)
