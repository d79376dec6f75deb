"""The record of a run: JSON in the video's comment tag, and the same in a file beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from onereel.core.errors import ConfigError, MediaError


def sidecar_path(path: str | Path) -> Path:
    """Name the file that holds the record beside a video.

    Args:
        path: the video.

    Returns:
        The same path with ".json" appended.
    """
    return Path(f"{path}.json")


def encode_metadata(record: Mapping[str, Any]) -> str:
    """Turn a record into JSON text.

    Args:
        record: strings to JSON values.

    Returns:
        One line of JSON with sorted keys.

    Raises:
        ConfigError: a value has no JSON form.
    """
    try:
        return json.dumps(dict(record), sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError("metadata", expected="values that JSON can hold", got=error) from error


def write_metadata(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write the record beside a video, replacing an earlier one in one step.

    Args:
        path: the video.
        record: everything about the run.

    Returns:
        The file written.

    Raises:
        ConfigError: a value has no JSON form.
        MediaError: the file cannot be written.
    """
    encode_metadata(record)
    target = sidecar_path(path)
    draft = target.with_name(f".{target.name}.part")
    text = json.dumps(dict(record), sort_keys=True, ensure_ascii=False, indent=2) + "\n"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MediaError(f"cannot write {target} ({error.strerror})") from error
    return target


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the record of a run, from the video's own tag or else from the file beside it.

    Args:
        path: the video; it may still be growing.

    Returns:
        The record.

    Raises:
        MediaError: neither holds one, or the file beside it is damaged.
    """
    path, sidecar = Path(path), sidecar_path(path)
    record = _parse(_comment(path))
    if record is not None:
        return record
    if sidecar.is_file():
        record = _parse(sidecar.read_text(encoding="utf-8", errors="replace"))
        if record is None:
            raise MediaError(f"{sidecar} is damaged", expected="a JSON object")
        return record
    raise MediaError(
        f"{path} carries no record of a run",
        hint="only videos made by onereel do; was it converted by another program?",
    )


def _comment(path: Path) -> str:
    """The comment tag, or an empty string where the file is missing or has none."""
    if not path.is_file():
        return ""
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except av.FFmpegError:
        return ""
    return tags.get("comment", "")


def _parse(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None
