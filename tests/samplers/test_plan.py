"""The chunk plan: which calls make a video."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from onereel.core.errors import ConfigError
from onereel.samplers.plan import (
    ChunkSampleConfig,
    emitted_latents,
    num_stages,
    plan_calls,
    stage_window,
)


@pytest.mark.parametrize(
    ("chunks", "window", "given", "stages"),
    [
        (8, 4, 0, "0:1/0:1 0:2/0:2 0:3/0:3 0:4/0:4 1:5/0:4 2:6/0:4 3:7/0:4 4:8/0:4 "
                  "5:8/1:4 6:8/2:4 7:8/3:4"),
        (8, 4, 2, "2:3/0:1 2:4/0:2 2:5/0:3 2:6/0:4 3:7/0:4 4:8/0:4 5:8/1:4 6:8/2:4 7:8/3:4"),
        (3, 1, 0, "0:1/0:1 1:2/0:1 2:3/0:1"),
        (2, 4, 0, "0:1/0:1 0:2/0:2 0:2/1:3 0:2/2:4 1:2/3:4"),
        (1, 4, 0, "0:1/0:1 0:1/1:2 0:1/2:3 0:1/3:4"),
    ],
)  # fmt: skip
def test_stages_of_the_specification(chunks: int, window: int, given: int, stages: str) -> None:
    config = ChunkSampleConfig(num_steps=4 * window, window_size=window)
    counts = {"num_chunks": chunks, "num_prefix_chunks": given}
    got = []
    for stage in range(num_stages(config, **counts)):
        active, ages = stage_window(stage, config, **counts)
        got.append(f"{active.start}:{active.stop}/{ages.start}:{ages.stop}")
    assert got == stages.split()


CONFIGS = [
    ChunkSampleConfig(
        num_steps=steps, window_size=window, noise2clean_kvrange=ranges, clean_chunk_kvrange=clean
    )
    for steps, window, ranges, clean in itertools.product(
        (8, 12, 16),
        (1, 2, 4),
        ((5, 4, 3, 2), (2, 3, 4, 5), (1, 6), (1,), (2, 2), ()),
        (1, 2, 3, 7, -1),
    )
]


@pytest.mark.parametrize("counts", [(1, 0), (2, 0), (3, 0), (9, 0), (5, 4), (9, 3), (12, 1)])
def test_no_later_call_reads_what_a_step_lets_go(counts: tuple[int, int]) -> None:
    for config in CONFIGS:
        calls = list(plan_calls(config, num_chunks=counts[0], num_prefix_chunks=counts[1]))
        needed = counts[0]  # first chunk that any later call reads, going backwards
        for call in reversed(calls):
            assert call.keep_from <= needed, (config, counts, call)
            lead = () if call.clean_range is None else (call.clean_range,)
            needed = min(needed, *(start for start, _ in (*lead, *call.ranges)))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_what_is_kept_does_not_grow(window: int) -> None:
    config = ChunkSampleConfig(num_steps=8, window_size=window)
    for call in plan_calls(config, num_chunks=60):
        assert call.chunks[0] - call.keep_from <= 4
    if window == 4:  # steady state: one clean chunk
        assert call.chunks[0] - call.keep_from <= 1


@pytest.mark.parametrize("counts", [(1, 0), (5, 0), (7, 2)])
def test_every_chunk_walks_the_whole_grid(counts: tuple[int, int]) -> None:
    for config in CONFIGS[::7]:
        seen: dict[int, list[int]] = {}
        finished = []
        calls = list(plan_calls(config, num_chunks=counts[0], num_prefix_chunks=counts[1]))
        for call in calls:
            for chunk, index in zip(call.chunks, call.grid_indices, strict=True):
                seen.setdefault(chunk, []).append(index)
            if call.finished is not None:
                finished.append(call.finished)
            assert call.times == tuple(sorted(call.times, reverse=True))
        new = list(range(counts[1], counts[0]))
        assert seen == {chunk: list(range(config.num_steps)) for chunk in new}
        assert finished == new
        assert [call.step for call in calls] == list(range(len(calls)))
        # All chunks but the last are encoded clean once.
        assert [c.clean_chunk for c in calls if c.clean_chunk is not None] == new[:-1]


def test_the_grid_is_warped_as_the_checkpoint_says() -> None:
    for shift in (1.0, 3.0):
        config = ChunkSampleConfig(
            num_steps=4, window_size=1, noise2clean_kvrange=(2,), shift=shift
        )
        times = [call.times[0] for call in plan_calls(config, num_chunks=1)]
        squares = [(step / 4) ** 2 for step in range(4)]
        assert times == pytest.approx([u / (shift + (1 - shift) * u) for u in squares])


def test_plan_goes_on_from_a_stage() -> None:
    config = ChunkSampleConfig(num_steps=8)
    calls = list(plan_calls(config, num_chunks=6, num_prefix_chunks=1))
    rest = list(plan_calls(config, num_chunks=6, num_prefix_chunks=1, first_stage=4))
    assert rest == calls[4 * config.steps_per_stage :]
    assert list(plan_calls(config, num_chunks=2, num_prefix_chunks=2)) == []


def test_steady_call_in_full() -> None:
    calls = list(plan_calls(ChunkSampleConfig(num_steps=16), num_chunks=8))
    call = calls[5 * 4]
    assert (call.clean_chunk, call.clean_range, call.slice_point) == (1, (1, 2), 1)
    assert call.chunks == (2, 3, 4, 5)
    assert call.grid_indices == (12, 8, 4, 0)
    assert call.ranges == ((1, 3), (1, 4), (1, 5), (1, 6))
    assert call.weights == ((1.0, 0.0), (1.5, 7.5), (1.5, 7.5), (1.5, 7.5))
    assert call.step_size is None
    assert not call.near_clean
    assert calls[5 * 4 + 1].clean_chunk is None
    assert calls[5 * 4 + 1].slice_point == 2


def test_distilled_calls() -> None:
    calls = list(plan_calls(ChunkSampleConfig(num_steps=12, distilled=True), num_chunks=4))
    assert [c.step_size for c in calls[:4]] == [4, 8, 8, 4]
    assert calls[0].weights == ()
    near = [c.stage for c in calls if c.near_clean]
    assert near == [stage for stage in range(3, 7) for _ in range(3)]


@pytest.mark.parametrize(
    ("times", "weights"),
    [
        (0.0, (1.5, 7.5)),
        (0.0216, (1.5, 7.5)),
        (0.2999, (1.5, 7.5)),
        (0.3, (1.0, 0.0)),
        (0.30000001192, (1.0, 0.0)),
        (0.9999, (1.0, 0.0)),
        (1.0, (1.0, 0.0)),
    ],
)
def test_guidance_weights(times: float, weights: tuple[float, float]) -> None:
    assert ChunkSampleConfig().guidance_weights(times) == weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"window_size": -1}, "window_size: expected at least 1"),
        ({"chunk_width": 0}, "chunk_width: expected at least 1"),
        ({"num_steps": 18}, "multiple of window_size 4, got 18. hint: use 20"),
        ({"num_steps": 6, "window_size": 2}, "4 entries of noise2clean_kvrange, .* hint: use 8"),
        ({"noise2clean_kvrange": (2, 0)}, "kv ranges: expected at least 1"),
        ({"clean_chunk_kvrange": 0}, "kv ranges"),
        ({"clean_chunk_kvrange": -3}, "kv ranges"),
        ({"num_steps": 12, "window_size": 3, "distilled": True}, "expected 1, 2 or 4, got 3"),
        ({"text_scales": (7.5,)}, "guidance tables"),
        ({"cfg_t_range": (), "prev_chunk_scales": (), "text_scales": ()}, "guidance tables"),
        ({"shortcut_mode": "even"}, "shortcut_mode"),
        ({"shift": 0.0}, "shift: expected more than 0"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChunkSampleConfig(**settings)


@pytest.mark.parametrize(
    ("frames", "given", "emitted"),
    [
        (96, 0, [(0, 6), (1, 6), (2, 6), (3, 6)]),
        (96, 1, [(0, 6), (1, 6), (2, 6), (3, 6), (4, 6)]),
        (72, 8, [(0, 4), (1, 6), (2, 6), (3, 6)]),
        (24, 6, [(0, 6)]),
    ],
)
def test_emitted_latents(frames: int, given: int, emitted: list[tuple[int, int]]) -> None:
    assert emitted_latents(frames, given) == emitted
