"""The colours of a VAE's latents, fitted once and stored in its config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from onereel.core.errors import CheckpointError
from onereel.core.files import write_atomically
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.preview import fit_latent_rgb
from onereel.models.magic_vae.preview import fit_colours
from onereel.runtime.layout import CONFIG, vae_part
from onereel.runtime.load import load_part
from onereel.runtime.magic import load_vae
from onereel.runtime.magic_source import magic_files
from onereel.runtime.source import ModelSource


@torch.no_grad()
def fit_previews(source: ModelSource, videos: Iterable[np.ndarray]) -> Path:
    """Fit the colours of previews and write them into the VAE's config; no weight changes.

    Args:
        source: the checkpoint.
        videos: what to fit them on, uint8 [F, H, W, 3], whole latent frames, all of one size.

    Returns:
        The config.

    Raises:
        CheckpointError: the VAE is missing, damaged or in the official layout.
    """
    part = vae_part(source)
    if part.official:
        raise CheckpointError(
            f"the VAE of '{source.name}' is in the official layout, whose config has no place",
            hint=f"`onereel models convert {source.path} NEW`, then fit those of NEW",
        )
    path = part.tensors.path / CONFIG
    vae = load_part(part, dtype=torch.float32)
    assert isinstance(vae, AutoencoderKLMagi1)
    pixels = rearrange(torch.from_numpy(np.stack(list(videos))), "b f h w c -> b c f h w")
    latent = torch.cat([vae.encode_frames(video[None]) for video in pixels])
    factors, bias = fit_latent_rgb(latent, pixels.float() / 127.5 - 1)
    entries = {
        "latent_rgb_factors": [[round(x, 5) for x in row] for row in factors],
        "latent_rgb_bias": [round(x, 5) for x in bias],
    }
    return _change(path, entries)


def fit_magic_previews(source: ModelSource, videos: Iterable[np.ndarray]) -> Path:
    """Fit the colours for a Magic 1-For-1 checkpoint, and write them into its VAE's config.

    Args:
        source: the checkpoint.
        videos: what to fit them on, uint8 [4 n + 1, H, W, 3], all of one size.

    Returns:
        The config.

    Raises:
        CheckpointError: the VAE is missing or damaged.
    """
    folder = magic_files(source, needed=("vae",)).places["vae"]
    vae = load_vae(folder, dtype=torch.float32)
    pixels = rearrange(torch.from_numpy(np.stack(list(videos))), "b f h w c -> b c f h w")
    return _change(folder / CONFIG, fit_colours(vae, pixels.float() / 127.5 - 1))


def _change(path: Path, entries: Mapping[str, Any]) -> Path:
    config = json.loads(path.read_text("utf-8")) | dict(entries)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
