"""The official result table: one row per scenario, lists of numbers inside the cells."""

from __future__ import annotations

import ast
import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.physics_iq.dataset import VIEWS
from onereel.evaluation.physics_iq.metrics import PairMetrics, ViewMetrics
from onereel.evaluation.physics_iq.scoring import ScenarioRow

Cell = float | list[float]

# Official name of a column, without its view: which pair of videos, which number.
COLUMNS = {
    "v1_mse": ("take1", "mse"),
    "v2_mse": ("take2", "mse"),
    "variance_spatial": ("variance", "spatial"),
    "variance_weighted_spatial": ("variance", "weighted_spatial"),
    "variance_spatiotemporal_iou": ("variance", "spatiotemporal"),
    "variance_mse": ("variance", "mse"),
    "spatiotemporal_iou_v1": ("take1", "spatiotemporal"),
    "spatiotemporal_iou_v2": ("take2", "spatiotemporal"),
    "spatial_iou_v1": ("take1", "spatial"),
    "spatial_iou_v2": ("take2", "spatial"),
    "weighted_spatial_iou_v1": ("take1", "weighted_spatial"),
    "weighted_spatial_iou_v2": ("take2", "weighted_spatial"),
}
_LISTS = ("mse", "spatiotemporal")


def row_cells(row: ScenarioRow) -> dict[str, Cell]:
    """Name the numbers of a scenario as the official table does.

    Args:
        row: one scenario.

    Returns:
        Cells by column, the scenario's name aside.

    Source:
        spec/evaluation.md 1.5.
    """
    cells: dict[str, Cell] = {}
    for view, metrics in row.views.items():
        for column, (pair, name) in COLUMNS.items():
            value = getattr(getattr(metrics, pair), name)
            cells[f"{column}_{view}"] = list(value) if isinstance(value, tuple) else value
    return cells


def cells_row(
    scenario: str, cells: Mapping[str, Cell], *, views: Sequence[str] = VIEWS
) -> ScenarioRow:
    """Undo `row_cells`.

    Args:
        scenario: its name.
        cells: by column.
        views: names of the views.

    Returns:
        The row.

    Raises:
        ConfigError: a column is missing, or holds something else.
    """
    return ScenarioRow(
        scenario=scenario, views={view: _view(scenario, cells, view) for view in views}
    )


def write_rows(path: str | Path, rows: Sequence[ScenarioRow]) -> Path:
    """Write the official table, in one step.

    Args:
        path: the file, officially `results/{model folder}.csv`.
        rows: one per scenario.

    Returns:
        The file.

    Raises:
        MediaError: it cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.part")
    table = [{"scenario": row.scenario, **row_cells(row)} for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MediaError(f"cannot write {path} ({error.strerror})") from error
    return path


def read_rows(path: str | Path, *, views: Sequence[str] = VIEWS) -> list[ScenarioRow]:
    """Read an official table, ours or one that the official tool wrote.

    Args:
        path: a CSV file.
        views: names of the views.

    Returns:
        One row per scenario.

    Raises:
        MediaError: it cannot be read.
        ConfigError: it is no such table.
    """
    path = Path(path)
    csv.field_size_limit(1 << 24)  # a cell holds the numbers of all frames
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_read(path, csv.DictReader(file), views))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{path} cannot be read ({error})") from error


def _read(path: Path, table: csv.DictReader[str], views: Sequence[str]) -> Iterator[ScenarioRow]:
    for line in table:
        if line.get("scenario") is None:
            raise ConfigError(f"{path}", expected="a column `scenario`")
        cells = {
            name: _parse(path, name, text) for name, text in line.items() if name != "scenario"
        }
        yield cells_row(line["scenario"], cells, views=views)


def _parse(path: Path, column: str | None, text: str | None) -> Cell:
    try:
        value = ast.literal_eval(text or "")
        return [float(one) for one in value] if isinstance(value, list) else float(value)
    except (ValueError, SyntaxError, TypeError) as error:
        what = f"{path}: column {column}"
        raise ConfigError(what, expected="a number or a list", got=repr(text)) from error


def _view(scenario: str, cells: Mapping[str, Cell], view: str) -> ViewMetrics:
    pairs: dict[str, dict[str, Cell]] = {"take1": {}, "take2": {}, "variance": {}}
    for column, (pair, name) in COLUMNS.items():
        cell = cells.get(f"{column}_{view}")
        where = f"scenario {scenario}: column {column}_{view}"
        if cell is None or isinstance(cell, list) != (name in _LISTS):
            wanted = "a list of numbers" if name in _LISTS else "a number"
            raise ConfigError(where, expected=wanted, got=cell)
        if not all(math.isfinite(value) for value in (cell if isinstance(cell, list) else [cell])):
            raise ConfigError(where, expected="finite numbers", got="NaN or infinity")
        pairs[pair][name] = cell
    return ViewMetrics(**{pair: _pair(values) for pair, values in pairs.items()})


def _pair(values: Mapping[str, Cell]) -> PairMetrics:
    lists = {name: values[name] for name in _LISTS}
    spatial, weighted = values["spatial"], values["weighted_spatial"]
    assert not isinstance(spatial, list) and not isinstance(weighted, list)
    frames = {name: tuple(v) for name, v in lists.items() if isinstance(v, list)}
    return PairMetrics(**frames, spatial=spatial, weighted_spatial=weighted)
