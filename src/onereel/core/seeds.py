"""The random number rule: the noise of chunk k depends on (seed, k) alone."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: object) -> int:
    """Hash any printable parts to a 63-bit seed.

    Args:
        parts: values whose text form identifies the draw, such as a seed, a tag and an index.

    Returns:
        A non-negative integer below 2**63, the same on every machine.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def chunk_noise(seed: int, index: int, *, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw the noise of one chunk.

    Args:
        seed: the user's seed.
        index: the chunk's absolute index in the video, prefix chunks included.
        shape: shape of the chunk's latent, [B, C, T, H, W].

    Returns:
        Standard normal float32 tensor on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "chunk", index))
    return torch.randn(shape, generator=generator, dtype=torch.float32)
