"""Weights in 8 bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onereel.runtime.int8 import Int8Linear, quantize_int8


def linear(*, rows: int = 5, columns: int = 7, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(columns, rows, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_restored_within_half_a_level(bias: bool) -> None:
    plain = linear(bias=bias)
    layer = Int8Linear(plain)
    assert layer.weight.dtype == torch.int8
    restored = layer.weight * layer.weight_scale
    assert bool(((restored - plain.weight).abs() <= layer.weight_scale / 2 + 1e-7).all())
    assert layer.weight.abs().amax(dim=1).tolist() == [127] * 5
    x = torch.randn(2, 3, 7)
    want = nn.functional.linear(x, restored, plain.bias)
    torch.testing.assert_close(layer(x), want)


def test_rows_of_zeros_stay_zeros() -> None:
    plain = linear()
    plain.weight.data[2] = 0
    layer = Int8Linear(plain)
    assert layer.weight[2].count_nonzero() == 0
    assert bool(layer(torch.ones(1, 7)).isfinite().all())


def test_fused_and_split_projections_round_alike() -> None:
    fused = linear(rows=6)
    whole = Int8Linear(fused)
    for rows in (slice(0, 2), slice(2, 6)):
        part = nn.Linear(7, 1)
        part.weight, part.bias = nn.Parameter(fused.weight[rows]), nn.Parameter(fused.bias[rows])
        assert torch.equal(Int8Linear(part).weight, whole.weight[rows])


def test_the_inputs_dtype_is_followed() -> None:
    layer = Int8Linear(linear())
    assert layer(torch.ones(1, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_linear_layers_change_and_memory_shrinks() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64)), nn.Conv1d(1, 1, 1))

    def size() -> int:
        state = model.state_dict().values()
        return sum(tensor.nbytes for tensor in state)

    before = size()
    assert quantize_int8(model) == 2
    assert size() < 0.3 * before
    assert isinstance(model[2], nn.Conv1d)
    names = {"0.weight", "0.weight_scale", "0.bias"}
    assert names <= model.state_dict().keys()
    assert quantize_int8(model) == 0
