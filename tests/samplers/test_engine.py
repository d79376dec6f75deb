"""The chunk engine: prefixes, going on, memory, prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onereel.core.errors import ConfigError, ShapeError
from onereel.core.seeds import chunk_noise
from onereel.samplers.engine import ChunkEngine, ChunkTask, FinishedChunk
from onereel.samplers.plan import ChunkCall, ChunkSampleConfig

MakeTask = Callable[..., ChunkTask]
BASE = ChunkSampleConfig(num_steps=8, chunk_width=2)
DISTILLED = ChunkSampleConfig(num_steps=8, chunk_width=2, distilled=True)
WINDOW_ONE = ChunkSampleConfig(num_steps=4, chunk_width=2, window_size=1)
ALL_KEPT = ChunkSampleConfig(num_steps=8, chunk_width=2, noise2clean_kvrange=())


def video(chunks: list[FinishedChunk]) -> Tensor:
    return torch.cat([chunk.latent for chunk in chunks], dim=2)


class StrictModel:
    """Checks every call: keys are their chunk's index, and no range reaches what is gone."""

    def __init__(self) -> None:
        self.most_cached = 0

    def __call__(self, latent: Tensor, times: Tensor, text: Tensor, mask: Any, **call: Any) -> Any:
        start, past, keep = call["slice_point"], call["past_key_values"], call["keep_chunks"]
        cached = [] if past is None else past[0][0][0, 0, :, 0].tolist()
        self.most_cached = max(self.most_cached, len(cached))
        assert cached == list(range(start - len(cached), start))
        assert call["kv_range"] is not None
        for low, high in call["kv_range"]:
            assert start - len(cached) <= low < high <= start + times.shape[1]
        index = torch.arange(start, start + times.shape[1], dtype=torch.float32).view(1, 1, -1, 1)
        rows = index.repeat(latent.shape[0], 1, 1, 1)[:, :, :keep]  # a view, as the real one's
        return SimpleNamespace(sample=-latent, key_values=((rows, rows),) if keep else None)


@pytest.mark.parametrize("distilled", [False, True])
def test_cache_holds_what_every_call_needs(make_task: MakeTask, distilled: bool) -> None:
    settings = itertools.product(
        (1, 4), ((5, 4, 3, 2), (1,), (1, 6), ()), (1, 3, -1), (0, 1, 5, 20)
    )
    for window, ranges, clean, prefix in settings:
        config = ChunkSampleConfig(
            num_steps=8,
            window_size=window,
            chunk_width=2,
            noise2clean_kvrange=ranges,
            clean_chunk_kvrange=clean,
            distilled=distilled,
        )
        given = prefix // 2
        engine = ChunkEngine(StrictModel(), config, task=make_task(given + 6, prefix))
        chunks = list(engine.run())
        assert [chunk.index for chunk in chunks] == list(range(given, given + 6))


@pytest.mark.parametrize("config", [BASE, DISTILLED, WINDOW_ONE], ids=["base", "distilled", "w1"])
def test_memory_stays_flat(make_task: MakeTask, config: ChunkSampleConfig) -> None:
    model, held = StrictModel(), []
    engine = ChunkEngine(model, config, task=make_task(40))
    for _ in engine.run():
        state = engine.state_dict()
        held.append(sum(tensor.numel() for tensor in state.values()))
        for key, _value in engine.cache or ():
            assert key.untyped_storage().nbytes() == key.numel() * key.itemsize
    assert len(held) == 40
    assert model.most_cached <= 4
    assert max(held) == max(held[:8])


def test_all_chunks_are_kept_when_no_range_is_set(make_task: MakeTask) -> None:
    model = StrictModel()
    list(ChunkEngine(model, ALL_KEPT, task=make_task(12)).run())
    assert model.most_cached == 11


def test_long_prefix_is_encoded_in_bounded_memory(make_task: MakeTask) -> None:
    config = ChunkSampleConfig(num_steps=8, chunk_width=2, clean_chunk_kvrange=3)
    model = StrictModel()
    list(ChunkEngine(model, config, task=make_task(22, 40)).run())
    assert model.most_cached <= 5


