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
spent before a resume counts. Steps whose gradient is not finite are skipped and counted; too many
in a row end the run. A resumed run of one process is the unbroken one to the bit on the same
machine, unless its schedule is `time`: no two runs see the same clock.

Several processes share every batch (`distributed.py`), and a process may go through its share in
micro-batches (`accumulate`). A method that supports this says `splits = True`, draws random numbers
for the whole batch, and returns the share of the losses that belongs to `self.part`:

    rows = self.part.rows(len(batch))                     # all of them when there is one part
    noise = torch.randn(shape_of_all, generator=step_generator(seed, step))[rows]
    return {"loss": (weight[rows] * error(batch[rows], noise)).sum() / weight.sum()}
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onereel.core.allocator import keep_freed_memory
from onereel.core.device import computes_bfloat16
from onereel.core.errors import ConfigError, OneReelError, OutOfMemory
from onereel.core.files import disk_full, is_disk_full
from onereel.core.seeds import derive_seed
from onereel.nn.attention import BlockedAttention
from onereel.training.checkpoint import checkpoints, remove_leftovers, seed_generators
from onereel.training.distributed import Spread, Team, full
from onereel.training.ema import Ema
from onereel.training.logs import RunLog
from onereel.training.loop import (
    Every,
    checkpoint_activations,
    evaluating,
    stop_signals,
    undisturbed,
)
from onereel.training.memory import memory_errors, require_memory
from onereel.training.method import (
    Callback,
    Method,
    Part,
    Progress,
    Stream,
    TrainerConfig,
    TrainResult,
    count_samples,
    step_generator,
    to_device,
)
from onereel.training.optim import schedule_factor, step_precision
from onereel.training.state import Stored, restore_newest

