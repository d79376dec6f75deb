from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onereel.core.errors import CheckpointError, ConfigError, MediaError
from onereel.evaluation import generate
from onereel.evaluation.generate import ModelChoice, Order, PipelineMaker, describe_model
from onereel.evaluation.report.result import read_result
from onereel.evaluation.toybox import evaluate
from onereel.evaluation.toybox.evaluate import ToyboxRun, evaluate_toybox
from onereel.evaluation.toybox.records import RunFolder, Scores, differences, frames_hash
from onereel.media import probe
from onereel.pipelines.files import file_hash

CALLS: list[str] = []


def likeness(case: Any, frames: Any, *, episode: Any, truth: Any) -> Scores:
    """Stand in for the real scores: 1 where the video is the truth itself."""
    CALLS.append(case.name)
    same = np.array_equal(frames, truth[case.prefix_frames :])
    return Scores(values={"all_correct": float(same), "never": float("nan")},
                  curves={"level": [float(frames.mean())]})  # fmt: skip


def choice(model: object, **options: Any) -> ModelChoice:
    sizes = {"height": 32, "width": 32, **options}
    return ModelChoice(model=str(model), **sizes)


def run_of(model: object, suite: str = "quick", **options: Any) -> ToyboxRun:
    wanted = {"limit": 2, "samples": 1, "num_frames": 24, **options}
    return ToyboxRun(choice=choice(model), suite=suite, **wanted)


@pytest.mark.parametrize("suite", ["quick", "v2v", "i2v", "timeline"])
def test_the_simulator_makes_the_truth_where_it_is_given(suite: str, tmp_path: Path) -> None:
    result = evaluate_toybox(
        run_of("simulator", suite, num_frames=30), out=tmp_path / "run", score=likeness
    )
    # A prompt alone leaves open where things are: another scene of it is as right.
    assert result.metrics["all_correct"].mean == float(suite in ("v2v", "i2v"))
    assert result.num_videos == len(result.videos) == (4 if suite == "v2v" else 2)
    assert result.not_computed["never"] == "applies to none of the videos"
    for row in result.videos:
        info = probe(tmp_path / "run" / row.files["made"])
        assert info.num_frames == 30 and (info.height, info.width) == (32, 32)
        assert ("truth" in row.files) == (suite in ("v2v", "i2v"))


def test_the_json_has_what_others_rely_on(tmp_path: Path) -> None:
    result = evaluate_toybox(run_of("simulator"), out=tmp_path, score=likeness)
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["model"] == "simulator" and data["suite"] == "quick"
    assert data["steps"] is None and data["num_videos"] == 2
    assert {"mean", "low", "high"} <= set(data["metrics"]["all_correct"])
    assert "seconds_per_video_second" in data
    assert data["config"]["prompts"] == 2 and data["config"]["prompts_of_suite"] == 16
    assert any("only the first 2" in note for note in data["notes"])
    assert read_result(tmp_path).metrics == result.metrics


def test_seen_and_unseen_combinations_are_told_apart(tmp_path: Path) -> None:
    result = evaluate_toybox(run_of("simulator", "standard"), out=tmp_path, score=likeness)
    assert result.metrics["all_correct_seen"].num == result.metrics["all_correct_unseen"].num == 1
    assert [row.tags["held_out"] for row in result.videos] == [False, True]


def test_a_model_makes_the_videos_and_is_timed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen = []
    result = evaluate_toybox(
        run_of(tiny_checkpoint, "v2v", limit=1),
        out=tmp_path,
        score=likeness,
        progress=lambda done, total, record: seen.append((done, total, record and record.name)),
    )
    assert result.steps == 4 and len(result.model_hash) == 64
    assert result.config["sampling"]["num_steps"] == 4
    assert result.seconds_per_video_second and result.seconds_per_video_second > 0
    assert result.metrics["all_correct"].mean == 0.0
    assert seen == [(0, 2, None), (1, 2, "000-given1-0"), (2, 2, "000-given3-0")]


