from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onereel.core.errors import ConfigError
from onereel.evaluation.generate import ModelChoice
from onereel.evaluation.toybox.physics_run import PhysicsRun, evaluate_physics


def run_of(model: object, suite: str = "physics-v2v", num: int = 1) -> PhysicsRun:
    choice = ModelChoice(model=str(model), height=32, width=32)
    return PhysicsRun(choice=choice, suite=suite, num_scenarios=num)


def test_the_first_take_beats_the_third_and_the_run_goes_on(tmp_path: Path) -> None:
    seen: list[Any] = []
    first = evaluate_physics(run_of("simulator"), out=tmp_path)
    found = {name: metric.mean for name, metric in first.metrics.items()}
    assert found["piq_spatiotemporal"] == found["piq_weighted_spatial"] == 1.0
    assert found["piq_mse"] == 0.0 and found["piq_score"] >= found["piq_oracle"]
    assert found["piq_score"] > found["piq_freeze"]
    assert first.num_videos == 3 and first.videos[0].values["freeze_mse"] > 0
    again = evaluate_physics(
        run_of("simulator"),
        out=tmp_path,
        resume=True,
        progress=lambda done, total, record: seen.append((done, total, record)),
    )
    assert seen == [(1, 1, None)]
    assert again.metrics == first.metrics and again.videos == first.videos
    with pytest.raises(ConfigError, match='suite was "physics-v2v", is "physics-i2v"'):
        evaluate_physics(run_of("simulator", "physics-i2v"), out=tmp_path, resume=True)


def test_a_model_makes_what_follows_the_switch_frame(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = evaluate_physics(run_of(tiny_checkpoint, "physics-i2v"), out=tmp_path)
    assert result.problems == () and result.steps == 4
    assert result.metrics["piq_score"].mean < result.metrics["piq_oracle"].mean
    assert result.seconds_per_video_second and result.seconds_per_video_second > 0


def test_only_the_two_protocols_are_known() -> None:
    with pytest.raises(ConfigError, match="one of physics-v2v, physics-i2v"):
        run_of("simulator", "physics-t2v")
