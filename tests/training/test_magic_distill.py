"""DMD2 of a Magic 1-For-1 checkpoint: batches, roles, a short run that resumes, its export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.models.magic_dit.model import predict_velocity
from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS, config_from_official
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.samplers.flow_match import guided, sample_euler, sigma_grid
from onereel.training.dmd_method import _Draws
from onereel.training.ema import go_on_with
from onereel.training.engine import Trainer, TrainerConfig
from onereel.training.latent_cache import CacheConfig, LatentCache, write_shard
from onereel.training.magic import MagicMethod, ToyboxMagicRecipe, prior_of
from onereel.training.magic_cache import load_magic_vae
from onereel.training.magic_distill import (
    DistillBatches,
    MagicDmdMethod,
    ToyboxMagicDistillRecipe,
)

TINY = config_from_official(
    {"hidden_size": 32, "heads_num": 2, "rope_dim_list": (4, 6, 6), "mm_double_blocks_depth": 1,
     "mm_single_blocks_depth": 2, "text_states_dim": 128, "text_states_dim_2": 64}
)  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of six clips and six pictures, and a teacher with random weights."""
    folder = tmp_path_factory.mktemp("distill")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            scaling_factor=0.5,
        )  # fmt: skip
        vae.save_pretrained(folder / "vae")
        loaded = load_magic_vae(str(folder / "vae"))
        for name, images_only in (("clips", False), ("pictures", True)):
            config = CacheConfig(
                vae=str(folder / "vae"), min_chunks=1, max_chunks=2, timeline_share=0.0,
                images_only=images_only, shard_size=6, height=64, width=64,
            )  # fmt: skip
            (folder / name).mkdir()
            (folder / name / "cache.json").write_text(json.dumps(dataclasses.asdict(config)))
            write_shard(loaded, config, folder=folder / name, shard=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MAGIC_DIT_PRESETS, "tiny", TINY)
            base = ToyboxMagicRecipe(
                preset="tiny", cache=str(folder / "clips"), image_cache=str(folder / "pictures"),
                tokenizer=str(folder / "tokenizer"), lengths=(5, 3), validation_items=2,
                map_block=0, trainer=TrainerConfig(max_steps=1),
            )  # fmt: skip
            method = MagicMethod(base, LatentCache(base.cache))
        for name, parameter in method.dit.named_parameters():
            if "norm" not in name or parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
        method.export(folder / "teacher")
    return folder


@pytest.fixture
def recipe(stored: Path) -> ToyboxMagicDistillRecipe:
    """Two windows or three pictures per step, the student in every second step."""
    return ToyboxMagicDistillRecipe(
        teacher=str(stored / "teacher"), cache=str(stored / "clips"),
        image_cache=str(stored / "pictures"), batch_size=2, image_batch_size=3, lengths=(5, 3),
        validation_items=2, teacher_steps=4, ratio=2, critic_warmup=1, workers=0,
        trainer=TrainerConfig(max_steps=4, log_every=1, ema_decay=0.9, grad_clip=10.0),
    )  # fmt: skip


@pytest.fixture
def method(recipe: ToyboxMagicDistillRecipe) -> MagicDmdMethod:
    return MagicDmdMethod(recipe, LatentCache(recipe.cache))


def test_the_mix_of_tasks_is_the_recipes(recipe: ToyboxMagicDistillRecipe) -> None:
    cache = LatentCache(recipe.cache)
    batches = DistillBatches(recipe, cache)
    found = [batches.task(i) for i in range(1000)]
    for kind, share in recipe.kinds.items():
        assert abs(found.count(kind) / 1000 - share) < 0.05
    assert sum(recipe.kinds.values()) == pytest.approx(1)
    # Kinds do not follow the student's turns.
    assert set(found[4::5]) == set(recipe.kinds)
    only = dataclasses.replace(
        recipe, t2v_share=1.0, i2v_share=0.0, v2v_share=0.0, picture_share=0.0, image_cache=""
    )
    alone = DistillBatches(only, cache)
    assert {alone.task(i) for i in range(20)} == {"t2v"} and set(alone.measured()) == {"t2v"}
    index = found.index("i2v")
    first, again = batches[index], batches[index]
    assert torch.equal(first["reference"], again["reference"])
    clean = DistillBatches(dataclasses.replace(recipe, reference_noise=0.0), cache)[index]
    assert 0 < (first["reference"] - clean["reference"]).abs().max() < 0.5
    assert torch.equal(first["latent"], clean["latent"])


def test_it_is_not_told_how_long_a_step_is(recipe: ToyboxMagicDistillRecipe) -> None:
    with pytest.raises(ConfigError, match="shortcut_steps"):
        dataclasses.replace(recipe, followed_steps=(8,), shortcut_steps=(4,))


