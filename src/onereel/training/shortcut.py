"""MAGI's distillation: one network for several numbers of steps, with guidance built in.

The student starts as the teacher and is told how long its step is. At the finest grid it learns the
teacher's *guided* velocity, three passes in one; at a coarser grid it learns what two steps of its
own average, each half as long, would do. Legend as in `flow.py`; u is a chunk's place on the way
from noise (0) to clean (1), of which the sampler's grid makes the flow time.

Source: MAGI-1 report (arXiv 2505.13211) section 2.3; Frans et al. (arXiv 2410.12557). The report
does not say learning rate, averaging or batch.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.pipelines.sampling import sample_config
from onereel.samplers.plan import ChunkSampleConfig
from onereel.samplers.schedule import step_size, time_grid
from onereel.training.captions import CaptionEncoder, null_rows
from onereel.training.data import BatchStream
from onereel.training.engine import Method, Stream, TrainerConfig, step_generator
from onereel.training.flow import FlowBatch, FlowShares, corrupt
from onereel.training.latent_cache import LatentCache, open_caches
from onereel.training.magi import MagiBatches, ToyboxMagiRecipe, export_pipeline
from onereel.training.magi_layout import Layout
from onereel.training.optim import build_optimizers


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxDistillRecipe:
    """Settings of the shortcut distillation of a toybox MAGI checkpoint.

    Args:
        teacher: base checkpoint: a folder, or the name of a shipped one.
        cache: folder of the latent cache, or several, separated by commas.
        base_steps: steps per chunk of the finest grid, where the teacher is followed.
        shorter: further numbers of steps, each half of the one before.
        base_repeats: finest-grid batches per batch of each shorter number.
        num_steps: what the export samples with.
        batch_size: pieces of video per step.
        t2v_share: share of pieces that start a video rather than continue one.
        i2v_share: share of those whose first latent frame is given.
        target_decay: of the averaged student, which gives the targets and is exported.
        target_limit: targets are cut to this, in latent units; 0 for no limit. 4, as for image
            models, cuts velocities of bright objects (docs/log.md).
        lr: AdamW's learning rate.
        matrix_lr: Muon's learning rate for the blocks' matrices; None gives them to AdamW.
        workers: background processes that gather batches.
        validation_items: pieces of the fixed validation set, taken from the cache's end.
        trainer: settings of the loop; it needs no averaging of its own.
    """

    teacher: str = "toybox-magi"
    cache: str = "runs/toybox-latents"
    base_steps: int = 64
    shorter: tuple[int, ...] = (32, 16, 8, 4)
    base_repeats: int = 8
    num_steps: int = 8
    batch_size: int = 32
    t2v_share: float = 0.35
    i2v_share: float = 0.4
    target_decay: float = 0.995
    target_limit: float = 0.0
    lr: float = 4e-4
    matrix_lr: float | None = 8e-4
    workers: int = 1
    validation_items: int = 32
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_minutes=30.0,
            schedule="time",
            hold=0.3,
            warmup_steps=50,
            ema_decay=0.0,
            validate_minutes=5.0,
        )
    )

    def __post_init__(self) -> None:
        """Check that every grid halves the one before."""
        grids = (self.base_steps, *self.shorter)
        if any(a != 2 * b for a, b in zip(grids, grids[1:], strict=False)):
            raise ConfigError("shorter", expected="each half of the one before", got=list(grids))
        if self.num_steps not in grids:
            raise ConfigError("num_steps", expected=f"one of {list(grids)}", got=self.num_steps)

    def cycle(self) -> tuple[int, ...]:
        """List the numbers of steps in the order of training: MAGI's has 64 eight times."""
        return (self.base_steps,) * self.base_repeats + self.shorter

    def build(self) -> tuple[Method, Stream]:
        """Make the student, its teacher and optimizers, and the stream of cached pieces.

        Returns:
            The method and the stream.
        """
        cache = open_caches(self.cache)
        method = ShortcutMethod(self, cache)
        return method, BatchStream(method.batches, workers=self.workers)


