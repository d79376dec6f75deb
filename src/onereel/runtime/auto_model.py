"""diffusers' AutoModel, which also knows our classes, the official VAE and the shipped names."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import diffusers
import torch

from onereel.runtime.layout import CLASSES, CONFIG, OFFICIAL_VAE_CLASS, ModelPart, our_part
from onereel.runtime.load import load_part, stored_dtype
from onereel.runtime.shards import read_json
from onereel.runtime.source import shipped_models

# Arguments that our own strict loader understands; others are for diffusers.
_OWN_ARGUMENTS = ("torch_dtype", "dtype", "local_files_only")


class AutoModel(diffusers.AutoModel):
    """Load a model by the class its config names."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_or_path: str | PathLike[str] | None = None,
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model from a folder, a shipped checkpoint, or the hub.

        Args:
            pretrained_model_or_path: a folder, a shipped name such as `toybox-magi`, or, for
                classes that are not ours, whatever diffusers' AutoModel takes.
            subfolder: component of a checkpoint, such as `vae` or `transformer`.
            **kwargs: as of diffusers; `torch_dtype` (or `dtype`) None means float32, `auto` what is
                stored. Float8 weights stay float8.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: a file is missing, damaged or does not fit.
            ConfigError: the config is wrong.
        """
        shipped = shipped_models().get(str(pretrained_model_or_path))
        path = pretrained_model_or_path if shipped is None else shipped
        folder = Path(path or "") / (subfolder or "")
        name = _class_name(folder)
        if name is None:
            path = None if path is None else str(path)  # diffusers joins it with other strings
            return super().from_pretrained(path, subfolder=subfolder, **kwargs)
        part = our_part(folder)
        part.account()  # diffusers may leave a missing tensor on the meta device unnoticed
        others = set(kwargs) - set(_OWN_ARGUMENTS)
        if others and not part.official and not part.config.get("fp8_quant"):
            kwargs["torch_dtype"] = kwargs.pop("dtype", kwargs.get("torch_dtype"))
            kwargs = {key: value for key, value in kwargs.items() if value is not None}
            return CLASSES[name].from_pretrained(folder, **kwargs)  # type: ignore[attr-defined]
        if others:
            raise TypeError(f"{folder}: arguments {sorted(others)} do not fit this kind of weights")
        return load_part(part, dtype=_dtype(part, kwargs))


def _class_name(folder: Path) -> str | None:
    """Read the class of a folder, if it is one of ours."""
    if not (folder / CONFIG).is_file():
        return None
    name = read_json(folder / CONFIG).get("_class_name")
    return name if name in CLASSES or name == OFFICIAL_VAE_CLASS else None


def _dtype(part: ModelPart, kwargs: dict[str, Any]) -> torch.dtype:
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    if dtype is None:
        return torch.float32
    return stored_dtype(part) if dtype == "auto" else dtype
