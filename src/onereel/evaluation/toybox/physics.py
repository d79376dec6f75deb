"""Physics-IQ on Toybox: the official masks, metrics and score, on scenes whose truth we own.

Every scenario is recorded three times and seen in three views. `score_scenario` compares what a
model made with the first take, beside a frozen picture and a third take; `sum_up` turns the rows of
all scenarios into scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError, ShapeError
from onereel.core.seeds import derive_seed
from onereel.evaluation.physics_iq import (
    Clip,
    PhysicsIqScore,
    ScenarioRow,
    frozen_clip,
    make_clip,
    score,
    view_metrics,
)
from onereel.evaluation.toybox.retake import MOTIONS, retake
from onereel.world import CHUNK_FRAMES, Episode, SceneSpec, caption, render, sample_spec, simulate

Video = npt.NDArray[np.uint8]

MIRRORED, PLAIN, SMALLER = VIEWS = ("perspective-left", "perspective-center", "perspective-right")
ENLARGE = 4  # the 5 x 5 opening of the masks would erase small objects at 64 x 64
_SCALE = 0.9
_SHIFT = (0.03, -0.02)  # canvas widths and heights
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicsScenario:
    """One scene of the benchmark.

    Args:
        name: unique.
        spec: the scene.
        seed: of the simulation.
        conditioning_frames: true frames that a model may see; the last is the switch frame.
        testing_frames: frames that it has to make.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.
    """

    name: str
    spec: SceneSpec
    seed: int
    conditioning_frames: int = 3 * CHUNK_FRAMES
    testing_frames: int = 5 * CHUNK_FRAMES
    height: int = 64
    width: int = 64
    fps: int = 24

    def text(self, view: str) -> str:
        """Describe the scene as a view shows it.

        Args:
            view: one of `VIEWS`.

        Returns:
            The caption; left and right change places in the mirrored view.
        """
        return caption(_mirrored(self.spec) if view == MIRRORED else self.spec)

    def recordings(self, take: int) -> dict[str, Video]:
        """Render one take in all views.

        Args:
            take: 1 to 3.

        Returns:
            By view, conditioning and testing frames, uint8 [F, H, W, 3].
        """
        episode = simulate(
            self.spec,
            self.seed,
            num_frames=self.conditioning_frames + self.testing_frames,
            height=self.height,
            width=self.width,
            fps=self.fps,
        )
        episode = retake(episode, self.spec, take=take, seed=self.seed)
        plain = render(episode)
        mirrored = np.ascontiguousarray(plain[:, :, ::-1])
        return {MIRRORED: mirrored, PLAIN: plain, SMALLER: render(_smaller(episode))}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioRows:
    """One scenario's metrics of three contestants.

    Args:
        model: of the made videos.
        freeze: of the switch frame repeated.
        oracle: of the third take, which knows physics and not the first take's start.
    """

    model: ScenarioRow
    freeze: ScenarioRow
    oracle: ScenarioRow


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldPhysicsIq:
    """Physics-IQ of a model on Toybox, between its two anchors.

    Args:
        model: score, metrics and variances of the made videos.
        freeze: the same of the switch frame repeated.
        oracle: the same of the third take.
    """

    model: PhysicsIqScore
    freeze: PhysicsIqScore
    oracle: PhysicsIqScore

    @property
    def relative(self) -> float | None:
        """Place the model between freeze, 0, and oracle, 1.

        Returns:
            (score - freeze) / (oracle - freeze) of the unclipped scores; None without them, or
            where the anchors are equal.
        """
        low, high, own = (s.unclipped for s in (self.freeze, self.oracle, self.model))
        if low is None or high is None or own is None or high == low:
            return None
        return (own - low) / (high - low)

    def values(self) -> dict[str, float | None]:
        """Give the numbers by the names of the results.

        Returns:
            Unclipped scores of model and anchors, `piq_rel`, the model's four metrics and the
            four variances.
        """
        found = {
            "piq_score": self.model.unclipped,
            "piq_freeze": self.freeze.unclipped,
            "piq_oracle": self.oracle.unclipped,
            "piq_rel": self.relative,
        }
        for label, means in (("piq", self.model.means), ("piq_variance", self.model.variance)):
            found |= {f"{label}_{name}": value for name, value in dataclasses.asdict(means).items()}
        return found


def physics_scenarios(
    num: int, *, conditioning_frames: int = 3 * CHUNK_FRAMES, height: int = 64, width: int = 64
) -> tuple[PhysicsScenario, ...]:
    """List the benchmark's scenarios; a longer list begins with a shorter one.

    Args:
        num: how many, at least 1. Six kinds of motion take turns, and combinations seen in
            training with held-out ones.
        conditioning_frames: true frames that a model may see.
        height: of the canvas in pixels.
        width: of the canvas in pixels.

    Returns:
        The scenarios.

    Raises:
        ConfigError: a number is not positive.
    """
    if num < 1 or conditioning_frames < 1:
        got = f"{num} and {conditioning_frames}"
        raise ConfigError("num, conditioning_frames", expected="positive numbers", got=got)
    found = []
    for i in range(num):
        motion = MOTIONS[i % len(MOTIONS)]
        seed = derive_seed("evaluation", "physics-iq", i)
        held_out = i // len(MOTIONS) % 2 == 1
        spec = sample_spec(np.random.default_rng(seed), held_out=held_out, motions=[motion])
        found.append(
            PhysicsScenario(
                name=f"{i:03d}-{motion}",
                spec=spec,
                seed=seed,
                conditioning_frames=conditioning_frames,
                height=height,
                width=width,
            )
        )
    return tuple(found)


def score_scenario(scenario: PhysicsScenario, made: Mapping[str, Video]) -> ScenarioRows:
    """Compare what a model made of a scenario with the truth, and both anchors with it.

    Args:
        scenario: the scenario.
        made: by view, the testing frames uint8 [F, H, W, 3], without conditioning frames.

    Returns:
        The metrics.

    Raises:
        ConfigError: a view is missing or not known.
        ShapeError: a video has another length.

    Source:
        spec/evaluation.md 9.5.
    """
    if set(made) != set(VIEWS):
        raise ConfigError("views", expected=", ".join(VIEWS), got=", ".join(made))
    start = scenario.conditioning_frames
    takes = [scenario.recordings(take) for take in (1, 2, 3)]
    contestants: dict[str, dict[str, Any]] = {"model": {}, "freeze": {}, "oracle": {}}
    for view in VIEWS:
        if len(made[view]) != scenario.testing_frames:
            want, got = f"{scenario.testing_frames} frames", len(made[view])
            raise ShapeError(f"{scenario.name}, {view}", expected=want, got=got)
        first, second, third = (_clip(take[view][start:], scenario) for take in takes)
        switch = _enlarged(takes[0][view][start - 1 : start])[0]
        size = (scenario.height, scenario.width)
        frozen = frozen_clip(switch, scenario.testing_frames, size=size)
        own = _clip(made[view], scenario)
        for name, clip in (("model", own), ("freeze", frozen), ("oracle", third)):
            contestants[name][view] = view_metrics(first, second, generated=clip)
    return ScenarioRows(
        **{n: ScenarioRow(scenario=scenario.name, views=v) for n, v in contestants.items()}
    )


def sum_up(rows: Sequence[ScenarioRows]) -> WorldPhysicsIq:
    """Score the model and the anchors over all scenarios.

    Args:
        rows: what `score_scenario` gave, at least one.

    Returns:
        The scores.

    Raises:
        ConfigError: there are no rows.
    """
    return WorldPhysicsIq(
        model=score([row.model for row in rows]),
        freeze=score([row.freeze for row in rows]),
        oracle=score([row.oracle for row in rows]),
    )


def _clip(video: Video, scenario: PhysicsScenario) -> Clip:
    return make_clip(_enlarged(video), size=(scenario.height, scenario.width))


def _enlarged(video: Video) -> Video:
    """Repeat every pixel 4 x 4 times; shrinking 4 x takes it back exactly."""
    return np.repeat(np.repeat(video, ENLARGE, axis=1), ENLARGE, axis=2)


def _mirrored(spec: SceneSpec) -> SceneSpec:
    """Swap left and right in what a caption says."""

    def swapped(name: str | None) -> str | None:
        if name is None:
            return None
        return "_".join(_OTHER_SIDE.get(part, part) for part in name.split("_"))

    return dataclasses.replace(
        spec, direction=swapped(spec.direction), relation=swapped(spec.relation)
    )


def _smaller(episode: Episode) -> Episode:
    """Move the scene away and aside; floor and slab go along, the texture behind stays."""
    size = np.array([episode.width, episode.height])
    shift = size / 2 * (1 - _SCALE) + size * np.array(_SHIFT)
    state = episode.state.copy()
    state[..., :5] *= _SCALE  # positions, velocities, radius
    state[..., :2] += shift
    floor, slab = episode.floor_y, episode.slab
    if slab is not None:
        slab = (slab[0] * _SCALE + float(shift[0]), slab[1] * _SCALE + float(shift[0]))
    return dataclasses.replace(
        episode,
        state=state,
        floor_y=None if floor is None else floor * _SCALE + float(shift[1]),
        slab=slab,
    )
