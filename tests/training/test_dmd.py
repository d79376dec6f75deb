"""Distribution matching distillation: formulas, who learns from what, and a toy that improves."""

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
from onereel.samplers.flow_match import sample_euler, sigma_grid
from onereel.samplers.schedule import shift_sigma, shift_t, time_grid
from onereel.training.dmd import (
    Noised,
    adversarial_loss,
    check_sampler,
    corrupted,
    critic_adversarial_loss,
    draw_exit,
    draw_sigmas,
    flow_loss,
    guided_velocity,
    matching_gradient,
    matching_loss,
    mean_velocity,
    per_item,
    sample_exits,
    simulate,
)
from onereel.training.dmd_critic import Critic
from onereel.training.dmd_method import DmdMethod, DmdRecipe, Question
from onereel.training.engine import Trainer, TrainerConfig
from onereel.training.latent_distance import frechet_distance, latent_features, moment_errors
from onereel.training.method import Part


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_shift_is_the_same_map_in_both_clocks() -> None:
    sigma = torch.linspace(0, 1, 33).double()
    for shift in (1.0, 3.0, 5.0):
        torch.testing.assert_close(1 - shift_sigma(sigma, shift), shift_t(1 - sigma, 1 / shift))
    torch.testing.assert_close(
        sigma_grid(4), torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]), atol=1e-6, rtol=0
    )
    u = torch.linspace(0, 1, 9)
    torch.testing.assert_close(1 - time_grid(8), shift_sigma(1 - u * u, 3.0))


def test_levels_and_exits_are_drawn_in_range_and_repeated() -> None:
    drawn = draw_sigmas(4000, generator=seeded())
    assert drawn.min() >= 0.02 and drawn.max() <= 0.98 and abs(drawn.mean() - 0.5) < 0.02
    shifted = draw_sigmas(4000, generator=seeded(), shift=5.0)
    assert shifted.max() <= 0.98 and (shifted >= drawn).all()
    exits = [draw_exit(3, step, num_steps=4) for step in range(200)]
    assert exits == [draw_exit(3, step, num_steps=4) for step in range(200)]
    assert {exits.count(k) > 25 for k in range(4)} == {True}


