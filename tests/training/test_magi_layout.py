"""Layouts and noise levels of training pieces: those that the sampler meets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onereel.samplers.plan import ChunkCall, ChunkSampleConfig, plan_calls
from onereel.training.magi_layout import (
    Layout,
    magi_times,
    random_times,
    sample_layout,
    sample_times,
)

CONFIGS = {
    4: ChunkSampleConfig(num_steps=16),
    1: ChunkSampleConfig(num_steps=16, window_size=1, noise2clean_kvrange=(2,)),
}


def _layouts(count: int = 600, *, t2v_share: float = 0.65, window: int = 4) -> list[Layout]:
    rng = np.random.default_rng(0)
    return [sample_layout(rng, t2v_share=t2v_share, window=window) for _ in range(count)]


ALL = sorted(
    {
        (window, layout.num_clean, layout.ages)
        for window in CONFIGS
        for layout in _layouts(window=window)
    },
    key=repr,
)
DISTINCT = [(num_clean, ages) for window, num_clean, ages in ALL if window == 4]


def _stage_of(layout: Layout) -> list[ChunkCall]:
    """Find the steps of the sampler's stage with these chunks in flight at these ages."""
    config = CONFIGS[layout.window]
    steps = config.steps_per_stage
    flying = tuple(range(layout.num_clean, layout.num_chunks))
    return [
        call
        for given in {0, layout.num_clean}
        for call in plan_calls(config, num_chunks=layout.num_chunks, num_prefix_chunks=given)
        if call.chunks == flying and tuple(i // steps for i in call.grid_indices) == layout.ages
    ]


@pytest.mark.parametrize(("window", "num_clean", "ages"), ALL)
def test_every_layout_is_a_stage_of_the_sampler(
    window: int, num_clean: int, ages: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(num_clean=num_clean, ages=ages, aligned=True, window=window)
    steps = CONFIGS[window].steps_per_stage
    calls = _stage_of(layout)
    assert {call.step_in_stage for call in calls} == set(range(steps))
    for call in calls:
        assert tuple(layout.kv_range()[num_clean:]) == call.ranges
        phase = call.step_in_stage / steps
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda shape, generator, p=phase: torch.full(shape, p))
            times = sample_times(layout, 2, generator=torch.Generator())
        expected = torch.tensor([call.times, call.times])
        torch.testing.assert_close(times[:, num_clean:], expected, rtol=1e-5, atol=1e-6)


def test_the_window_fills_up_runs_full_and_runs_empty() -> None:
    assert (0, (3, 2, 1, 0)) in DISTINCT and (0, (0,)) in DISTINCT
    assert (1, (3, 2, 1, 0)) in DISTINCT and (2, (3, 2, 1, 0)) in DISTINCT
    assert (1, (3,)) in DISTINCT and (1, (3, 2, 1)) in DISTINCT and (1, (1, 0)) in DISTINCT


@pytest.mark.parametrize(("num_clean", "ages"), DISTINCT)
def test_no_chunk_looks_outside_the_piece(num_clean: int, ages: tuple[int, ...]) -> None:
    layout = Layout(num_clean=num_clean, ages=ages, aligned=False)
    ranges = layout.kv_range()
    assert layout.num_chunks == len(ranges) == num_clean + len(ages) <= 6
    assert ranges[:num_clean] == [(c, c + 1) for c in range(num_clean)]
    for chunk, (start, end) in enumerate(ranges):
        assert 0 <= start < end == chunk + 1


def test_a_window_of_one_starts_or_continues_one_clean_chunk() -> None:
    assert [(num_clean, ages) for window, num_clean, ages in ALL if window == 1] == [
        (0, (0,)),
        (1, (0,)),
    ]


def test_shares() -> None:
    layouts = _layouts(3000, t2v_share=0.65)
    starts = [layout for layout in layouts if not layout.num_clean]
    assert len(starts) / 3000 == pytest.approx(0.65, abs=0.03)
    assert sum(layout.aligned for layout in layouts) / 3000 == pytest.approx(0.5, abs=0.03)
    assert {layout.num_clean for layout in layouts} == {0, 1, 2}
    assert all(not layout.num_clean for layout in _layouts(50, t2v_share=1.0))
    assert all(layout.num_clean for layout in _layouts(50, t2v_share=0.0))


def test_magi_times_are_mostly_near_the_noise() -> None:
    times = magi_times((40000,), torch.Generator().manual_seed(0))
    assert (times < 0.3).float().mean().item() == pytest.approx(0.692, abs=0.02)
    assert 0 < times.min() and times.max() < 1


def test_half_of_the_rows_are_uniform() -> None:
    times = random_times((40000, 2), torch.Generator().manual_seed(0))
    assert (times < 0.3).float().mean().item() == pytest.approx((0.692 + 0.3) / 2, abs=0.02)
    assert (times > 0.9).float().mean().item() > 0.04  # MAGI's own law hardly gets there
    both = (times < 0.5).float()
    assert both[:, 0].dot(both[:, 1]) / 40000 > both.mean() ** 2 + 0.01  # rows, not elements


@pytest.mark.parametrize("aligned", [False, True])
def test_levels_fall_along_the_piece(aligned: bool) -> None:
    layout = Layout(num_clean=2, ages=(3, 2, 1, 0), aligned=aligned)
    times = sample_times(layout, 500, generator=torch.Generator().manual_seed(1))
    assert times.shape == (500, 6) and times.dtype == torch.float32
    assert (times[:, :2] >= 0.95).all() and (times[:, :2] < 1).all()
    assert times[:, :2].std() > 0.01
    assert (times[:, 2:].diff(dim=1) <= 0).all()
    assert (times[:, 2:] >= 0).all() and (times[:, 2:] < 1).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_aligned_chunks_share_one_phase(shift: float) -> None:
    layout = Layout(num_clean=1, ages=(3, 2, 1), aligned=True, shift=shift)
    t = sample_times(layout, 300, generator=torch.Generator().manual_seed(2))[:, 1:].double()
    u = (t / (1 / shift + (1 - 1 / shift) * t)).sqrt()  # the inverse of the shift
    phase = u * layout.window - torch.tensor([3, 2, 1])
    assert (phase - phase[:, :1]).abs().max() < 1e-4
    assert phase.min() > -1e-4 and phase.max() < 1 and phase.std() > 0.2


def test_times_depend_on_the_generator_only() -> None:
    layout = Layout(num_clean=1, ages=(1, 0), aligned=False)
    first, again, other = (
        sample_times(layout, 4, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
