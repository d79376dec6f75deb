"""What may go wrong in a run: killed processes, full disks, damage, little memory, divergence."""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import team_runs
import torch
from torch import Tensor

from onereel.core.errors import (
    BackendUnavailable,
    CheckpointError,
    ConfigError,
    OneReelError,
    OutOfMemory,
)
from onereel.training import memory
from onereel.training.checkpoint import read_file
from onereel.training.engine import Method, Trainer
from onereel.training.logs import RunLog
from onereel.training.method import Progress


def _trainer(out: Path, *, bad: int = 10**9, callbacks: Any = (), **changes: Any) -> Trainer:
    stream = team_runs.Numbers(bad)
    return Trainer(
        team_runs.Fit(muon=True), stream, config=team_runs.config(**changes), out=out, quiet=True,
        callbacks=callbacks,
    )  # fmt: skip


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def _names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


class _Every:
    """A callback after every step."""

    name, minutes = "hook", 0.0

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_interval(self, step: int, method: Method) -> Mapping[str, float]:
        return self.act(step, method) or {}


def _differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
    """List where two trees of tensors and values differ in any bit."""
    if isinstance(left, Tensor):
        if not torch.equal(left, right):
            yield where
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys()
        for key in left:
            yield from _differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        for number, pair in enumerate(zip(left, right, strict=True)):
            yield from _differences(*pair, f"{where}/{number}")
    elif left != right:
        yield where


def test_a_run_that_is_killed_three_times_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    steps = 60
    context = team_runs.processes()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    exits = []
    # Most of the time a checkpoint is written, so that some die while they write one.
    for out, end in ((broken, 5), (broken, 20), (broken, 35), (broken, 10**9), (whole, 10**9)):
        process = context.Process(target=team_runs.run_until_killed, args=(out, steps, end))
        process.start()
        process.join()
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL] * 3 + [0, 0]
    left, right = (
        read_file(run / "checkpoints" / f"step-{steps:08d}.pt", torch.device("cpu"))
        for run in (whole, broken)
    )
    assert set(_differences(left, right)) == {"/progress/seconds"}
    assert [line["loss"] for line in _lines(broken)] == [line["loss"] for line in _lines(whole)]
    assert _names(broken) == _names(whole)


def test_validation_and_callbacks_leave_no_trace_in_the_random_numbers(tmp_path: Path) -> None:
    ends = []
    for name, callbacks in (("a", ()), ("b", (_Every(lambda *_: {"x": float(torch.rand(()))}),))):
        stream, config = team_runs.Numbers(), team_runs.config()
        method = team_runs.Fit(dropout=0.2)
        Trainer(
            method, stream, config=config, out=tmp_path / name, quiet=True, callbacks=callbacks
        ).fit()
        ends.append(method.network.state_dict())
    assert not list(_differences(*ends))