def gaussian(mean: float, std: float) -> Any:
    """The exact velocity of a normal distribution."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = per_item(sigma, x)
        variance = ((1 - s) * std) ** 2 + s**2
        centred = x - (1 - s) * mean
        return s * centred / variance - (mean + (1 - s) * std**2 * centred / variance)

    return velocity


def test_the_gradient_is_that_of_the_divergence_of_two_gaussians() -> None:
    mean, std, wanted_mean, wanted_std = 0.7, 0.5, -0.4, 1.1
    x = mean + std * torch.randn(256, 1, generator=seeded()).double()
    sigma = torch.full((256,), 0.3, dtype=torch.float64)
    noise = torch.randn(256, 1, generator=seeded(1)).double()
    at = Noised(sigma=sigma, noise=noise)
    found = matching_gradient(
        x, real=gaussian(wanted_mean, wanted_std), fake=gaussian(mean, std), at=at
    )
    noisy = corrupted(x, noise, sigma=sigma)

    def score(m: float, s: float) -> Tensor:
        return -(noisy - 0.7 * m) / ((0.7 * s) ** 2 + 0.3**2)

    analytic = score(mean, std) - score(wanted_mean, wanted_std)
    ratio = found / analytic
    assert (ratio > 0).all()  # the direction, sample by sample; the size is normalised
    # On average it moves mean and spread as the divergence's own gradient does.
    assert found.mean() > 0 and (found * (x - mean)).mean() < 0
    unit = (x - (noisy - 0.3 * gaussian(wanted_mean, wanted_std)(noisy, sigma))).abs()
    torch.testing.assert_close(found * unit, analytic * 0.3**2 / 0.7)


def test_the_loss_has_the_gradient_and_leaves_out_what_does_not_count() -> None:
    x = torch.randn(3, 2, 4, generator=seeded()).requires_grad_(True)
    at = Noised(sigma=torch.full((3,), 0.5), noise=torch.randn(3, 2, 4, generator=seeded(1)))
    counted = torch.tensor([0.0, 1.0, 1.0, 1.0])
    gradient = matching_gradient(
        x, real=gaussian(0.0, 1.0), fake=gaussian(1.0, 1.0), at=at, counted=counted
    )
    assert (gradient[..., 0] == 0).all() and (gradient[..., 1:] != 0).all()
    matching_loss(x, gradient).sum().backward()
    torch.testing.assert_close(x.grad, gradient / 8)
    same = matching_gradient(x, real=gaussian(1.0, 1.0), fake=gaussian(1.0, 1.0), at=at)
    assert (same == 0).all()
    broken = matching_gradient(x, real=lambda x, s: x / 0, fake=gaussian(1.0, 1.0), at=at)
    assert torch.isfinite(broken).all()


def test_guidance_is_counted_from_the_velocity_without_text() -> None:
    x, sigma = torch.ones(2, 3), torch.ones(2)
    combined = guided_velocity(lambda x, s: 3 * x, lambda x, s: x, scale=4.0)
    assert (combined(x, sigma) == 1 + 4 * (3 - 1)).all()
    assert guided_velocity(combined, None, scale=1.0) is combined


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.graphs: list[bool] = []
        self.levels: list[float] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = self.scale * x
        self.graphs.append(out.requires_grad)
        self.levels.append(float(sigma[0]))
        assert not x.requires_grad
        return out


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize("exit_step", [0, 2, 3])
def test_only_the_exit_step_has_a_gradient(sampler: str, exit_step: int) -> None:
    net, sigmas = _Net(), sigma_grid(4)
    noises = [torch.randn(2, 3, generator=seeded(i)) for i in range(4)]
    made = simulate(net, noises, sigmas=sigmas, exit_step=exit_step, sampler=sampler)
    assert net.graphs == [False] * exit_step + [True]
    assert net.levels == sigmas[: exit_step + 1].tolist()
    (slope,) = torch.autograd.grad(made.sum(), net.scale)
    x = (made / (1 - sigmas[exit_step] * 0.5)).detach()  # the input of the exit step
    torch.testing.assert_close(slope, -(sigmas[exit_step] * x).sum())
    every = sample_exits(net, noises, sigmas=sigmas, sampler=sampler)
    torch.testing.assert_close(every[exit_step], made.detach())


def test_samples_are_those_of_the_pipelines_sampler() -> None:
    net, sigmas = _Net(), sigma_grid(4)
    noise = torch.randn(2, 3, generator=seeded())
    last = sample_exits(net, [noise], sigmas=sigmas)[-1]
    same = sample_euler(lambda x, s: 0.5 * x, noise, sigmas=sigmas)
    torch.testing.assert_close(last, same)
    with pytest.raises(ConfigError, match="euler or renoise"):
        check_sampler("heun")


def test_the_flow_loss_is_smallest_at_the_truth() -> None:
    x = torch.randn(3, 2, 4, generator=seeded())
    at = Noised(sigma=torch.full((3,), 0.5), noise=torch.randn(3, 2, 4, generator=seeded(1)))
    truth = at.noise - x
    assert (flow_loss(truth, x, at=at) == 0).all()
    wrong = truth.clone()
    wrong[..., 0] += 2
    torch.testing.assert_close(flow_loss(wrong, x, at=at), torch.ones(3))
    counted = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert (flow_loss(wrong, x, at=at, counted=counted) == 0).all()


def test_the_adversarial_gradient_passes_the_judge_and_leaves_it_alone() -> None:
    judge = nn.Linear(3, 1)
    x = torch.randn(4, 3, generator=seeded()).requires_grad_(True)
    value = adversarial_loss(x, lambda z: judge(z)[:, 0])
    plain = nn.functional.softplus(-judge(x)[:, 0])
    torch.testing.assert_close(value, plain)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    value.sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    assert judge.weight.grad is None
    high, low = torch.tensor([5.0]), torch.tensor([-5.0])
    assert critic_adversarial_loss(low, high) < 0.1 < critic_adversarial_loss(high, low)


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
                  {"followed_steps": (4,), "follow_substeps": 0}):  # fmt: skip
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
    once = mean_velocity(teacher, x, start=start, stop=stop)
    assert torch.equal(once, teacher(x, start))
    found = mean_velocity(teacher, x, start=start, stop=stop, steps=4)
    for item in range(6):
        sigmas = torch.linspace(float(start[item]), float(stop[item]), 5)
        ends = x[item : item + 1]
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            ends = ends + (after - now) * teacher(ends, now.expand(1))
        led = x[item : item + 1] + (stop - start)[item] * found[item : item + 1]
        torch.testing.assert_close(led, ends)


def test_it_can_do_nothing_but_follow(teacher: Mlp, tmp_path: Path) -> None:
    """At its own number of steps; two of the teacher's in each are then what it does in one."""
    recipe = toy_recipe(
        loop={"max_steps": 300}, matching_weight=0.0, followed_steps=(4,), follow_substeps=2
    )
    method = Toy(recipe, teacher)
    idle = {name: value.clone() for name, value in method.critic.state_dict().items()}
    trainer = Trainer(method, ToyStream(), config=recipe.trainer, out=tmp_path, quiet=True)
    assert {name.partition(".")[0] for name in method.turn(0)} == {"student"}

    def far() -> float:
        noise = torch.randn(512, 2, 1, 1, 1, generator=seeded(9))
        two = sample_exits(teacher, [noise], sigmas=halved)[-1]
        one = sample_exits(method.student, [noise], sigmas=method.grid(4))[-1]
        return float((one - two).square().mean())

    grid = method.grid(4)
    halved = torch.cat(
        (torch.stack((grid[:-1], (grid[:-1] + grid[1:]) / 2), 1).flatten(), grid[4:])
    )
    before = far()
    trainer.fit()
    assert far() < 0.5 * before
    assert all(torch.equal(value, idle[name]) for name, value in method.critic.state_dict().items())


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


def test_distances_of_latents() -> None:
    x = torch.randn(64, 3, 4, 5, 5, generator=seeded())
    features = latent_features(x)
    assert features.shape == (64, 16) and latent_features(x[:, :, :1]).shape == (64, 8)
    assert frechet_distance(features, features) < 1e-9
    moved = latent_features(x + 1)
    assert frechet_distance(moved, features) > frechet_distance(latent_features(x + 0.1), features)
    still = x[:, :, :1].expand_as(x)
    assert frechet_distance(latent_features(still), features) > 1  # nothing moves
    assert moment_errors(x, x) == (0.0, 0.0)
    mean, spread = moment_errors(2 * x + 1, x)
    assert abs(mean - 1) < 0.1 and abs(spread - 1) < 0.01
