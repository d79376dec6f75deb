"""Shortcut distillation: targets, guidance built in, what is exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.samplers.guidance import CallInputs, GuidanceRuntime, guided_velocity
from onereel.samplers.plan import plan_calls
from onereel.samplers.schedule import step_size
from onereel.training.captions import null_rows
from onereel.training.engine import Trainer
from onereel.training.flow import FlowShares, corrupt
from onereel.training.latent_cache import LatentCache
from onereel.training.magi import MagiMethod, ToyboxMagiRecipe
from onereel.training.magi_layout import Layout
from onereel.training.method import Part, TrainerConfig
from onereel.training.shortcut import ShortcutMethod, ToyboxDistillRecipe, shortcut_target

WINDOW_OF_TWO = {
    "num_steps": 8, "window_size": 2, "noise2clean_kvrange": (3, 2),
    "cfg_t_range": (0.0, 0.1, 0.4), "prev_chunk_scales": (1.5, 1.25, 1.0),
    "text_scales": (3.0, 2.0, 1.0), "height": 32, "width": 32,
}  # fmt: skip


@pytest.fixture
def distil(
    recipe: ToyboxMagiRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ToyboxDistillRecipe:
    """A recipe whose teacher has random weights, a window of two and guidance of all kinds."""
    monkeypatch.setattr("onereel.training.magi.TOYBOX_SAMPLING", WINDOW_OF_TWO)
    recipe = dataclasses.replace(recipe, shift=1.5)
    method = MagiMethod(recipe, LatentCache(recipe.cache))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in method.dit.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    method.export(tmp_path / "teacher")
    trainer = TrainerConfig(max_steps=6, warmup_steps=1, log_every=1, ema_decay=0.0)
    return ToyboxDistillRecipe(
        teacher=str(tmp_path / "teacher"), cache=recipe.cache, base_steps=8, shorter=(4, 2),
        base_repeats=2, num_steps=4, batch_size=2, workers=0, validation_items=3, trainer=trainer,
    )  # fmt: skip


@pytest.fixture
def method(distil: ToyboxDistillRecipe) -> ShortcutMethod:
    return ShortcutMethod(distil, LatentCache(distil.cache))


def _pieces(method: ShortcutMethod, layout: Layout) -> dict[str, Any]:
    return method.batches.pieces([0, 1], layout, rng=np.random.default_rng(0))


def test_the_cycle_is_the_reports() -> None:
    cycle = ToyboxDistillRecipe(shorter=(32, 16, 8)).cycle()
    assert cycle == (64,) * 8 + (32, 16, 8)
    assert [step_size(n) for n in (64, 32, 16, 8)] == [32, 16, 8, 4]


@pytest.mark.parametrize("wrong", [{"shorter": (32, 8)}, {"num_steps": 12}])
def test_grids_must_halve(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ToyboxDistillRecipe(**wrong)


def test_one_step_gets_where_two_uneven_halves_get() -> None:
    first, second, x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    start, middle, end = torch.tensor([0.1, 0.15, 0.4]).double()
    by_two = x + (middle - start) * first + (end - middle) * second
    target = shortcut_target(first, second, times=(start, middle, end))
    torch.testing.assert_close(x + (end - start) * target, by_two)
    torch.testing.assert_close(shortcut_target(first, first, times=(start, middle, end)), first)


class _Exact(nn.Module):
    """Knows the clean latent: its flow is a straight line, whatever the step."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__()
        self.latent = latent
        self.sizes: list[float | None] = []
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, times: Tensor, *_: Any, **options: Any) -> Any:
        self.sizes.append(options["step_size"])
        self.inputs.append(x)
        t = times.repeat_interleave(x.shape[2] // times.shape[1], dim=1)[:, None, :, None, None]
        return dataclasses.make_dataclass("Out", ["sample"])((self.latent - x) / (1 - t))


@pytest.mark.parametrize("clean", [0, 1])
def test_a_straight_flow_is_its_own_target(method: ShortcutMethod, clean: int) -> None:
    layout = Layout(num_clean=clean, ages=(1, 0), aligned=False, window=2)
    batch = _pieces(method, layout)
    generator = torch.Generator().manual_seed(0)
    times = method._draw_times(layout, 2, 4, generator)
    flow = corrupt(
        batch["latent"], batch["given"], layout=layout, shares=FlowShares(i2v=1.0, drop=0.0),
        generator=generator, device=torch.device("cpu"), times=times[0],
    )  # fmt: skip
    method.target = exact = _Exact(batch["latent"])  # type: ignore[assignment]
    text = null_rows(flow, method.teacher.null_caption)
    target = method._two_halves(flow, text, times=times, number=4)
    assert exact.sizes == [step_size(8)] * 2
    counted = (flow.weight > 0).expand_as(target)
    torch.testing.assert_close(target[counted], flow.velocity[counted], atol=1e-4, rtol=1e-4)
    # What is given stays as it is: whole clean chunks, or a first frame.
    before, after = exact.inputs
    assert torch.equal(before[~counted], after[~counted]) and not counted.all()
    assert not torch.equal(before[counted], after[counted])


def test_times_are_steps_of_the_samplers_grid(method: ShortcutMethod) -> None:
    layout = Layout(num_clean=1, ages=(1, 0), aligned=False, window=2)
    config = dataclasses.replace(method.config, num_steps=4)
    pairs = {
        (call.times[1:], call.next_times[1:])
        if len(call.times) > 2
        else (call.times, call.next_times)
        for call in plan_calls(config, num_chunks=3, num_prefix_chunks=1)
        if call.chunks == (1, 2)
    }
    start, middle, end = method._draw_times(layout, 64, 4, torch.Generator().manual_seed(0))
    drawn = {
        (tuple(a), tuple(b))
        for a, b in zip(start[:, 1:].tolist(), end[:, 1:].tolist(), strict=True)
    }
    assert len(drawn) == len(pairs) == 2
    for (a, b), (c, d) in zip(sorted(drawn), sorted(pairs), strict=True):
        np.testing.assert_allclose((*a, *b), (*c, *d), atol=1e-6)
    assert (start[:, 1:] < middle[:, 1:]).all() and (middle[:, 1:] < end[:, 1:]).all()
    assert (start[:, 0] >= 0.95).all() and torch.equal(start[:, 0], end[:, 0])


@torch.no_grad()
def test_the_guided_target_is_the_samplers_velocity(method: ShortcutMethod) -> None:
    """Once the engine holds the clean chunk's keys, both say the same."""
    config, width = method.config, 6
    plan = list(plan_calls(config, num_chunks=3, num_prefix_chunks=1))
    call = next(c for c in plan if c.chunks == (1, 2) and c.clean_chunk is None)
    layout = Layout(num_clean=1, ages=(1, 0), aligned=True, window=2)
    batch = _pieces(method, layout)
    times = torch.tensor([[config.clean_t, *call.times]])
    generator = torch.Generator().manual_seed(0)
    flow = corrupt(
        batch["latent"][:1], batch["given"][:1], layout=layout,
        shares=FlowShares(i2v=0.0, drop=0.0), generator=generator, device=torch.device("cpu"),
        times=times,
    )  # fmt: skip
    text = method.captions(batch["captions"][:1], flow, null=method.teacher.null_caption)
    ours = method.guided(flow, text)
    null = null_rows(flow, method.teacher.null_caption)
    kept = method.teacher(
        flow.x[:, :, :width], times[:, :1], null[0][:, :1], kv_range=[(0, 1)],
        caption_dropout=True, keep_chunks=1,
    ).key_values  # fmt: skip
    rows = tuple(t[m] for t, m in zip(text[0][0, 1:], text[1][0, 1:], strict=True))
    inputs = CallInputs(flow.x[:, :, width:], times[:, 1:], call.ranges, rows, null[0][0, 0], kept)
    theirs, _ = guided_velocity(
        method.teacher, call, inputs=inputs, runtime=GuidanceRuntime(skip_zero_weights=False)
    )
    assert {w for pair in call.weights for w in pair} - {1.0}  # guided in both ways
    torch.testing.assert_close(ours[:, :, width:], theirs, atol=1e-4, rtol=1e-4)


def test_the_student_starts_as_the_teacher_and_leaves_it_alone(method: ShortcutMethod) -> None:
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    assert method.student.config.enable_distillation
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, before[name])
    stream = method.batches
    for step in range(3):
        losses = method.train_step(stream[step], step)
        losses["loss"].backward()
        for optimizer in method.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    assert all(p.grad is None for p in method.target.parameters())
    moved = method.student.proj_out.weight - before["proj_out.weight"]
    followed = method.target.proj_out.weight - before["proj_out.weight"]
    assert 0 < followed.abs().max() < 0.1 * moved.abs().max()


