"""Physics-IQ on Toybox from beginning to end: make the videos, score them, sum up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.evaluation.generate import Frames, Made, ModelChoice, Order, VideoMaker, open_maker
from onereel.evaluation.measure import RESAMPLES, Measurement, missing
from onereel.evaluation.physics_iq.metrics import PairMetrics, ViewMetrics
from onereel.evaluation.physics_iq.scoring import ScenarioRow
from onereel.evaluation.report.result import (
    RESULT_FILE,
    Result,
    VideoRow,
    split_missing,
    used_versions,
    utc_now,
    write_json,
)
from onereel.evaluation.toybox.evaluate import SIMULATOR, describe_choice
from onereel.evaluation.toybox.physics import (
    PLAIN,
    VIEWS,
    PhysicsScenario,
    ScenarioRows,
    physics_scenarios,
    score_scenario,
    sum_up,
)
from onereel.evaluation.toybox.records import Record, RunFolder, frames_hash
from onereel.evaluation.toybox.suites import PHYSICS_SUITES
from onereel.evaluation.toybox.workers import threads_each, work

Floats = npt.NDArray[np.float64]

SCENARIOS = 24
_CONTESTANTS = ("model", "freeze", "oracle")
_OVERLAPS = ("spatiotemporal", "spatial", "weighted_spatial")
_METRICS = (*_OVERLAPS, "mse")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsRun:
    """What shall be evaluated.

    Args:
        choice: the model and its settings; the model `simulator` is the first take itself.
        suite: `physics-v2v`, where three seconds are given, or `physics-i2v`, the switch frame.
        seed: of the noise.
        num_scenarios: each is made in three views.
    """

    choice: ModelChoice
    suite: str = "physics-v2v"
    seed: int = 0
    num_scenarios: int = SCENARIOS

    def __post_init__(self) -> None:
        """Check the suite."""
        if self.suite not in PHYSICS_SUITES:
            known = ", ".join(PHYSICS_SUITES)
            raise ConfigError("suite", expected=f"one of {known}", got=self.suite)


def evaluate_physics(
    run: PhysicsRun,
    *,
    out: str | Path,
    workers: int = 1,
    resume: bool = False,
    progress: Callable[[int, int, Record | None], None] | None = None,
) -> Result:
    """Make what follows the switch frame of every scenario, score it, and sum up.

    Args:
        run: what shall be evaluated.
        out: folder for videos, records and `result.json`.
        workers: processes, each with its own copy of the model; 1 stays in this process.
        resume: go on with the run in `out`; finished scenarios are not made again.
        progress: called with scenarios done, scenarios in all, and the newest record, if any.

    Returns:
        The result, which is in `out` as well.

    Raises:
        ConfigError: a setting is wrong, or `out` holds another run.
        CheckpointError: the model is missing or damaged.
    """
    if workers < 1:
        raise ConfigError("workers", expected="at least 1", got=workers)
    settings = {"suite": run.suite, **describe_choice(run.choice), "seed": run.seed}
    size = {name: int(settings[name]) for name in ("height", "width")}
    scenarios = physics_scenarios(run.num_scenarios, **size)
    if settings["fps"] != scenarios[0].fps:
        raise ConfigError("fps", expected=str(scenarios[0].fps), got=settings["fps"])
    folder = RunFolder(out)
    folder.claim(settings, resume=resume)
    found = {one.name: folder.read(one.name) for one in scenarios}
    missing_ones = [one for one in scenarios if found[one.name] is None]
    done = len(scenarios) - len(missing_ones)
    if progress is not None:
        progress(done, len(scenarios), None)
    bench = functools.partial(_PhysicsBench, run, folder.path)
    for record in work(bench, missing_ones, workers=workers):
        found[record.name] = record
        done += 1
        if progress is not None:
            progress(done, len(scenarios), record)
    records = [record for record in found.values() if record is not None]
    pace = {"workers": workers, "threads": threads_each(workers)}
    return _sum_up(run, settings | pace, scenarios=scenarios, records=records, folder=folder.path)


class _PhysicsBench:
    """One model, loaded when the first scenario is asked for."""

    def __init__(self, run: PhysicsRun, folder: Path) -> None:
        self.wanted, self.folder = run, RunFolder(folder)

    @functools.cached_property
    def maker(self) -> VideoMaker:
        return open_maker(self.wanted.choice)

    def run(self, case: PhysicsScenario) -> Record:
        """Make, score and store one scenario."""
        given = case.recordings(1)
        made = {view: self._make(case, view, given[view]) for view in VIEWS}
        problem = "; ".join(f"{v}: {one.problem}" for v, one in made.items() if one.problem)
        features: dict[str, list[float]] = {}
        values: dict[str, float] = {}
        if not problem:
            rows = score_scenario(case, {view: one.frames for view, one in made.items()})
            features, values = dict(_flat(rows)), _means(rows)
        fps, start = case.fps, case.conditioning_frames
        shown = made[PLAIN].frames
        return self.folder.write(
            Record(
                name=case.name,
                seconds=sum(one.seconds for one in made.values()),
                frames_sha256=frames_hash(np.concatenate([made[v].frames for v in VIEWS])),
                files={
                    "made": self.folder.save_video(case.name, shown, fps=fps),
                    "truth": self.folder.save_video(
                        f"{case.name}-truth", given[PLAIN][start:], fps=fps
                    ),
                },
                problem=problem,
                values=values,
                features=features,
            )
        )

    def _make(self, case: PhysicsScenario, view: str, video: Frames) -> Made:
        start, count = case.conditioning_frames, case.testing_frames
        if self.wanted.choice.model == SIMULATOR:
            return Made(frames=video[start:], seconds=0.0)
        seed = derive_seed(self.wanted.seed, "evaluation", "physics", case.name, view) % 2**31
        is_image = PHYSICS_SUITES[self.wanted.suite] == "i2v"
        made = self.maker.make(
            Order(
                texts=(case.text(view),),
                num_frames=count + is_image,  # the given picture is the first frame
                seed=seed,
                given=video[start - 1 : start] if is_image else video[:start],
                is_image=is_image,
            )
        )
        return dataclasses.replace(made, frames=made.frames[-count:])


def _flat(rows: ScenarioRows) -> Iterator[tuple[str, list[float]]]:
    """Lay a scenario's metrics out as named vectors; what the anchors share is stored once."""
    for contestant in _CONTESTANTS:
        row: ScenarioRow = getattr(rows, contestant)
        for view, metrics in row.views.items():
            for pair in ("take1", "take2", "variance"):
                for name in _METRICS:
                    value = getattr(getattr(metrics, pair), name)
                    vector = list(value) if isinstance(value, tuple) else [value]
                    yield f"{contestant}/{view}/{pair}/{name}", vector