@pytest.mark.parametrize("given", [1, 6, 8, 14])
@pytest.mark.parametrize("distilled", [False, True], ids=["base", "distilled"])
def test_given_frames_come_out_exact(
    tiny_model: Any, make_task: MakeTask, given: int, distilled: bool
) -> None:
    config = ChunkSampleConfig(num_steps=4, distilled=distilled)
    task = make_task(given // 6 + 2, given)
    assert task.prefix is not None
    chunks = list(ChunkEngine(tiny_model, config, task=task).run())
    assert [c.index for c in chunks] == [given // 6, given // 6 + 1]
    first = chunks[0]
    assert first.num_given == given % 6
    assert chunks[1].num_given == 0
    whole = given // 6 * 6
    assert torch.equal(first.latent[:, :, : first.num_given], task.prefix[:, :, whole:])
    assert first.latent.shape == (1, 4, 6, 4, 4)


def test_official_code_lets_the_given_frame_drift(tiny_model: Any, make_task: MakeTask) -> None:
    task = make_task(2, 1)
    assert task.prefix is not None
    exact, drifted = (
        video(
            list(
                ChunkEngine(
                    tiny_model,
                    ChunkSampleConfig(num_steps=4, official_compat=compat),
                    task=task,
                ).run()
            )
        )
        for compat in (False, True)
    )
    assert torch.equal(exact[:, :, :1], task.prefix)
    assert not torch.allclose(drifted[:, :, :1], task.prefix, atol=1e-3)
    assert torch.equal(exact[:, :, 1:], drifted[:, :, 1:])


def test_prefix_changes_what_follows(tiny_model: Any, make_task: MakeTask) -> None:
    videos = []
    for change in (0.0, 0.5):
        task = make_task(4, 4)
        assert task.prefix is not None
        task.prefix[:, :, :2] += change  # a whole given chunk, seen only through the cache
        videos.append(video(list(ChunkEngine(tiny_model, BASE, task=task).run())))
    assert not torch.allclose(*videos, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("config", [BASE, DISTILLED], ids=["base", "distilled"])
def test_skipped_prefix_chunks_change_nothing(
    tiny_model: Any, make_task: MakeTask, config: ChunkSampleConfig
) -> None:
    """Of 20 given chunks only the last four are encoded, because each stands alone."""
    task = make_task(22, 40)
    short = ChunkEngine(tiny_model, config, task=task)
    full = ChunkEngine(tiny_model, config, task=task)
    kept = [_encode(tiny_model, task, config, chunk, 1) for chunk in range(20)]
    full.cache, full._cached_chunks = _join(kept), 20
    torch.testing.assert_close(video(list(short.run())), video(list(full.run())))


@torch.no_grad()
def test_prefix_in_pieces_equals_one_call(tiny_model: Any, make_task: MakeTask) -> None:
    """With a recurrence over given chunks, one call with all of them is the reference."""
    config = ChunkSampleConfig(num_steps=8, chunk_width=2, clean_chunk_kvrange=3)
    task = make_task(9, 14)
    pieces = ChunkEngine(tiny_model, config, task=task)
    whole = ChunkEngine(tiny_model, config, task=task)
    whole.cache, whole._cached_chunks = _encode(tiny_model, task, config, 0, 7, visible=3), 7
    torch.testing.assert_close(
        video(list(pieces.run())), video(list(whole.run())), atol=1e-5, rtol=1e-4
    )


def _encode(
    model: Any,
    task: ChunkTask,
    config: ChunkSampleConfig,
    first: int,
    count: int,
    *,
    visible: int = 1,
) -> Any:
    """Keys and values of given chunks by one call."""
    assert task.prefix is not None
    distilled, width = config.distilled, config.chunk_width
    ranges = [(max(first, c + 1 - visible), c + 1) for c in range(first, first + count)]
    return model(
        task.prefix[:, :, first * width : (first + count) * width],
        torch.full((1, count), config.clean_t),
        task.null_caption.expand(1, count, -1, -1),
        kv_range=ranges,
        slice_point=first,
        caption_dropout=not distilled,
        step_size=4.0 if distilled else None,
        keep_chunks=count,
    ).key_values


def _join(kept: list[Any]) -> Any:
    layers = zip(*kept, strict=True)
    return tuple(
        tuple(torch.cat([pair[i] for pair in layer], dim=2) for i in range(2)) for layer in layers
    )


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize(
    "config", [BASE, DISTILLED, WINDOW_ONE], ids=["base", "distilled", "window1"]
)
def test_resumed_after_any_chunk_is_bit_equal(
    tiny_model: Any, make_task: MakeTask, tmp_path: Path, config: ChunkSampleConfig, prefix: int
) -> None:
    task = make_task(6, prefix)
    engine = ChunkEngine(tiny_model, config, task=task)
    chunks = []
    for chunk in engine.run():
        chunks.append(chunk)
        save_file(engine.state_dict(), tmp_path / f"{len(chunks)}.safetensors")
    for done in (1, 3, len(chunks)):
        again = ChunkEngine(tiny_model, config, task=task)
        again.load_state_dict(load_file(tmp_path / f"{done}.safetensors"))
        rest = list(again.run())
        assert [c.index for c in rest] == [c.index for c in chunks[done:]]
        for got, want in zip(rest, chunks[done:], strict=True):
            assert torch.equal(got.latent, want.latent)


def test_going_on_in_the_same_engine_is_bit_equal(tiny_model: Any, make_task: MakeTask) -> None:
    want = list(ChunkEngine(tiny_model, BASE, task=make_task(4)).run())
    engine = ChunkEngine(tiny_model, BASE, task=make_task(4))
    first = next(engine.run())
    assert torch.equal(video([first, *engine.run()]), video(want))
    assert list(engine.run()) == []


def test_longer_video_starts_the_same(tiny_model: Any, make_task: MakeTask) -> None:
    short, long = (
        list(ChunkEngine(tiny_model, BASE, task=make_task(count)).run()) for count in (2, 6)
    )
    torch.testing.assert_close(video(short), video(long[:2]), atol=1e-5, rtol=1e-4)


def test_seed_and_given_noise(tiny_model: Any, make_task: MakeTask) -> None:
    def run(**changes: Any) -> Tensor:
        return video(list(ChunkEngine(tiny_model, BASE, task=make_task(2, **changes)).run()))

    drawn = run(seed=11)
    shape = (1, 4, 2, 4, 4)
    assert torch.equal(run(noise=lambda c: chunk_noise(11, c, shape=shape)), drawn)
    assert torch.equal(run(noise=lambda c: chunk_noise(11, c, shape=shape).double()), drawn)
    assert not torch.allclose(run(seed=12), drawn, atol=1e-2)


def test_noise_is_asked_only_for_chunks_that_are_made(tiny_model: Any, make_task: MakeTask) -> None:
    asked: list[int] = []

    def noise(chunk: int) -> Tensor:
        asked.append(chunk)
        return chunk_noise(0, chunk, shape=(1, 4, 2, 4, 4))

    list(ChunkEngine(tiny_model, BASE, task=make_task(5, 5, noise=noise)).run())
    assert asked == [2, 3, 4]


def test_prompt_of_a_chunk_reaches_that_chunk(tiny_model: Any, make_task: MakeTask) -> None:
    plain = list(ChunkEngine(tiny_model, BASE, task=make_task(5)).run())
    other = make_task(5)
    changed = make_task(5, condition=lambda c: other.condition(c + 30 if c == 3 else c))
    got = list(ChunkEngine(tiny_model, BASE, task=changed).run())
    assert torch.equal(video(got[:3]), video(plain[:3]))
    for chunk in (3, 4):
        assert not torch.allclose(got[chunk].latent, plain[chunk].latent, atol=1e-3)


def test_prompt_may_change_while_the_video_is_made(tiny_model: Any, make_task: MakeTask) -> None:
    rows = {"now": make_task(1).condition(0)}
    engine = ChunkEngine(tiny_model, BASE, task=make_task(3, condition=lambda _: rows["now"]))
    run = engine.run()
    chunks = [next(run)]
    rows["now"] = make_task(1).condition(31)
    chunks += run
    rows["now"] = make_task(1).condition(0)
    same = list(ChunkEngine(tiny_model, BASE, task=engine.task).run())
    assert torch.equal(chunks[0].latent, same[0].latent)
    assert not torch.allclose(chunks[2].latent, same[2].latent, atol=1e-3)


def test_callbacks(tiny_model: Any, make_task: MakeTask) -> None:
    steps: list[ChunkCall] = []

    def zero_last(call: ChunkCall, window: Tensor) -> Tensor | None:
        steps.append(call)
        assert window.shape[2] == 2 * len(call.chunks)
        return torch.zeros_like(window) if call.step == engine.num_steps - 1 else None

    engine = ChunkEngine(tiny_model, BASE, task=make_task(3), on_step=zero_last)
    chunks = list(engine.run())
    assert [call.step for call in steps] == list(range(engine.num_steps))
    assert engine.num_steps == 2 * (3 + 4 - 1)
    assert not chunks[-1].latent.any()
    assert chunks[0].latent.any()


def test_stop_ends_the_run_and_nothing_half_done_is_saved(
    tiny_model: Any, make_task: MakeTask
) -> None:
    engine = ChunkEngine(tiny_model, BASE, task=make_task(4))
    run = engine.run()
    next(run)
    saved = engine.state_dict()
    engine.on_step = lambda call, window: engine.stop()
    assert list(run) == []
    with pytest.raises(ConfigError, match="broken off within a stage"):
        engine.state_dict()
    with pytest.raises(ConfigError, match="load the state saved after the last chunk"):
        next(engine.run())
    again = ChunkEngine(tiny_model, BASE, task=make_task(4))
    again.load_state_dict(saved)
    want = list(ChunkEngine(tiny_model, BASE, task=make_task(4)).run())[1:]
    assert torch.equal(video(list(again.run())), video(want))


def test_a_failing_step_is_not_repeated(tiny_model: Any, make_task: MakeTask) -> None:
    def fail(call: ChunkCall, window: Tensor) -> None:
        raise RuntimeError("disk full")

    engine = ChunkEngine(tiny_model, BASE, task=make_task(2), on_step=fail)
    with pytest.raises(RuntimeError, match="disk full"):
        next(engine.run())
    engine.on_step = None
    with pytest.raises(ConfigError, match="broken off"):
        next(engine.run())


def test_run_leaves_the_callers_gradient_mode(tiny_model: Any, make_task: MakeTask) -> None:
    for chunk in ChunkEngine(tiny_model, BASE, task=make_task(2)).run():
        assert torch.is_grad_enabled()
        assert not chunk.latent.requires_grad


@pytest.mark.parametrize(
    "shape", [(1, 4, 3, 4, 5), (1, 3, 3, 4, 4), (2, 4, 3, 4, 4), (4, 3, 4, 4), (3, 4)]
)
def test_prefix_of_another_shape(make_task: MakeTask, shape: tuple[int, ...]) -> None:
    task = make_task(3)
    wrong = ChunkTask(
        num_chunks=3,
        latent_shape=task.latent_shape,
        condition=task.condition,
        null_caption=task.null_caption,
        prefix=torch.zeros(shape),
    )
    with pytest.raises(ShapeError, match=r"prefix: expected \[1, 4, T, 4, 4\]"):
        ChunkEngine(StrictModel(), BASE, task=wrong)


def test_tasks_that_do_not_fit(make_task: MakeTask) -> None:
    with pytest.raises(ConfigError, match="num_chunks: expected more than 2 given chunks, got 2"):
        ChunkEngine(StrictModel(), BASE, task=make_task(2, 4))
    bad_noise = make_task(2, noise=lambda _: torch.zeros(1, 4, 1, 4, 4))
    with pytest.raises(ShapeError, match="noise: expected"):
        next(ChunkEngine(StrictModel(), BASE, task=bad_noise).run())
    empty = make_task(2, condition=lambda _: torch.zeros(0, 8))
    with pytest.raises(ShapeError, match="at least one token"):
        next(ChunkEngine(StrictModel(), BASE, task=empty).run())


REBUILT = [
    BASE,
    DISTILLED,
    WINDOW_ONE,
    ALL_KEPT,
    ChunkSampleConfig(num_steps=8, chunk_width=2, clean_chunk_kvrange=3),
    ChunkSampleConfig(num_steps=4, chunk_width=2, window_size=2, clean_chunk_kvrange=-1),
    ChunkSampleConfig(num_steps=8, chunk_width=2, noise2clean_kvrange=(1, 6)),
]


@pytest.mark.parametrize("config", REBUILT, ids=range(len(REBUILT)))
@pytest.mark.parametrize("prefix", [0, 3, 6])
def test_rebuilt_from_latents_it_goes_on_exactly(
    tiny_model: Any, make_task: MakeTask, config: ChunkSampleConfig, prefix: int
) -> None:
    task = make_task(10, prefix)
    engine, saved, whole = ChunkEngine(tiny_model, config, task=task), {}, {}
    for chunk in engine.run():
        saved[chunk.index], whole[chunk.index] = engine.latents_dict(), chunk.latent
    for last in whole:
        again = ChunkEngine(tiny_model, config, task=task)
        again.rebuild(last, lambda chunk: {name: x.clone() for name, x in saved[chunk].items()})
        rest = {chunk.index: chunk.latent for chunk in again.run()}
        assert list(rest) == [c for c in whole if c > last]
        assert all(torch.equal(latent, whole[c]) for c, latent in rest.items())


def test_rebuilding_takes_one_call_per_visible_chunk(tiny_model: Any, make_task: MakeTask) -> None:
    engine, saved = ChunkEngine(tiny_model, WINDOW_ONE, task=make_task(20)), {}
    for chunk in engine.run():
        saved[chunk.index] = engine.latents_dict()
    calls = 0

    def count(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return tiny_model(*args, **options)

    again = ChunkEngine(count, WINDOW_ONE, task=make_task(20))
    again.rebuild(15, saved.__getitem__)
    assert again.cache is not None
    assert calls <= 4 * 2  # at most five chunks are ever seen; two passes each
