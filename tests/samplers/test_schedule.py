"""Clock values: warps, grids, step sizes."""

from __future__ import annotations

import pytest
import torch

from onereel.core.errors import ConfigError
from onereel.samplers.schedule import (
    SHORTCUT_MODES,
    shift_sigma,
    shift_t,
    step_intervals,
    step_size,
    time_grid,
)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 17.0])
def test_both_warps_are_one_map(shift: float) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(1 - shift_sigma(1 - t, shift), shift_t(t, 1 / shift))
    assert torch.equal(shift_t(t, 1.0), t)
    middle = shift_t(torch.tensor(0.5, dtype=torch.float64), 1 / shift)
    assert middle.item() == pytest.approx(1 / (1 + shift))


@pytest.mark.parametrize("steps", [8, 12, 16, 32, 64])
@pytest.mark.parametrize("mode", SHORTCUT_MODES)
def test_stage_boundaries(steps: int, mode: str) -> None:
    grid = time_grid(steps, shortcut_mode=mode)
    assert grid.shape == (steps + 1,)
    assert bool((grid.diff() > 0).all())
    edges = grid[:: steps // 4]
    torch.testing.assert_close(edges, torch.tensor([0, 0.0217391, 0.1, 0.3, 1.0]))
    assert edges[3].item() > 0.3  # the float32 value the near-clean threshold is compared with


def test_even_grid_follows_its_formula() -> None:
    u = torch.arange(9, dtype=torch.float64) / 8
    torch.testing.assert_close(time_grid(8).double(), u**2 / (3 - 2 * u**2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("mode", "first", "intervals"),
    [
        ("8,16,16", [0, 2 / 16, 3 / 16, 4 / 16], [2, 1, 1]),
        ("16,16,8", [0, 1 / 16, 2 / 16, 4 / 16], [1, 1, 2]),
    ],
)
def test_twelve_steps_are_uneven(mode: str, first: list[float], intervals: list[int]) -> None:
    u = torch.tensor([quarter / 4 + f for quarter in range(4) for f in first[:3]] + [1.0])
    torch.testing.assert_close(time_grid(12, shortcut_mode=mode), u**2 / (3 - 2 * u**2))
    assert step_intervals(12, mode) == tuple(intervals * 4)
    sixteenths = (u.diff() * 16).round().tolist()
    assert sixteenths == intervals * 4


def test_step_sizes() -> None:
    assert [step_size(n) for n in (64, 32, 16, 8)] == [32, 16, 8, 4]
    assert [step_size(12, interval) for interval in (1, 2)] == [8, 4]
    assert step_intervals(8) == (1.0,) * 8


@pytest.mark.parametrize("kind", ["sd3", "square", "piecewise", "identity"])
def test_every_kind_runs_from_noise_to_clean(kind: str) -> None:
    grid = time_grid(16, kind=kind)
    assert grid[[0, -1]].tolist() == pytest.approx([0, 1])
    assert bool((grid.diff() > 0).all())


def test_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match="schedule kind: expected sd3, .*got cosine"):
        time_grid(8, kind="cosine")
    with pytest.raises(ConfigError, match="shortcut_mode: expected 8,16,16 or 16,16,8, got 8"):
        time_grid(8, shortcut_mode="8")
    with pytest.raises(ConfigError, match="shortcut_mode"):
        step_intervals(12, "16,8,16")
    with pytest.raises(ConfigError, match="num_steps: expected at least 1, got 0"):
        time_grid(0)