def _rows(record: Record) -> ScenarioRows:
    """Read what `_flat` laid out."""

    def pair(contestant: str, view: str, which: str) -> PairMetrics:
        vectors = {
            name: tuple(record.features[f"{contestant}/{view}/{which}/{name}"]) for name in _METRICS
        }
        return PairMetrics(
            mse=_numbers(vectors["mse"]),
            spatiotemporal=_numbers(vectors["spatiotemporal"]),
            spatial=_numbers(vectors["spatial"])[0],
            weighted_spatial=_numbers(vectors["weighted_spatial"])[0],
        )

    def row(contestant: str) -> ScenarioRow:
        views = {
            view: ViewMetrics(
                **{which: pair(contestant, view, which) for which in ("take1", "take2", "variance")}
            )
            for view in VIEWS
        }
        return ScenarioRow(scenario=record.name, views=views)

    return ScenarioRows(**{name: row(name) for name in _CONTESTANTS})


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in values)


def _means(rows: ScenarioRows) -> dict[str, float]:
    """Average a scenario's metrics over its views, per contestant."""
    found = {}
    for contestant in _CONTESTANTS:
        label = "" if contestant == "model" else f"{contestant}_"
        for name, value in zip(_METRICS, _table([getattr(rows, contestant)])[0, :4], strict=True):
            found[f"{label}{name}"] = float(value)
    return found


