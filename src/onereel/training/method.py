"""What the loop and the things it trains say to each other: methods, streams and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.training.optim import SCHEDULES

SHARDINGS = ("auto", "shard", "replicate")


class Callback(Protocol):
    """Something to do every few minutes, such as making samples; rank 0 does it."""

    @property
    def name(self) -> str:
        """Name of its lines in the log."""
        ...

    @property
    def minutes(self) -> float:
        """Minutes between two calls."""
        ...

    def on_interval(self, step: int, method: Method) -> Mapping[str, float]:
        """Act, with the averaged weights in place; return what shall be logged."""
        ...


class Stream(Protocol):
    """Where batches come from."""

    def batches(self, start: int) -> Iterator[Any]:
        """Yield batch `start`, `start + 1`, ... without end; batch i depends on i only."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which part of every batch a `train_step` shall compute.

    A batch is split over processes and, in each, over the micro-batches of an accumulated step.

    Args:
        index: of the part, from 0.
        count: of the parts.
    """

    index: int = 0
    count: int = 1

    def rows(self, size: int) -> slice:
        """Give the part's items.

        Args:
            size: items of the whole batch.

        Returns:
            Their range; the ranges of all parts are the batch.

        Raises:
            ConfigError: there are fewer items than parts.
        """
        if size < self.count:
            hint = "use a larger batch, fewer processes, or a smaller accumulate"
            raise ConfigError("batch", expected=f"at least {self.count} items", got=size, hint=hint)
        return slice(size * self.index // self.count, size * (self.index + 1) // self.count)


class Method:
    """What is trained and how; see the module's docstring for the contract.

    Args:
        networks: saved in every checkpoint.
        optimizers: by name; those of one prefix before the dot are clipped together.
        ema_names: networks whose average is kept.
        splits: `train_step` obeys `part`, so that several processes can share a batch.
        exports_pipeline: the export is a folder that makes videos.
        part: set by the trainer before every `train_step`; the whole batch elsewhere.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema_names: tuple[str, ...] = ()
    splits: bool = False
    exports_pipeline: bool = False
    part: Part = Part()

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the losses of one batch, without the backward pass.

        Args:
            batch: what the stream yields, moved to the trainer's device.
            step: number of the step, from 0.

        Returns:
            Scalars by name; `loss` is differentiated, the others are logged. Of a `part`, its
            share: what all parts return adds up to the values of the whole batch.
        """
        raise NotImplementedError

    def finish(self, scalars: dict[str, float]) -> dict[str, float]:
        """Turn what the parts add up to into what is logged; nothing to do by default."""
        return scalars

    def turn(self, step: int) -> tuple[str, ...]:
        """Name the optimizers that act in this step; all of them by default."""
        return tuple(self.optimizers)

    def validate(self, step: int) -> dict[str, float]:
        """Measure on fixed data with the averaged weights in place; nothing by default."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the averaged weights in the form users load; nothing by default."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs beside networks, optimizers and random states."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """Settings of the loop.

    Args:
        max_steps: end after this many steps; None for no limit.
        max_minutes: end after this many minutes, those before a resume included; None for none.
        schedule: one of `constant`, `cosine` (by step) and `time` (cosine by wall clock).
        hold: share of the schedule at full rate before it decays.
        warmup_steps: steps of linear warm-up.
        final_lr: factor of the learning rate at the end.
        grad_clip: largest gradient norm per optimizer; 0 for none.
        ema_decay: decay of the averaged weights; 0 turns averaging off.
        bf16: run the method's steps under bfloat16 autocast; None where the device has instructions
            for it, for without them it is slower than float32.
        seed: base seed of the run.
        device: torch device name.
        log_every: steps between log lines.
        validate_minutes: minutes between validations.
        checkpoint_minutes: minutes between checkpoints.
        keep: number of checkpoints kept.
        accumulate: micro-batches of a step; less memory, the same gradients.
        activation_checkpointing: compute activations twice rather than keep them.
        sharding: over several processes: `shard` (FSDP2), `replicate`, or `auto`: `shard` unless an
            optimizer needs whole matrices (Muon).
        replicas: groups of processes that each hold all shards (HSDP); 1 shards over all.
        max_bad_steps: stop after so many skipped steps in a row.
        tensorboard: write TensorBoard files into the run's folder as well.
        sample_minutes: minutes between sheets of samples, of recipes that make videos; 0 for none.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    schedule: str = "constant"
    hold: float = 0.0
    warmup_steps: int = 0
    final_lr: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    bf16: bool | None = False
    seed: int = 0
    device: str = "cpu"
    log_every: int = 20
    validate_minutes: float = 5.0
    checkpoint_minutes: float = 2.0
    keep: int = 2
    accumulate: int = 1
    activation_checkpointing: bool = False
    sharding: str = "auto"
    replicas: int = 1
    max_bad_steps: int = 10
    tensorboard: bool = False
    sample_minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("keep", "accumulate", "replicas", "max_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(name, expected="at least 1", got=getattr(self, name))
        if self.sharding not in SHARDINGS:
            expected = f"one of {', '.join(SHARDINGS)}"
            raise ConfigError("sharding", expected=expected, got=self.sharding)
        if self.max_steps is None and self.max_minutes is None:
            raise ConfigError("max_steps", expected="max_steps or max_minutes to be set")
        if self.schedule not in SCHEDULES:
            expected = f"one of {', '.join(SCHEDULES)}"
            raise ConfigError("schedule", expected=expected, got=self.schedule)
        if self.schedule == "time" and self.max_minutes is None:
            raise ConfigError("schedule 'time'", expected="max_minutes to be set")
        if self.schedule == "cosine" and self.max_steps is None:
            raise ConfigError("schedule 'cosine'", expected="max_steps to be set")


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands; saved in every checkpoint.

    Args:
        step: steps done, skipped ones included; also the index of the next batch.
        seconds: wall-clock seconds spent, resumes included.
        samples: samples seen.
        skipped: steps skipped because the gradient was not finite.
        bad_streak: how many of them in a row, up to now.
    """

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    skipped: int = 0
    bad_streak: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended.

    Args:
        reason: `steps`, `time` or `interrupted`.
        progress: where it stands.
        metrics: the last validation.
        checkpoint: path of the last checkpoint.
    """

    reason: str
    progress: Progress
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None


def step_generator(seed: int, step: int, *, tag: str = "noise") -> torch.Generator:
    """Make the random generator of one step.

    Args:
        seed: the run's seed.
        step: number of the step.
        tag: name of the draw, so that draws are independent.

    Returns:
        A CPU generator that depends on the three values only.
    """
    return torch.Generator("cpu").manual_seed(derive_seed(seed, "train", tag, step))


def count_samples(batch: Any) -> int:
    """Count the samples of a batch: the first dimension of the first tensor found.

    Args:
        batch: a tensor, or a mapping or sequence that holds tensors.

    Returns:
        The number of samples, 1 when there is no tensor.
    """
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return 1
    for value in values:
        if isinstance(value, Tensor):
            return count_samples(value)
    return 1


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch to a device.

    Args:
        batch: tensors in mappings, lists or tuples; other values pass unchanged.
        device: the target.

    Returns:
        The batch of the same structure.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