def test_what_diverges_stops_with_its_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, bad=5, checkpoint_minutes=0.0, max_bad_steps=2)
    with pytest.raises(OneReelError, match=r"not finite 2 times.*step-00000005.pt.*lower lr"):
        trainer.fit()
    assert _names(tmp_path) == ["step-00000004.pt", "step-00000005.pt"]
    assert all(torch.isfinite(p).all() for p in trainer.method.networks["net"].parameters())
    again = _trainer(tmp_path, max_steps=8)
    assert again.fit(resume=True).progress == Progress(
        step=8, samples=48, seconds=again.progress.seconds
    )


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path: Path) -> None:
    with contextlib.ExitStack() as full:

        def act(step: int, method: Method) -> None:
            newest = tmp_path / "checkpoints" / f"step-{step - 1:08d}.pt"
            if step == 4:
                full.enter_context(_largest_file(newest.stat().st_size // 2))
            elif step == 7:
                full.close()

        trainer = _trainer(tmp_path, checkpoint_minutes=0.0, callbacks=[_Every(act)])
        with pytest.warns(UserWarning, match="no checkpoint at step .*the disk is full") as seen:
            trainer.fit()
    assert [str(one.message).split(":")[0][-1] for one in seen] == ["4", "5", "6"]
    assert _names(tmp_path) == ["step-00000007.pt", "step-00000008.pt"]
    events = [line["step"] for line in _lines(tmp_path) if line.get("event") == "checkpoint_failed"]
    assert events == [4, 5, 6]


def test_without_room_for_the_last_checkpoint_the_one_before_stays(tmp_path: Path) -> None:
    _trainer(tmp_path, max_steps=4).fit()
    size = (tmp_path / "checkpoints" / "step-00000004.pt").stat().st_size
    with _largest_file(size // 2), pytest.raises(OutOfMemory, match="the disk is full"):
        _trainer(tmp_path).fit(resume=True)
    assert _names(tmp_path) == ["step-00000004.pt"]
    assert _trainer(tmp_path).fit(resume=True).progress.step == 8


def test_an_export_without_room_does_not_end_the_run(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, checkpoint_minutes=0.0)
    export, calls = trainer.method.export, list[Path]()

    def act(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        export(folder)

    trainer.method.export = act  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="step 2: .*export cannot be written: the disk is full"):
        assert trainer.fit().progress.step == 8
    assert len(calls) == 9


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "step-00000007.part").mkdir(parents=True)
    (folder / "step-00000007.pt.123.tmp").write_bytes(b"half")
    _trainer(tmp_path, max_steps=1).fit()
    assert _names(tmp_path) == ["step-00000001.pt"]


@pytest.mark.parametrize("how", ["cut", "bit"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, how: str) -> None:
    _trainer(tmp_path / "whole", schedule="constant").fit()
    _trainer(tmp_path, max_steps=6, checkpoint_minutes=0.0, schedule="constant").fit()
    newest = tmp_path / "checkpoints" / "step-00000006.pt"
    data = bytearray(newest.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="step-00000006.pt cannot be read.*the one before"):
        _trainer(tmp_path, keep=1, schedule="constant").fit(resume=True)
    assert _names(tmp_path) == ["damaged-step-00000006.pt", "step-00000008.pt"]
    left, right = (
        read_file(run / "checkpoints" / "step-00000008.pt", torch.device("cpu"))
        for run in (tmp_path / "whole", tmp_path)
    )
    assert not list(_differences(left["networks"], right["networks"]))
    (tmp_path / "checkpoints" / "step-00000008.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="step-00000008.pt cannot be read"):
        _trainer(tmp_path).fit(resume=True)


def test_a_run_that_cannot_fit_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**10)
    with pytest.raises(OutOfMemory, match="expected 0.0 MiB of free memory.*got 0.0 MiB"):
        _trainer(tmp_path).fit()
    assert not tmp_path.joinpath("checkpoints").exists()
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    assert _trainer(tmp_path).fit().progress.step == 8


def test_memory_that_runs_out_is_named(tmp_path: Path) -> None:
    callbacks = [_Every(lambda *_: {"x": float(torch.empty(2**60)[0])})]
    with pytest.raises(OutOfMemory, match="training ran out of memory.*accumulate"):
        _trainer(tmp_path, callbacks=callbacks).fit()
    with pytest.raises(OutOfMemory, match="ran out"), memory.memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="something else"), memory.memory_errors():
        raise RuntimeError("something else")


def test_sizes_are_those_of_the_tensors(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    sizes = memory.state_bytes(trainer.method, [ema.shadow for ema in trainer.ema.values()])
    trainer.fit()
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    weights = [p for n in trainer.method.networks.values() for p in n.parameters()]
    states = [
        value
        for optimizer in trainer.method.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.ndim
    ]
    assert sizes["weights"] == sizes["gradients"] == bytes_of(weights)
    assert sizes["optimizers"] == bytes_of(states)
    assert sizes["averages"] == bytes_of(trainer.ema["net"].shadow.values())


def test_callbacks_see_the_averaged_weights_and_may_fail(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def act(step: int, method: Method) -> dict[str, float]:
        if step == 3:
            raise ConfigError("prompt", expected="a better one")
        seen.append((step, float(next(method.networks["net"].parameters()).sum())))
        return {"score": 0.5}

    trainer = _trainer(tmp_path, callbacks=[_Every(act)])
    with pytest.warns(UserWarning, match="hook failed: prompt: expected a better one"):
        trainer.fit()
    assert [step for step, _ in seen] == [1, 2, 4, 5, 6, 7, 8]
    shadow = next(iter(trainer.ema["net"].shadow.values()))
    assert seen[-1][1] == float(shadow.sum())
    events = [line for line in _lines(tmp_path) if line.get("event") == "hook"]
    assert events[0]["score"] == 0.5 and "better" in events[2]["error"]


def test_a_resumed_log_tells_every_step_once(tmp_path: Path) -> None:
    _trainer(tmp_path, max_steps=5).fit()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    _trainer(tmp_path).fit(resume=True)
    assert [line["step"] for line in _lines(tmp_path)] == list(range(1, 9))


def test_tensorboard_is_written_when_asked(tmp_path: Path) -> None:
    _trainer(tmp_path, tensorboard=True, max_steps=2).fit()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data = file.read_bytes()
    assert b"train/loss" in data and b"train/grad_norm" in data


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendUnavailable, match=r"onereel\[train\]"):
        RunLog(tmp_path, quiet=True, tensorboard=True)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"keep": 0}, "keep"),
        ({"sharding": "zero"}, "auto, shard, replicate"),
        ({"activation_checkpointing": True}, "activation_checkpointing"),
    ],
)
def test_settings_say_what_is_wrong(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        _trainer(tmp_path, **changes)
