"""Total scores and the table of Magic 1-For-1."""

from __future__ import annotations

import pytest

from onereel.core.errors import ConfigError
from onereel.evaluation.measure import Measurement, missing
from onereel.evaluation.vbench.totals import (
    I2V_DIMENSIONS,
    MAGIC141_COLUMNS,
    T2V_DIMENSIONS,
    i2v_totals,
    magic141_row,
    magic141_table,
    t2v_totals,
)

EULER = (0.9803, 0.8593, 0.9965, 0.0034, 0.4440, 0.3693, 0.9972)
DMD2 = (0.9812, 0.9762, 0.9934, 0.4123, 0.6123, 0.7234, 0.9950)


def _row(values: tuple[float, ...]) -> dict[str, Measurement]:
    named = zip(MAGIC141_COLUMNS, values, strict=True)
    return magic141_row({name: Measurement(mean=value, num=5) for name, value in named})


def test_there_are_sixteen_and_ten_dimensions() -> None:
    assert (len(T2V_DIMENSIONS), len(set(I2V_DIMENSIONS))) == (16, 10)


def test_the_best_scores_make_one_and_nothing_is_clipped() -> None:
    best = dict.fromkeys(T2V_DIMENSIONS, 1.0)
    best.update(motion_smoothness=0.9975, scene=0.8222, appearance_style=0.2855)
    best.update(temporal_style=0.364, overall_consistency=0.364)
    assert t2v_totals(best)["total"].mean == pytest.approx(1)
    assert (t2v_totals({**best, "scene": 1.0})["semantic"].mean or 0) > 1


def test_a_missing_dimension_is_named_unless_the_official_zero_is_asked_for() -> None:
    scores = dict.fromkeys(T2V_DIMENSIONS, 0.9)
    full = t2v_totals(scores)
    del scores["subject_consistency"]
    found = t2v_totals(scores)
    assert (found["quality"].mean, found["quality"].note) == (None, "lacks subject_consistency")
    assert found["total"].mean is None
    assert found["semantic"] == full["semantic"]
    zero = t2v_totals(scores, missing_as_zero=True)
    assert zero["quality"].note == "counted as 0: subject_consistency"
    # an absent score is negative after normalising
    lost = (0.9 / (1 - 0.1462)) / 6.5
    assert zero["quality"].mean == pytest.approx((full["quality"].mean or 0) - lost)


def test_the_camera_weighs_a_tenth() -> None:
    scores = dict.fromkeys(I2V_DIMENSIONS, 0.9)
    base = i2v_totals(scores)["i2v"].mean or 0
    more = i2v_totals({**scores, "camera_motion": 1.0})["i2v"].mean or 0
    assert more - base == pytest.approx(0.1 * 0.1 / 2.1)
    flicker = i2v_totals({**scores, "temporal_flickering": 0.0})
    assert flicker == i2v_totals(scores)


@pytest.mark.parametrize(("values", "average"), [(EULER, 0.66429), (DMD2, 0.8134)])
def test_the_published_rows_average_as_printed(values: tuple[float, ...], average: float) -> None:
    row = _row(values)
    assert list(row) == [*MAGIC141_COLUMNS, "average"]
    assert row["average"].mean == pytest.approx(average, abs=5e-5)


def test_a_column_without_value_leaves_no_average() -> None:
    row = magic141_row({"i2v_subject": Measurement(mean=0.9), "imaging_quality": missing("no")})
    assert row["average"].mean is None
    assert row["average"].note.startswith("lacks subject_consistency")
    table = magic141_table({"ours": row, "dmd2": _row(DMD2)})
    lines = table.splitlines()
    assert len(lines) == 4
    assert lines[2] == "| ours | 0.9000 | - | - | - | - | - | - | - |"
    assert lines[3].endswith("| 0.7234 | 0.9950 | 0.8134 |")
    with pytest.raises(ConfigError, match="no average"):
        magic141_table({"x": {name: Measurement(mean=1.0) for name in MAGIC141_COLUMNS}})