@pytest.mark.parametrize(
    "wrong", [{"t2v_share": 0.5}, {"i2v_share": -0.1, "t2v_share": 0.8}, {"picture_share": 2.0}]
)
def test_shares_must_fit(recipe: ToyboxMagicDistillRecipe, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="share"):
        dataclasses.replace(recipe, **wrong)


@torch.no_grad()
def test_all_start_as_the_teacher_and_it_is_guided_as_in_pipelines(
    recipe: ToyboxMagicDistillRecipe, method: MagicDmdMethod
) -> None:
    batch = method.measured()["i2v"]
    question = method.question(batch, slice(0, 2), num_steps=4)
    assert set(method.networks) == {"student", "critic"}
    x = torch.randn(batch["latent"].shape, generator=torch.Generator().manual_seed(0))
    level = torch.full((2,), 0.7)
    plain = question.student(x, level)
    for step in range(recipe.num_steps):
        assert torch.equal(question.critic(x, level, step)[0], plain)

    def one(texts: list[str]) -> Any:
        condition = method.text(texts, batch["pictures"])
        return lambda x, sigma: predict_velocity(
            method.teacher, x, sigma=sigma, condition=condition, prior=prior_of(batch)
        )

    both = guided(one(batch["captions"]), one(["", ""]), scale=recipe.guidance)
    theirs = both(x, 0.7)
    torch.testing.assert_close(question.teacher(x, level), theirs)
    torch.testing.assert_close(plain + question.guidance(x, level), theirs)
    assert not torch.allclose(theirs, plain, atol=1e-3)
    assert torch.equal(method.grid(4), sigma_grid(4))


def test_a_short_run_resumes_to_the_bit_and_exports_four_steps(
    recipe: ToyboxMagicDistillRecipe, tmp_path: Path
) -> None:
    def run(folder: str, steps: int) -> tuple[MagicDmdMethod, dict[str, Tensor]]:
        loop = dataclasses.replace(recipe.trainer, max_steps=steps)
        changed = dataclasses.replace(recipe, trainer=loop, gan_weight=0.1, gan_critic_weight=0.1)
        built: Any = changed.build()
        Trainer(*built, config=loop, out=tmp_path / folder, quiet=True).fit(resume=True)
        networks = built[0].networks
        return built[0], {
            f"{n}.{k}": v for n in networks for k, v in networks[n].state_dict().items()
        }

    method, whole = run("whole", 4)
    lines = [json.loads(t) for t in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [("student" in line) for line in lines[:4]] == [False, True, False, True]
    metrics = lines[-1]
    kinds = {"image", "t2v", "i2v", "v2v"}
    assert {f"{kind}_frechet_{k}" for kind in kinds for k in (1, 2, 3, 4)} <= set(metrics)
    assert metrics["frechet"] == pytest.approx(
        sum(metrics[f"{kind}_frechet_4"] for kind in kinds) / 4
    )
    run("broken", 3)
    _, resumed = run("broken", 4)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    before = method.teacher.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in method.student.state_dict().items())

    pipeline = Magic141Pipeline.from_pretrained(tmp_path / "whole" / "export")
    assert pipeline.sampling.num_steps == 4 and not pipeline.sampling.guided
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        "a red disc", height=64, width=64, num_frames=5, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert output.frames.shape == (1, 5, 64, 64, 3)


def test_a_student_is_gone_on_with(
    recipe: ToyboxMagicDistillRecipe, method: MagicDmdMethod, tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.mul_(1.5)
    method.export(tmp_path / "student")
    changed = dataclasses.replace(recipe, init=str(tmp_path / "student"))
    later = MagicDmdMethod(changed, LatentCache(recipe.cache))
    for name, value in method.student.state_dict().items():
        torch.testing.assert_close(later.student.state_dict()[name], value, rtol=1e-2, atol=1e-3)
    with pytest.raises(ConfigError, match="a student of the same teacher"):
        go_on_with(later.student, lambda folder: nn.Linear(2, 2), folders="other")
    last, first = nn.Linear(2, 2), {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    go_on_with(last, first.__getitem__, folders="a, b")
    torch.testing.assert_close(last.weight, (first["a"].weight + first["b"].weight) / 2)


@torch.no_grad()
def test_what_is_measured_is_what_pipelines_sample(method: MagicDmdMethod) -> None:
    batch = method.measured()["image"]
    exits, target = method._exits("image", batch, 4), method._target("image", batch)
    assert len(exits) == 4 and target.shape == batch["latent"].shape
    draws = _Draws(0, 0, like=batch["latent"], size=2, rows=slice(0, 2), tag="image")
    condition = method.text(batch["captions"])
    made = sample_euler(
        lambda x, sigma: predict_velocity(
            method.student, x, sigma=sigma, condition=condition, prior=prior_of(batch)
        ),
        draws.noises(1)[0],
        sigmas=sigma_grid(4),
    )
    torch.testing.assert_close(exits[-1], made)
