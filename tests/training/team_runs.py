"""Runs that tests do in other processes, and alone to compare with.

Every run leaves its losses in its folder's log, and its averaged weights in its export.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onereel.training.distributed import launched
from onereel.training.engine import Method, Stream, Trainer, TrainerConfig, step_generator
from onereel.training.optim import build_optimizers


class Numbers:
    """A stream whose batch i depends on i only; from `bad` on, nothing of it is a number."""

    def __init__(self, bad: int = 10**9) -> None:
        self.bad = bad

    def batches(self, start: int) -> Iterator[Tensor]:
        while True:
            batch = torch.randn(6, 12, generator=torch.Generator().manual_seed(start))
            yield batch if start < self.bad else batch * float("nan")
            start += 1


class Fit(Method):
    """Two networks, of which one begins late; the loss is a weighted mean over the batch."""

    splits = True

    def __init__(self, *, muon: bool = False, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.dropout = dropout
        blocks = [nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3)]
        self.network = nn.Sequential(nn.ModuleDict({"blocks": nn.ModuleList(blocks)}))
        self.network.forward = self._forward  # type: ignore[method-assign]
        self.late = nn.Linear(12, 1)
        self.networks = {"net": self.network, "late": self.late}
        self.ema_names = ("net",)
        rate = 1e-2 if muon else None
        self.optimizers = {
            **build_optimizers(self.network, lr=1e-2, matrix_lr=rate, name="net"),
            **build_optimizers(self.late, lr=1e-2, name="late"),
        }

    def turn(self, step: int) -> tuple[str, ...]:
        return tuple(n for n in self.optimizers if not n.startswith("late") or step >= 4)

    def _forward(self, x: Tensor) -> Tensor:
        for block in self.network[0]["blocks"]:
            x = x + block(x)
        # By torch's global generator, whose state is a part of the run.
        return nn.functional.dropout(x, self.dropout)

    def train_step(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        noise = torch.randn(batch.shape, generator=step_generator(1, step)) * 0.1
        weight = torch.rand(len(batch), generator=step_generator(1, step, tag="weight"))
        rows = self.part.rows(len(batch))
        output = self.network((batch + noise)[rows])
        error = (output - batch[rows].flip(1)).square().mean(1)
        error = error + (self.late(output)[:, 0] - 1).square()
        return {"loss": (error * weight[rows]).sum() / weight.sum()}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.network.state_dict(), folder / "weights.pt")


def config(**changes: Any) -> TrainerConfig:
    values = {"max_steps": 8, "schedule": "cosine", "warmup_steps": 2, "log_every": 1}
    return TrainerConfig(**(values | changes))


def fit(out: Path, *, muon: bool = False, **changes: Any) -> Trainer:
    trainer = Trainer(Fit(muon=muon), Numbers(), config=config(**changes), out=out, quiet=True)
    trainer.fit(resume=True)
    return trainer


def small_recipe(name: str, data: Path, **changes: Any) -> Any:
    """Make a recipe with networks small enough for a test."""
    from onereel.models.magi_dit.presets import DIT_PRESETS
    from onereel.models.magi_vae import VAE_PRESETS
    from onereel.models.text import presets
    from onereel.training.recipes import load_recipe

    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32}
    VAE_PRESETS["tiny"] = {
        **VAE_PRESETS["toybox"], **heads, "num_layers": 1, "height": 32, "width": 32,
    }  # fmt: skip
    DIT_PRESETS["tiny"] = {
        **DIT_PRESETS["toybox"], **heads, "num_layers": 2, "num_kv_heads": 1,
        "cross_attention_dim": 32, "caption_max_length": 64,
    }  # fmt: skip
    text = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    presets.TEXT_PRESETS = {  # type: ignore[misc]
        **presets.TEXT_PRESETS, "tiny": {**presets.TEXT_PRESETS["toybox"], **text},
    }  # fmt: skip
    values = {
        "toybox-vae": {
            "height": 32, "width": 32, "batch_size": 4, "validation_clips": 4, "stats_clips": 8,
        },
        "toybox-magi": {
            "cache": str(data / "clips"), "image_cache": "", "tokenizer": str(data / "tokenizer"),
            "batch_size": 4, "image_batch_size": 4, "image_steps": 1, "image_every": 3,
            "validation_items": 2, "map_block": 0,
        },
    }  # fmt: skip
    recipe = load_recipe(name, {"preset": "tiny", "workers": 0, **values[name]})
    loop = dataclasses.replace(
        recipe.trainer, max_steps=3, max_minutes=None, schedule="constant", log_every=1,
        warmup_steps=1, bf16=False, ema_decay=0.5,
    )  # fmt: skip
    return dataclasses.replace(recipe, trainer=loop, **changes)


def train_recipe(recipe: Any, out: Path, **changes: Any) -> None:
    method: Method
    stream: Stream
    method, stream = recipe.build()
    loop = dataclasses.replace(recipe.trainer, **changes)
    Trainer(method, stream, config=loop, out=out, quiet=True).fit()


def processes() -> Any:
    """Make processes from a server that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["team_runs"])
    before = os.environ.get("PYTHONPATH")
    # The only way by which Python 3.11 tells the server where modules are.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def run_small(out: Path) -> None:
    """Do the runs of small networks; those called `go-on` resume what is there."""
    fit(out / "adamw")
    fit(out / "muon", muon=True)
    fit(out / "adamw-go-on")
    fit(out / "muon-go-on", muon=True)


def run_recipes(out: Path, data: Path) -> None:
    """Do the runs of real recipes: sharded, replicated, sharded."""
    train_recipe(small_recipe("toybox-vae", data, matrix_lr=None), out / "vae")
    for name, rate in (("magi", 3e-3), ("magi-adamw", None)):
        train_recipe(small_recipe("toybox-magi", data, matrix_lr=rate), out / name)


def run_rank(rank: int, count: int, port: int, out: Path, others: Path) -> None:
    """Be one of several processes: what torchrun would set is set here."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in (address | sizes).items()})
    with launched("cpu"):
        # Half a run for one process to go on with, which has left halves for us.
        fit(others / "adamw-go-on", max_steps=5)
        fit(others / "muon-go-on", max_steps=5, muon=True)
        fit(out / "hybrid", replicas=2)
        run_small(out)


def run_until_killed(out: Path, steps: int, end: int) -> None:
    """Train, write a checkpoint after every step, and be killed soon after step `end`."""
    torch.set_num_threads(1)
    threading.Thread(target=_kill, args=(out / "log.jsonl", end), daemon=True).start()
    loop = config(max_steps=steps, checkpoint_minutes=0.0)
    method = Fit(muon=True, dropout=0.1)
    Trainer(method, Numbers(), config=loop, out=out, quiet=True).fit(resume=True)


def _kill(log: Path, end: int) -> None:
    while not log.is_file() or len(log.read_bytes().splitlines()) < end:
        time.sleep(0.001)
    time.sleep(random.Random().uniform(0, 0.01))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with launched("cpu"):
        run_recipes(Path(sys.argv[1]), Path(sys.argv[2]))
