"""The method of DMD2 recipes on a toy: who learns from what, resuming, a student that improves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.samplers.flow_match import sigma_grid
from onereel.training.dmd import Noised, flow_loss, mean_velocity, sample_exits
from onereel.training.dmd_critic import Critic
from onereel.training.dmd_method import DmdMethod, DmdRecipe, Question
from onereel.training.engine import Trainer, TrainerConfig
from onereel.training.latent_distance import frechet_distance, latent_features
from onereel.training.method import Part


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        hidden = nn.functional.silu(self.into(nn.functional.silu(tokens)))
        return (tokens + self.out(hidden),)


class Mlp(nn.Module):
    """Velocity of a few numbers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.time = nn.Linear(5, width)
        self.into = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        waves = torch.cat((s, *((f * math.pi * s).sin() for f in (1, 2)),
                           *((f * math.pi * s).cos() for f in (1, 2))), dim=1)  # fmt: skip
        tokens = (self.into(x.flatten(1)) + self.time(waves))[:, None]
        for block in self.blocks:
            (tokens,) = block(tokens)
        result: Tensor = self.out(nn.functional.silu(tokens[:, 0])).view_as(x)
        return result


def clips(size: int, seed: int) -> Tensor:
    """Latents of two numbers: six narrow modes on a ring."""
    generator = seeded(seed)
    angle = torch.randint(0, 6, (size,), generator=generator) * (math.tau / 6)
    centre = 1.4 * torch.stack((angle.cos(), angle.sin()), dim=1)
    return (centre + 0.08 * torch.randn(size, 2, generator=generator)).view(size, 2, 1, 1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToyRecipe(DmdRecipe):
    teacher: str = "toy"
    cache: str = "toy"


class Toy(DmdMethod):
    """Distils an MLP; the critic is told the exit step, and has a head where the recipe asks."""

    def __init__(self, recipe: DmdRecipe, teacher: Mlp) -> None:
        self.teacher = teacher.requires_grad_(False)
        self.asked: list[int] = []
        student, network = Mlp(), Mlp()
        for copy in (student, network):
            copy.load_state_dict(teacher.state_dict())
        width = teacher.into.out_features
        told = recipe.num_steps if recipe.critic_exit_embedding else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            critic = Critic(
                network, conditioning="time", width=width, num_exits=told,
                judged="blocks.1" if recipe.adversarial else "", judged_width=width,
            )  # fmt: skip
        super().__init__(recipe, student=student, critic=critic, grid=sigma_grid)

    def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
        self.asked.append(num_steps)
        return Question(
            clean=batch["latent"][rows],
            student=self.student,
            teacher=self.teacher,
            guidance=lambda x, sigma: torch.zeros_like(x),
            critic=lambda x, sigma, k: self.critic(lambda net: net(x, sigma), k),
        )

    def measured(self) -> dict[str, Any]:
        return {"toy": {"latent": clips(self.settings.validation_items, 10**6)}}


class ToyStream:
    def batches(self, start: int) -> Iterator[Any]:
        while True:
            yield {"latent": clips(128, start)}
            start += 1


@pytest.fixture(scope="module")
def teacher() -> Mlp:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Mlp()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for step in range(700):
        x, generator = clips(192, step), seeded(step)
        sigma = torch.rand(192, generator=generator)
        at = Noised(sigma=sigma, noise=torch.randn(x.shape, generator=generator))
        optimizer.zero_grad()
        flow_loss(network(at.of(x), sigma), x, at=at).mean().backward()
        optimizer.step()
        schedule.step()
    network.zero_grad()
    return network


def toy_recipe(**changes: Any) -> ToyRecipe:
    loop: dict[str, Any] = {
        "max_steps": 1500,
        "warmup_steps": 10,
        "ema_decay": 0.99,
        "grad_clip": 10.0,
    }
    trainer = TrainerConfig(**(loop | changes.pop("loop", {})))
    values: dict[str, Any] = {"critic_warmup": 100, "lr": 1e-3, "critic_lr": 2e-3, "workers": 0,
              "validation_items": 1024, "batch_size": 512, "trainer": trainer}  # fmt: skip
    return ToyRecipe(**(values | changes))


def test_a_recipe_refuses_what_cannot_work() -> None:
    for wrong in ({"num_steps": 0}, {"validation_items": 1}, {"gan_weight": 1.0},
                  {"student_sampler": "heun"}, {"followed_steps": (8, 3)}, {"matching_weight": 0.0},
                  {"followed_steps": (4,), "follow_substeps": 0}, {"followed_data": True},
                  {"followed_steps": (4,), "followed_data": True, "follow_substeps": 2},
                  {"shortcut_steps": (4,)}, {"followed_steps": (8,), "shortcut_steps": (2,)},
                  {"followed_steps": (8,), "shortcut_steps": (5,)},
                  ):  # fmt: skip
        with pytest.raises(ConfigError):
            toy_recipe(**wrong)


def test_the_exit_step_changes_nothing_at_first(teacher: Mlp) -> None:
    method = Toy(toy_recipe(), teacher)
    x, sigma = torch.randn(4, 2, 1, 1, 1, generator=seeded()), torch.full((4,), 0.6)
    question = method.question({"latent": x}, slice(0, 4), num_steps=4)
    for step in range(4):
        assert torch.equal(question.critic(x, sigma, step)[0], teacher(x, sigma))
    assert method.critic.exits is not None
    with torch.no_grad():
        method.critic.exits[2] += 1
    said = [question.critic(x, sigma, step)[0] for step in range(4)]
    assert torch.equal(said[1], said[0]) and not torch.equal(said[2], said[0])
    assert Toy(toy_recipe(critic_exit_embedding=False), teacher).critic.exits is None


def test_each_learns_from_its_own_loss(teacher: Mlp, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Toy(toy_recipe(gan_weight=1.0, gan_critic_weight=1.0), teacher)
    assert not method.generates(99 - 5) and not method.generates(103) and method.generates(104)
    assert {name.partition(".")[0] for name in method.turn(103)} == {"critic"}
    assert {name.partition(".")[0] for name in method.turn(104)} == {"student", "critic"}

    def gradients(network: nn.Module) -> dict[str, Tensor | None]:
        found = {name: p.grad for name, p in network.named_parameters()}
        network.zero_grad()
        return found

    batch = {"latent": clips(8, 0)}
    losses = method.train_step(batch, 104)
    assert set(losses) == {"loss", "critic", "critic_gan", "student", "gan"}
    losses["loss"].backward()
    with_student = gradients(method.critic)
    assert all(grad is not None for grad in gradients(method.student).values())
    monkeypatch.setattr(method, "generates", lambda step: False)
    losses = method.train_step(batch, 104)
    assert set(losses) == {"loss", "critic", "critic_gan"}
    losses["loss"].backward()
    assert all(grad is None for grad in gradients(method.student).values())
    # None of what the student learns from reaches the critic: its gradient is the same to the bit.
    for name, grad in gradients(method.critic).items():
        other = with_student[name]
        assert grad is not None and other is not None and torch.equal(grad, other)
    assert all(grad is None for grad in gradients(method.teacher).values())


def test_parts_add_up_to_the_whole(teacher: Mlp) -> None:
    method = Toy(toy_recipe(gan_weight=1.0, gan_critic_weight=1.0), teacher)
    batch = {"latent": clips(7, 0)}
    whole = method.train_step(batch, 104)
    parts = []
    for index in range(2):
        method.part = Part(index=index, count=2)
        parts.append(method.train_step(batch, 104))
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)


def test_four_steps_come_close_to_the_data(teacher: Mlp, tmp_path: Path) -> None:
    recipe = toy_recipe(loop={"max_steps": 300}, critic_warmup=50)
    method = Toy(recipe, teacher)
    trainer = Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path, quiet=True)
    before = trainer.validate()
    after = trainer.fit().metrics
    assert before["frechet"] > 0.3 and after["frechet"] < before["frechet"] / 4
    assert after["toy_frechet_1"] < before["toy_frechet_1"] / 10
    assert after["toy_std_4"] < before["toy_std_4"] / 2
    data = latent_features(clips(1024, 10**7))
    noise = torch.randn(1024, 2, 1, 1, 1, generator=seeded(5))
    with trainer.averaged_weights():
        made = sample_exits(method.student, [noise], sigmas=method.grid(4))[-1]
    plain = sample_exits(teacher, [noise], sigmas=method.grid(4))[-1]
    distances = [frechet_distance(latent_features(x), data) for x in (made, plain)]
    assert distances[0] < distances[1] / 4
    assert all(
        torch.equal(v, method.best_weights()[k]) for k, v in trainer.ema["student"].shadow.items()
    )  # noqa: E501


