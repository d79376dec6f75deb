"""Prompts that change at chunk boundaries: judged on their own frames, and how soon they show."""

from __future__ import annotations

import dataclasses
import math

import pytest

from onereel.evaluation.toybox import timeline
from onereel.evaluation.toybox.prompts import PROMPT_SCORES
from onereel.evaluation.toybox.timeline import Reign, reigns, switch_latency, timeline_scores
from onereel.evaluation.toybox.tracks import Tracking, truth
from onereel.world import ObjectSpec, SceneSpec, sample_clip, simulate_chunks

BASE = SceneSpec(
    objects=(ObjectSpec(shape="disc", colour="red"),),
    motion="linear",
    direction="right",
    speed="slow",
)


def paint(colour: str) -> SceneSpec:
    return dataclasses.replace(BASE, objects=(ObjectSpec(shape="disc", colour=colour),))


def make(*specs: SceneSpec, num_frames: int = 96) -> Tracking:
    return truth(simulate_chunks(specs, 4, num_frames=num_frames))


def test_equal_chunks_reign_together_and_the_last_holds_on() -> None:
    blue = paint("blue")
    found = reigns((BASE, BASE, blue), 90)
    assert found == (
        Reign(start=0, stop=48, spec=BASE, before=None),
        Reign(start=48, stop=90, spec=blue, before=BASE),
    )
    assert reigns((BASE, BASE, blue), 40) == (Reign(start=0, stop=40, spec=BASE, before=None),)


def test_the_simulator_follows_its_timelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onereel.world.clips.render", lambda episode: None)
    latencies = []
    for seed in range(160):
        clip = sample_clip(seed, num_frames=(60, 96)[seed % 2], timeline_share=0.8)
        scores = timeline_scores(truth(clip.episode), clip.specs, unsaid=True)
        assert scores["all_correct"] == 1.0, (seed, [s.motion for s in clip.specs])
        assert scores["switch_done"] != 0.0
        latencies.append(scores["switch_latency"])
    # the simulator fades colours and casts within ten frames, and turns motions at once
    assert {x for x in latencies if not math.isnan(x)} == {0.0, 6.0, 7.0}


def test_without_a_change_the_scores_are_those_of_the_prompt() -> None:
    tracking = make(BASE, BASE, BASE, BASE)
    scores = timeline_scores(tracking, (BASE,) * 4)
    assert tuple(scores)[: len(PROMPT_SCORES)] == PROMPT_SCORES
    assert scores["all_correct"] == scores["direction_acc"] == 1.0
    assert math.isnan(scores["switch_latency"])
    assert math.isnan(scores["switch_done"])


def test_a_change_that_never_comes_is_wrong_and_as_late_as_can_be() -> None:
    specs = (BASE, BASE, paint("blue"), paint("blue"))
    scores = timeline_scores(make(BASE, BASE, BASE, BASE), specs)
    assert scores["all_correct"] == 0.0
    assert scores["binding_f1"] == 0.5
    assert scores["switch_latency"] == 48.0
    assert scores["switch_done"] == 0.0
    assert timeline_scores(make(*specs), specs)["switch_done"] == 1.0


def test_a_late_change_is_measured() -> None:
    halt = dataclasses.replace(BASE, motion="static", direction=None, speed=None)
    late = make(BASE, BASE, halt, halt)
    reign = Reign(start=36, stop=96, spec=halt, before=BASE)
    # one step at a slow pace is within what counts as rest
    assert switch_latency(late, reign) in (11.0, 12.0)


def test_a_mover_without_room_is_not_judged() -> None:
    turned = dataclasses.replace(BASE, direction="down")
    tracking = make(BASE, BASE, turned, turned)
    one = tracking.tracks[0]
    low = dataclasses.replace(tracking, tracks=(dataclasses.replace(one, y=one.y * 0 + 57.0),))
    reign = reigns((BASE, BASE, turned, turned), 96)[1]
    assert math.isnan(switch_latency(low, reign))
    part = timeline.prompt_scores(timeline.cut_out(low, 48, stop=96), turned, before=BASE)
    assert math.isnan(part["direction_acc"])
