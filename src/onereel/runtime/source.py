"""Which checkpoint a name means: shipped, a folder in our layout, or an official JSON config.

Nothing here touches the network; `onereel models download` is the only command that does.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from onereel.core.config import nearest_name
from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_dit.official import OfficialConfig, read_official

DEFAULT_MODEL: Final = "toybox-magi"
MODEL_INDEX: Final = "model_index.json"
MAGI1: Final = "magi1"
MAGIC141: Final = "magic141"
# Pipelines of Magic 1-For-1; those that are not listed are MAGI-1's.
_MAGIC_CLASSES: Final = ("Magic141Pipeline", "Magic141ImageToVideoPipeline")
COMPONENTS: Final = ("transformer", "vae", "text_encoder", "tokenizer")
# Where the official repository and downloads of it keep the token table.
_TOKEN_FILES: Final = (
    "special_tokens.safetensors",
    "special_tokens.npz",
    "assets/special_tokens.npz",
    "example/assets/special_tokens.npz",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where a checkpoint is.

    Args:
        kind: `folder` in our layout, or `official` JSON config.
        path: the folder, or the JSON file.
        name: what to call it in messages and metadata.
        official: the content of the JSON file.
    """

    kind: Literal["folder", "official"]
    path: Path
    name: str
    official: OfficialConfig | None = None

    @property
    def family(self) -> str:
        """`MAGI1` or `MAGIC141`, by the pipeline that the folder's index names."""
        return MAGIC141 if self.pipeline_class in _MAGIC_CLASSES else MAGI1

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline; empty where no index can be read, which its readers report."""
        try:
            index = json.loads((self.path / MODEL_INDEX).read_text("utf-8"))
            return str(index["_class_name"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def folder(self, component: str) -> Path:
        """Find the folder of a component.

        Args:
            component: a name in `COMPONENTS`.

        Returns:
            An existing folder.

        Raises:
            CheckpointError: there is no such folder.
        """
        if self.official is not None:
            return _official_folder(self.official, component, self.path)
        folder = self.path / component
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", hint="the checkpoint is incomplete")
        return folder

    def special_tokens_file(self) -> Path | None:
        """Find the table of special tokens.

        Returns:
            The file, or None where the checkpoint has none.
        """
        if self.official is None:
            places = [self.path]
        else:
            places = [self.path.parent, *self.path.absolute().parent.parents, Path.cwd()]
        found = (place / name for place in places for name in _TOKEN_FILES)
        return next((path for path in found if path.is_file()), None)


def _official_folder(config: OfficialConfig, component: str, json_path: Path) -> Path:
    """Resolve a path of an official config: working folder, the JSON's folder, its parents."""
    wanted, key = {
        "transformer": (config.weights_folder, "load"),
        "vae": (config.vae_folder, "vae_pretrained"),
        "text_encoder": (config.text_folder, "t5_pretrained"),
        "tokenizer": (config.text_folder, "t5_pretrained"),
    }[component]
    wanted = wanted.expanduser()
    folder = json_path.absolute().parent
    places = [Path.cwd(), folder, *folder.parents]
    candidates = list(dict.fromkeys(place / wanted for place in places))  # absolute ones stay
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise CheckpointError(
        f"{json_path}: runtime_config.{key}",
        expected=f"the folder {wanted}",
        got=f"nothing at {', '.join(str(path) for path in candidates[:2])} or above",
        hint="set it to where the weights are, or get them with `onereel models download`",
    )


def shipped_folder() -> Path:
    """Return the folder of the checkpoints inside the package."""
    return Path(str(importlib.resources.files("onereel"))) / "world" / "checkpoints"


def shipped_models() -> dict[str, Path]:
    """List the checkpoints inside the package.

    Returns:
        Names to folders.
    """
    folder = shipped_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if (path / MODEL_INDEX).is_file()}


def resolve_model(name: str | Path | None = None) -> ModelSource:
    """Find the checkpoint that a name or path means.

    Args:
        name: a shipped name, a folder in our layout, or an official JSON config; None means
            the shipped default.

    Returns:
        Where it is.

    Raises:
        ConfigError: nothing is known under the name; or it is an official weights folder, which
            needs its JSON config.
        CheckpointError: the JSON file is missing or not JSON.
    """
    shipped = shipped_models()
    text = DEFAULT_MODEL if name is None else str(name)
    if text in shipped:
        return ModelSource(kind="folder", path=shipped[text], name=text)
    path = Path(text).expanduser()
    if path.suffix == ".json" and path.name != MODEL_INDEX:
        return ModelSource(kind="official", path=path, name=path.stem, official=read_official(path))
    if path.name == MODEL_INDEX:
        path = path.parent
    if path.is_dir():
        return _from_folder(path)
    raise _unknown(text, list(shipped))


def _from_folder(path: Path) -> ModelSource:
    if (path / MODEL_INDEX).is_file():
        return ModelSource(kind="folder", path=path, name=path.resolve().name)
    variants = official_variants(path)
    if variants:
        variant = next(iter(variants))
        size = variant.split("_", maxsplit=1)[0]
        raise ConfigError(
            f"model '{path}'",
            expected="the JSON config that belongs to these official weights",
            got=f"the weights of {', '.join(variants)}",
            hint=f"pass example/{size}/{variant}_config.json of the official repository with "
            f'runtime_config.load set to "{variants[variant]}"',
        )
    parts = [part for part in COMPONENTS if (path / part).is_dir()]
    got = f"a folder with {', '.join(parts)} but without it" if parts else "another folder"
    raise ConfigError(
        f"model '{path}'",
        expected=f"a folder with {MODEL_INDEX}",
        got=got,
        hint="pass a folder that `onereel models convert` or save_pretrained wrote",
    )


def official_variants(path: Path) -> dict[str, Path]:
    """Find official weights below a folder.

    Args:
        path: such as a download of the official repository, its `ckpt/magi`, or one variant.

    Returns:
        Variant names to the folder that `runtime_config.load` must name.
    """
    for level in ("ckpt/magi/*/inference_weight*", "magi/*/inference_weight*",
                  "*/inference_weight*", "inference_weight*"):  # fmt: skip
        found = sorted({weights.parent for weights in path.glob(level) if weights.is_dir()})
        if found:
            return {folder.resolve().name: folder for folder in found}
    return {}


def _unknown(text: str, shipped: list[str]) -> ConfigError:
    near = nearest_name(text, shipped)
    hint = f"did you mean '{near}'? " if near else ""
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        hint += f"For a hub repository: onereel models download --repo {text}. "
    known = f"shipped are {', '.join(shipped)}" if shipped else "no checkpoint is shipped here"
    return ConfigError(
        f"model '{text}'",
        expected="a shipped name, a checkpoint folder or an official JSON config",
        hint=f"{hint}{known}; `onereel models list` shows them",
    )
