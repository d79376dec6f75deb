"""The official result files, so that scores can be compared and uploaded.

Source:
    spec/evaluation.md 2.1 and 3.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onereel.core.errors import ConfigError
from onereel.evaluation.vbench.evaluate import VBenchResult, VideoScore
from onereel.evaluation.vbench.suite import Sample

_BOOLEAN = ("dynamic_degree",)  # the official files say true or false for a video
_PER_TYPE = ("camera_motion",)  # three elements: overall, per type, per video


def official_results(result: VBenchResult) -> dict[str, list[Any]]:
    """Bring a result into the official form.

    Args:
        result: of an evaluation.

    Returns:
        By dimension [overall, list of videos]; camera_motion is [overall, per type, list of
        videos]. Dimensions without value are absent, as in the official files.
    """
    found: dict[str, list[Any]] = {}
    for name, overall in result.overall().items():
        scores = [s for s in result.scores if s.dimension == name]
        videos = [_video(score) for score in scores]
        found[name] = [overall, videos]
        if name in _PER_TYPE:
            found[name] = [overall, per_type(scores), videos]
    return found


def per_type(scores: Iterable[VideoScore]) -> dict[str, float]:
    """Average camera_motion over the videos of each movement.

    Args:
        scores: of that dimension.

    Returns:
        Share of hits by movement.
    """
    groups: dict[str, list[float]] = {}
    for score in scores:
        groups.setdefault(str(score.details["type"]), []).append(score.value)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def write_official(
    result: VBenchResult, folder: str | Path, *, name: str, samples: Sequence[Sample]
) -> tuple[Path, Path]:
    """Write `{name}_eval_results.json` and `{name}_full_info.json`.

    Args:
        result: of an evaluation.
        folder: where to write; made when it is not there.
        name: of the run.
        samples: what was evaluated.

    Returns:
        The two paths.

    Raises:
        ConfigError: the name is not a plain file name.
    """
    if not name or Path(name).name != name:
        raise ConfigError("name", expected="a file name without folders", got=name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"{name}_eval_results.json"
    info = folder / f"{name}_full_info.json"
    _write(results, official_results(result))
    _write(info, full_info(samples, list(result.dimensions)))
    return results, info


def full_info(samples: Sequence[Sample], dimensions: Sequence[str]) -> list[dict[str, Any]]:
    """List what was evaluated in the form of the official list.

    Args:
        samples: the videos.
        dimensions: what was asked for.

    Returns:
        One entry per prompt and picture, with its videos.
    """
    entries: dict[tuple[str, Path | None], dict[str, Any]] = {}
    for sample in samples:
        names = dimensions if sample.dimensions is None else sample.dimensions
        entry: dict[str, Any] = {"prompt_en": sample.prompt, "dimension": list(names)}
        if sample.auxiliary:
            entry["auxiliary_info"] = dict(sample.auxiliary)
        if sample.image is not None:
            entry["image_name"] = sample.image.name
        entry["video_list"] = []
        entry = entries.setdefault((sample.prompt, sample.image), entry)
        entry["video_list"].append(str(sample.path))
    return list(entries.values())


def write_submission(files: Sequence[Path], path: str | Path) -> Path:
    """Pack result files for an upload to the leaderboard.

    Args:
        files: `{name}_eval_results.json` files.
        path: the zip file to write.

    Returns:
        The path.

    Raises:
        ConfigError: a file is missing or two have one name.
    """
    names = [file.name for file in files]
    absent = [str(file) for file in files if not file.is_file()]
    if absent or len(set(names)) != len(names) or not names:
        got = f"missing {', '.join(absent)}" if absent else f"names {', '.join(names) or 'none'}"
        raise ConfigError("files", expected="existing files of different names", got=got)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return Path(path)


def _video(score: VideoScore) -> dict[str, Any]:
    value = bool(score.value) if score.dimension in _BOOLEAN else score.value
    return {"video_path": score.path, "video_results": value, **score.details}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
