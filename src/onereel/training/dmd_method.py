"""What DMD2 recipes share: optimizers in turn, the losses of a step, measures, the best student.

A recipe's method says what a batch asks of the networks (`DmdMethod.question`); the rest is here.
Every step teaches the critic, every `ratio`-th also the student, on the same samples: one rollout
serves both. All random numbers are drawn for the whole batch from (seed, step), so that every
process agrees on the exit step and the result does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.training.distributed import full
from onereel.training.dmd import (
    Noised,
    Velocity,
    adversarial_loss,
    check_sampler,
    critic_adversarial_loss,
    draw_exit,
    draw_sigmas,
    flow_loss,
    matching_gradient,
    matching_loss,
    mean_velocity,
    sample_exits,
    simulate,
    velocity_error,
)
from onereel.training.dmd_critic import Critic
from onereel.training.engine import Method, TrainerConfig, step_generator
from onereel.training.latent_distance import frechet_distance, latent_features, moment_errors
from onereel.training.optim import build_optimizers

# Noise levels, noisy latents and the exit step to a velocity and, with a head, logits.
Judge = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]


def _trainer() -> TrainerConfig:
    # The average goes by steps, of which every fifth moves the student: 0.99 by its own.
    return TrainerConfig(
        max_steps=6000,
        warmup_steps=20,
        ema_decay=0.998,
        grad_clip=10.0,
        bf16=None,
        validate_minutes=5.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DmdRecipe:
    """Settings that DMD2 recipes share.

    Args:
        teacher: base checkpoint: a folder, or the name of a shipped one. It is in no checkpoint.
        cache: folder of the latent cache, or several, separated by commas.
        num_steps: of the student.
        followed_steps: numbers of steps, `num_steps` or more, at which the student learns to go
            where the guided teacher goes; where there are several, a network should be told how
            long its step is.
        follow_substeps: steps that the teacher takes in one of the student's.
        shortcut_steps: numbers of steps at which it learns to go where two of its own steps of half
            the length go, for networks that are told how long a step is.
        follow_weight: of the loss of both.
        followed_data: what is followed is the clips' own velocity and what guidance adds to the
            teacher's, rather than the teacher's own: the student goes on learning from data, and
            is not held to the teacher's mistakes.
        matching_weight: of the distributions' loss; with 0 there is nothing but following, in every
            step, and the critic rests.
        init: checkpoint of a student to go on with, or several, separated by commas, of which it
            is the mean; empty for one that starts as the teacher.
        student_sampler: `euler`, as pipelines sample, or `renoise`, as DMD2 does.
        ratio: steps of the critic per step of the student.
        critic_warmup: steps of the critic alone, at the start.
        critic_exit_embedding: tell the critic at which step a sample left the student's way.
        score_shift: of the noise levels at which samples are looked at; 1 draws them uniformly.
        gan_weight: of the adversarial loss of the student; with both weights 0 there is no head.
        gan_critic_weight: of that of the critic.
        lr: AdamW's learning rate for the student.
        matrix_lr: Muon's for the matrices of its blocks; None gives them to AdamW.
        betas: AdamW's, of both networks.
        critic_lr: of the critic.
        weight_decay: of matrices.
        batch_size: samples per step.
        teacher_steps: with which the teacher makes what the student is measured against.
        validation_items: samples of each kind that are measured, at least 2.
        keep_best: export the student whose distance was smallest, rather than the last one.
        workers: background processes that gather batches.
        trainer: settings of the loop.
    """

    teacher: str
    cache: str
    num_steps: int = 4
    followed_steps: tuple[int, ...] = ()
    follow_substeps: int = 1
    shortcut_steps: tuple[int, ...] = ()
    follow_weight: float = 1.0
    followed_data: bool = False
    matching_weight: float = 1.0
    init: str = ""
    student_sampler: str = "euler"
    ratio: int = 5
    critic_warmup: int = 200
    critic_exit_embedding: bool = True
    score_shift: float = 1.0
    gan_weight: float = 0.0
    gan_critic_weight: float = 0.0
    lr: float = 1e-4
    matrix_lr: float | None = None
    betas: tuple[float, float] = (0.0, 0.999)
    critic_lr: float = 4e-4
    weight_decay: float = 0.01
    batch_size: int = 32
    teacher_steps: int = 32
    validation_items: int = 64
    keep_best: bool = True
    workers: int = 1
    trainer: TrainerConfig = field(default_factory=_trainer)

    def __post_init__(self) -> None:
        """Check what the formulas need."""
        check_sampler(self.student_sampler)
        least_of = {"num_steps": 1, "ratio": 1, "follow_substeps": 1, "validation_items": 2}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ConfigError(name, expected=f"at least {least}", got=getattr(self, name))
        for name in ("followed_steps", "shortcut_steps"):
            if any(count < self.num_steps for count in getattr(self, name)):
                expected = f"num_steps, {self.num_steps}, or more"
                raise ConfigError(name, expected=expected, got=list(getattr(self, name)))
        for count in self.shortcut_steps:
            if 2 * count not in self.followed_steps + self.shortcut_steps:
                expected = f"numbers whose doubles are learned too, {2 * count} here"
                raise ConfigError("shortcut_steps", expected=expected, got=count)
        if not self.followed_steps and (self.matching_weight <= 0 or self.followed_data):
            expected = "some, where matching_weight is 0 or followed_data is true"
            raise ConfigError("followed_steps", expected=expected, got=[])
        if self.followed_data and self.follow_substeps > 1:
            hint = "clips say where a step of no length goes, and not where several do"
            got = self.follow_substeps
            raise ConfigError(
                "follow_substeps", expected="1 with followed_data", got=got, hint=hint
            )
        if self.gan_weight > 0 and self.gan_critic_weight <= 0:
            hint = "a head that learns nothing has nothing to say"
            raise ConfigError("gan_critic_weight", expected="more than 0", got=0, hint=hint)

    @property
    def adversarial(self) -> bool:
        """Whether the critic has a head."""
        return self.gan_critic_weight > 0

    @property
    def matches(self) -> bool:
        """Whether distributions are matched, for which there is the critic."""
        return self.matching_weight > 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """What one batch asks of the networks: functions of noisy latents and noise levels.

    Args:
        clean: latents of the data [B, ...], of which the samples are to be like.
        student: the student.
        teacher: the guided teacher.
        guidance: what guidance adds to the teacher's velocity.
        critic: the critic, of samples of an exit step.
        finer: the student in steps of half the length; None where it is not told.
        counted: ones where samples are to change, broadcastable; None for everywhere.
    """

    clean: Tensor
    student: Velocity
    teacher: Velocity
    guidance: Velocity
    critic: Judge
    finer: Velocity | None = None
    counted: Tensor | None = None


class DmdMethod(Method):
    """Distils a teacher into a student of few steps.

    Args:
        recipe: settings.
        student: starts as the teacher.
        critic: likewise.
        grid: noise levels [S + 1] of a number of steps S.
    """

    splits = exports_pipeline = True

    def __init__(
        self,
        recipe: Any,
        *,
        student: nn.Module,
        critic: Critic,
        grid: Callable[[int], Tensor],
    ) -> None:
        self.settings: DmdRecipe = recipe
        self.seed = recipe.trainer.seed
        self.student, self.critic = student, critic
        self.grid = grid
        self.networks = {"student": student, "critic": critic}
        self.ema_names = ("student",)
        options: dict[str, Any] = {"weight_decay": recipe.weight_decay, "betas": recipe.betas}
        learner: dict[str, Any] = {"lr": recipe.lr, "matrix_lr": recipe.matrix_lr, **options}
        self.optimizers = {
            **build_optimizers(student, name="student", **learner),
            **build_optimizers(critic, lr=recipe.critic_lr, name="critic", **options),
        }
        self._targets: dict[str, Tensor] = {}
        self._best: tuple[float, dict[str, Tensor]] | None = None

    def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
        """Say what some items of a batch ask.

        Args:
            batch: of the stream.
            rows: which items.
            num_steps: of the student's way.

        Returns:
            The functions.
        """
        raise NotImplementedError

    def measured(self) -> dict[str, Any]:
        """Give fixed batches to measure on, by name; the names are in the log."""
        raise NotImplementedError

    def generates(self, step: int) -> bool:
        """Tell whether the student learns in a step."""
        recipe = self.settings
        if not recipe.matches:
            return True
        # The last of every group, so that lines of the log, which come at its end, show it.
        return step >= recipe.critic_warmup and step % recipe.ratio == recipe.ratio - 1

    def turn(self, step: int) -> tuple[str, ...]:
        """Name the optimizers that act: the critic's, and in some steps the student's."""
        acts = {"critic": self.settings.matches, "student": self.generates(step)}
        return tuple(n for n in self.optimizers if acts[n.partition(".")[0]])

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the critic's loss, and in some steps the student's, on the same samples."""
        size = len(batch["latent"])
        rows = self.part.rows(size)
        recipe = self.settings
        question = self.question(batch, rows, num_steps=recipe.num_steps)
        draws = _Draws(self.seed, step, like=question.clean, size=size, rows=rows)
        losses = self._matching_losses(question, draws) if recipe.matches else {}
        if self.generates(step) and recipe.followed_steps:
            losses["follow"] = self._follow_loss(batch, draws)
        weights = {
            "student": recipe.matching_weight,
            "gan": recipe.gan_weight,
            "critic_gan": recipe.gan_critic_weight,
            "follow": recipe.follow_weight,
        }
        scalars = {name: value.sum() / size for name, value in losses.items()}
        loss = torch.stack([weights.get(n, 1.0) * v for n, v in scalars.items()]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in scalars.items()}}

    def _matching_losses(self, question: Question, draws: _Draws) -> dict[str, Tensor]:
        """Make samples by some of the student's steps; the critic learns, and it, when it does."""
        count, learns = self.settings.num_steps, self.generates(draws.step)
        exit_step = draw_exit(self.seed, draws.step, num_steps=count)
        with torch.set_grad_enabled(learns):
            made = simulate(
                question.student,
                draws.noises(count),
                sigmas=self.grid(count),
                exit_step=exit_step,
                sampler=self.settings.student_sampler,
            )
        losses = self._critic_losses(question, made.detach(), draws, exit_step)
        if learns:
            losses |= self._student_losses(question, made, draws, exit_step)
        return losses

    def _critic_losses(
        self, question: Question, made: Tensor, draws: _Draws, exit_step: int
    ) -> dict[str, Tensor]:
        """Teach the critic what samples look like, and its head to know them from data."""
        at = draws.noised("critic", shift=self.settings.score_shift)
        velocity, _ = question.critic(at.of(made), at.sigma, exit_step)
        losses = {"critic": flow_loss(velocity, made, at=at, counted=question.counted)}
        if self.settings.adversarial:
            # The same step for both, which would give the answer away otherwise.
            at = draws.noised("judge")
            fake, real = (
                question.critic(at.of(x), at.sigma, exit_step)[1] for x in (made, question.clean)
            )
            assert fake is not None and real is not None
            losses["critic_gan"] = critic_adversarial_loss(fake, real)
        return losses

    def _student_losses(
        self, question: Question, made: Tensor, draws: _Draws, exit_step: int
    ) -> dict[str, Tensor]:
        """Lead samples from where the critic sees them to where the teacher does."""
        at = draws.noised("score", shift=self.settings.score_shift)

        def fake(x: Tensor, sigma: Tensor) -> Tensor:
            return question.critic(x, sigma, exit_step)[0]

        gradient = matching_gradient(
            made, real=question.teacher, fake=fake, at=at, counted=question.counted
        )
        losses = {"student": matching_loss(made, gradient)}
        if self.settings.gan_weight > 0:
            judged = draws.noised("gan")

            def logit(x: Tensor) -> Tensor:
                value = question.critic(judged.of(x), judged.sigma, exit_step)[1]
                assert value is not None
                return value

            losses["gan"] = adversarial_loss(made, logit)
        return losses

    def _follow_loss(self, batch: Any, draws: _Draws) -> Tensor:
        """Lead the student through one of its ways; they come in turn."""
        recipe, ways = self.settings, self.ways
        turn = draws.step // recipe.ratio if recipe.matches else draws.step
        count = ways[turn % len(ways)]
        question = self.question(batch, draws.rows, num_steps=count)
        at, index = draws.on_grid("follow", self.grid(count))
        noisy = at.of(question.clean)
        target = self._followed(question, at, index, count=count)
        return velocity_error(question.student(noisy, at.sigma), target, counted=question.counted)

    @torch.no_grad()
    def _followed(self, question: Question, at: Noised, index: Tensor, *, count: int) -> Tensor:
        """Say where the student is to go: its own finer way, the data's, or the teacher's."""
        noisy, recipe = at.of(question.clean), self.settings
        stop = self.grid(count)[index + 1].to(at.sigma)
        if count in recipe.shortcut_steps:
            assert question.finer is not None  # the recipe's family was asked
            middle = self.grid(2 * count)[2 * index + 1].to(at.sigma)
            return mean_velocity(question.finer, noisy, levels=(at.sigma, middle, stop))
        if recipe.followed_data:
            return at.noise - question.clean + question.guidance(noisy, at.sigma)
        shares = torch.linspace(0, 1, recipe.follow_substeps + 1).tolist()
        levels = [at.sigma + (stop - at.sigma) * share for share in shares]
        return mean_velocity(question.teacher, noisy, levels=levels)

    @property
    def ways(self) -> tuple[int, ...]:
        """Numbers of steps of the ways that are followed, the teacher's and the student's own."""
        return self.settings.followed_steps + self.settings.shortcut_steps

    def validate(self, step: int) -> dict[str, float]:
        """Measure every exit of the averaged student against the teacher's many steps.

        Args:
            step: number of the step.

        Returns:
            By kind of batch and exit step (from 1): errors of means and spreads, and the distance
            of random features; of other numbers of steps the last exit's only, as
            `KIND_frechet_16of16`. `frechet` is the last exits', averaged.
        """
        del step
        metrics: dict[str, float] = {}
        last = []
        first = self.settings.num_steps
        others = [n for n in self.ways if n != first]
        for name, batch in self.measured().items():
            wanted = latent_features(self._target(name, batch))
            shown = {str(k): made for k, made in enumerate(self._exits(name, batch, first), 1)}
            shown |= {f"{n}of{n}": self._exits(name, batch, n)[-1] for n in others}
            for label, made in shown.items():
                mean, spread = moment_errors(made, self._targets[name])
                distance = frechet_distance(latent_features(made), wanted)
                for kind, value in (("mean", mean), ("std", spread), ("frechet", distance)):
                    metrics[f"{name}_{kind}_{label}"] = value
            ends = (str(first), *(f"{n}of{n}" for n in others))
            last += [metrics[f"{name}_frechet_{label}"] for label in ends]
        metrics["frechet"] = sum(last) / len(last)
        self._remember(metrics["frechet"])
        return metrics

    def best_weights(self) -> dict[str, Tensor]:
        """Give the student's weights that are exported: the best so far, or the present ones."""
        if self._best is None or not self.settings.keep_best:
            return self.student.state_dict()
        return self._best[1]

    def state_dict(self) -> dict[str, Any]:
        """Keep the best student."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the best student."""
        self._best = state["best"]

    def _exits(self, name: str, batch: Any, num_steps: int) -> list[Tensor]:
        """Make a batch's samples of every exit of a way of the student."""
        sigmas, sampler = self.grid(num_steps), self.settings.student_sampler
        exits = [
            sample_exits(question.student, draws.noises(num_steps), sigmas=sigmas, sampler=sampler)
            for question, draws in self._asked(name, batch, num_steps)
        ]
        return [torch.cat(parts).cpu() for parts in zip(*exits, strict=True)]

    def _target(self, name: str, batch: Any) -> Tensor:
        """Make the teacher's samples of a batch, once."""
        if name not in self._targets:
            sigmas = self.grid(self.settings.teacher_steps)
            made = [
                sample_exits(question.teacher, draws.noises(1), sigmas=sigmas)[-1]
                for question, draws in self._asked(name, batch, self.settings.num_steps)
            ]
            self._targets[name] = torch.cat(made).cpu()
        return self._targets[name]

    def _asked(self, name: str, batch: Any, num_steps: int) -> Iterator[tuple[Question, _Draws]]:
        """Ask about a batch in parts; the noise of an item is the same for every way."""
        size, most = len(batch["latent"]), self.settings.batch_size
        for start in range(0, size, most):
            rows = slice(start, min(start + most, size))
            question = self.question(batch, rows, num_steps=num_steps)
            yield (
                question,
                _Draws(self.seed, 0, like=question.clean, size=size, rows=rows, tag=name),
            )

    def _remember(self, distance: float) -> None:
        """Keep the averaged student if it is the best; every process keeps all of it."""
        if self.settings.keep_best and (self._best is None or distance < self._best[0]):
            state = self.student.state_dict()
            self._best = (distance, {k: full(v).detach().cpu().clone() for k, v in state.items()})


