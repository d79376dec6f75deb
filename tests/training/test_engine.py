"""The loop: exact resume, schedules, averaged weights, skipped steps, signals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.nn import attention
from onereel.training.engine import Method, Trainer, TrainerConfig, step_generator
from onereel.training.optim import build_optimizers


class _Numbers:
    """A stream whose batch i depends on i only."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def batches(self, start: int) -> Iterator[Tensor]:
        while True:
            generator = torch.Generator().manual_seed(start)
            batch = torch.randn(8, 12, generator=generator)
            yield batch * float("nan") if start == self.bad else batch
            start += 1


class _Fit(Method):
    """A small network with block matrices, norms and global randomness (dropout)."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        blocks = [nn.Linear(12, 12), nn.LayerNorm(12), nn.Dropout(0.1), nn.Linear(12, 12)]
        self.network = nn.Sequential(*blocks)
        self.networks = {"net": self.network}
        self.ema_names = ("net",)
        self.optimizers = build_optimizers(self.network, lr=1e-2, matrix_lr=1e-2, name="net")
        self.seen: list[int] = []
        self.at_step: dict[int, object] = {}

    def train_step(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        if step in self.at_step:
            self.at_step[step]()  # type: ignore[operator]
        self.seen.append(step)
        noise = torch.randn(batch.shape, generator=step_generator(1, step)) * 0.1
        return {"loss": (self.network(batch + noise) - batch.flip(1)).square().mean()}

    def validate(self, step: int) -> dict[str, float]:
        assert not self.network.training
        return {"weight": float(self.network[0].weight.sum())}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.network.state_dict(), folder / "weights.pt")


def _config(**changes: object) -> TrainerConfig:
    values = {"max_steps": 20, "schedule": "constant", "warmup_steps": 3, "log_every": 5}
    return TrainerConfig(**(values | changes))  # type: ignore[arg-type]


def _trainer(method: Method, out: Path, bad: int | None = None, **changes: object) -> Trainer:
    return Trainer(method, _Numbers(bad), config=_config(**changes), out=out, quiet=True)


def test_resume_is_bitwise(tmp_path: Path) -> None:
    whole = _Fit()
    straight = _trainer(whole, tmp_path / "a")
    straight.fit()
    first = _Fit()
    _trainer(first, tmp_path / "b", max_steps=10).fit()
    second = _Fit()
    torch.manual_seed(99)
    resumed = _trainer(second, tmp_path / "b")
    result = resumed.fit(resume=True)
    assert result.reason == "steps" and second.seen == list(range(10, 20))
    for left, right in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(left, right)
    for name, value in straight.ema["net"].shadow.items():
        assert torch.equal(value, resumed.ema["net"].shadow[name])
    assert resumed.progress.samples == straight.progress.samples == 160


def test_without_resume_a_used_folder_is_refused(tmp_path: Path) -> None:
    _trainer(_Fit(), tmp_path, max_steps=1).fit()
    with pytest.raises(ConfigError, match="--resume"):
        _trainer(_Fit(), tmp_path).fit()


def test_broken_step_is_skipped_and_counted(tmp_path: Path) -> None:
    method = _Fit()
    result = _trainer(method, tmp_path, bad=4).fit()
    assert result.progress.skipped == 1 and result.progress.step == 20
    assert all(torch.isfinite(p).all() for p in method.network.parameters())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped"] == 1 and {"loss", "lr", "eta_s"} <= set(lines[0])


def test_weights_that_a_step_gathered_are_let_go_before_it_acts(tmp_path: Path) -> None:
    """A sharded network that was asked without a gradient would keep whole, stale weights."""
    method = _Fit()
    trainer = _trainer(method, tmp_path)
    before, seen = method.network[0].weight.clone(), []
    trainer.spread.reshard = lambda: seen.append(  # type: ignore[method-assign]
        torch.equal(method.network[0].weight, before)
    )
    trainer.train_batch(next(_Numbers().batches(0)))
    assert seen == [True] and not torch.equal(method.network[0].weight, before)


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    _trainer(_Fit(), tmp_path, checkpoint_minutes=0.0, keep=2).fit()
    found = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-00000019.pt", "step-00000020.pt"]


def test_export_and_validation_use_averaged_weights(tmp_path: Path) -> None:
    method = _Fit()
    trainer = _trainer(method, tmp_path)
    result = trainer.fit()
    exported = torch.load(tmp_path / "export" / "weights.pt", weights_only=True)
    shadow = trainer.ema["net"].shadow
    assert torch.equal(exported["0.weight"], shadow["0.weight"])
    assert not torch.equal(method.network[0].weight, shadow["0.weight"])
    assert result.metrics["weight"] == pytest.approx(float(shadow["0.weight"].sum()))


def test_time_schedule_falls_with_the_clock_and_ends_the_run(tmp_path: Path) -> None:
    trainer = _trainer(
        _Fit(), tmp_path, max_steps=None, max_minutes=0.01, schedule="time", warmup_steps=0,
        log_every=1,
    )  # fmt: skip
    assert trainer.fit().reason == "time"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * rates[0]


def test_signal_saves_and_stops(tmp_path: Path) -> None:
    method = _Fit()
    method.at_step = {7: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    result = _trainer(method, tmp_path).fit()
    assert result.reason == "interrupted" and result.progress.step == 8
    assert result.checkpoint is not None and result.checkpoint.name == "step-00000008.pt"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_optimizer_out_of_turn_changes_nothing(tmp_path: Path) -> None:
    method = _Fit()
    before = method.network[1].weight.detach().clone()
    method.turn = lambda step: ("net.muon",)  # type: ignore[method-assign]
    _trainer(method, tmp_path, max_steps=3).fit()
    assert torch.equal(before, method.network[1].weight)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"max_steps": None}, "max_minutes"),
        ({"schedule": "linear"}, "cosine"),
        ({"schedule": "time"}, "max_minutes"),
    ],
)
def test_config_says_what_is_wrong(values: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        _config(**values)


class _Attending(_Fit):
    """Attends within the batch before the small network."""

    def train_step(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        heads = batch.reshape(2, 4, 4, 3)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return super().train_step(mixed.reshape(8, 12).float(), step)


@pytest.mark.parametrize("bf16", [False, True])
def test_steps_in_bfloat16_attend_by_rows_on_a_cpu(
    bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = attention.blocked_attention

    def watched(*args: Tensor, **named: Tensor) -> Tensor:
        calls.append(1)
        return whole(*args, **named)

    monkeypatch.setattr(attention, "blocked_attention", watched)
    _trainer(_Attending(), tmp_path, max_steps=3, bf16=bf16).fit()
    assert len(calls) == (3 if bf16 else 0)


@pytest.mark.parametrize("fast", [False, True])
def test_the_machine_decides_where_nothing_is_said(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onereel.training.engine.computes_bfloat16", lambda device: fast)
    assert _trainer(_Attending(), tmp_path, max_steps=1, bf16=None).bf16 is fast
    assert _trainer(_Attending(), tmp_path, max_steps=1, bf16=not fast).bf16 is not fast
