"""DMD2 of a MAGI checkpoint: the other clock, what is given, a run that resumes, its export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.core.seeds import chunk_noise
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.training.dmd import clean_estimate, sample_exits
from onereel.training.engine import Trainer
from onereel.training.latent_cache import LatentCache
from onereel.training.magi import MagiMethod, ToyboxMagiRecipe
from onereel.training.magi_dmd import MagiDmdMethod, ToyboxMagiDmdRecipe, _put
from onereel.training.method import TrainerConfig, step_generator

SAMPLING = {
    "num_steps": 8, "window_size": 1, "noise2clean_kvrange": (2,), "height": 32, "width": 32,
    "prev_chunk_scales": (1.0,) * 5, "text_scales": (3.0, 3.0, 3.0, 1.0, 1.0),
}  # fmt: skip


@pytest.fixture
def distil(
    recipe: ToyboxMagiRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ToyboxMagiDmdRecipe:
    """A recipe whose teacher has random weights and makes one chunk at a time."""
    monkeypatch.setattr("onereel.training.magi.TOYBOX_SAMPLING", SAMPLING)
    recipe = dataclasses.replace(recipe, shift=1.5)
    method = MagiMethod(recipe, LatentCache(recipe.cache))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in method.dit.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    method.export(tmp_path / "teacher")
    trainer = TrainerConfig(max_steps=4, log_every=1, ema_decay=0.9, grad_clip=10.0)
    return ToyboxMagiDmdRecipe(
        teacher=str(tmp_path / "teacher"), cache=recipe.cache, teacher_steps=8, batch_size=2,
        ratio=2, critic_warmup=1, workers=0, validation_items=3, i2v_share=1.0, trainer=trainer,
    )  # fmt: skip


@pytest.fixture
def method(distil: ToyboxMagiDmdRecipe) -> MagiDmdMethod:
    return MagiDmdMethod(distil, LatentCache(distil.cache))


@pytest.mark.parametrize("kind", ["start", "continue"])
@torch.no_grad()
def test_what_is_given_stays_and_the_clock_is_turned(method: MagiDmdMethod, kind: str) -> None:
    batch = method.measured()[kind]
    question = method.question(batch, slice(0, 3), num_steps=4)
    flow = method._flow(batch, slice(0, 3))
    x = torch.randn(question.clean.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.7, 0.2])
    noisy = _put(flow, x, sigma)
    torch.testing.assert_close(noisy.times[:, -1], 1 - sigma)
    assert torch.equal(noisy.x[:, :, :-6], flow.x[:, :, :-6])
    first = 1 if kind == "start" else 0  # frames that are given
    assert torch.equal(noisy.x[:, :, -6:][:, :, first:], x[:, :, first:])
    for velocity in (
        question.student(x, sigma), question.teacher(x, sigma), question.critic(x, sigma, 0)[0],
    ):  # fmt: skip
        estimate = clean_estimate(x, velocity, sigma=sigma)
        if first:
            torch.testing.assert_close(estimate[:, :, :1], batch["given"], atol=1e-4, rtol=1e-4)
    text = method.captions(batch["captions"], flow, null=method.teacher.null_caption)
    theirs = method.critic.network(
        noisy.x, noisy.times, *text, kv_range=flow.layout.kv_range(),
        caption_dropout=torch.tensor([[True, False]] if kind == "continue" else [[False]]).expand(
            3, -1
        ),
    ).sample  # fmt: skip
    said = question.critic(x, sigma, 0)[0]
    torch.testing.assert_close(said + question.guidance(x, sigma), question.teacher(x, sigma))
    assert torch.equal(question.clean[:, :, first:], batch["latent"][:, :, -6:][:, :, first:])
    torch.testing.assert_close(said[:, :, first:], -theirs[:, :, -6:][:, :, first:])


def test_a_short_run_resumes_to_the_bit_and_exports(
    distil: ToyboxMagiDmdRecipe, tmp_path: Path
) -> None:
    def run(folder: str, steps: int) -> tuple[MagiDmdMethod, dict[str, Tensor]]:
        loop = dataclasses.replace(distil.trainer, max_steps=steps)
        changed = dataclasses.replace(
            distil, trainer=loop, gan_weight=0.1, gan_critic_weight=0.1, t2v_share=0.0, own_past=2
        )
        built: Any = changed.build()
        result = Trainer(*built, config=loop, out=tmp_path / folder, quiet=True).fit(resume=True)
        assert {"start_frechet_4", "continue_frechet_4", "frechet"} <= set(result.metrics)
        weights = {
            f"{name}.{key}": value
            for name, network in built[0].networks.items()
            for key, value in network.state_dict().items()
        }
        return built[0], weights

    method, whole = run("whole", 4)
    run("broken", 3)
    _, resumed = run("broken", 4)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    before = method.teacher.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in method.student.state_dict().items())
    pipe = Magi1Pipeline.from_pretrained(tmp_path / "whole" / "export")
    assert pipe.sampling["distilled"] and pipe.sampling["num_steps"] == 4
    pipe.set_progress_bar_config(disable=True)
    video = pipe("a red disc falls", num_frames=24, generator=torch.Generator().manual_seed(0))
    assert video.frames.shape == (1, 24, 32, 32, 3)


@torch.no_grad()
def test_a_student_is_gone_on_with_and_told_how_long_its_step_is(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe, tmp_path: Path
) -> None:
    for parameter in method.student.parameters():
        parameter.mul_(1.5)
    method.export(tmp_path / "student")
    changed = dataclasses.replace(
        distil, init=str(tmp_path / "student"), followed_steps=(16, 8), shortcut_steps=(4,)
    )
    later = MagiDmdMethod(changed, LatentCache(distil.cache))
    for name, value in method.student.state_dict().items():
        torch.testing.assert_close(later.student.state_dict()[name], value, rtol=1e-2, atol=1e-3)
    batch = later.measured()["start"]
    x, sigma = batch["latent"][:, :, -6:], torch.full((3,), 0.5)
    said = [
        later.question(batch, slice(0, 3), num_steps=count).student(x, sigma)
        for count in (4, 8, 16)
    ]
    assert not torch.equal(said[0], said[1]) and not torch.equal(said[1], said[2])
    finer = later.question(batch, slice(0, 3), num_steps=4).finer
    assert finer is not None and torch.equal(finer(x, sigma), said[1])
    with pytest.raises(ConfigError, match="distilled weights"):
        MagiDmdMethod(dataclasses.replace(distil, init=distil.teacher), LatentCache(distil.cache))


@torch.no_grad()
def test_a_student_gets_what_its_teacher_has_learned_since(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe, recipe: ToyboxMagiRecipe, tmp_path: Path
) -> None:
    for name, parameter in method.student.named_parameters():
        parameter.add_(0.25 if "proj_out" in name else 0.0)
    method.export(tmp_path / "student")
    cache = LatentCache(recipe.cache)
    later = MagiMethod(dataclasses.replace(recipe, init=distil.teacher), cache)
    for parameter in later.dit.parameters():
        parameter.add_(0.5)
    later.export(tmp_path / "later")
    changed = dataclasses.replace(
        distil, teacher=str(tmp_path / "later"), init=str(tmp_path / "student"),
        init_teacher=distil.teacher,
    )  # fmt: skip
    student = MagiDmdMethod(changed, cache).student.state_dict()
    for name, value in method.student.state_dict().items():
        if name in dict(later.dit.named_parameters()):
            torch.testing.assert_close(student[name], value + 0.5, rtol=2e-2, atol=2e-2)
    with pytest.raises(ConfigError, match="init_teacher"):
        dataclasses.replace(changed, init="")


@torch.no_grad()
def test_the_student_samples_as_the_pipeline_does(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe, tmp_path: Path
) -> None:
    """The first chunk of a video, from the same noise."""
    method.recipe = dataclasses.replace(distil, i2v_share=0.0)
    batch = method.measured()["start"]
    method.export(tmp_path / "student")
    pipe = Magi1Pipeline.from_pretrained(tmp_path / "student")
    for network in (pipe.transformer, pipe.text_encoder):
        network.float()
    pipe.set_progress_bar_config(disable=True)
    for network in (method.student, method.teacher):
        network.load_state_dict(pipe.transformer.state_dict())  # the export is rounded
    method.captions.encoder.load_state_dict(pipe.text_encoder.state_dict())
    shape = (1, *batch["latent"].shape[1:2], 6, *batch["latent"].shape[3:])
    noise = chunk_noise(7, 0, shape=shape)
    question = method.question(batch, slice(0, 1), num_steps=4)
    ours = sample_exits(question.student, [noise], sigmas=method.grid(4))[-1]
    theirs = pipe(
        batch["captions"][0][0], num_frames=24, latents=noise, output_type="latent"
    ).frames
    torch.testing.assert_close(ours, theirs.view_as(ours), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_own_past_is_what_the_pipeline_makes(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe, tmp_path: Path
) -> None:
    """Two chunks of a video, from the same noise, lie where true ones lay; the last stays."""
    method.recipe = dataclasses.replace(distil, i2v_share=0.0, own_past=2)
    captions = ["a red disc falls", "a blue square appears"]
    batch = {**method.measured()["continue"], "number": 5}
    batch["captions"] = [captions] * len(batch["latent"])
    own = method._on_own_past(batch, slice(0, 2), chunks=2, num_steps=4)
    width = own["latent"].shape[2] // 2
    assert torch.equal(own["latent"][:, :, width:], batch["latent"][:, :, width:])
    assert torch.equal(own["latent"][2:], batch["latent"][2:])  # another process's part
    method.export(tmp_path / "student")
    pipe = Magi1Pipeline.from_pretrained(tmp_path / "student")
    pipe.transformer.float().load_state_dict(method.student.state_dict())
    pipe.text_encoder.float().load_state_dict(method.captions.encoder.state_dict())
    pipe.set_progress_bar_config(disable=True)
    generator = step_generator(distil.trainer.seed, 5, tag="own-noise")
    drawn = [torch.randn(own["latent"][:, :, :width].shape, generator=generator) for _ in range(5)]
    noise = torch.cat((drawn[0][:1], drawn[4][:1]), dim=2)
    made = pipe(captions[0], num_frames=48, latents=noise, output_type="latent").frames
    first, second = made.view(1, *made.shape[-4:]).chunk(2, dim=2)
    ours = own["latent"][:1, :, :width]
    # Training mixes up to 5 % of noise into the first one before the second is made.
    assert (ours - second).abs().mean() < 0.02
    assert (ours - first).abs().mean() > 0.5


def test_how_long_the_own_past_is_comes_from_the_batch_number(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe
) -> None:
    method.recipe = dataclasses.replace(distil, own_past=2)
    batches = {kind: method.measured()[kind] for kind in ("start", "continue")}
    counts = [method._own_chunks({**batches["continue"], "number": n}) for n in range(30)]
    assert set(counts) == {0, 1, 2}
    assert counts == [method._own_chunks({**batches["continue"], "number": n}) for n in range(30)]
    assert {method._own_chunks({**batches["start"], "number": n}) for n in range(30)} == {0}
    assert method._own_chunks(batches["continue"]) == 0  # what is measured has a true past
    with pytest.raises(ConfigError, match="own_past"):
        dataclasses.replace(distil, own_past=-1)


def test_teachers_that_do_not_fit_are_refused(
    method: MagiDmdMethod, distil: ToyboxMagiDmdRecipe, tmp_path: Path
) -> None:
    cache = LatentCache(distil.cache)
    method.export(tmp_path / "student")
    wrong = dataclasses.replace(distil, teacher=str(tmp_path / "student"))
    with pytest.raises(ConfigError, match="expected base weights"):
        MagiDmdMethod(wrong, cache)
    with pytest.raises(ConfigError, match="num_steps"):
        MagiDmdMethod(dataclasses.replace(distil, num_steps=12), cache)
