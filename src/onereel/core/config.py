"""Strict loading of plain mappings into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from onereel.core.errors import ConfigError

T = TypeVar("T")


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Find the known name most like `name`.

    Args:
        name: what the user wrote.
        known: the names there are.

    Returns:
        The nearest known name, or None when nothing is near.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def check_keys(data: Mapping[str, Any], known: Iterable[str], *, where: str) -> None:
    """Refuse unknown keys, suggesting the nearest known one.

    Args:
        data: the mapping to check.
        known: the keys that are allowed.
        where: the name of the mapping in the message.

    Raises:
        ConfigError: it is not a mapping, or a key is not known.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(where, expected="a mapping of names to values", got=type(data).__name__)
    names = sorted(known)
    for key in data:
        if key not in names:
            near = nearest_name(key, names)
            hint = f"did you mean '{near}'?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"{where}: unknown key '{key}'", hint=hint)


def from_mapping(cls: type[T], data: Mapping[str, Any], *, where: str) -> T:
    """Build a dataclass from a mapping, strictly.

    Args:
        cls: a dataclass type.
        data: its values; lists become tuples.
        where: the name of the mapping in error messages.

    Returns:
        The instance.

    Raises:
        ConfigError: a key is unknown, or a value without default is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(data, fields, where=where)
    missing = [
        name
        for name, f in fields.items()
        if name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing keys {', '.join(missing)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return cls(**values)
