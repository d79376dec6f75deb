"""DMD2 for MAGI: a student that makes one chunk in few steps, behind clean chunks that are given.

The formulas are those of `dmd.py`; MAGI's clock runs the other way (t = 1 - sigma, and its velocity
is clean - noise). One chunk is in flight, as the toybox checkpoints sample. The teacher is guided
as its own sampling settings say; the student needs one pass per step. Like the students of the
shortcut distillation it is told how long its step is.

With `own_past` the clean chunks are the student's own: it makes a video's first chunks by itself,
as it will when it is used, and learns in the one behind them what to do about its own mistakes. All
networks are shown that past; no gradient goes into it (Self-Forcing, arXiv 2506.08009).

Not in MAGI-1's report, whose few-step models are distilled by shortcuts (`shortcut.py`).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
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
from onereel.samplers.schedule import step_size, time_grid
from onereel.training.captions import CaptionEncoder
from onereel.training.data import BatchStream
from onereel.training.dmd import per_item, sample_exits
from onereel.training.dmd_critic import Critic
from onereel.training.dmd_method import DmdMethod, DmdRecipe, Question
from onereel.training.ema import follow_teacher, go_on_with
from onereel.training.engine import Method, Stream, step_generator
from onereel.training.flow import FlowBatch, FlowShares, corrupt
from onereel.training.latent_cache import LatentCache, open_caches
from onereel.training.magi import WIDTH, MagiBatches, export_pipeline
from onereel.training.magi_layout import Layout
from onereel.training.shortcut import distilled_copy, guided_teacher, pieces_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagiDmdRecipe(DmdRecipe):
    """Settings of the distillation; those not named here are `DmdRecipe`'s.

    Args:
        teacher: base checkpoint: a folder, or the name of a shipped one.
        t2v_share: share of pieces that start a video rather than continue one.
        i2v_share: share of those whose first latent frame is given.
        own_past: most chunks that the student makes by itself before the one it learns in, in
            pieces that continue a chunk; how many is drawn evenly from 0 on. 0 for true chunks.
        init_teacher: the teacher of which `init` is a student, where `teacher` has gone on learning
            since: the student then begins with what it has learned.
    """

    teacher: str = "toybox-magi"
    cache: str = "runs/toybox-latents"
    t2v_share: float = 0.35
    i2v_share: float = 0.4
    own_past: int = 0
    init_teacher: str = ""

    def __post_init__(self) -> None:
        """Check the numbers."""
        DmdRecipe.__post_init__(self)
        if self.own_past < 0:
            raise ConfigError("own_past", expected="at least 0", got=self.own_past)
        if self.init_teacher and not self.init:
            raise ConfigError("init_teacher", expected="init, a student of it", got="no init")

    def build(self) -> tuple[Method, Stream]:
        """Make student, critic and teacher, and the stream of cached pieces.

        Returns:
            The method and the stream.
        """
        method = MagiDmdMethod(self, open_caches(self.cache))
        return method, BatchStream(method.batches, workers=self.workers)


class NumberedBatches:
    """Batches that know their number, from which what is given is drawn.

    Args:
        batches: the base's.
    """

    def __init__(self, batches: MagiBatches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`."""
        return {**self.batches[index], "number": index}


