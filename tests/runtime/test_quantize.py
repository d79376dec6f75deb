"""Weights in few bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onereel.core.errors import ConfigError
from onereel.runtime.quantize import LEVELS, QuantizedLinear, packed_tensors, quantize

STORED = ("int8", "int4", "fp8")
# Largest error of a number, as a share of the largest one that shares its scale.
ERRORS = {"int8": 0.5 / 127, "int4": 0.5 / 7, "fp8": 1 / 16}


def linear(*, rows: int = 5, columns: int = 64, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(columns, rows, bias=bias)


@pytest.mark.parametrize("level", STORED)
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_restored_within_half_a_level(level: str, bias: bool) -> None:
    plain = linear(bias=bias)
    layer = QuantizedLinear.of(plain, level)
    width = 32 if level == "int4" else 64
    largest = plain.weight.unflatten(1, (-1, width)).abs().amax(2).repeat_interleave(width, 1)
    error = (layer.weight - plain.weight).detach().abs()
    assert bool((error <= ERRORS[level] * largest * 1.02).all())
    assert error.max().item() > 0
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    want = nn.functional.linear(x, layer.weight, plain.bias)
    torch.testing.assert_close(layer(x), want)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_int8_rows_use_all_levels_and_zeros_stay_zeros() -> None:
    plain = linear()
    plain.weight.data[2] = 0
    for level in STORED:
        layer = QuantizedLinear.of(plain, level)
        assert layer.weight[2].count_nonzero() == 0
        assert bool(layer(torch.ones(1, 64)).isfinite().all())
    packed = QuantizedLinear.of(linear(), "int8").packed
    assert packed.dtype == torch.int8 and packed.abs().amax(dim=1).tolist() == [127] * 5


def test_fused_and_split_projections_round_alike() -> None:
    fused = linear(rows=6)
    whole = QuantizedLinear.of(fused, "int8")
    for rows in (slice(0, 2), slice(2, 6)):
        part = nn.Linear(64, 1)
        part.weight, part.bias = nn.Parameter(fused.weight[rows]), nn.Parameter(fused.bias[rows])
        assert torch.equal(QuantizedLinear.of(part, "int8").packed, whole.packed[rows])


def sizes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("level", "share"), [("int8", 0.27), ("fp8", 0.27), ("int4", 0.15)]
)  # of float32, with scales
def test_only_linear_layers_change_and_memory_shrinks(level: str, share: float) -> None:
    model = nn.Sequential(nn.Linear(512, 64), nn.Sequential(nn.Linear(512, 9)), nn.Conv1d(1, 1, 1))
    model.append(nn.Linear(30, 2))
    before = sizes(model)
    assert quantize(model, level) == (2 if level == "int4" else 3)
    assert sizes(model) < share * before and isinstance(model[2], nn.Conv1d)
    assert {"0.packed", "0.scale", "0.bias"} <= model.state_dict().keys()
    assert quantize(model, level) == 0


@pytest.mark.parametrize("level", STORED)
def test_weights_are_rounded_as_they_are_loaded_and_outlast_casts(level: str) -> None:
    plain = nn.Sequential(linear(), nn.LayerNorm(5))
    direct = nn.Sequential(QuantizedLinear.of(plain[0], level), plain[1])
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(64, 5), nn.LayerNorm(5))
    quantize(empty, level)
    state = dict(packed_tensors(empty, iter(plain.state_dict().items())))
    assert state.keys() == empty.state_dict().keys()
    loaded = empty.to_empty(device="cpu")
    loaded.load_state_dict(state)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(x), direct(x))
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    loaded.to(torch.bfloat16)
    for name in ("0.packed", "0.scale"):
        after = loaded.state_dict()[name]
        assert after.dtype == before[name].dtype
        assert torch.equal(after.view(torch.uint8), before[name].view(torch.uint8))
    assert loaded[0].bias.dtype == torch.bfloat16


def test_layers_that_compute_in_float32_stay() -> None:
    class Net(nn.Module):
        _keep_in_fp32_modules = ("clock",)

        def __init__(self) -> None:
            super().__init__()
            self.clock = nn.Sequential(nn.Linear(64, 64))
            self.body = nn.Linear(64, 64)

    net = Net()
    assert quantize(net, "int8") == 1 and type(net.clock[0]) is nn.Linear


def test_inputs_are_rounded_too_with_torchao() -> None:
    pytest.importorskip("torchao")
    model = nn.Sequential(linear(rows=64), linear(rows=64))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    before = model(x)
    assert quantize(model, "int8-dynamic") == 2
    error = (model(x) - before).norm() / before.norm()
    assert 0 < error.item() < 0.05


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean int8"):
        quantize(nn.Linear(2, 2), "int9")
    assert len(LEVELS) == 4
