"""Optimizers, schedules and averaged weights by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onereel.core.errors import BackendUnavailable
from onereel.training.ema import Ema, warm_decay
from onereel.training.optim import (
    build_optimizers,
    schedule_factor,
    split_parameters,
    step_precision,
)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(16, 32)
        self.table = nn.Embedding(9, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.words = nn.ModuleList([nn.Embedding(64, 32)])
        self.gate = nn.ModuleList([nn.Linear(32, 4)])
        self.frozen = nn.Linear(32, 32).requires_grad_(False)


def test_split_takes_block_matrices_only_and_every_parameter_once() -> None:
    net = _Net()
    matrices, others = split_parameters(net)
    assert [id(m) for m in matrices] == [id(block.weight) for block in net.blocks]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in matrices + others} == {id(p) for p in trained}
    assert len(matrices) + len(others) == len(trained)


def test_muon_gets_the_matrices_and_adamw_the_rest() -> None:
    net = _Net()
    both = build_optimizers(net, lr=1e-3, matrix_lr=2e-3, weight_decay=0.1, name="dit")
    assert isinstance(both["dit.muon"], torch.optim.Muon)
    assert isinstance(both["dit.adamw"], torch.optim.AdamW)
    assert both["dit.adamw"].param_groups[0]["betas"] == (0.9, 0.95)
    alone = build_optimizers(net, lr=1e-3, weight_decay=0.1)
    groups = alone["main.adamw"].param_groups
    assert list(alone) == ["main.adamw"] and [g["weight_decay"] for g in groups] == [0.0, 0.1]


def test_schedule_holds_then_falls_to_the_end() -> None:
    assert schedule_factor(0.3, hold=0.4) == 1.0
    assert schedule_factor(0.7, hold=0.4) == pytest.approx(0.5)
    assert schedule_factor(1.2, hold=0.4, final=0.1) == pytest.approx(0.1)


def test_average_warms_up_and_follows_the_formula() -> None:
    assert warm_decay(0.99, 0) == pytest.approx(0.1) and warm_decay(0.99, 10**6) == 0.99
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    ema = Ema(net, 0.5)
    expected = 0.0
    for update in range(20):
        with torch.no_grad():
            net.weight.fill_(float(update))
        ema.update(net)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert ema.shadow["weight"][0, 0].item() == pytest.approx(expected, rel=1e-5)
    with ema.applied(net):
        assert net.weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert net.weight[0, 0].item() == 19.0


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_steps_in_float32_where_bfloat16_is_slow(
    nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, gradient = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0))

    def step(fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr("onereel.training.optim.computes_bfloat16", lambda device: fast)
        weight = nn.Parameter(start.clone())
        muon = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, nesterov=nesterov)
        weight.grad = gradient.clone()
        with step_precision(weight.device):
            muon.step()
        return start - weight.detach(), muon.state[weight]["momentum_buffer"]

    (rough, kept), (fine, same) = step(True), step(False)
    assert torch.equal(kept, same)  # what is made orthogonal is a copy
    assert 0 < (fine - rough).abs().max() < 0.05 * fine.abs().max()
    # The polynomial leaves singular values between about 0.7 and 1.2, times Muon's factor.
    values = torch.linalg.svdvals(fine / (24 / 16) ** 0.5)
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    assert set(build_optimizers(_Net(), lr=1e-3)) == {"main.adamw"}
    with pytest.raises(BackendUnavailable, match="no Muon.*matrix_lr=none"):
        build_optimizers(_Net(), lr=1e-3, matrix_lr=1e-3)