def test_beside_few_steps_it_follows_the_teacher_in_many(teacher: Mlp, tmp_path: Path) -> None:
    """Whose student is told the number of steps; the teacher is another one, as a guided one is."""

    class Told(Toy):
        def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
            asked = super().question(batch, rows, num_steps=num_steps)
            wanted = Mlp()
            wanted.load_state_dict(teacher.state_dict())
            shifted = lambda x, sigma: wanted(x, sigma) + 0.5  # noqa: E731
            told = lambda x, sigma: self.student(x, sigma + (0 if num_steps == 4 else 3))  # noqa: E731
            return dataclasses.replace(asked, student=told, teacher=shifted)

    recipe = toy_recipe(loop={"max_steps": 300}, critic_warmup=0, ratio=2, followed_steps=(16, 8))
    method = Told(recipe, teacher)
    trainer = Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path, quiet=True)
    before = trainer.validate()
    method.asked.clear()
    after = trainer.fit().metrics
    # Every step goes the few steps; every second one of the student's turns follows either way.
    assert [method.asked[:450].count(n) for n in (4, 16, 8)] == [300, 75, 75]
    for label in ("8of8", "16of16"):
        assert after[f"toy_frechet_{label}"] < 0.7 * before[f"toy_frechet_{label}"]
    ends = [after[f"toy_frechet_{label}"] for label in ("4", "8of8", "16of16")]
    assert after["frechet"] == pytest.approx(sum(ends) / 3)


