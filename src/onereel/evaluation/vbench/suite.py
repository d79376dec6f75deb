"""Which videos belong to which prompt: the official prompt lists, and folders of the user's own.

Official lists are read from the user's copy of the VBench repository, never shipped. Videos are
only looked up here; nothing is renamed.

Source:
    spec/evaluation.md 2.1 and 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.videos import list_videos

NUM_SAMPLES = 5
NUM_FLICKERING_SAMPLES = 25  # before the filter for still videos

# These ask for objects, scenes or styles that only the official lists name.
NOT_CUSTOM = (
    *("object_class", "multiple_objects", "scene"),
    *("appearance_style", "color", "spatial_relationship"),
)
CROPS = {"1-1": 1.0, "8-5": 8 / 5, "7-4": 7 / 4, "16-9": 16 / 9}

_SUFFIXES = (".mp4", ".gif")
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteEntry:
    """One prompt of an official list.

    Args:
        prompt: the text; videos are named after it.
        dimensions: what its videos are scored on.
        auxiliary: what a dimension must know beside the prompt, by dimension.
        image_name: file of the reference picture; empty for text-to-video.
        image_type: its category; empty for text-to-video.
    """

    prompt: str
    dimensions: tuple[str, ...]
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    image_name: str = ""
    image_type: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One video to be scored.

    Args:
        path: the file, or a folder of images.
        prompt: the text it was made from.
        dimensions: what it is scored on; None means everything that is asked for.
        auxiliary: as in `SuiteEntry`.
        image: the reference picture, or None.
    """

    path: Path
    prompt: str
    dimensions: tuple[str, ...] | None = None
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    image: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSet:
    """The videos that were found, and the names of those that were not.

    Args:
        samples: to be scored.
        missing: file names that the suite expects; the official tool only warns about them.
    """

    samples: tuple[Sample, ...]
    missing: tuple[str, ...] = ()


def read_suite(path: str | Path) -> tuple[SuiteEntry, ...]:
    """Read `VBench_full_info.json` or `vbench2_i2v_full_info.json`.

    Args:
        path: the file, from the user's copy of the official repository.

    Returns:
        One entry per prompt and picture; what the list says twice about one is joined.

    Raises:
        ConfigError: the file cannot be read or is not such a list.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        hint = "take VBench_full_info.json from the official repository"
        raise ConfigError(f"{path}: not a readable prompt list ({error})", hint=hint) from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path}", expected="a list of prompts", got=type(rows).__name__)
    joined: dict[tuple[str, str], SuiteEntry] = {}
    for number, row in enumerate(rows):
        entry = _entry(row, where=f"{path}: entry {number}")
        key = (entry.prompt, entry.image_name)
        joined[key] = _join(joined[key], entry) if key in joined else entry
    return tuple(joined.values())


def category_entries(path: str | Path, dimensions: Sequence[str]) -> tuple[SuiteEntry, ...]:
    """Read one of the eight files of the mode `vbench_category`, a prompt per line.

    Args:
        path: the file.
        dimensions: what every prompt is scored on.

    Returns:
        One entry per line that is not empty.

    Raises:
        ConfigError: the file cannot be read, is empty, or a dimension needs an official list.
    """
    refuse_not_custom(dimensions)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable prompt file ({error})") from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ConfigError(f"{path}", expected="one prompt per line", got="an empty file")
    return tuple(SuiteEntry(prompt=p, dimensions=tuple(dimensions)) for p in prompts)


def suite_samples(
    folder: str | Path,
    entries: Iterable[SuiteEntry],
    *,
    dimensions: Sequence[str],
    num_samples: int = NUM_SAMPLES,
    images: Path | None = None,
) -> SampleSet:
    """Look up the videos of an official list, named `{prompt}-{i}.mp4` or `.gif`.

    Args:
        folder: holds the videos.
        entries: of the list.
        dimensions: what is asked for; prompts for other dimensions are left out.
        num_samples: videos per prompt, 5; 25 for temporal_flickering before the filter.
        images: folder of reference pictures of one crop, such as `.../crop/16-9`.

    Returns:
        The videos found and the names of the others.

    Raises:
        MediaError: the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder", hint="check the path's spelling")
    present = {path.name for path in folder.iterdir()}
    samples: list[Sample] = []
    missing: list[str] = []
    for entry in entries:
        wanted = tuple(d for d in entry.dimensions if d in dimensions)
        for i in range(num_samples if wanted else 0):
            names = [f"{entry.prompt}-{i}{suffix}" for suffix in _SUFFIXES]
            name = next((n for n in names if n in present), None)
            if name is None:
                missing.append(names[0])
                continue
            has_image = images is not None and entry.image_name
            sample = Sample(
                path=folder / name,
                prompt=entry.prompt,
                dimensions=wanted,
                auxiliary=entry.auxiliary,
                image=Path(images or "") / entry.image_name if has_image else None,
            )
            samples.append(sample)
    return SampleSet(samples=tuple(samples), missing=tuple(missing))