def test_finished_videos_are_not_made_again(tmp_path: Path) -> None:
    first = evaluate_toybox(run_of("simulator", limit=1), out=tmp_path, score=likeness)
    CALLS.clear()
    with pytest.raises(ConfigError, match=r"holds a run.*--resume"):
        evaluate_toybox(run_of("simulator"), out=tmp_path, score=likeness)
    more = evaluate_toybox(run_of("simulator"), out=tmp_path, resume=True, score=likeness)
    assert CALLS == ["001-0"] and more.num_videos == 2
    assert more.videos[0] == first.videos[0]


def test_a_run_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    evaluate_toybox(run_of("simulator", limit=1), out=tmp_path, score=likeness)
    with pytest.raises(ConfigError, match="seed was 0, is 3"):
        evaluate_toybox(run_of("simulator", seed=3), out=tmp_path, resume=True, score=likeness)
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "d": 0}) == [
        "a.b was 1, is 2",
        "c was [1], is null",
        "d was null, is 0",
    ]


def test_a_stopped_run_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(done: int, total: int, record: Any) -> None:
        if record is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_toybox(run_of("simulator"), out=tmp_path, score=likeness, progress=stop)
    assert RunFolder(tmp_path).read("000-0") is not None
    assert RunFolder(tmp_path).read("001-0") is None


def test_broken_videos_are_named_and_not_scored(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*args: Any, **options: Any) -> Any:
        chunk = next(iter(real(*args, **options)))
        chunk.frames[0, 0, 0, 0] = torch.nan
        yield chunk

    real = generate.stream_chunks
    monkeypatch.setattr(generate, "stream_chunks", spoiled)
    result = evaluate_toybox(run_of(tiny_checkpoint, limit=1), out=tmp_path, score=likeness)
    assert result.problems == ("000-0: the model's frames hold NaN or infinity",)
    assert result.num_videos == 0 and result.metrics == {}


def test_a_short_video_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make = evaluate.SimulatorMaker.make_case

    def short(self: Any, case: Any) -> Any:
        made = make(self, case)
        return generate.Made(frames=made.frames[:-1], seconds=0.0)

    monkeypatch.setattr(evaluate.SimulatorMaker, "make_case", short)
    result = evaluate_toybox(run_of("simulator", limit=1), out=tmp_path, score=likeness)
    assert "expected frames [24, 32, 32, 3], got [23, 32, 32, 3]" in result.problems[0]


@pytest.mark.parametrize(("suite", "frames"), [("standard", 48), ("timeline", 60), ("i2v", 48)])
def test_the_instrument_finds_nothing_wrong_with_the_simulator(
    suite: str, frames: int, tmp_path: Path
) -> None:
    run = ToyboxRun(
        choice=ModelChoice(model="simulator"), suite=suite, limit=3, samples=1, num_frames=frames
    )
    result = evaluate_toybox(run, out=tmp_path)
    assert result.problems == ()
    found = {name: metric.mean for name, metric in result.metrics.items()}
    assert found["all_correct"] == found["binding_f1"] == found["count_frames"] == 1.0
    assert found["flicker_excess"] < 0.05 and found["subject_consistency_sim"] > 0.95
    assert ("switch_latency" in found) == (suite == "timeline")
    assert ("nade" in found) == (suite == "i2v")
    assert ("g_err" in result.metrics or "g_err" in result.not_computed) == (suite != "timeline")


def test_samples_of_a_continuation_are_compared(tmp_path: Path) -> None:
    run = ToyboxRun(
        choice=ModelChoice(model="simulator"), suite="v2v", limit=1, samples=2, num_frames=24
    )
    result = evaluate_toybox(run, out=tmp_path)
    assert result.metrics["diversity"].mean == 0.0
    assert result.metrics["ade_best"].mean == result.metrics["ade_mean"].mean < 0.001
    assert result.metrics["nade_given1"].mean < 0.05
    errors = result.videos[0].curves["position_error"]
    assert len(errors) == 5 and result.config["curve_step_s"]["position_error"] == 0.25
    folder, name = RunFolder(tmp_path), result.videos[0].name
    tracking = folder.read_tracking(name)
    assert tracking.num_frames == 48 and tracking.tracks[0].colour in result.videos[0].prompt
    (tmp_path / "videos" / f"{name}-tracks.npz").write_bytes(b"no")
    with pytest.raises(MediaError, match="expected the tracks"):
        folder.read_tracking(name)


