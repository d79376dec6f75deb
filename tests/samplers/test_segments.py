"""Long videos in segments."""

from __future__ import annotations

import pytest
import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.samplers.segments import (
    Segment,
    channel_statistics,
    keep_overlap,
    last_latents,
    match_statistics,
    plan_segments,
    sample_segments,
)


def frames(num_latents: int) -> int:
    return 4 * (num_latents - 1) + 1


@pytest.mark.parametrize(("length", "count"), [(31, 12), (21, 18)])
def test_a_minute_is_what_the_arithmetic_says(length: int, count: int) -> None:
    plan = plan_segments(361, segment_latents=length)
    assert (len(plan), frames(plan[-1].stop)) == (count, 1441)  # 60.04 s at 24 fps
    assert {segment.num_latents for segment in plan} == {length}


@pytest.mark.parametrize("overlap", [1, 3])
@pytest.mark.parametrize("total", [1, 5, 6, 7, 23])
def test_every_latent_is_new_once(total: int, overlap: int) -> None:
    plan = plan_segments(total, segment_latents=5, overlap=overlap)
    new = [list(range(s.start + s.overlap, s.stop)) for s in plan]
    assert sum(new, []) == list(range(total))
    assert all(new)
    assert [s.overlap for s in plan] == [0] + [overlap] * (len(plan) - 1)
    assert all(s.num_latents <= 5 for s in plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 5, 1), "num_latents"), ((9, 5, 0), "overlap"), ((9, 5, 5), "overlap")],
)
def test_plans_that_cannot_be_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    total, length, overlap = arguments
    with pytest.raises(ConfigError, match=message):
        plan_segments(total, segment_latents=length, overlap=overlap)


def test_each_segment_is_told_what_the_last_one_ended_with() -> None:
    plan = plan_segments(9, segment_latents=4, overlap=2)
    first = torch.full((1, 1, 1, 1, 1), -1.0)
    told: list[list[float]] = []

    def sample(segment: Segment, reference: torch.Tensor) -> torch.Tensor:
        told.append(reference.flatten().tolist())
        return torch.arange(segment.start, segment.stop).float().view(1, 1, -1, 1, 1)

    made = []
    for segment, latent in sample_segments(plan, reference=first, sample=sample):
        made += latent[:, :, segment.overlap :].flatten().tolist()
    assert told == [[-1], [2, 3], [4, 5], [6, 7]]
    assert made == list(range(9))


def test_carrying_is_the_callers_and_never_after_the_last() -> None:
    carried = []

    def carry(latent: torch.Tensor, overlap: int) -> torch.Tensor:
        carried.append(overlap)
        return last_latents(latent, overlap) * 10

    out = list(
        sample_segments(
            plan_segments(5, segment_latents=3),
            reference=torch.ones(1, 1, 1, 1, 1),
            sample=lambda segment, r: r.expand(-1, -1, segment.num_latents, -1, -1),
            carry=carry,
        )
    )
    assert carried == [1]
    assert [latent.mean().item() for _, latent in out] == [1, 10]


def test_a_segment_of_another_length_is_refused() -> None:
    plan = plan_segments(3, segment_latents=3)
    wrong = sample_segments(
        plan, reference=torch.zeros(1), sample=lambda s, r: torch.zeros(1, 1, 2)
    )
    with pytest.raises(ShapeError, match="segment 0: expected 3"):
        next(wrong)


def test_first_frames_follow_each_other() -> None:
    plan = plan_segments(361, segment_latents=31)
    assert [segment.first_frame() for segment in plan][:3] == [0, 121, 241]
    assert plan_segments(9, segment_latents=4, overlap=2)[1].first_frame() == 13


def test_the_overlap_is_kept_as_it_was() -> None:
    made, given = torch.ones(1, 2, 4, 1, 1), torch.zeros(1, 2, 3, 1, 1)
    assert keep_overlap(made, given)[0, 0].flatten().tolist() == [0, 0, 0, 1]


def test_statistics_move_towards_others() -> None:
    generator = torch.Generator().manual_seed(0)
    first, later = (torch.randn(1, 2, 3, 4, 4, generator=generator) for _ in range(2))
    later = later * 3 + 2
    wanted = channel_statistics(first)
    same = match_statistics(later, wanted, strength=1)
    for got, want in zip(channel_statistics(same), wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert torch.equal(match_statistics(later, wanted, strength=0), later)
    half = channel_statistics(match_statistics(later, wanted, strength=0.5))
    torch.testing.assert_close(half[0], (channel_statistics(later)[0] + wanted[0]) / 2)