def custom_samples(
    folder: str | Path,
    *,
    images: str | Path | None = None,
    prompts: Mapping[str, str] | None = None,
) -> SampleSet:
    """Take every video of a folder (mode `custom_input`).

    Args:
        folder: holds the videos; the prompt is the file's name without suffix and number.
        images: folder of reference pictures named like the videos or like the prompts.
        prompts: texts by file name, where names are not the prompts.

    Returns:
        The videos; `missing` names the videos without a picture when `images` is given.

    Raises:
        MediaError: a folder is missing or holds no videos.
    """
    pictures = None if images is None else _pictures(Path(images))
    samples: list[Sample] = []
    missing: list[str] = []
    for file in list_videos(folder):
        prompt = prompt_of(file.path.name)
        image = None
        if pictures is not None:
            image = pictures.get(file.name) or pictures.get(prompt)
            if image is None:
                missing.append(f"{prompt}{_IMAGE_SUFFIXES[0]} (picture of {file.path.name})")
        text = (prompts or {}).get(file.path.name, prompt)
        samples.append(Sample(path=file.path, prompt=text, image=image))
    return SampleSet(samples=tuple(samples), missing=tuple(missing))


def prompt_of(name: str) -> str:
    """Read the prompt out of a video's name.

    Args:
        name: such as "a cat-0.mp4", folders before it are ignored.

    Returns:
        The name without suffix and without a last "-" with digits.
    """
    return re.sub(r"-\d+$", "", Path(name).stem)


def refuse_not_custom(dimensions: Iterable[str]) -> None:
    """Refuse dimensions that make no sense without an official list.

    Args:
        dimensions: what is asked for.

    Raises:
        ConfigError: one of them needs the list.
    """
    refused = [name for name in dimensions if name in NOT_CUSTOM]
    if refused:
        raise ConfigError(
            f"dimensions {', '.join(refused)}",
            expected="videos of the official list, which says what to look for",
            hint="give the path of VBench_full_info.json, or leave them out",
        )


def crop_folder(width: int, height: int) -> str:
    """Choose the crop of the reference pictures for a model.

    Args:
        width: of its videos.
        height: of its videos.

    Returns:
        Name of the folder whose aspect ratio is nearest.
    """
    return min(CROPS, key=lambda name: abs(CROPS[name] - width / height))


def _entry(row: Any, *, where: str) -> SuiteEntry:
    if not isinstance(row, dict) or not isinstance(row.get("prompt_en"), str):
        raise ConfigError(where, expected="an object with prompt_en and dimension", got=str(row))
    dimensions = row.get("dimension")
    if not isinstance(dimensions, list) or not all(isinstance(d, str) for d in dimensions):
        raise ConfigError(f"{where}: dimension", expected="a list of names", got=str(dimensions))
    return SuiteEntry(
        prompt=row["prompt_en"],
        dimensions=tuple(dimensions),
        auxiliary=row.get("auxiliary_info") or {},
        image_name=row.get("image_name") or "",
        image_type=row.get("image_type") or "",
    )


def _join(first: SuiteEntry, second: SuiteEntry) -> SuiteEntry:
    return SuiteEntry(
        prompt=first.prompt,
        dimensions=tuple(dict.fromkeys(first.dimensions + second.dimensions)),
        auxiliary={**first.auxiliary, **second.auxiliary},
        image_name=first.image_name,
        image_type=first.image_type,
    )


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder", hint="check the path's spelling")
    found = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in _IMAGE_SUFFIXES)
    return {path.stem: path for path in found}