__all__ = [
    "Callback",
    "Method",
    "Part",
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
        method: what is trained; its networks are moved to the config's device, and sharded where
            several processes train.
        stream: where batches come from; the same batches at every process.
        config: settings of the loop.
        out: folder of the run; created when missing.
        quiet: no progress lines on stderr.
        callbacks: called every few minutes.

    Raises:
        ConfigError: the method cannot be trained with these settings.
    """

    def __init__(
        self,
        method: Method,
        stream: Stream,
        *,
        config: TrainerConfig,
        out: str | Path,
        quiet: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.method, self.stream, self.config = method, stream, config
        self.out, self.callbacks = Path(out), tuple(callbacks)
        self.device = torch.device(config.device)
        self.bf16 = computes_bfloat16(self.device) if config.bf16 is None else config.bf16
        if config.activation_checkpointing:
            checkpoint_activations(method)
        self.team = Team.present(self.device)
        self.spread = Spread(method, self.team, config=config)
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        decay = config.ema_decay
        names = method.ema_names if decay > 0 else ()
        self.ema = {name: Ema(method.networks[name], decay) for name in names}
        self._base_lr = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in method.optimizers.items()
        }
        self.log: RunLog | None = None
        if self.team.is_first:
            self.log = RunLog(self.out, quiet=quiet, tensorboard=config.tensorboard)
        # What the forward passes run in; the dry run counts memory there.
        self.around_forward: Callable[[], Any] = contextlib.nullcontext
        self._interrupted = False
        self._started = 0.0
        self._checkpoint: Path | None = None

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.out / "checkpoints"

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train until the limit of steps or minutes, or until SIGINT or SIGTERM.

        Args:
            resume: go on from the newest checkpoint that can be read, if there is one.

        Returns:
            How the run ended; a checkpoint has been written and the weights exported.

        Raises:
            ConfigError: the folder has checkpoints and `resume` is False.
            CheckpointError: no checkpoint can be read, or they belong to another method.
            OutOfMemory: memory does not suffice, or the disk had no room for the last checkpoint.
            OneReelError: too many steps in a row were not finite.
        """
        keep_freed_memory(self.device)
        with memory_errors():
            self._prepare(resume)
            try:
                with stop_signals(self._interrupt):
                    reason = self._run()
                    # The last checkpoint comes before the validation, which may be slow or fail.
                    self.save(export=reason == "interrupted")
                    if reason != "interrupted":
                        self.validate()
                        self._export()
            finally:
                if self.log is not None:
                    self.log.close()
        return TrainResult(
            reason=reason,
            progress=self.progress,
            metrics=self.metrics,
            checkpoint=self._checkpoint,
        )

    def train_batch(self, batch: Any) -> dict[str, float]:
        """Do one step, and count it.

        Args:
            batch: of the stream.

        Returns:
            The method's scalars and the norm of the gradient.

        Raises:
            OneReelError: too many steps in a row were not finite.
        """
        method, step = self.method, self.progress.step
        acting = method.turn(step)
        for network in method.networks.values():
            network.train()
        for optimizer in method.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        scalars = self._differentiate(to_device(batch, self.device), step)
        self.spread.reduce([p for name in acting for p in self._parameters(name)])
        self.spread.reshard()  # networks that were asked, but learned nothing
        norm = float(self._clip(acting))
        self.progress.step += 1
        self.progress.samples += count_samples(batch)
        if _finite(norm, scalars["loss"]):
            self._update(acting, step)
            self.progress.bad_streak = 0
        else:
            self._skip()
        return method.finish(scalars) | {"grad_norm": norm}

    def validate(self) -> dict[str, float]:
        """Measure the method with the averaged weights in place, and log the result.

        Returns:
            The method's metrics.
        """
        with self.averaged_weights(), torch.no_grad(), undisturbed():
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

        Raises:
            OutOfMemory: the disk is full; what was saved before is whole.
        """
        self._checkpoint = self._stored.save(self.checkpoint_folder, keep=self.config.keep)
        if export:
            self._export()
        return self._checkpoint

    def load(self, path: Path) -> None:
        """Go back to a checkpoint.

        Args:
            path: a file or folder that `save` wrote, with any number of processes.

        Raises:
            CheckpointError: it is damaged or belongs to another method.
        """
        self.progress = self._stored.restore(path)
        self._checkpoint = path

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the networks for the time of a `with` block."""
        with contextlib.ExitStack() as stack:
            for name, ema in self.ema.items():
                stack.enter_context(ema.applied(self.method.networks[name]))
            for network in self.method.networks.values():
                stack.enter_context(evaluating(network))
            stack.callback(self.spread.reshard)
            yield

    @property
    def _stored(self) -> Stored:
        return Stored(
            method=self.method,
            ema=self.ema,
            progress=self.progress,
            team=self.team,
            sharded=self.spread.mode == "shard",
        )

    def _prepare(self, resume: bool) -> None:
        if checkpoints(self.checkpoint_folder) and not resume:
            raise ConfigError(
                str(self.out), expected="a folder without checkpoints", hint="use --resume"
            )
        require_memory(self.method, self.device)
        self.team.wait()
        if self.team.is_first:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.checkpoint_folder)
        others = (self.team.rank,) if self.team.rank else ()
        seed_generators(derive_seed(self.config.seed, "run", *others))
        self.team.wait()
        found = restore_newest(self._stored, self.checkpoint_folder)
        if found is not None:
            self._checkpoint, self.progress = found
        if self.log is not None:
            self.log.start(self.progress.step)
        self._interrupted = False

    def _run(self) -> str:
        """Do steps until there is a reason to end."""
        self._started = time.monotonic() - self.progress.seconds
        logged, samples_logged = self.progress.seconds, self.progress.samples
        save, validate = (
            Every(self.config.checkpoint_minutes),
            Every(self.config.validate_minutes),
        )
        calls = [(callback, Every(callback.minutes)) for callback in self.callbacks]
        for timer in (save, validate, *(timer for _, timer in calls)):
            timer.reset(self.progress.seconds)
        batches = iter(self.stream.batches(self.progress.step))
        while (reason := self._reason()) is None:
            scalars = self.train_batch(next(batches))
            self._tick()
            if self.progress.step % self.config.log_every == 0:
                passed = max(self.progress.seconds - logged, 1e-9)
                self._log_step(scalars, (self.progress.samples - samples_logged) / passed)
                logged, samples_logged = self.progress.seconds, self.progress.samples
            if validate.is_due(self.progress.seconds):
                self.validate()
                validate.reset(self._tick())
            for callback, timer in calls:
                if timer.is_due(self.progress.seconds):
                    self._call(callback)
                    timer.reset(self._tick())
            # Weights that have just begun to fail must not push out those that did not.
            if save.is_due(self.progress.seconds) and not self.progress.bad_streak:
                self._save_if_possible()
                save.reset(self._tick())
        return reason

    def _tick(self) -> float:
        """Read the clock, and hear whether any process was told to stop."""
        passed = time.monotonic() - self._started
        seconds, self._interrupted = self.team.agree(passed, stop=self._interrupted)
        self.progress.seconds = seconds
        return seconds

    def _save_if_possible(self) -> None:
        """Save, or go on without when the disk is full: there may be room at the next time."""
        try:
            self.save()
        except OutOfMemory as error:
            warnings.warn(f"no checkpoint at step {self.progress.step}: {error}", stacklevel=2)
            self._write_log({"event": "checkpoint_failed", "error": str(error)})

    def _call(self, callback: Callback) -> None:
        """Call a callback at the first process, with whole averaged weights."""
        values: Mapping[str, Any] = {}
        with self.averaged_weights(), torch.no_grad(), undisturbed():
            with self.spread.gathered() as acting:
                if acting:
                    try:
                        values = callback.on_interval(self.progress.step, self.method)
                    except (OneReelError, OSError) as error:
                        warnings.warn(f"{callback.name} failed: {error}", stacklevel=2)
                        values = {"error": str(error)}
        self._write_log({"event": callback.name, **values})

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

    def _factor(self, step: int) -> float:
        config, progress = self.config, self.progress
        share = 0.0
        if config.schedule == "time" and config.max_minutes:
            share = progress.seconds / (config.max_minutes * 60)
        elif config.schedule == "cosine" and config.max_steps:
            share = step / config.max_steps
        warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return warmup * schedule_factor(share, hold=config.hold, final=config.final_lr)

    def _differentiate(self, batch: Any, step: int) -> dict[str, float]:
        """Run the micro-batches of this process forward and backward; sum scalars over all."""
        method, count = self.method, self.config.accumulate
        totals: dict[str, Tensor] = {}
        for micro in range(count):
            method.part = Part(index=self.team.rank * count + micro, count=self.team.count * count)
            self.spread.reduce_during(last=micro == count - 1)
            with (
                self.around_forward(),
                self._attention(),
                torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16),
            ):
                losses = method.train_step(batch, step)
            (losses["loss"] * self.spread.loss_scale).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double()
        method.part = Part()
        return self.team.add_up(totals)

    def _attention(self) -> contextlib.AbstractContextManager[Any]:
        """Give what computes attention in the steps."""
        blocked = self.bf16 and self.device.type == "cpu"
        # What checkpointing computes again it computes outside of such a mode.
        blocked = blocked and not self.config.activation_checkpointing
        return BlockedAttention() if blocked else contextlib.nullcontext()

    def _parameters(self, name: str) -> list[nn.Parameter]:
        groups = self.method.optimizers[name].param_groups
        return [p for group in groups for p in group["params"]]

    def _clip(self, acting: tuple[str, ...]) -> Tensor:
        norms = []
        limit = self.config.grad_clip if self.config.grad_clip > 0 else float("inf")
        groups: dict[str, list[nn.Parameter]] = {}
        for name in acting:
            # "generator.matrix" and "generator.other" belong to one network: clip them together.
            parameters = groups.setdefault(name.partition(".")[0], [])
            parameters += [p for p in self._parameters(name) if p.grad is not None]
        for parameters in groups.values():
            norms.append(full(nn.utils.clip_grad_norm_(parameters, limit)))
        return torch.stack(norms).max() if norms else torch.zeros(())

    def _update(self, acting: tuple[str, ...], step: int) -> None:
        factor = self._factor(step)
        for name in acting:
            optimizer = self.method.optimizers[name]
            for group, base in zip(optimizer.param_groups, self._base_lr[name], strict=True):
                group["lr"] = base * factor
            with step_precision(self.device):
                optimizer.step()
        for name, ema in self.ema.items():
            ema.update(self.method.networks[name])

    def _skip(self) -> None:
        progress, limit = self.progress, self.config.max_bad_steps
        progress.skipped += 1
        progress.bad_streak += 1
        if progress.bad_streak >= limit:
            saved = "none" if self._checkpoint is None else self._checkpoint.name
            raise OneReelError(
                f"training diverged: loss or gradient was not finite {limit} times in a row, "
                f"up to step {progress.step} (last checkpoint: {saved})",
                hint="go on with --resume and a lower lr or grad_clip, or look at the data",
            )

    def _log_step(self, scalars: Mapping[str, float], rate: float) -> None:
        first = next(iter(self._base_lr.values()))[0]
        factor = self._factor(self.progress.step)
        entry = {**scalars, "lr": first * factor, "samples_per_s": round(rate, 2)}
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
        if self.log is not None:
            self.log.write(self.progress, entry)

    def _export(self) -> None:
        with self.averaged_weights(), torch.no_grad(), undisturbed():
            with self.spread.gathered() as acting:
                if acting:
                    try:
                        self.method.export(self.out / "export")
                    except Exception as error:
                        if is_disk_full(error):
                            raise disk_full(self.out / "export") from error
                        raise


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
