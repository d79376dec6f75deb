"""What a user may ask of which model family; without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Final

from onereel.core.errors import ConfigError
from onereel.pipelines.wishes import RunWishes, flag
from onereel.runtime.source import MAGI1, MAGIC141, resolve_model

NAMES: Final = {MAGI1: "MAGI-1", MAGIC141: "Magic 1-For-1"}

# Wishes that mean something to one family alone, and what to do without.
_MAGI1_ONLY: Final = {
    "video": "give its last picture with --image",
    "prefix_frames": "it belongs to --video",
    "prefix_from": "it belongs to --video",
    "keep_prefix": "it belongs to --video",
    "prev_scale": "there are no earlier chunks to be strong towards; leave it out",
    "hq": "the model has no special tokens; put it into the prompt",
    "duration": "the model has no special tokens; leave it out",
    "style": "the model has no special tokens; put it into the prompt",
    "first_frames": "the model has no special tokens; put it into the prompt",
    "special_tokens": "the model has no special tokens; leave it out",
    "policy": "pictures always fill the frame and are cut at the sides; crop yours before",
}
_MAGIC141_ONLY: Final = {
    "image_source": "--image FILE starts with a picture",
    "clip": "it belongs to --image-source FOLDER",
    "continuation": "chunks always go on from what was made before; leave it out",
}
_FOREIGN: Final = {MAGI1: _MAGIC141_ONLY, MAGIC141: _MAGI1_ONLY}


def family_of(model: str | None) -> str:
    """Tell which family a checkpoint is of.

    Args:
        model: shipped name, folder or official JSON config.

    Returns:
        `MAGI1` or `MAGIC141`.

    Raises:
        ConfigError: there is no such checkpoint.
        CheckpointError: an official config cannot be read.
    """
    return resolve_model(model).family


def check_family(wishes: RunWishes, given: Collection[str], *, family: str) -> None:
    """Refuse wishes that mean nothing to a family, rather than ignore them.

    Args:
        wishes: what is wanted.
        given: names of the wishes that the user named, those with the default's value included.
        family: `MAGI1` or `MAGIC141`.

    Raises:
        ConfigError: with the first of them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(RunWishes)}
    for name, hint in _FOREIGN[family].items():
        value = getattr(wishes, name)
        if name in given or value != defaults[name]:
            other = next(title for key, title in NAMES.items() if key != family)
            raise ConfigError(
                f"{flag(name)} of a {NAMES[family]} checkpoint", expected="nothing", got=value,
                hint=f"it is of {other}; {hint}",
            )  # fmt: skip
