"""The dataset on disk: which scenarios there are, and where their files lie.

The official folders and names are read as they are; nothing is renamed or written. What is missing
is listed in full, and an error.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError, MediaError

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
TAKES = ("take-1", "take-2")
SECONDS = 5
CONDITIONING_SECONDS = 3
SOURCE_FPS = 30

_ROOT = "physics-IQ-benchmark"
_TABLE = "descriptions.csv"
_COLUMNS = ("scenario", "description", "category", "generated_video_name")
_ROW = re.compile(r"(\d{4})_(perspective-[a-z]+)_(take-[12])_([^_]+)\.mp4")
_LISTED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewEntry:
    """One view of a scenario: one video to generate, two real ones to hold it against.

    Args:
        ids: four digits of the first and of the second take.
        view: one of `VIEWS`.
        name: of the scenario.
        description: what is seen before the switch frame; it never tells what happens.
        category: such as "Fluid Dynamics".
        generated_name: file name that a generated video should have.
    """

    ids: tuple[str, str]
    view: str
    name: str
    description: str
    category: str
    generated_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One thing that was filmed, from three sides, twice.

    Args:
        name: starts with "trimmed-".
        category: of physics.
        views: left, center, right.
    """

    name: str
    category: str
    views: tuple[ViewEntry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsIqDataset:
    """The scenarios and the folder of their files.

    Args:
        root: holds `split-videos` and `switch-frames`.
        scenarios: in the order of the ids.
        num_listed: scenarios in the official table; fewer are here after `only`.
    """

    root: Path
    scenarios: tuple[Scenario, ...]
    num_listed: int

    @property
    def entries(self) -> tuple[ViewEntry, ...]:
        """Return every view of every scenario, in the order of the ids."""
        return tuple(view for scenario in self.scenarios for view in scenario.views)

    def only(self, names: Sequence[str]) -> PhysicsIqDataset:
        """Choose some scenarios; a score over them is not the official one.

        Args:
            names: of scenarios.

        Returns:
            The smaller dataset.

        Raises:
            ConfigError: there is no such scenario.
        """
        known = [scenario.name for scenario in self.scenarios]
        for name in names:
            if name not in known:
                near = nearest_name(name, known)
                hint = f"did you mean '{near}'?" if near else None
                raise ConfigError("scenario", expected="a name of the table", got=name, hint=hint)
        kept = tuple(scenario for scenario in self.scenarios if scenario.name in names)
        return dataclasses.replace(self, scenarios=kept)

    def testing_rate(self, fps: Fraction) -> int:
        """Find which real videos serve a frame rate.

        Args:
            fps: of the generated videos.

        Returns:
            That rate where a folder of it exists, else 30, whose videos are resampled.
        """
        return self._rate("testing", fps)

    def conditioning_rate(self, fps: Fraction) -> int:
        """Find which conditioning videos serve a frame rate.

        Args:
            fps: of the model.

        Returns:
            That rate where a folder of it exists, else 30.
        """
        return self._rate("conditioning", fps)

    def testing(self, entry: ViewEntry, take: int, *, rate: int) -> Path:
        """Name the real video after the switch.

        Args:
            entry: the view.
            take: 0 or 1.
            rate: frames per second, from `testing_rate`.

        Returns:
            Where it should be.
        """
        name = f"{entry.ids[take]}_testing-videos_{rate}FPS_{entry.view}_{TAKES[take]}"
        return self._split("testing", rate) / f"{name}_{entry.name}.mp4"

    def conditioning(self, entry: ViewEntry, *, rate: int) -> Path:
        """Name the real video before the switch, first take.

        Args:
            entry: the view.
            rate: frames per second, from `conditioning_rate`.

        Returns:
            Where it should be.
        """
        name = f"{entry.ids[0]}_conditioning-videos_{rate}FPS_{entry.view}_{TAKES[0]}"
        return self._split("conditioning", rate) / f"{name}_{entry.name}.mp4"

    def switch_frame(self, entry: ViewEntry) -> Path:
        """Name the last picture before the switch.

        Args:
            entry: the view.

        Returns:
            Where it should be.
        """
        name = f"{entry.ids[0]}_switch-frames_anyFPS_{entry.view}_{entry.name}.jpg"
        return self.root / "switch-frames" / name

    def real_mask(self, entry: ViewEntry, take: int, *, rate: int) -> Path:
        """Name the published mask video of a real video.

        Args:
            entry: the view.
            take: 0 or 1.
            rate: frames per second.

        Returns:
            Where it should be.
        """
        name = f"{entry.ids[take]}_video-masks_{rate}FPS_{entry.view}_{TAKES[take]}"
        return self.root / "video-masks" / "real" / f"{rate}FPS" / f"{name}_{entry.name}.mp4"

    def _rate(self, part: str, fps: Fraction) -> int:
        if fps.denominator == 1 and self._split(part, int(fps)).is_dir():
            return int(fps)
        return SOURCE_FPS

    def _split(self, part: str, rate: int) -> Path:
        """The folder as the official code calls it, or as its page does."""
        folders = [
            self.root / "split-videos" / name / f"{rate}FPS" for name in (part, f"{part}-videos")
        ]
        return next((folder for folder in folders if folder.is_dir()), folders[0])


def read_dataset(root: str | Path, descriptions: str | Path | None = None) -> PhysicsIqDataset:
    """Read the dataset's table; the videos themselves are looked up when they are needed.

    Args:
        root: the folder `physics-IQ-benchmark`, or the one that holds it.
        descriptions: the official `descriptions.csv`; None looks for it in `root`, in
            `root/descriptions` and beside `root`.

    Returns:
        The dataset.

    Raises:
        MediaError: a folder or the table is missing.
        ConfigError: the table is not the official one.
    """
    root = Path(root)
    if (root / _ROOT).is_dir():
        root = root / _ROOT
    if not root.is_dir():
        raise MediaError(f"dataset {root}: no such folder", hint=f"give the folder {_ROOT}")
    scenarios = _scenarios(_find_table(root, descriptions))
    return PhysicsIqDataset(root=root, scenarios=scenarios, num_listed=len(scenarios))


def missing_files(paths: Iterable[Path]) -> list[str]:
    """Name the files that are not there.

    Args:
        paths: should all exist and hold something.

    Returns:
        A line for each that does not.
    """
    return [f"missing: {path}" for path in paths if not _is_there(path)]


def refuse(problems: Sequence[str], what: str) -> None:
    """Stop when there are problems.

    Args:
        problems: one line each.
        what: they are about.

    Raises:
        MediaError: there are any; up to twenty are named.
    """
    if not problems:
        return
    listed = "\n  ".join(problems[:_LISTED])
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise MediaError(f"{what}: {len(problems)} problems\n  {listed}{more}")


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _find_table(root: Path, descriptions: str | Path | None) -> Path:
    if descriptions is not None:
        path = Path(descriptions)
        if not path.is_file():
            raise MediaError(f"descriptions {path}: no such file")
        return path
    folders = (root, root / "descriptions", root.parent, root.parent / "descriptions")
    for folder in folders:
        if (folder / _TABLE).is_file():
            return folder / _TABLE
    raise MediaError(
        f"dataset {root} has no {_TABLE}",
        hint="copy it there from the official repository's folder `descriptions`, or name it",
    )


def _scenarios(table: Path) -> tuple[Scenario, ...]:
    """Group the table's rows; ids, descriptions and file names are those of the first take."""
    takes: dict[tuple[str, str], dict[str, tuple[str, dict[str, str]]]] = {}
    seen: dict[str, int] = {}
    for line, row in _rows(table):
        match = _ROW.fullmatch(row["scenario"])
        if match is None or match[2] not in VIEWS:
            wanted = "{4 digits}_{view}_{take}_{name}.mp4"
            raise ConfigError(f"{table} line {line}", expected=wanted, got=row["scenario"])
        number, view, take, name = match.groups()
        if number in seen:
            raise ConfigError(f"{table} line {line}: id {number} is also in line {seen[number]}")
        seen[number] = line
        takes.setdefault((name, view), {})[take] = number, row
    grouped: dict[str, list[ViewEntry]] = {}
    for (name, view), found in takes.items():
        if set(found) != set(TAKES):
            raise ConfigError(f"{table}: {name} {view}", expected="both takes", got=list(found))
        grouped.setdefault(name, []).append(_entry(name, view, found))
    return tuple(_scenario(table, name, views) for name, views in grouped.items())


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                got = ", ".join(reader.fieldnames or ())
                raise ConfigError(f"{table}", expected=f"columns {', '.join(_COLUMNS)}", got=got)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{table} cannot be read ({error})") from error
    for line, row in rows:
        if any(row[column] is None for column in _COLUMNS):
            raise ConfigError(f"{table} line {line}", expected=f"{len(_COLUMNS)} columns")
    if not rows:
        raise ConfigError(f"{table}", expected="a row per real video", got="none")
    return rows


def _entry(name: str, view: str, takes: dict[str, tuple[str, dict[str, str]]]) -> ViewEntry:
    number, row = takes[TAKES[0]]
    return ViewEntry(
        ids=(number, takes[TAKES[1]][0]),
        view=view,
        name=name,
        description=row["description"].strip(),
        category=row["category"].strip(),
        generated_name=row["generated_video_name"].strip() or f"{number}_{view}_{name}.mp4",
    )


def _scenario(table: Path, name: str, views: list[ViewEntry]) -> Scenario:
    by_view = {entry.view: entry for entry in views}
    if set(by_view) != set(VIEWS):
        raise ConfigError(f"{table}: {name}", expected=", ".join(VIEWS), got=", ".join(by_view))
    ordered = tuple(by_view[view] for view in VIEWS)
    return Scenario(name=name, category=ordered[0].category, views=ordered)