class MagiDmdMethod(DmdMethod):
    """Distils a MAGI checkpoint.

    Args:
        recipe: settings.
        cache: the latents.
    """

    def __init__(self, recipe: ToyboxMagiDmdRecipe, cache: LatentCache) -> None:
        self.recipe = recipe
        self.device = torch.device(recipe.trainer.device)
        self.pipeline = Magi1Pipeline.from_pretrained(recipe.teacher)
        text_encoder = self.pipeline.text_encoder.float().to(self.device).requires_grad_(False)
        # Not in `networks`, and so in no checkpoint: it is what `teacher` names.
        self.teacher: Magi1Transformer3DModel = self.pipeline.transformer.float().to(self.device)
        self.config = sample_config(self.pipeline.sampling)
        self._check()
        self.captions = CaptionEncoder(self.pipeline.tokenizer, text_encoder)
        student, network = distilled_copy(self.teacher), copy.deepcopy(self.teacher)
        if recipe.init:
            go_on_with(student, _student_of, folders=recipe.init)
        if recipe.init_teacher:
            before = Magi1Pipeline.from_pretrained(recipe.init_teacher).transformer
            follow_teacher(student, before=before, teacher=self.teacher)
        self.teacher.requires_grad_(False)
        base = MagiBatches(pieces_recipe(recipe, self.config), cache)
        self.batches = NumberedBatches(base)
        last = list(range(base.count, len(cache)))
        rng = np.random.default_rng(derive_seed(recipe.trainer.seed, "validation"))
        self._measured = {
            name: base.pieces(last, _layout(clean), rng=rng) | {"number": -1}
            for name, clean in (("start", 0), ("continue", 1))
        }
        super().__init__(
            recipe,
            student=student,
            critic=_critic(network, recipe),
            grid=lambda count: 1 - time_grid(count, shift=self.config.shift),
        )

    def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
        """Show all networks the same text, clean chunks and first frame; ask for the last chunk."""
        made = self._own_chunks(batch)
        if made:
            batch = self._on_own_past(batch, rows, chunks=made, num_steps=num_steps)
        return self._ask(batch, rows, num_steps)

    def _own_chunks(self, batch: Any) -> int:
        """Draw how many chunks the student makes first; none where it is measured."""
        number, most = batch["number"], self.recipe.own_past
        if not most or number < 0 or not batch["layout"].num_clean:
            return 0
        generator = step_generator(self.recipe.trainer.seed, number, tag="own-past")
        return int(torch.randint(0, most + 1, (1,), generator=generator))

    def _on_own_past(
        self, batch: Any, rows: slice, *, chunks: int, num_steps: int
    ) -> dict[str, Any]:
        """Let the student make a video's first chunks, and put the last where the clean one was.

        All but the last chunk of the piece follow its first caption.
        """
        generator = step_generator(self.recipe.trainer.seed, batch["number"], tag="own-noise")
        past = batch["latent"][:, :, :WIDTH].clone()
        sigmas = self.grid(num_steps)
        for number in range(chunks):
            clean = min(number, 1)
            piece = {
                **batch,
                "latent": past.repeat(1, 1, clean + 1, 1, 1),
                "captions": [captions[:1] * (clean + 1) for captions in batch["captions"]],
                "layout": _layout(clean),
            }
            student = self._ask(piece, rows, num_steps).student
            noises = [torch.randn(past.shape, generator=generator) for _ in sigmas[1:]]
            noises = [noise[rows].to(self.device) for noise in noises]
            sampler = self.recipe.student_sampler
            made = sample_exits(student, noises, sigmas=sigmas, sampler=sampler)
            past[rows] = made[-1].to(past)
        latent = torch.cat((past, batch["latent"][:, :, WIDTH:]), dim=2)
        return {**batch, "latent": latent}

    def _ask(self, batch: Any, rows: slice, num_steps: int) -> Question:
        """Make the question of a batch whose clean chunks are what they are."""
        flow = self._flow(batch, rows)
        with torch.no_grad():
            null = self.teacher.null_caption
            text = self.captions(batch["captions"][rows], flow, null=null)
        size, free = step_size(num_steps), flow.weight[:, :, -WIDTH:] > 0
        told = dataclasses.replace(flow, caption_dropout=torch.zeros_like(flow.caption_dropout))
        clean = torch.zeros_like(flow.caption_dropout)
        clean[:, : flow.layout.num_clean] = True
        asked = dataclasses.replace(flow, caption_dropout=clean)

        def student(x: Tensor, sigma: Tensor, *, size: float = size) -> Tensor:
            velocity = _put(told, x, sigma).predict(self.student, text, step_size=size)
            return _taken(flow, velocity, x, sigma)

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            noisy = _put(flow, x, sigma)
            velocity = guided_teacher(self.teacher, noisy, text=text, config=self.config)
            return _taken(flow, velocity, x, sigma)

        def guidance(x: Tensor, sigma: Tensor) -> Tensor:
            noisy = _put(flow, x, sigma)
            velocity = guided_teacher(
                self.teacher, noisy, text=text, config=self.config, added=True
            )
            return torch.where(free, -velocity[:, :, -WIDTH:], 0.0)

        def judge(x: Tensor, sigma: Tensor, exit_step: int) -> tuple[Tensor, Tensor | None]:
            noisy = _put(asked, x, sigma)
            velocity, logit = self.critic(lambda net: noisy.predict(net, text), exit_step)
            return _taken(flow, velocity, x, sigma), logit

        chunk = batch["latent"][rows, :, -WIDTH:].to(self.device)
        return Question(
            clean=torch.where(free, chunk, flow.x[:, :, -WIDTH:]),
            student=student,
            teacher=teacher,
            guidance=guidance,
            critic=judge,
            finer=partial(student, size=step_size(2 * num_steps)),
        )

    def measured(self) -> dict[str, Any]:
        """Give pieces that start a video, and pieces that continue one."""
        return self._measured

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder that pipelines load, in bfloat16."""
        student = distilled_copy(self.teacher)
        student.load_state_dict(self.best_weights())
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
            transformer=student,
            vae=self.pipeline.vae,
            sampling=sampling,
        )

    def _check(self) -> None:
        """Refuse teachers and grids for which this is not the way they are sampled."""
        teacher = self.recipe.teacher
        if self.teacher.config.enable_distillation:
            raise ConfigError(f"{teacher}: teacher", expected="base weights", got="distilled ones")
        if self.config.window_size != 1:
            got = f"a window of {self.config.window_size}"
            raise ConfigError(f"{teacher}: teacher", expected="one chunk in flight", got=got)
        ways = self.recipe.followed_steps + self.recipe.shortcut_steps
        if 12 in (self.recipe.num_steps, *ways):
            raise ConfigError("num_steps", expected="an even grid", got="12, MAGI's uneven one")

    def _flow(self, batch: Any, rows: slice) -> FlowBatch:
        """Draw which first frames are given, and how noisy clean chunks are, for all items."""
        size, layout = len(batch["latent"]), _layout(batch["layout"].num_clean)
        generator = step_generator(self.recipe.trainer.seed, batch["number"], tag="given")
        times = 0.95 + 0.05 * torch.rand((size, layout.num_chunks), generator=generator)
        flow = corrupt(
            batch["latent"],
            batch["given"],
            layout=layout,
            shares=FlowShares(i2v=self.recipe.i2v_share, drop=0.0),
            generator=generator,
            device=self.device,
            times=times,
        )
        return flow.take(rows)


def _student_of(folder: str) -> Magi1Transformer3DModel:
    """Load a student that is gone on with."""
    student: Magi1Transformer3DModel = Magi1Pipeline.from_pretrained(folder).transformer
    if not student.config.enable_distillation:
        raise ConfigError(f"{folder}: init", expected="distilled weights", got="base ones")
    return student


def _layout(clean: int) -> Layout:
    """One noisy chunk behind some clean ones."""
    return Layout(num_clean=clean, ages=(0,), aligned=True, window=1)


def _put(flow: FlowBatch, x: Tensor, sigma: Tensor) -> FlowBatch:
    """Put a noisy chunk where the last one is; what is given stays."""
    chunk = torch.where(flow.weight[:, :, -WIDTH:] > 0, x, flow.x[:, :, -WIDTH:])
    times = torch.cat((flow.times[:, :-1], 1 - sigma[:, None].to(flow.times)), dim=1)
    latent = torch.cat((flow.x[:, :, :-WIDTH], chunk), dim=2)
    return dataclasses.replace(flow, x=latent, times=times)


def _taken(flow: FlowBatch, velocity: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Take the last chunk's velocity, noise - clean; where frames are given, it leads to them."""
    known = (x - flow.x[:, :, -WIDTH:]) / per_item(sigma, x)
    return torch.where(flow.weight[:, :, -WIDTH:] > 0, -velocity[:, :, -WIDTH:], known)


def _critic(network: Magi1Transformer3DModel, recipe: ToyboxMagiDmdRecipe) -> Critic:
    """Make the critic: told beside the time, judging from the middle on."""
    linear = network.condition_embedder.time_embedder.linear_2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.trainer.seed, "critic"))
        return Critic(
            network,
            conditioning="condition_embedder.time_embedder",
            width=linear.out_features,
            num_exits=recipe.num_steps if recipe.critic_exit_embedding else 0,
            judged=f"blocks.{len(network.blocks) // 2}" if recipe.adversarial else "",
            judged_width=network.proj_out.in_features,
        )
