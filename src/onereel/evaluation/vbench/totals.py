"""Total scores with the official constants, and the seven columns of Magic 1-For-1.

Source:
    spec/evaluation.md 2.4 (VBench), 3 (VBench-I2V), 4 (Magic 1-For-1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onereel.core.errors import ConfigError
from onereel.evaluation.measure import Measurement, missing


@dataclass(frozen=True, slots=True)
class Range:
    """What counts as 0 and as 1, and how much a dimension counts.

    Args:
        low: raw score that becomes 0; less becomes negative.
        high: raw score that becomes 1; more becomes more.
        weight: in the mean.
    """

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


_SUBJECT, _BACKGROUND = Range(0.1462), Range(0.2615)
_SMOOTHNESS, _DYNAMICS = Range(0.706, 0.9975), Range(weight=0.5)

T2V_QUALITY = {
    "subject_consistency": _SUBJECT,
    "background_consistency": _BACKGROUND,
    "temporal_flickering": Range(0.6293),
    "motion_smoothness": _SMOOTHNESS,
    "aesthetic_quality": Range(),
    "imaging_quality": Range(),
    "dynamic_degree": _DYNAMICS,
}
T2V_SEMANTIC = {
    "object_class": Range(),
    "multiple_objects": Range(),
    "human_action": Range(),
    "color": Range(),
    "spatial_relationship": Range(),
    "scene": Range(0.0, 0.8222),
    "appearance_style": Range(0.0009, 0.2855),
    "temporal_style": Range(0.0, 0.364),
    "overall_consistency": Range(0.0, 0.364),
}
I2V_QUALITY = {
    "subject_consistency": _SUBJECT,
    "background_consistency": _BACKGROUND,
    "motion_smoothness": _SMOOTHNESS,
    "dynamic_degree": _DYNAMICS,
    "aesthetic_quality": Range(),
    "imaging_quality": Range(),
}
I2V_IMAGE = {
    "camera_motion": Range(weight=0.1),
    "i2v_subject": _SUBJECT,
    "i2v_background": _BACKGROUND,
}
T2V_DIMENSIONS = (*T2V_QUALITY, *T2V_SEMANTIC)
I2V_DIMENSIONS = (*I2V_IMAGE, *I2V_QUALITY, "temporal_flickering")

# How the official leaderboard writes the dimensions of VBench-I2V.
I2V_LABELS = {
    "camera_motion": "Video-Text Camera Motion",
    "i2v_subject": "Video-Image Subject Consistency",
    "i2v_background": "Video-Image Background Consistency",
    **{name: name.replace("_", " ").title() for name in I2V_QUALITY},
}

MAGIC141_COLUMNS = (
    "i2v_subject",
    "subject_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "temporal_flickering",
)
AVERAGE = "average"


def t2v_totals(
    scores: Mapping[str, float], *, missing_as_zero: bool = False
) -> dict[str, Measurement]:
    """Compute VBench's total score.

    Args:
        scores: overall score by dimension.
        missing_as_zero: count absent dimensions as 0 as the official script silently does; by
            default a total that lacks one has no value.

    Returns:
        quality, semantic and total; total is four fifths quality.
    """
    quality = _normalised_mean(scores, T2V_QUALITY, missing_as_zero)
    semantic = _normalised_mean(scores, T2V_SEMANTIC, missing_as_zero)
    total = _mixed(quality, semantic, share=0.8)
    return {"quality": quality, "semantic": semantic, "total": total}


def i2v_totals(
    scores: Mapping[str, float], *, missing_as_zero: bool = False
) -> dict[str, Measurement]:
    """Compute VBench-I2V's total score.

    Args:
        scores: overall score by dimension; temporal_flickering is not part of it.
        missing_as_zero: as in `t2v_totals`.

    Returns:
        quality, i2v and total; total is half of each.
    """
    quality = _normalised_mean(scores, I2V_QUALITY, missing_as_zero)
    image = _normalised_mean(scores, I2V_IMAGE, missing_as_zero)
    return {"quality": quality, "i2v": image, "total": _mixed(quality, image, share=0.5)}


def magic141_row(scores: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Put measurements into the columns of Magic 1-For-1's table.

    Args:
        scores: overall score by dimension.

    Returns:
        The seven columns in order and `average`, the plain mean of the raw values, which has no
        value when a column has none.
    """
    row = {name: scores.get(name, missing("not asked for")) for name in MAGIC141_COLUMNS}
    values = {name: m.mean for name, m in row.items()}
    absent = [name for name, value in values.items() if value is None]
    present = [value for value in values.values() if value is not None]
    row[AVERAGE] = (
        missing(f"lacks {', '.join(absent)}")
        if absent
        else Measurement(mean=sum(present) / len(present), num=len(present))
    )
    return row


def magic141_table(rows: Mapping[str, Mapping[str, Measurement]]) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: what `magic141_row` gave, by the model's name.

    Returns:
        The table with four decimals; what was not computed is a dash.

    Raises:
        ConfigError: a row lacks a column.
    """
    columns = (*MAGIC141_COLUMNS, AVERAGE)
    head = ["model", *(name.replace("_", " ") for name in columns)]
    lines = [_line(head), _line(["---"] * len(head))]
    for model, row in rows.items():
        absent = [name for name in columns if name not in row]
        if absent:
            raise ConfigError(f"row '{model}'", expected="all columns", got=f"no {absent[0]}")
        values = (row[name].mean for name in columns)
        lines.append(_line([model, *("-" if v is None else f"{v:.4f}" for v in values)]))
    return "\n".join(lines) + "\n"


def _normalised_mean(
    scores: Mapping[str, float], ranges: Mapping[str, Range], missing_as_zero: bool
) -> Measurement:
    absent = [name for name in ranges if name not in scores]
    if absent and not missing_as_zero:
        return missing(f"lacks {', '.join(absent)}")
    total = sum(
        (scores.get(name, 0.0) - r.low) / (r.high - r.low) * r.weight for name, r in ranges.items()
    )
    note = f"counted as 0: {', '.join(absent)}" if absent else ""
    mean = total / sum(r.weight for r in ranges.values())
    return Measurement(mean=mean, num=len(ranges) - len(absent), note=note)


def _mixed(first: Measurement, second: Measurement, *, share: float) -> Measurement:
    notes = "; ".join(dict.fromkeys(n for n in (first.note, second.note) if n))
    if first.mean is None or second.mean is None:
        return missing(notes)
    mean = share * first.mean + (1 - share) * second.mean
    return Measurement(mean=mean, num=first.num + second.num, note=notes)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
