"""The result of an evaluation: what every benchmark writes and every report reads.

The JSON of a result is an object with the fields of `Result`; `metrics` maps names to the fields of
`Measurement`, all of which have a value. What has none is in `not_computed` with the reason.
`schema` counts up when a field changes its meaning; readers refuse others and unknown keys.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onereel import __version__
from onereel.core.config import check_keys, from_mapping
from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.measure import Measurement

SCHEMA = 1
RESULT_FILE = "result.json"

_PACKAGES = ("torch", "numpy", "scipy", "transformers", "diffusers", "av")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRow:
    """What was found in one video.

    Args:
        name: of the video within the result.
        prompt: what was asked for; parts of a timeline are joined by " | ".
        group: videos of one group belong to one prompt and are drawn together for intervals.
        seed: of the noise, or None.
        tags: such as `held_out` or `given_chunks`, by which rows can be told apart.
        values: numbers by name; None where the metric does not apply.
        curves: numbers over time by name.
        files: paths relative to the result's folder, by what they show (`made`, `truth`).
        frames_sha256: of the frames as they were scored.
        problem: why it was not scored; empty when it was.
    """

    name: str
    prompt: str = ""
    group: str = ""
    seed: int | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    frames_sha256: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One evaluation of one model.

    Args:
        kind: the benchmark, such as `toybox`.
        model: name of the model, or of the folder of videos.
        suite: which part of the benchmark.
        steps: updates per chunk, or None.
        num_videos: videos that were scored.
        metrics: measurements by name.
        seconds_per_video_second: wall time of making a second of video in one process, or None.
        not_computed: reason per metric that has no value.
        config: everything that the numbers depend on.
        model_hash: SHA-256 of the weights; empty without a model.
        seeds: what was drawn from which seed.
        versions: of Python and packages.
        problems: what was wrong with inputs or videos; such videos are not in the metrics.
        notes: what a reader has to know to read the numbers.
        rank: names of the per-video values by which videos are worst, in this order; a minus in
            front says that high is bad.
        videos: one row per video.
        folder: where the videos lie; empty when they were not kept.
        command: that was run.
        created: time of writing, UTC.
        schema: version of this format.
    """

    kind: str
    model: str
    suite: str
    steps: int | None = None
    num_videos: int
    metrics: Mapping[str, Measurement]
    seconds_per_video_second: float | None = None
    not_computed: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model_hash: str = ""
    seeds: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    videos: tuple[VideoRow, ...] = ()
    folder: str = ""
    command: str = ""
    created: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse metrics without value."""
        empty = [name for name, found in self.metrics.items() if found.mean is None]
        if empty:
            raise ConfigError("metrics", expected="a value each; others go to not_computed",
                              got=", ".join(empty))  # fmt: skip

    @property
    def title(self) -> str:
        """Name the run in tables.

        Returns:
            Model, and steps where they are known.
        """
        return self.model if self.steps is None else f"{self.model}, {self.steps} steps"

    def to_json(self) -> dict[str, Any]:
        """Give JSON values; numbers that are not finite become null.

        Returns:
            All fields by name.
        """
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str = "result") -> Result:
        """Read what `to_json` gave, strictly.

        Args:
            data: JSON values.
            where: what error messages call them.

        Returns:
            The result.

        Raises:
            ConfigError: a key is unknown or missing, or the schema is another.
        """
        if isinstance(data, Mapping) and data.get("schema", SCHEMA) != SCHEMA:
            raise ConfigError(f"{where}: schema", expected=str(SCHEMA), got=data["schema"],
                              hint="read it with the version of onereel that wrote it")  # fmt: skip
        check_keys(data, (f.name for f in dataclasses.fields(cls)), where=where)
        rows = tuple(
            from_mapping(VideoRow, row, where=f"{where}: videos") for row in data.get("videos", ())
        )
        metrics = {
            name: Measurement.from_json(found) for name, found in data.get("metrics", {}).items()
        }
        known = {"metrics": metrics} if "metrics" in data else {}
        return from_mapping(cls, {**data, **known, "videos": rows}, where=where)


def split_missing(
    measured: Mapping[str, Measurement],
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Part measurements into those with a value and the reasons of those without.

    Args:
        measured: by name.

    Returns:
        `metrics` and `not_computed` of a result.
    """
    found = {n: m for n, m in measured.items() if m.mean is not None and math.isfinite(m.mean)}
    reasons = {n: m.note or "it has no finite value" for n, m in measured.items() if n not in found}
    return found, reasons


def used_versions() -> dict[str, str]:
    """List the versions that numbers may depend on.

    Returns:
        By name: onereel, Python, the machine, and the packages that are installed.
    """
    versions = {
        "onereel": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def utc_now() -> str:
    """Tell the time.

    Returns:
        ISO 8601 to the second, UTC.
    """
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(data: Any, path: str | Path) -> Path:
    """Write JSON so that a crash leaves either the old file or the new one.

    Args:
        data: plain values; numbers that are not finite become null.
        path: the file.

    Returns:
        The path.

    Raises:
        MediaError: the place cannot be written.
    """
    path = Path(path)
    text = json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise MediaError(f"cannot write {path}", got=error.strerror) from error
    return path


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its values.

    Raises:
        MediaError: it is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(f"cannot read {path}", got=error.strerror) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MediaError(str(path), expected="JSON", got=error) from error


def read_result(path: str | Path) -> Result:
    """Read a result.

    Args:
        path: its JSON file, or the folder of a run.

    Returns:
        The result; `folder` names where its videos are, empty when they are not there any more.

    Raises:
        MediaError: the file is missing or no JSON.
        ConfigError: it is no result.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULT_FILE
    result = Result.from_json(read_json(path), where=str(path))
    folder = path.parent if path.name == RESULT_FILE else Path(result.folder)
    there = bool(result.folder) and folder.is_dir()
    return dataclasses.replace(result, folder=str(folder) if there else "")


def _plain(value: Any) -> Any:
    """Turn values into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()  # a number of numpy
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