def test_the_mean_velocity_ends_where_several_steps_end(teacher: Mlp) -> None:
    x = torch.randn(6, 2, 1, 1, 1, generator=seeded())
    start, stop = torch.linspace(0.5, 1.0, 6), torch.linspace(0.0, 0.4, 6)
    once = mean_velocity(teacher, x, levels=(start, stop))
    assert torch.equal(once, teacher(x, start))
    ways = torch.stack([start + (stop - start) * share for share in (0, 0.1, 0.4, 0.9, 1)])
    found = mean_velocity(teacher, x, levels=list(ways))
    for item in range(6):
        sigmas = ways[:, item]
        ends = x[item : item + 1]
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            ends = ends + (after - now) * teacher(ends, now.expand(1))
        led = x[item : item + 1] + (stop - start)[item] * found[item : item + 1]
        torch.testing.assert_close(led, ends)


@pytest.mark.parametrize("own", [False, True])
def test_it_can_do_nothing_but_follow(teacher: Mlp, tmp_path: Path, own: bool) -> None:
    """Two of the teacher's steps, or of its own finer ones, are then what it does in one."""

    class Finer(Toy):
        def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
            asked = super().question(batch, rows, num_steps=num_steps)
            if not own:
                return asked
            # As one whose finer way is learned already, and that is told which one it goes.
            told = lambda x, sigma: self.student(x, sigma + (0 if num_steps == 4 else 3))  # noqa: E731
            return dataclasses.replace(asked, student=told, finer=teacher)

    followed = {"followed_steps": (8,), "shortcut_steps": (4,)} if own else {
        "followed_steps": (4,), "follow_substeps": 2}  # fmt: skip
    recipe = toy_recipe(loop={"max_steps": 600 if own else 300}, matching_weight=0.0, **followed)
    method = Finer(recipe, teacher)
    idle = {name: value.clone() for name, value in method.critic.state_dict().items()}
    trainer = Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path, quiet=True)
    assert method.turn(0) == ("student.adamw",)
    grid = method.grid(4)
    halved = torch.cat(
        (torch.stack((grid[:-1], (grid[:-1] + grid[1:]) / 2), 1).flatten(), grid[4:])
    )
    halved = method.grid(8) if own else halved

    def far() -> float:
        noise = torch.randn(512, 2, 1, 1, 1, generator=seeded(9))
        two = sample_exits(teacher, [noise], sigmas=halved)[-1]
        one = sample_exits(method.student, [noise], sigmas=grid)[-1]
        return float((one - two).square().mean())

    before = far()
    trainer.fit()
    assert far() < 0.5 * before
    assert all(torch.equal(value, idle[name]) for name, value in method.critic.state_dict().items())