def shortcut_target(
    first: Tensor, second: Tensor, *, times: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Combine two half steps into the velocity of the whole one.

    Args:
        first: velocity at the start.
        second: velocity at the middle.
        times: start, middle and end, broadcastable; the grid is uneven, so the halves are, too.

    Returns:
        The velocity with which one step gets where the two got.
    """
    start, middle, end = times
    return ((middle - start) * first + (end - middle) * second) / (end - start)


class ShortcutMethod(Method):
    """Distils guidance and step size into a student.

    Args:
        recipe: settings.
        cache: the latents.
    """

    splits = exports_pipeline = True

    def __init__(self, recipe: ToyboxDistillRecipe, cache: LatentCache) -> None:
        self.recipe, self.seed = recipe, recipe.trainer.seed
        self.pipeline = Magi1Pipeline.from_pretrained(recipe.teacher)
        self.pipeline.text_encoder.float()
        self.teacher: Magi1Transformer3DModel = self.pipeline.transformer.float()
        if self.teacher.config.enable_distillation:
            raise ConfigError(
                f"{recipe.teacher}: teacher", expected="base weights", got="distilled ones"
            )
        self.config = sample_config(self.pipeline.sampling)
        for number in recipe.cycle():
            dataclasses.replace(
                self.config, num_steps=number
            )  # refuses what the window does not fit
        self.teacher.requires_grad_(False)
        self.student = distilled_copy(self.teacher)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.captions = CaptionEncoder(
            self.pipeline.tokenizer, self.pipeline.text_encoder.requires_grad_(False)
        )
        # The teacher is in no checkpoint: it is what `teacher` names.
        self.networks = {"student": self.student, "target": self.target}
        self.optimizers = build_optimizers(
            self.student, lr=recipe.lr, matrix_lr=recipe.matrix_lr, name="student"
        )
        self.batches = MagiBatches(pieces_recipe(recipe, self.config), cache)
        self._reference: Tensor | None = None
        self._followed = -1
        last = list(range(self.batches.count, len(cache)))
        rng = np.random.default_rng(derive_seed(self.seed, "validation"))
        # One noisy chunk behind a clean one is in every window.
        alone = Layout(num_clean=1, ages=(0,), aligned=True, window=1)
        self.validation = self.batches.pieces(last, alone, rng=rng)

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the loss of one batch at the cycle's next number of steps."""
        if step != self._followed:  # once per step, of whatever number of parts
            self._follow()
            self._followed = step
        cycle = self.recipe.cycle()
        number = cycle[step % len(cycle)]
        generator = step_generator(self.seed, step)
        times = self._draw_times(batch["layout"], len(batch["latent"]), number, generator)
        flow = corrupt(
            batch["latent"],
            batch["given"],
            layout=batch["layout"],
            shares=FlowShares(i2v=self.recipe.i2v_share, drop=0.0),
            generator=generator,
            device=self.student.device,
            times=times[0],
        )
        rows = self.part.rows(len(flow.x))
        flow, times = flow.take(rows), (times[0][rows], times[1][rows], times[2][rows])
        # Distilled weights never see the null caption's row of the modulation; see guidance.py.
        flow = dataclasses.replace(flow, caption_dropout=torch.zeros_like(flow.caption_dropout))
        with torch.no_grad():
            text = self.captions(batch["captions"][rows], flow, null=self.teacher.null_caption)
            if number == self.recipe.base_steps:
                target = self.guided(flow, text)
            else:
                target = self._two_halves(flow, text, times=times, number=number)
        limit = self.recipe.target_limit
        target = target.clamp(-limit, limit) if limit > 0 else target
        velocity = flow.predict(self.student, text, step_size=step_size(number))
        loss = flow.loss(velocity, target)
        return {"loss": loss, f"loss_{number}": loss.detach()}

    def guided(self, flow: FlowBatch, text: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the teacher's velocity with its guidance.

        Args:
            flow: the corrupted pieces.
            text: rows and visible tokens of every chunk.

        Returns:
            The guided velocity, as `flow.x`; what it says of clean chunks has no meaning.
        """
        return guided_teacher(self.teacher, flow, text=text, config=self.config)

    def validate(self, step: int) -> dict[str, float]:
        """Measure how far few steps end from where the guided teacher's finest grid ends.

        Args:
            step: number of the step.

        Returns:
            Mean squared distances of final latents: `gap_N` of the averaged student, and
            `euler_gap_N` of the teacher with N steps of its own.
        """
        del step
        if self._reference is None:
            self._reference = self._rollout(self.teacher, self.recipe.base_steps)
        gaps = {}
        for number in self.recipe.shorter:
            for name, network in (("gap", self.target), ("euler_gap", self.teacher)):
                reached = self._rollout(network, number)
                gaps[f"{name}_{number}"] = float((reached - self._reference).square().mean())
        return gaps

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder that pipelines load, in bfloat16."""
        sampling = {
            **self.pipeline.sampling,
            "distilled": True,
            "num_steps": self.recipe.num_steps,
            # The mix with a prediction without history is MAGI's; this student did not learn it.
            "near_clean_threshold": 1.0,
        }
        export_pipeline(
            folder,
            tokenizer=self.pipeline.tokenizer,
            text_encoder=self.pipeline.text_encoder,
            transformer=self.target,
            vae=self.pipeline.vae,
            sampling=sampling,
        )

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged student towards the student of the step before."""
        pairs = zip(self.target.parameters(), self.student.parameters(), strict=True)
        for average, value in pairs:
            average.lerp_(value, 1 - self.recipe.target_decay)

    def _draw_times(
        self, layout: Layout, size: int, number: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a step of the window: start, middle and end per chunk, each [B, R]."""
        per_stage = number // layout.window
        phase = torch.randint(per_stage, (size, 1), generator=generator)
        index = torch.tensor([layout.ages]) * per_stage + phase
        coarse, fine = (time_grid(n, shift=self.config.shift) for n in (number, 2 * number))
        clean = 0.95 + 0.05 * torch.rand((size, layout.num_clean), generator=generator)
        start, middle, end = (
            torch.cat((clean, t), dim=1)
            for t in (coarse[index], fine[2 * index + 1], coarse[index + 1])
        )
        return start, middle, end

    def _two_halves(
        self,
        flow: FlowBatch,
        text: tuple[Tensor, Tensor],
        *,
        times: tuple[Tensor, Tensor, Tensor],
        number: int,
    ) -> Tensor:
        """Let the averaged student take two steps of half the length."""
        frames = flow.x.shape[2] // flow.layout.num_chunks
        start, middle, end = (
            t.to(flow.x.device).repeat_interleave(frames, dim=1)[:, None, :, None, None]
            for t in times
        )
        half = step_size(2 * number)
        first = flow.predict(self.target, text, step_size=half)
        # What is given, clean chunks and a first frame, stays as it is.
        moved = flow.x + (middle - start) * first * (flow.weight > 0)
        later = dataclasses.replace(flow, x=moved, times=times[1].to(flow.x.device))
        second = later.predict(self.target, text, step_size=half)
        noisy = end > start
        safe_end = torch.where(noisy, end, start + 1)
        return shortcut_target(first, second, times=(start, middle, safe_end)) * noisy

    @torch.no_grad()
    def _rollout(self, network: Magi1Transformer3DModel, number: int) -> Tensor:
        """Denoise the validation's second chunks from fixed noise; return their latents."""
        batch = self.validation
        size = len(batch["latent"])
        grid = time_grid(number, shift=self.config.shift)
        times = torch.full((size, 2), self.config.clean_t)
        times[:, 1] = grid[0]
        flow = corrupt(
            batch["latent"],
            batch["given"],
            layout=batch["layout"],
            shares=FlowShares(i2v=0.0, drop=0.0),
            generator=step_generator(self.seed, 0, tag="validation"),
            device=self.student.device,
            times=times,
        )
        flow = dataclasses.replace(flow, caption_dropout=torch.zeros_like(flow.caption_dropout))
        text = self.captions(batch["captions"], flow, null=self.teacher.null_caption)
        for now, after in zip(grid, grid[1:], strict=False):
            if network is self.teacher:
                velocity = self.guided(flow, text)
            else:
                velocity = flow.predict(network, text, step_size=step_size(number))
            times = flow.times.clone()
            times[:, 1] = after
            moved = flow.x + (after - now) * velocity * (flow.weight > 0)
            flow = dataclasses.replace(flow, x=moved, times=times)
        return flow.x[:, :, flow.x.shape[2] // 2 :]


def guided_teacher(
    teacher: Magi1Transformer3DModel,
    flow: FlowBatch,
    *,
    text: tuple[Tensor, Tensor],
    config: ChunkSampleConfig,
    added: bool = False,
) -> Tensor:
    """Compute a teacher's velocity with its guidance.

    Args:
        teacher: base weights.
        flow: corrupted pieces.
        text: rows and visible tokens of every chunk.
        config: how the teacher is guided.
        added: give only what guidance adds to the velocity with text and history.

    Returns:
        The guided velocity, as `flow.x`; what it says of clean chunks has no meaning.
    """
    weights = [[config.guidance_weights(t) for t in row] for row in flow.times.tolist()]
    scales = torch.tensor(weights, device=flow.x.device)  # [B, R, 2]
    frames = flow.x.shape[2] // flow.layout.num_chunks
    scales = scales.repeat_interleave(frames, dim=1)[:, None, :, None, None]
    w_prev, w_text = scales.unbind(-1)
    clean = torch.zeros_like(flow.caption_dropout)
    clean[:, : flow.layout.num_clean] = True
    asked = dataclasses.replace(flow, caption_dropout=clean)
    unasked = dataclasses.replace(flow, caption_dropout=torch.ones_like(clean))
    null = null_rows(flow, teacher.null_caption)
    with_prev = unasked.predict(teacher, null)
    velocity = (w_prev - w_text) * with_prev + (w_text - int(added)) * asked.predict(teacher, text)
    if (w_prev[:, :, flow.layout.num_clean * frames :] != 1).any():
        velocity = velocity + (1 - w_prev) * _alone(teacher, unasked, null)
    return velocity


def _alone(
    teacher: Magi1Transformer3DModel, flow: FlowBatch, null: tuple[Tensor, Tensor]
) -> Tensor:
    """Predict every chunk for itself: no history, no text, positions from zero."""
    chunks = flow.layout.num_chunks
    rows = [x.flatten(0, 1)[:, None] for x in (flow.times, *null, flow.caption_dropout)]
    latent = torch.cat(flow.x.chunk(chunks, dim=2), dim=1)
    latent = latent.unflatten(1, (chunks, -1)).flatten(0, 1)
    times, text, mask, dropped = rows
    output: Tensor = teacher(
        latent, times, text, mask, kv_range=[(0, 1)], caption_dropout=dropped
    ).sample
    return torch.cat(output.unflatten(0, (-1, chunks)).unbind(1), dim=2)


def distilled_copy(teacher: Magi1Transformer3DModel) -> Magi1Transformer3DModel:
    """Copy base weights into a network that expects the step size; it has no weights of its own.

    Args:
        teacher: base weights.

    Returns:
        The copy.
    """
    student = Magi1Transformer3DModel.from_config(teacher.config, enable_distillation=True)
    student.load_state_dict(teacher.state_dict())
    return student


def pieces_recipe(recipe: Any, config: ChunkSampleConfig) -> ToyboxMagiRecipe:
    """Say which pieces are drawn: those of the base recipe, without single frames.

    Args:
        recipe: of a distillation.
        config: how the teacher samples.

    Returns:
        A base recipe for `MagiBatches`.
    """
    return ToyboxMagiRecipe(
        cache=recipe.cache,
        image_cache="",
        image_steps=0,
        image_every=0,
        batch_size=recipe.batch_size,
        window=config.window_size,
        t2v_share=recipe.t2v_share,
        validation_items=recipe.validation_items,
        trainer=recipe.trainer,
    )
