"""Few-step students of Magic 1-For-1, for pictures, text to video and image to video.

The method is DMD2 with a guided teacher (`dmd_method.py`); this says what its networks are shown.
Text encoders and VAE stay as the teacher's. The mix of tasks decides what is distilled: text to
video alone (`t2v_share=1`), with the first picture given alone (`i2v_share=1`), or all in one.

Source: Magic 1-For-1 (arXiv 2502.07701) section 3, of which no training code was released.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magic_dit.model import MagicCondition, predict_velocity
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.samplers.flow_match import sigma_grid
from onereel.training.data import BatchStream
from onereel.training.dmd import guided_velocity
from onereel.training.dmd_critic import Critic
from onereel.training.dmd_method import DmdMethod, DmdRecipe, Question
from onereel.training.ema import go_on_with
from onereel.training.engine import Method, Stream
from onereel.training.latent_cache import LatentCache, open_caches
from onereel.training.magic import (
    I2V,
    IMAGE,
    T2V,
    V2V,
    MagicBatches,
    ToyboxMagicRecipe,
    export_magic_pipeline,
    prior_of,
)
from onereel.training.magic_text import MagicText

_PARTS = ("tokenizer", "text_encoder", "image_processor", "tokenizer_2", "text_encoder_2", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagicDistillRecipe(DmdRecipe):
    """Settings of the distillation; those not named here are `DmdRecipe`'s.

    Args:
        teacher: base checkpoint, a folder.
        guidance: strength w of the teacher's guidance, without + w (with - without).
        image_cache: folder of a latent cache of single pictures; not read where `picture_share`
            is 0.
        picture_share: share of the batches that are pictures, so that the student still makes them.
        t2v_share: share of the other batches without anything given.
        i2v_share: of those whose first picture is given.
        v2v_share: of those that go on with latent frames.
        batch_size: windows of the longest length per step; shorter ones come in larger batches.
        image_batch_size: pictures per picture step.
        lengths: latent frames of a window; the first is measured.
        reference_noise: most noise on given latent frames, against drift.
    """

    teacher: str = "runs/magic/export"
    cache: str = "runs/toybox-magic-latents"
    guidance: float = 3.0
    image_cache: str = "runs/toybox-magic-images"
    picture_share: float = 0.2
    t2v_share: float = 0.2
    i2v_share: float = 0.5
    v2v_share: float = 0.3
    batch_size: int = 12
    image_batch_size: int = 96
    lengths: tuple[int, ...] = (25, 13)
    reference_noise: float = 0.05

    def __post_init__(self) -> None:
        """Check the shares as well."""
        # Not super(): with slots the class is made anew, and would not be its own.
        DmdRecipe.__post_init__(self)
        total = self.t2v_share + self.i2v_share + self.v2v_share
        if abs(total - 1) > 1e-6 or min(self.t2v_share, self.i2v_share, self.v2v_share) < 0:
            expected = "t2v_share, i2v_share and v2v_share with a sum of 1"
            raise ConfigError("shares", expected=expected, got=round(total, 6))
        if self.shortcut_steps:
            hint = "these networks are not told how long a step is"
            got = list(self.shortcut_steps)
            raise ConfigError("shortcut_steps", expected="none", got=got, hint=hint)
        if not 0 <= self.picture_share <= 1:
            raise ConfigError("picture_share", expected="0 to 1", got=self.picture_share)

    def build(self) -> tuple[Method, Stream]:
        """Make student, critic and teacher, and the stream of cached windows.

        Returns:
            The method and the stream.
        """
        method = MagicDmdMethod(self, open_caches(self.cache))
        return method, BatchStream(method.batches, workers=self.workers)

    @property
    def kinds(self) -> dict[str, float]:
        """Share of every kind of batch that there is."""
        video = 1 - self.picture_share
        shares = {
            IMAGE: self.picture_share,
            T2V: video * self.t2v_share,
            I2V: video * self.i2v_share,
            V2V: video * self.v2v_share,
        }
        return {kind: share for kind, share in shares.items() if share > 0}


class DistillBatches(MagicBatches):
    """Batches of the distillation: of the base's, with kinds drawn at random at every step.

    Args:
        recipe: sizes, shares and the seed.
        cache: the latents.
    """

    def __init__(self, recipe: ToyboxMagicDistillRecipe, cache: LatentCache) -> None:
        self.kinds, self.noise = recipe.kinds, recipe.reference_noise
        pictures = IMAGE in self.kinds
        base = ToyboxMagicRecipe(
            cache=recipe.cache,
            image_cache=recipe.image_cache if pictures else "",
            image_steps=0,
            image_every=int(pictures),
            batch_size=recipe.batch_size,
            image_batch_size=recipe.image_batch_size,
            lengths=recipe.lengths,
            shares=(recipe.t2v_share, recipe.i2v_share, recipe.v2v_share),
            validation_items=recipe.validation_items,
            trainer=recipe.trainer,
        )
        super().__init__(base, cache)

    def task(self, index: int) -> str:
        """Tell what batch `index` holds.

        At random, since pictures in every so many steps might never meet the student's turns.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "kind", index))
        names = list(self.kinds)
        shares = np.array([self.kinds[name] for name in names])
        return names[int(rng.choice(len(names), p=shares / shares.sum()))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`, with some noise on the given frames."""
        batch = super().__getitem__(index)
        if batch["task"] in (I2V, V2V) and self.noise > 0:
            seed = derive_seed(self.seed, "reference", index)
            generator = torch.Generator().manual_seed(seed)
            given = batch["reference"]
            amount = self.noise * torch.rand(len(given), 1, 1, 1, 1, generator=generator)
            batch["reference"] = given + amount * torch.randn(given.shape, generator=generator)
        return batch

    def measured(self) -> dict[str, Any]:
        """Gather the fixed batches of the validation, one of every kind."""
        rng = np.random.default_rng(derive_seed(self.seed, "validation"))
        found = {}
        for kind in self.kinds:
            if kind == IMAGE:
                assert self.pictures is not None
                found[kind] = self.images(range(self.picture_count, len(self.pictures)))
            else:
                items = range(self.count, len(self.cache))
                found[kind] = self.gather(items, kind, length=self.recipe.lengths[0], rng=rng)
        return found


class MagicDmdMethod(DmdMethod):
    """Distils a Magic 1-For-1 checkpoint.

    Args:
        recipe: settings.
        cache: the latents.
    """

    def __init__(self, recipe: ToyboxMagicDistillRecipe, cache: LatentCache) -> None:
        self.recipe = recipe
        self.device = torch.device(recipe.trainer.device)
        pipeline = Magic141Pipeline.from_pretrained(recipe.teacher)
        self.sampling, self.wishes = pipeline.sampling, dict(pipeline.config.sampling)
        self.parts = {name: getattr(pipeline, name) for name in _PARTS}
        for name in ("text_encoder", "text_encoder_2"):
            self.parts[name].float().to(self.device).eval().requires_grad_(False)
        # Not in `networks`, and so in no checkpoint: it is what `teacher` names.
        self.teacher = pipeline.transformer.float().to(self.device).eval()
        self.text = MagicText(
            self.parts,
            template=self.sampling.prompt_template,
            image_template=self.sampling.image_template,
        )
        student = copy.deepcopy(self.teacher)
        if recipe.init:
            go_on_with(
                student,
                lambda folder: Magic141Pipeline.from_pretrained(folder).transformer,
                folders=recipe.init,
            )
        critic = _critic(copy.deepcopy(self.teacher), recipe)
        self.teacher.requires_grad_(False)
        self.batches = DistillBatches(recipe, cache)
        self._measured: dict[str, Any] | None = None
        super().__init__(
            recipe,
            student=student,
            critic=critic,
            grid=partial(sigma_grid, shift=self.sampling.shift),
        )

    def question(self, batch: Any, rows: slice, *, num_steps: int) -> Question:
        """Show all networks the same text, picture and given frames; the guided teacher, none."""
        del num_steps  # this family's networks are not told
        names = ("latent", "reference")
        part = {name: batch[name][rows].to(self.device) for name in names}
        prior = prior_of({**part, "task": batch["task"]})
        captions = batch["captions"][rows]
        pictures = batch["pictures"][rows] if batch["task"] in (I2V, V2V) else None
        condition = self._condition(captions, pictures)

        @cache
        def negative() -> MagicCondition:
            # The picture stays; only the text goes.
            return self._condition([self.sampling.negative_prompt] * len(captions), pictures)

        def ask(network: Any, told: MagicCondition, x: Tensor, sigma: Tensor) -> Tensor:
            return predict_velocity(network, x, sigma=sigma, condition=told, prior=prior)

        def judge(x: Tensor, sigma: Tensor, exit_step: int) -> tuple[Tensor, Tensor | None]:
            found: tuple[Tensor, Tensor | None] = self.critic(
                lambda network: ask(network, condition, x, sigma), exit_step
            )
            return found

        with_text = partial(ask, self.teacher, condition)

        def without(x: Tensor, sigma: Tensor) -> Tensor:
            return ask(self.teacher, negative(), x, sigma)

        guided = partial(guided_velocity, with_text, without, scale=self.recipe.guidance)
        return Question(
            clean=part["latent"],
            student=partial(ask, self.student, condition),
            teacher=guided(),
            guidance=guided(added=True),
            critic=judge,
        )

    def measured(self) -> dict[str, Any]:
        """Give the validation's batches, gathered once."""
        if self._measured is None:
            self._measured = self.batches.measured()
        return self._measured

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder that pipelines load, in bfloat16."""
        student = type(self.teacher).from_config(self.teacher.config)
        student.load_state_dict(self.best_weights())
        sampling = {**self.wishes, "num_steps": self.recipe.num_steps, "guidance_scale": 1.0}
        export_magic_pipeline(folder, {**self.parts, "transformer": student}, sampling=sampling)

    @torch.no_grad()
    def _condition(self, captions: Any, pictures: Tensor | None) -> MagicCondition:
        return self.text(captions, pictures)


def _critic(network: Any, recipe: ToyboxMagicDistillRecipe) -> Critic:
    """Make the critic: told where time and CLIP's vector are, judging from the middle on."""
    config = network.config
    width = config.num_attention_heads * config.attention_head_dim
    singles = len(network.single_transformer_blocks)
    judged = f"single_transformer_blocks.{singles // 2}" if singles else "transformer_blocks.0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.trainer.seed, "critic"))
        return Critic(
            network,
            conditioning="time_text_embed",
            width=width,
            num_exits=recipe.num_steps if recipe.critic_exit_embedding else 0,
            judged=judged if recipe.adversarial else "",
            judged_width=width,
        )