def test_long_videos_are_measured_for_drift(tmp_path: Path) -> None:
    run = ToyboxRun(
        choice=ModelChoice(model="simulator", height=32, width=32), suite="long", limit=1,
        num_frames=240,
    )  # fmt: skip
    result = evaluate_toybox(run, out=tmp_path)
    assert result.metrics["usable_seconds"].mean == 10.0
    assert len(result.videos[0].curves["drift_deltaE"]) == 10
    assert result.rank[0] == "usable_seconds"


@pytest.mark.slow
def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    run = run_of("simulator", "standard")
    alone = evaluate_toybox(run, out=tmp_path / "one")
    together = evaluate_toybox(run, out=tmp_path / "two", workers=2)
    assert together.metrics == alone.metrics
    assert [row.name for row in together.videos] == [row.name for row in alone.videos]


def test_the_maker_repeats_itself_and_takes_what_is_given(tiny_checkpoint: Path) -> None:
    maker = PipelineMaker(choice(tiny_checkpoint))
    plain = Order(texts=("a red disc",), num_frames=30, seed=1)
    made = maker.make(plain)
    assert made.frames.shape == (30, 32, 32, 3) and made.problem == ""
    assert frames_hash(maker.make(plain).frames) == frames_hash(made.frames)
    given = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8)
    longer = maker.make(Order(texts=("a disc", "a square"), num_frames=30, seed=1, given=given))
    assert longer.frames.shape == (30, 32, 32, 3)
    picture = Order(texts=("a disc",), num_frames=24, seed=1, given=given[:1], is_image=True)
    assert maker.make(picture).frames.shape == (24, 32, 32, 3)
    with pytest.raises(ConfigError, match="given frames: expected 32 x 32"):
        maker.make(Order(texts=("a",), num_frames=24, seed=1, given=given[:, :16]))


def test_an_adapter_is_worn_and_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file, generator = tmp_path / "style.safetensors", torch.Generator().manual_seed(0)
    shapes = {"A": (4, 64), "B": (64, 4)}
    save_file(
        {
            f"transformer.blocks.0.attn1.to_q.lora_{side}.weight": torch.randn(
                shape, generator=generator
            )
            for side, shape in shapes.items()
        },
        file,
    )
    order = Order(texts=("a red disc",), num_frames=24, seed=1)
    plain, none, full = (
        PipelineMaker(choice(tiny_checkpoint, loras=loras)).make(order).frames
        for loras in ((), ((str(file), 0.0),), ((str(file), 1.0),))
    )
    assert np.array_equal(none, plain) and not np.array_equal(full, plain)
    described = describe_model(choice(tiny_checkpoint, loras=((str(file), 0.5),)))
    assert described["loras"] == [{"sha256": file_hash(file), "scale": 0.5}]
    assert "loras" not in describe_model(choice(tiny_checkpoint))
    with pytest.raises(CheckpointError, match="no such file"):
        describe_model(choice(tiny_checkpoint, loras=(("nothing.safetensors", 1.0),)))


def test_a_model_is_described_without_loading_it(tiny_checkpoint: Path) -> None:
    found = describe_model(choice(tiny_checkpoint, steps=8, guidance=2.0))
    assert found["sampling"]["num_steps"] == 8 and 2.0 in found["sampling"]["text_scales"]
    assert (found["height"], found["fps"], found["device"]) == (32, 24, "cpu")
    with pytest.raises(ConfigError, match="model 'nothing-here'"):
        describe_model(choice("nothing-here"))