def _table(rows: Sequence[ScenarioRow]) -> Floats:
    """Metrics against the first take, then the variances, per scenario: [N, 8]."""
    table = np.zeros((len(rows), 8))
    for line, row in zip(table, rows, strict=True):
        for column, which in enumerate(("take1", "variance")):
            pairs = [getattr(view, which) for view in row.views.values()]
            for i, name in enumerate(_METRICS):
                line[4 * column + i] = np.mean([np.mean(getattr(pair, name)) for pair in pairs])
    return table


def _sum_up(
    run: PhysicsRun,
    settings: Mapping[str, Any],
    *,
    scenarios: Sequence[PhysicsScenario],
    records: Sequence[Record],
    folder: Path,
) -> Result:
    pairs = list(zip(scenarios, records, strict=True))
    rows = [_rows(record) for _, record in pairs if not record.problem]
    metrics, reasons = split_missing(_measure(rows))
    seconds = sum(record.seconds for record in records)
    made_s = sum(len(VIEWS) * one.testing_frames / one.fps for one in scenarios)
    result = Result(
        kind="toybox",
        model=str(settings["model"]),
        suite=run.suite,
        steps=settings["sampling"].get("num_steps"),
        num_videos=len(VIEWS) * len(rows),
        metrics=metrics,
        seconds_per_video_second=seconds / made_s if seconds else None,
        not_computed=reasons,
        config={**settings, "scenarios": len(scenarios), "views": len(VIEWS)},
        model_hash=str(settings["model_hash"]),
        seeds={"noise": run.seed, "scenes": "derived from 'evaluation', 'physics-iq' and number"},
        versions=used_versions(),
        problems=tuple(f"{one.name}: {r.problem}" for one, r in pairs if r.problem),
        notes=("scores are unclipped; piq_rel is 0 for a frozen picture and 1 for a third take",),
        rank=("weighted_spatial", "spatiotemporal"),
        videos=tuple(_row(one, record) for one, record in pairs),
        folder=str(folder.resolve()),
        created=utc_now(),
    )
    write_json(result.to_json(), folder / RESULT_FILE)
    return result


def _row(scenario: PhysicsScenario, record: Record) -> VideoRow:
    return VideoRow(
        name=record.name,
        prompt=scenario.text(PLAIN),
        group=record.name,
        tags={"held_out": scenario.spec.is_held_out(), "motion": scenario.spec.motion},
        values=record.values,
        files={kind: f"videos/{name}" for kind, name in record.files.items()},
        frames_sha256=record.frames_sha256,
        problem=record.problem,
    )


def _measure(rows: Sequence[ScenarioRows]) -> dict[str, Measurement]:
    """Take the official numbers, with intervals from drawing scenarios."""
    if not rows:
        return {"piq_score": missing("no scenario was scored")}
    tables = {name: _table([getattr(row, name) for row in rows]) for name in _CONTESTANTS}
    drawn = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    means = {name: table[drawn].mean(axis=1) for name, table in tables.items()}
    spread = {name: _unclipped(mean) for name, mean in means.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        room = spread["oracle"] - spread["freeze"]
        draws = {"rel": (spread["model"] - spread["freeze"]) / room, "score": spread["model"]}
    draws |= {"freeze": spread["freeze"], "oracle": spread["oracle"]}
    for i, name in enumerate(_METRICS):
        draws[name], draws[f"variance_{name}"] = means["model"][:, i], means["model"][:, 4 + i]
    found = {}
    for name, value in sum_up(rows).values().items():
        if value is None:
            found[name] = missing("the takes never overlap, or the anchors are equal")
            continue
        drawn_values = draws[name.removeprefix("piq_")]
        drawn_values = drawn_values[np.isfinite(drawn_values)]
        low, high = (float(q) for q in np.quantile(drawn_values, (0.025, 0.975)))
        found[name] = Measurement(mean=value, low=low, high=high, num=len(rows))
    return found


def _unclipped(means: Floats) -> Floats:
    """The official score without its roundings, of [n, 8] means."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (means[:, :3] / means[:, 4:7]).mean(axis=1)
    return np.asarray(100 * (ratio - (means[:, 3] - means[:, 7])))
