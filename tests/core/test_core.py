"""Errors, strict config loading, seeds, devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from onereel.core import errors
from onereel.core.config import check_keys, from_mapping, nearest_name
from onereel.core.device import computes_bfloat16, parse_dtype, pick_device
from onereel.core.seeds import chunk_noise, derive_seed


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    sizes: tuple[int, ...] = (1, 2)
    names: list[str] = field(default_factory=list)


def test_mapping_becomes_a_dataclass() -> None:
    settings = from_mapping(Settings, {"steps": 3, "sizes": [4, 5]}, where="settings")
    assert settings == Settings(steps=3, sizes=(4, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "size": 2}, "settings: unknown key 'size'. hint: did you mean 'sizes'?"),
        ({"steps": 1, "zzz": 2}, "unknown key 'zzz'. hint: known keys: names, sizes, steps"),
        ({}, "settings: missing keys steps"),
        ({"sizes": [1]}, "settings: missing keys steps"),
        (None, "settings: expected a mapping of names to values, got NoneType"),
        ([1, 2], "expected a mapping of names to values, got list"),
    ],
)
def test_mappings_that_do_not_fit(data: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        from_mapping(Settings, data, where="settings")
    assert message in str(caught.value)


def test_nearest_name() -> None:
    assert nearest_name("num_step", ["num_steps", "seed"]) == "num_steps"
    assert nearest_name("qqq", ["num_steps", "seed"]) is None
    check_keys({"seed": 1}, ["seed"], where="here")


def test_messages_say_what_was_expected_what_came_and_how_to_mend_it() -> None:
    full = errors.ConfigError("num_frames", expected="a multiple of 24", got=100, hint="use 96")
    assert str(full) == "num_frames: expected a multiple of 24, got 100. hint: use 96"
    assert full.hint == "use 96"
    assert str(errors.MediaError("clip.mp4", got="no video")) == "clip.mp4: got no video"
    assert str(errors.OutOfMemory("the GPU is full")) == "the GPU is full"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("OneReelError", 1),
        ("ConfigError", 2),
        ("ShapeError", 2),
        ("CheckpointError", 3),
        ("MediaError", 3),
        ("BackendUnavailable", 4),
        ("OutOfMemory", 4),
    ],
)
def test_exit_codes(kind: str, code: int) -> None:
    error = getattr(errors, kind)("thing")
    assert isinstance(error, errors.OneReelError)
    assert error.exit_code == code


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(0) == 2033344993903900207
    assert derive_seed(1234, "chunk", 7) == 1003714520398881853
    assert derive_seed(1, "chunk", 2) != derive_seed(12, "chunk", 2)
    seeds = {derive_seed(seed, "chunk", i) for seed in range(20) for i in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_noise_of_a_chunk_depends_on_seed_and_index_alone() -> None:
    shape = (1, 2, 6, 4, 4)
    noise = chunk_noise(5, 3, shape=shape)
    first = chunk_noise(1234, 7, shape=(3,))
    torch.testing.assert_close(first, torch.tensor([0.0367613, -0.9642289, -1.4634856]))
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert torch.equal(chunk_noise(5, 3, shape=shape), noise)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(chunk_noise(5, 4, shape=shape), noise)
    assert not torch.equal(chunk_noise(6, 3, shape=shape), noise)
    assert (noise.dtype, noise.device.type) == (torch.float32, "cpu")
    many = chunk_noise(0, 0, shape=(1, 16, 6, 32, 32))
    assert abs(many.mean().item()) < 0.01
    assert abs(many.std().item() - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("fp32", torch.float32),
    ],
)
def test_dtype_names(name: str, dtype: torch.dtype) -> None:
    assert parse_dtype(name) == dtype


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"bf16": True, "sve": False}, True),
    ],
)
def test_bfloat16_is_for_those_who_compute_in_it(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_bfloat16(torch.device("cpu")) is expected
    assert not computes_bfloat16(torch.device("meta"))


def test_an_older_torch_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert computes_bfloat16(torch.device("cpu"))


def test_unknown_dtype_and_device() -> None:
    with pytest.raises(errors.ConfigError, match="dtype: expected one of float32, .*got int8"):
        parse_dtype("int8")
    with pytest.raises(errors.ConfigError, match="device: expected auto, cpu, .* got toaster"):
        pick_device("toaster")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_absent_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(errors.BackendUnavailable, match=f"'{name}' is not present.*--device cpu"):
        pick_device(name)


@pytest.mark.parametrize(
    ("present", "best"),
    [({"cuda": True, "mps": True}, "cuda"), ({"mps": True}, "mps"), ({}, "cpu")],
)
def test_best_device(
    monkeypatch: pytest.MonkeyPatch, present: Mapping[str, bool], best: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present.get("cuda", False))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: present.get("mps", False))
    assert pick_device().type == best
    assert pick_device("auto").type == best
    assert pick_device("cpu").type == "cpu"
