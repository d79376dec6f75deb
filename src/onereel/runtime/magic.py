"""Weights of Magic 1-For-1 and HunyuanVideo from the files they come in.

Nothing is unpickled freely: PyTorch files are read as tensors only, and one that wants to run code
is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file

from onereel.core.errors import CheckpointError
from onereel.models.magic_dit.weights import build_transformer
from onereel.models.magic_vae.preview import keep_colours
from onereel.models.magic_vae.weights import build_vae
from onereel.models.magic_vae.weights import config_from_official as vae_config_from_official
from onereel.runtime.shards import open_tensors, read_header, read_json

Tensors = dict[str, torch.Tensor]

# Where trainers put the tensors beside their own state.
_NESTED = ("module", "state_dict", "model")
# Official file names in the official folders.
_TORCH_FILES = ("mp_rank_00_model_states.pt", "pytorch_model.pt", "dmd_4_step_i2v.pth")
_CONFIG = "config.json"


def read_tensors(path: Path | str) -> Tensors:
    """Read a checkpoint of any layout.

    Args:
        path: a `.safetensors`, `.pt` or `.pth` file, or a folder with one of the official PyTorch
            files or with safetensors (shards and index allowed).

    Returns:
        Names to tensors on the CPU, nesting removed.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in _TORCH_FILES if (path / name).is_file()), None)
        if found is None:
            return dict(open_tensors(path).tensors())
        path = found
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", hint="check the path")
    if path.suffix == ".safetensors":
        read_header(path)  # says what is wrong with a damaged file
        return load_file(path)
    return _read_torch(path)


def _read_torch(path: Path) -> Tensors:
    try:
        loaded: Any = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected tensors only, it is damaged or holds objects that could run code",
            hint="download it again, or ask its author for safetensors",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a PyTorch file ({error})") from error
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in _NESTED if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    wrong = next((k for k, v in _items(loaded, path) if not isinstance(v, torch.Tensor)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{path}: '{wrong}'", expected="a tensor", got=type(loaded[wrong]).__name__
        )
    return dict(loaded)


def _items(loaded: Any, path: Path) -> Any:
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path}", expected="names and tensors", got=type(loaded).__name__)
    return loaded.items()


def _read_config(path: Path) -> dict[str, Any] | None:
    """Read the config beside the weights, without diffusers' own entries."""
    file = (path if path.is_dir() else path.parent) / _CONFIG
    return read_json(file) if file.is_file() else None


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.items()
        if not key.startswith("_")
    }


def _cast(model: Any, dtype: torch.dtype | None) -> Any:
    # diffusers' own `to` warns of parts to be kept in float32, of which these classes have none.
    return model if dtype is None else torch.nn.Module.to(model, dtype)


def load_transformer(
    path: Path | str, *, dtype: torch.dtype | None = None
) -> HunyuanVideoTransformer3DModel:
    """Load the transformer from official, HunyuanVideo or diffusers weights, strictly.

    Args:
        path: see `read_tensors`; a diffusers `config.json` beside the weights is followed, without
            one they must be Magic 1-For-1's 13B ones.
        dtype: of the weights; None keeps the stored one.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: the file is unreadable, or tensors do not fit.
    """
    config = _read_config(Path(path))
    state = read_tensors(path)
    model = build_transformer(state, None if config is None else _arguments(config))
    loaded: HunyuanVideoTransformer3DModel = _cast(model, dtype)
    return loaded


def load_vae(path: Path | str, *, dtype: torch.dtype | None = None) -> AutoencoderKLHunyuanVideo:
    """Load the VAE from official or diffusers weights, strictly, with the official tiles.

    Args:
        path: see `read_tensors`; a `config.json` beside the weights, official or diffusers', is
            followed.
        dtype: of the weights; None keeps the stored one.

    Returns:
        The VAE in evaluation mode.

    Raises:
        CheckpointError: the file is unreadable, or tensors do not fit.
    """
    config, tiles = _read_config(Path(path)), None
    if config is not None and "time_compression_ratio" in config:
        config, tiles = vae_config_from_official(config)
    state = read_tensors(path)
    vae = build_vae(state, None if config is None else _arguments(config), tiles=tiles)
    keep_colours(vae, config or {})
    loaded: AutoencoderKLHunyuanVideo = _cast(vae, dtype)
    return loaded
