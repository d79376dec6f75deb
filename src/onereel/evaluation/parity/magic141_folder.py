"""A folder of Magic 1-For-1 recordings: its tensors, and the tiny networks they were made with."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file

from onereel.core.errors import CheckpointError
from onereel.models.magic_dit.model import MagicCondition, image_prior, predict_velocity
from onereel.models.magic_dit.presets import config_from_official
from onereel.models.magic_dit.weights import build_transformer
from onereel.models.magic_vae.model import VaeTiles
from onereel.models.magic_vae.weights import build_vae
from onereel.models.magic_vae.weights import config_from_official as vae_config_from_official

Tensors = dict[str, torch.Tensor]
Case = dict[str, Any]

# Sines of angles up to 1000: float32 holds such an angle to 6e-5, and processors differ in that.
ANGLE_ATOL = 1e-4
# Outputs of size 5 that depend on those sines; measured on two processors: 1.3e-5.
NETWORK_ATOL = 3e-5
VAE_ATOL = 2e-5  # the same formulas, summed in another order, through some thirty layers


class MagicFolder:
    """Recordings, read when first asked for.

    Args:
        path: holds `index.json` and the files it names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = json.loads((path / "index.json").read_text(encoding="utf-8"))

    @cached_property
    def _tensors(self) -> Tensors:
        tensors: Tensors = {}
        for name in self.index["files"]:
            if name.endswith(".safetensors") and not name.endswith("_weights.safetensors"):
                tensors |= load_file(self.path / name)
        return tensors

    def case(self, name: str) -> Tensors:
        """Give the tensors of a case by their names in it.

        Args:
            name: of the case.

        Returns:
            Names to tensors.

        Raises:
            CheckpointError: nothing was recorded under the name.
        """
        found = {
            key.removeprefix(f"{name}/"): tensor
            for key, tensor in self._tensors.items()
            if key.startswith(f"{name}/")
        }
        if not found:
            raise CheckpointError(f"{self.path}: case '{name}' has no tensors")
        return found

    def words(self, name: str) -> Case:
        """Give the index's entry of a case."""
        return dict(self.index["cases"][name])

    def inputs(self, name: str) -> str:
        """Find the case whose inputs a case shares."""
        return str(re.findall(r"inputs of (\w+)", self.words(name)["what"])[0])

    def seed(self, name: str) -> int:
        """Find the seed that a case's description names."""
        words = self.words(name)
        return int(numbers(r"manual_seed\((\d+)\)", str(words.get("rng", words["what"])))[0])

    @cached_property
    def transformer(self) -> HunyuanVideoTransformer3DModel:
        """The tiny transformer, from official names."""
        state = load_file(self.path / "dit_weights.safetensors")
        return build_transformer(state, config_from_official(self.index["dit_config"]))

    @cached_property
    def vae(self) -> AutoencoderKLHunyuanVideo:
        """The tiny VAE."""
        config, tiles = vae_config_from_official(self.index["vae_config"])
        return build_vae(load_file(self.path / "vae_weights.safetensors"), config, tiles=tiles)

    @cached_property
    def tiles(self) -> VaeTiles:
        """The tiles of the tiny VAE."""
        return vae_config_from_official(self.index["vae_config"])[1]


def numbers(pattern: str, text: str) -> list[float]:
    """Read the numbers that a description states.

    Args:
        pattern: regular expression with groups around numbers.
        text: the description.

    Returns:
        The groups of the first match, as numbers.

    Raises:
        CheckpointError: the description does not say.
    """
    match = re.search(pattern, text)
    if match is None:
        raise CheckpointError(f"case '{text}'", expected=f"a description like {pattern}")
    return [float(group) for group in match.groups()]


def condition(tensors: Tensors, prefix: str = "") -> MagicCondition:
    """Take the text inputs of a case.

    Args:
        tensors: of the case.
        prefix: `neg_` for the negative prompt.

    Returns:
        The condition.
    """
    return MagicCondition(*(tensors[f"{prefix}{name}"] for name in ("text", "mask", "pooled")))


def forward(model: HunyuanVideoTransformer3DModel, tensors: Tensors) -> torch.Tensor:
    """Run a transformer on a case's inputs.

    Args:
        model: the transformer.
        tensors: latent, ref, text, mask, pooled, and t in 0 to 1000.

    Returns:
        Velocity, float32.
    """
    latent = tensors["latent"]
    return predict_velocity(
        model,
        latent,
        sigma=tensors["t"] / 1000,
        condition=condition(tensors),
        prior=image_prior(tensors["ref"], latent.shape[2]),
    )