class _Draws:
    """Random numbers of one step, drawn for the whole batch, of which a part is taken."""

    def __init__(
        self, seed: int, step: int, *, like: Tensor, size: int, rows: slice, tag: str = ""
    ) -> None:
        self.seed, self.step, self.tag = seed, step, tag
        self.like, self.size, self.rows = like, size, rows

    def noises(self, count: int) -> Sequence[Tensor]:
        """Draw the noise of every step of the student's way."""
        generator = self._generator("rollout")
        return [self._noise(generator) for _ in range(count)]

    def noised(self, name: str, *, shift: float = 1.0) -> Noised:
        """Draw noise levels, and noise."""
        generator = self._generator(name)
        sigma = draw_sigmas(self.size, generator=generator, shift=shift)[self.rows]
        return Noised(sigma=sigma.to(self.like.device), noise=self._noise(generator))

    def on_grid(self, name: str, sigmas: Tensor) -> tuple[Noised, Tensor]:
        """Draw noise levels among those at which steps begin, and noise; give the steps."""
        generator = self._generator(name)
        index = torch.randint(0, len(sigmas) - 1, (self.size,), generator=generator)[self.rows]
        sigma = sigmas[index].to(self.like.device, torch.float32)
        return Noised(sigma=sigma, noise=self._noise(generator)), index

    def _generator(self, name: str) -> torch.Generator:
        return step_generator(self.seed, self.step, tag=f"{self.tag}{name}")

    def _noise(self, generator: torch.Generator) -> Tensor:
        shape = (self.size, *self.like.shape[1:])
        return torch.randn(shape, generator=generator)[self.rows].to(self.like.device)
