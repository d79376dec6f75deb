"""Where a pipeline's components come from: our folders, the official layout, or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onereel.core.errors import ConfigError
from onereel.runtime.load import default_dtype, load_part
from onereel.runtime.source import ModelSource, resolve_model
from onereel.runtime.text_files import load_text_encoder, load_tokenizer
from onereel.runtime.verify import model_parts


def find_source(name: str | Path) -> ModelSource | None:
    """Find what a name means on this machine.

    Args:
        name: a shipped name, a folder, an official JSON config, or a hub id.

    Returns:
        Where it is; None for a hub id that is no local path.

    Raises:
        ConfigError: it is none of these.
        CheckpointError: the JSON file is missing or damaged.
    """
    try:
        return resolve_model(name)
    except ConfigError:
        if str(name).count("/") == 1 and not Path(name).exists() and str(name)[0] not in "./~":
            return None
        raise


def official_components(
    source: ModelSource, given: Mapping[str, Any], *, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Load an official checkpoint's components, save those that are given.

    Args:
        source: an official checkpoint.
        given: components by name, which are taken as they are.
        dtype: of the weights; None takes the config's.

    Returns:
        `tokenizer`, `text_encoder`, `transformer`, `vae`, and `sampling`.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        ConfigError: the config is wrong.
    """
    parts = model_parts(source)
    assert parts.text_encoder is not None and parts.transformer and parts.vae
    dtype = dtype or default_dtype(source, parts)
    text, transformer, vae = parts.text_encoder, parts.transformer, parts.vae
    loaders = {
        "tokenizer": lambda: load_tokenizer(source.folder("tokenizer")),
        "text_encoder": lambda: load_text_encoder(text, dtype=dtype, device=torch.device("cpu")),
        "transformer": lambda: load_part(transformer, dtype=dtype),
        "vae": lambda: load_part(vae, dtype=dtype),
    }
    components = {name: given.get(name) or load() for name, load in loaders.items()}
    return {**components, "sampling": parts.sampling}