def test_it_can_follow_the_clips_and_what_guidance_adds(teacher: Mlp, tmp_path: Path) -> None:
    """A teacher that is far off teaches nothing but its guidance."""

    class Wrong(Toy):
        def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
            asked = super().question(batch, rows, num_steps=num_steps)
            wrong = lambda x, sigma: torch.full_like(x, 7.0)  # noqa: E731
            guidance = lambda x, sigma: torch.full_like(x, 0.5)  # noqa: E731
            return dataclasses.replace(asked, teacher=wrong, guidance=guidance)

    recipe = toy_recipe(
        loop={"max_steps": 300}, matching_weight=0.0, followed_steps=(4,), followed_data=True,
        lr=3e-3, matrix_lr=3e-3, betas=(0.9, 0.95),
    )  # fmt: skip
    method = Wrong(recipe, teacher)
    assert method.turn(0) == ("student.adamw", "student.muon")
    x, generator = clips(4096, 10**5), seeded(3)
    sigma = method.grid(4)[torch.randint(0, 4, (4096,), generator=generator)]
    at = Noised(sigma=sigma, noise=torch.randn(x.shape, generator=generator))

    def far() -> float:
        with torch.no_grad():
            return float((method.student(at.of(x), sigma) - teacher(at.of(x), sigma) - 0.5).mean())

    assert far() == pytest.approx(-0.5, abs=1e-5)
    Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path, quiet=True).fit()
    assert abs(far()) < 0.05


def test_a_resumed_run_ends_with_the_same_bits(teacher: Mlp, tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> dict[str, Tensor]:
        recipe = toy_recipe(
            loop={"max_steps": steps, "validate_minutes": 0.0, "checkpoint_minutes": 0.0},
            critic_warmup=2, ratio=2, student_sampler="renoise", gan_weight=0.1,
            gan_critic_weight=0.1, validation_items=32,
        )  # fmt: skip
        method = Toy(recipe, teacher)
        Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path / folder, quiet=True).fit(
            resume=True
        )
        parts: dict[str, dict[str, Tensor]] = {
            name: network.state_dict() for name, network in method.networks.items()
        }
        parts["best"] = method.best_weights()
        return {f"{n}.{k}": v for n, state in parts.items() for k, v in state.items()}

    whole = run("whole", 8)
    run("broken", 5)
    resumed = run("broken", 8)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_best_student_is_kept(teacher: Mlp) -> None:
    method = Toy(toy_recipe(), teacher)
    method._remember(2.0)
    first = {name: value.clone() for name, value in method.student.state_dict().items()}
    with torch.no_grad():
        method.student.get_submodule("out").get_parameter("weight").add_(1)
    method._remember(3.0)
    assert all(torch.equal(v, first[k]) for k, v in method.best_weights().items())
    method._remember(1.0)
    assert not torch.equal(method.best_weights()["out.weight"], first["out.weight"])
    last = Toy(toy_recipe(keep_best=False), teacher)
    last.load_state_dict({"best": (1.0, first)})  # of the same run, begun with it
    last._remember(1.0)
    assert torch.equal(last.best_weights()["out.weight"], last.student.state_dict()["out.weight"])
