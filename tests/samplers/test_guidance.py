"""Guidance: what is skipped or batched changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onereel.core.errors import ShapeError
from onereel.samplers.engine import ChunkEngine, ChunkTask
from onereel.samplers.guidance import GuidanceRuntime, stack_text
from onereel.samplers.plan import ChunkSampleConfig

PLAIN = GuidanceRuntime(skip_zero_weights=False, batch_passes=False)
MakeTask = Callable[..., ChunkTask]


class CountingModel:
    """Counts the videos that pass through a model."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.chunks = model, 0, 0

    def __call__(self, latent: Tensor, times: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.chunks += times.numel()
        return self.model(latent, times, *args, **kwargs)


def generate(model: Any, task: ChunkTask, runtime: GuidanceRuntime, **settings: Any) -> Tensor:
    config = ChunkSampleConfig(**{"num_steps": 8, "chunk_width": 2} | settings)
    engine = ChunkEngine(model, config, task=task, runtime=runtime)
    return torch.cat([chunk.latent for chunk in engine.run()], dim=2)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window_size": 1},
        {"window_size": 2, "prev_chunk_scales": (1.0,) * 5, "text_scales": (3.0, 1, 0, 0, 0)},
        {"text_scales": (1.5, 1.5, 1.5, 1.0, 1.0)},  # the weight of the null pass is zero
        {"prev_chunk_scales": (0.0,) * 5, "text_scales": (0.0,) * 5},
        {"prev_chunk_scales": (1.5, 1, 2, 1, 1), "text_scales": (7, 0, 0, 5, 5)},
    ],
    ids=["released", "window1", "prev_one", "text_as_prev", "zero", "mixed"],
)
@pytest.mark.parametrize("prefix", [0, 3])
def test_skipping_and_batching_equal_three_plain_passes(
    tiny_model: Any, make_task: MakeTask, settings: dict[str, Any], prefix: int
) -> None:
    task = make_task(4, prefix)
    want = generate(tiny_model, task, PLAIN, **settings)
    for skip, batch in ((True, True), (True, False), (False, True)):
        runtime = GuidanceRuntime(skip_zero_weights=skip, batch_passes=batch)
        got = generate(tiny_model, task, runtime, **settings)
        assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_skipping_saves_calls(tiny_model: Any, make_task: MakeTask) -> None:
    counts = []
    for runtime in (PLAIN, GuidanceRuntime()):
        model = CountingModel(tiny_model)
        generate(model, make_task(3), runtime)
        counts.append((model.calls, model.chunks))
    steps = 2 * (3 + 4 - 1)
    assert counts[0][0] == 3 * steps
    # In the last stage the one chunk left needs neither the text pass nor the one by itself.
    assert counts[1][0] == 2 * (steps - 2) + 2
    assert counts[1][1] < counts[0][1]


def test_weights_are_those_of_the_formula(tiny_model: Any, make_task: MakeTask) -> None:
    """One step of one chunk by hand."""
    task = make_task(1)
    config = ChunkSampleConfig(num_steps=4, chunk_width=2, noise2clean_kvrange=())
    seen: list[Tensor] = []
    engine = ChunkEngine(
        tiny_model, config, task=task, on_velocity=lambda _, velocity: seen.append(velocity)
    )
    next(engine.run())
    noise = engine._noise(0)
    with torch.no_grad():
        text, null, lone = (
            tiny_model(noise, torch.zeros(1, 1), row[None, None], caption_dropout=dropped).sample
            for row, dropped in (
                (task.condition(0), False),
                (task.null_caption, True),
                (task.null_caption, True),
            )
        )
    want = (1 - 1.5) * lone + (1.5 - 7.5) * null + 7.5 * text
    torch.testing.assert_close(seen[0], want, atol=1e-5, rtol=1e-5)


def test_rows_of_text_are_padded_and_masked() -> None:
    text, mask = stack_text([torch.ones(2, 3), torch.ones(4, 3)])
    assert text.shape == (2, 4, 3)
    assert mask is not None
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert stack_text([torch.ones(2, 3)] * 2)[1] is None
    with pytest.raises(ShapeError, match="at least one token per chunk.*use the null caption"):
        stack_text([torch.ones(2, 3), torch.ones(0, 3)])