def test_parts_add_up_to_the_whole(method: ShortcutMethod) -> None:
    batch = method.batches[0]
    nn.init.normal_(method.student.proj_out.weight)
    before = method.target.proj_out.weight.clone()
    whole = method.train_step(batch, 2)["loss"]
    once = method.target.proj_out.weight.clone()
    parts = []
    for index in range(2):
        method.part = Part(index=index, count=2)
        parts.append(method.train_step(batch, 2)["loss"])
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert not torch.equal(once, before)
    assert torch.equal(method.target.proj_out.weight, once)  # followed once per step


def test_every_number_of_steps_has_its_turn(method: ShortcutMethod) -> None:
    names = [
        next(n for n in method.train_step(method.batches[step], step) if n != "loss")
        for step in range(4)
    ]
    assert names == ["loss_8", "loss_8", "loss_4", "loss_2"]


def test_a_resumed_run_ends_with_the_same_bits(distil: ToyboxDistillRecipe, tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> dict[str, Tensor]:
        config = dataclasses.replace(distil.trainer, max_steps=steps)
        built, stream = dataclasses.replace(distil, trainer=config).build()
        Trainer(built, stream, config=config, out=tmp_path / folder, quiet=True).fit(resume=True)
        return {
            f"{n}.{k}": v for n in built.networks for k, v in built.networks[n].state_dict().items()
        }

    whole = run("whole", 6)
    run("broken", 3)
    resumed = run("broken", 6)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_export_samples_in_few_steps(method: ShortcutMethod, tmp_path: Path) -> None:
    method.export(tmp_path / "student")
    pipe = Magi1Pipeline.from_pretrained(tmp_path / "student")
    assert pipe.transformer.config.enable_distillation and pipe.sampling["distilled"]
    assert pipe.sampling["num_steps"] == 4 and pipe.sampling["window_size"] == 2
    calls: list[dict[str, Any]] = []
    forward = Magi1Transformer3DModel.forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(options)
        return forward(self, *args, **options)

    pipe.transformer.forward = counting.__get__(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    video = pipe("a red disc falls", num_frames=24, generator=torch.Generator().manual_seed(0))
    assert video.frames.shape == (1, 24, 32, 32, 3)
    assert [call["step_size"] for call in calls] == [
        2.0
    ] * 4  # one pass each, the step's length told


def test_validation_measures_both(method: ShortcutMethod) -> None:
    gaps = method.validate(0)
    assert set(gaps) == {"gap_4", "euler_gap_4", "gap_2", "euler_gap_2"}
    assert 0 < gaps["euler_gap_4"] < gaps["euler_gap_2"]
    assert method.validate(1) == gaps


def test_a_distilled_teacher_is_refused(
    method: ShortcutMethod, distil: ToyboxDistillRecipe, tmp_path: Path
) -> None:
    method.export(tmp_path / "student")
    wrong = dataclasses.replace(distil, teacher=str(tmp_path / "student"))
    with pytest.raises(ConfigError, match="expected base weights, got distilled"):
        ShortcutMethod(wrong, LatentCache(distil.cache))


def test_steps_must_fit_the_window(distil: ToyboxDistillRecipe) -> None:
    wrong = dataclasses.replace(distil, shorter=(4, 2, 1))
    with pytest.raises(ConfigError, match="multiple of window_size 2"):
        ShortcutMethod(wrong, LatentCache(distil.cache))
