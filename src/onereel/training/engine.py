"""The training loop, which knows nothing about what is trained.

A *recipe* (a frozen dataclass, see `recipes.py`) builds a *method* and a *stream*; the `Trainer`
runs them. To write a method, subclass `Method`:

    class MyMethod(Method):
        def __init__(self, recipe):
            self.networks = {"dit": dit}                  # saved in every checkpoint
            self.ema_names = ("dit",)                     # averaged; used to validate and export
            self.optimizers = build_optimizers(dit, lr=1e-3, matrix_lr=1e-3)   # name -> optimizer
        def train_step(self, batch, step):                # -> {"loss": scalar, "more": scalar}
            ...                                           # no backward, no optimizer step here
        def validate(self, step): return {"psnr": 31.0}   # optional; runs with the EMA weights in
        def export(self, folder): ...                     # optional; runs with the EMA weights in
        def state_dict(self) / load_state_dict(self, s)   # optional; only what is beside networks
        def turn(self, step): return ("critic",)          # optional; optimizers that act this step

Draw random numbers with `step_generator(seed, step, "tag")` (a CPU generator; the same draw after
a resume on any machine) or from torch's global generator (saved in checkpoints as well).

A stream is any object with `batches(start: int) -> Iterator[batch]`: batch i of the run depends on
i only, so the data position is one number. See `data.BatchStream`.

    config = TrainerConfig(max_minutes=25, schedule="time", bf16=True, checkpoint_minutes=2)
    result = Trainer(method, stream, config=config, out="run").fit(resume=True)
    # run/log.jsonl, run/checkpoints/step-00001200.pt (last two), run/export/ (method.export)
    # result.reason is "steps", "time" or "interrupted" (the command line then exits with 130)

The learning rate of every parameter group is its own `lr` times the schedule's factor, which goes
by the step (`constant`, `cosine`) or by the share of the wall-clock budget used (`time`); time
spent before a resume counts. Steps whose gradient is not finite are skipped and counted.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from onereel.training.ema import Ema
from onereel.training.method import (
    Method,
    Progress,
    Stream,
    TrainerConfig,
    TrainResult,
    count_samples,
    step_generator,
    to_device,
)
from onereel.training.optim import schedule_factor

__all__ = [
    "Method",
    "Progress",
    "Stream",
    "TrainResult",
    "Trainer",
    "TrainerConfig",
    "step_generator",
]


class Trainer:
    """Runs a method on a stream, and writes the log, the checkpoints and the export.

    Args:
        method: what is trained; its networks are moved to the config's device.
        stream: where batches come from.
        config: settings of the loop.
        out: folder of the run; created when missing.
        quiet: no progress lines on stderr.
    """

    def __init__(
        self,
        method: Method,
        stream: Stream,
        *,
        config: TrainerConfig,
        out: str | Path,
        quiet: bool = False,
    ) -> None:
        self.method, self.stream, self.config = method, stream, config
        self.out, self.quiet = Path(out), quiet
        self.device = torch.device(config.device)
        for network in method.networks.values():
            network.to(self.device)
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        decay = config.ema_decay
        names = method.ema_names if decay > 0 else ()
        self.ema = {name: Ema(method.networks[name], decay) for name in names}
        self._base_lr = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in method.optimizers.items()
        }
        self._interrupted = False
        self._checkpoint: Path | None = None

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.out / "checkpoints"

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train until the limit of steps or minutes, or until SIGINT or SIGTERM.

        Args:
            resume: go on from the newest checkpoint in the folder, if there is one.

        Returns:
            How the run ended; a checkpoint has been written and the weights exported.

        Raises:
            ConfigError: the folder has checkpoints and `resume` is False.
        """
        self._prepare(resume)
        seconds_before, started = self.progress.seconds, time.monotonic()
        validated = saved = logged = started
        samples_logged = self.progress.samples
        with _signals(self._interrupt):
            batches = iter(self.stream.batches(self.progress.step))
            while (reason := self._reason()) is None:
                scalars = self._step(next(batches))
                now = time.monotonic()
                self.progress.seconds = seconds_before + now - started
                if self.progress.step % self.config.log_every == 0:
                    rate = (self.progress.samples - samples_logged) / max(now - logged, 1e-9)
                    self._log_step(scalars, rate)
                    logged, samples_logged = now, self.progress.samples
                if now - validated >= self.config.validate_minutes * 60:
                    self.validate()
                    validated = time.monotonic()
                if now - saved >= self.config.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
            self.progress.seconds = seconds_before + time.monotonic() - started
            # The last checkpoint comes before the validation, which may be slow or fail.
            self.save(export=reason == "interrupted")
            if reason != "interrupted":
                self.validate()
                self._export()
        return TrainResult(
            reason=reason,
            progress=self.progress,
            metrics=self.metrics,
            checkpoint=self._checkpoint,
        )

    def validate(self) -> dict[str, float]:
        """Measure the method with the averaged weights in place, and log the result.

        Returns:
            The method's metrics.
        """
        with self.averaged_weights(), torch.no_grad():
            self.metrics = self.method.validate(self.progress.step)
        if self.metrics:
            self._write_log({"event": "validation", **self.metrics})
        return self.metrics

    def save(self, *, export: bool = True) -> Path:
        """Write a checkpoint, and the exported weights beside it.

        Args:
            export: also call the method's export.

        Returns:
            The checkpoint's path.
        """
        state = {
            "networks": {k: v.state_dict() for k, v in self.method.networks.items()},
            "optimizers": {k: v.state_dict() for k, v in self.method.optimizers.items()},
            "ema": {k: v.state_dict() for k, v in self.ema.items()},
            "method": self.method.state_dict(),
            "progress": asdict(self.progress),
            "random": random_state(),
        }
        folder = self.checkpoint_folder
        self._checkpoint = save_checkpoint(
            state, folder, step=self.progress.step, keep=self.config.keep
        )
        if export:
            self._export()
        return self._checkpoint

    def load(self, path: Path) -> None:
        """Go back to a checkpoint.

        Args:
            path: a file that `save` wrote.

        Raises:
            CheckpointError: the file is damaged or belongs to another method.
        """
        parts: dict[str, Mapping[str, Any]] = {
            "networks": self.method.networks,
            "optimizers": self.method.optimizers,
            "ema": self.ema,
        }
        state = load_checkpoint(path, parts, device=self.device)
        for key, part in parts.items():
            for name, item in part.items():
                item.load_state_dict(state[key][name])
        self.method.load_state_dict(state["method"])
        self.progress = Progress(**state["progress"])
        restore_random_state(state["random"])
        self._checkpoint = path

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the networks for the time of a `with` block."""
        with contextlib.ExitStack() as stack:
            for name, ema in self.ema.items():
                stack.enter_context(ema.applied(self.method.networks[name]))
            for network in self.method.networks.values():
                stack.enter_context(_evaluating(network))
            yield

    def _prepare(self, resume: bool) -> None:
        found = latest_checkpoint(self.checkpoint_folder)
        if found is not None and not resume:
            raise ConfigError(
                str(self.out), expected="a folder without checkpoints", hint="use --resume"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(derive_seed(self.config.seed, "run"))
        if found is not None:
            self.load(found)
        self._interrupted = False

    def _interrupt(self) -> None:
        self._interrupted = True

    def _reason(self) -> str | None:
        if self._interrupted:
            return "interrupted"
        steps, minutes = self.config.max_steps, self.config.max_minutes
        if steps is not None and self.progress.step >= steps:
            return "steps"
        if minutes is not None and self.progress.seconds >= minutes * 60:
            return "time"
        return None

    def _factor(self) -> float:
        config, progress = self.config, self.progress
        share = 0.0
        if config.schedule == "time" and config.max_minutes:
            share = progress.seconds / (config.max_minutes * 60)
        elif config.schedule == "cosine" and config.max_steps:
            share = progress.step / config.max_steps
        warmup = min(1.0, (progress.step + 1) / max(1, config.warmup_steps))
        return warmup * schedule_factor(share, hold=config.hold, final=config.final_lr)

    def _step(self, batch: Any) -> dict[str, float]:
        method, step = self.method, self.progress.step
        acting = method.turn(step)
        for network in method.networks.values():
            network.train()
        for optimizer in method.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        batch = to_device(batch, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.bf16):
            losses = method.train_step(batch, step)
        losses["loss"].backward()
        norm = self._clip(acting)
        scalars = {name: float(value.detach()) for name, value in losses.items()}
        if torch.isfinite(norm) and torch.isfinite(losses["loss"].detach()):
            self._update(acting)
        else:
            self.progress.skipped += 1
        self.progress.step += 1
        self.progress.samples += count_samples(batch)
        return scalars | {"grad_norm": float(norm)}

    def _clip(self, acting: tuple[str, ...]) -> Tensor:
        norms = []
        limit = self.config.grad_clip if self.config.grad_clip > 0 else float("inf")
        groups: dict[str, list[nn.Parameter]] = {}
        for name in acting:
            # "generator.matrix" and "generator.other" belong to one network: clip them together.
            parameters = groups.setdefault(name.partition(".")[0], [])
            for group in self.method.optimizers[name].param_groups:
                parameters += [p for p in group["params"] if p.grad is not None]
        for parameters in groups.values():
            norms.append(nn.utils.clip_grad_norm_(parameters, limit))
        return torch.stack(norms).max() if norms else torch.zeros(())

    def _update(self, acting: tuple[str, ...]) -> None:
        factor = self._factor()
        for name in acting:
            optimizer = self.method.optimizers[name]
            for group, base in zip(optimizer.param_groups, self._base_lr[name], strict=True):
                group["lr"] = base * factor
            optimizer.step()
        for name, ema in self.ema.items():
            ema.update(self.method.networks[name])

    def _log_step(self, scalars: Mapping[str, float], rate: float) -> None:
        first = next(iter(self._base_lr.values()))[0]
        entry = {**scalars, "lr": first * self._factor(), "samples_per_s": round(rate, 2)}
        eta = self._eta()
        if eta is not None:
            entry["eta_s"] = round(eta, 1)
        self._write_log(entry)

    def _eta(self) -> float | None:
        """Estimate the seconds left from whichever limit comes first."""
        config, progress = self.config, self.progress
        left = []
        if config.max_minutes is not None:
            left.append(config.max_minutes * 60 - progress.seconds)
        if config.max_steps is not None:
            per_step = progress.seconds / max(1, progress.step)
            left.append((config.max_steps - progress.step) * per_step)
        return max(0.0, min(left)) if left else None

    def _write_log(self, entry: Mapping[str, Any]) -> None:
        line = {
            "step": self.progress.step,
            "seconds": round(self.progress.seconds, 2),
            "skipped": self.progress.skipped,
            **entry,
        }
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if not self.quiet:
            words = [
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
            ]
            sys.stderr.write("  ".join(words) + "\n")
            sys.stderr.flush()

    def _export(self) -> None:
        with self.averaged_weights(), torch.no_grad():
            self.method.export(self.out / "export")


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a call of `stop`; the second acts as usual."""
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread, where signals cannot be caught
        previous.clear()
    try:
        yield
    finally:
        restore()
