"""The recipe of the toybox Magic 1-For-1: one transformer for text to image and image to video.

Pictures alone first, then windows of video with a picture batch in every few: without anything
given (text to video), with the first picture given (image to video), or with the first latent
frames given and the window anywhere in a clip (going on with a video). LLaVA and CLIP are trained
along.

Source: Magic 1-For-1 (arXiv 2502.07701), of which no training code was released; the mix of tasks
and the settings are ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magic_dit.model import image_prior, predict_velocity, use_trimmed_text
from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS
from onereel.models.text.toybox_llava import (
    TOYBOX_PROMPT_TOKENS,
    TOYBOX_TEMPLATE,
    build_toybox_encoders,
    load_tokenizers,
    train_llama_tokenizer,
)
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.samplers.schedule import shift_sigma
from onereel.training.data import BatchStream, shuffled_index
from onereel.training.engine import Method, Stream, TrainerConfig, step_generator
from onereel.training.hooks import exported_config, output_of
from onereel.training.latent_cache import CachedClip, LatentCache, open_caches
from onereel.training.magic_cache import frame_of
from onereel.training.magic_text import NOTHING, MagicText
from onereel.training.optim import network_optimizers
from onereel.training.scene_maps import NUM_MAPS, map_loss
from onereel.world import CHUNK_FRAMES, sample_captions

IMAGE, T2V, I2V, V2V = "image", "t2v", "i2v", "v2v"
_GROUP = 8  # batches of pictures whose captions are sorted together
_MAX_GIVEN = 4  # latent frames that a window continues

# What the checkpoint asks of the sampler; see MagicSampleConfig.
TOYBOX_MAGIC_SAMPLING: dict[str, Any] = {
    "num_steps": 16,
    "guidance_scale": 3.0,
    "num_frames": 97,
    "segment_frames": 97,
    "continuation": "latent",
    "overlap_latents": 3,
    "height": 64,
    "width": 64,
    "negative_prompt": NOTHING,
    "prompt_template": TOYBOX_TEMPLATE,
    "image_template": TOYBOX_TEMPLATE,
    "prompt_crop": None,
    "prompt_tokens": TOYBOX_PROMPT_TOKENS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagicRecipe:
    """Settings of the toybox Magic 1-For-1 training.

    Args:
        preset: of the transformer, a name in `MAGIC_DIT_PRESETS`.
        cache: folder of the latent cache, or several, separated by commas.
        image_cache: folder of a latent cache of single pictures.
        tokenizer: folder of the tokenizers; trained there when missing.
        batch_size: windows of the longest length per step; shorter ones come in larger batches.
        image_batch_size: pictures per picture step.
        image_steps: steps on pictures alone, at the start.
        image_every: afterwards every such step is a picture step; 0 for none.
        lengths: latent frames of a window.
        shares: of windows without anything given, with the first picture, with latent frames.
        drop_share: share of items without text.
        unseen_share: share of windows whose picture LLaVA does not see.
        reference_noise: most noise on given latent frames, against drift.
        shift: of the noise levels that training draws, towards noise.
        uniform_share: share of noise levels drawn evenly instead.
        map_weight: weight of reading the scene maps; 0 for plain flow matching.
        map_block: the maps are read behind this single-stream block, counted from 0.
        init: folder of a run's export to start from, or empty.
        lr: AdamW's learning rate.
        matrix_lr: Muon's learning rate for the blocks' matrices; None gives them to AdamW.
        workers: background processes that gather batches.
        validation_items: clips of the fixed validation set, taken from the cache's end.
        trainer: settings of the loop.
    """

    preset: str = "toybox-magic"
    cache: str = "runs/toybox-magic-latents"
    image_cache: str = "runs/toybox-magic-images"
    tokenizer: str = "runs/toybox-magic-tokenizer"
    batch_size: int = 24
    image_batch_size: int = 128
    image_steps: int = 900
    image_every: int = 3
    lengths: tuple[int, ...] = (25, 13)
    shares: tuple[float, ...] = (0.2, 0.45, 0.35)
    drop_share: float = 0.1
    unseen_share: float = 0.1
    reference_noise: float = 0.05
    shift: float = 3.0
    uniform_share: float = 0.2
    map_weight: float = 0.3
    map_block: int = 1
    init: str = ""
    lr: float = 1e-3
    matrix_lr: float | None = 2e-3
    workers: int = 1
    validation_items: int = 64
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_minutes=60.0,
            schedule="time",
            hold=0.4,
            warmup_steps=50,
            ema_decay=0.998,
            bf16=None,
            validate_minutes=5.0,
        )
    )

    def __post_init__(self) -> None:
        """Check the shares."""
        if len(self.shares) != 3 or not all(0 <= s <= 1 for s in self.shares):
            raise ConfigError("shares", expected="three numbers in [0, 1]", got=list(self.shares))
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError("shares", expected="a sum of 1", got=sum(self.shares))

    def build(self) -> tuple[Method, Stream]:
        """Make the networks with their optimizers, and the stream of cached windows.

        Returns:
            The method and the stream.
        """
        cache = open_caches(self.cache)
        return MagicMethod(self, cache), BatchStream(
            MagicBatches(self, cache), workers=self.workers
        )


class MagicBatches:
    """Batches of a latent cache; batch i depends on the recipe's seed and i only.

    Args:
        recipe: sizes, shares and the seed.
        cache: the latents; its last clips are left to the validation.
    """

    def __init__(self, recipe: ToyboxMagicRecipe, cache: LatentCache) -> None:
        self.recipe, self.cache = recipe, cache
        self.pictures = open_caches(recipe.image_cache) if recipe.image_cache else None
        self.seed = derive_seed(recipe.trainer.seed, "magic-windows")
        self.count = len(cache) - recipe.validation_items
        self.picture_count = 0
        if self.pictures is not None:
            self.picture_count = len(self.pictures) - recipe.validation_items
        elif recipe.image_steps or recipe.image_every:
            raise ConfigError("image_cache", expected="a folder", got="none",
                              hint="or image_steps=0 and image_every=0")  # fmt: skip
        for counted, where in ((self.count, cache), (self.picture_count, self.pictures)):
            if where is not None and counted < 1:
                expected = f"more than {recipe.validation_items} clips"
                raise ConfigError(str(where.folder), expected=expected, got=len(where))

    def task(self, index: int) -> str:
        """Tell what batch `index` holds: `image`, `t2v`, `i2v` or `v2v`."""
        every = self.recipe.image_every
        if index < self.recipe.image_steps or (every and index % every == 0):
            return IMAGE
        rng = np.random.default_rng(derive_seed(self.seed, "task", index))
        return (T2V, I2V, V2V)[int(rng.choice(3, p=self.recipe.shares))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`; see `gather` and `images`."""
        rng = np.random.default_rng(derive_seed(self.seed, "batch", index))
        task, recipe = self.task(index), self.recipe
        if task == IMAGE:
            return self.images(self._alike(index))
        length = int(rng.choice(recipe.lengths))
        size = recipe.batch_size * max(recipe.lengths) // length
        places = range(index * size, (index + 1) * size)
        items = [shuffled_index(p, self.count, seed=self.seed + 1) for p in places]
        return self.gather(items, task, length=length, rng=rng)

    def _alike(self, index: int) -> list[int]:
        """Choose pictures with captions of about one length for batch `index`.

        The transformer computes on every text token as on every picture token, of which there are
        16, and a batch is as long as its longest caption: 32 tokens per picture, not 44.
        """
        size = self.recipe.image_batch_size
        group, place = divmod(index, _GROUP)
        places = range(group * _GROUP * size, (group + 1) * _GROUP * size)
        items = [shuffled_index(p, self.picture_count, seed=self.seed) for p in places]
        assert self.pictures is not None
        entries = self.pictures.entries
        items.sort(key=lambda item: (entries[item]["captions"][0].count(" "), item))
        order = np.random.default_rng(derive_seed(self.seed, "group", group)).permutation(_GROUP)
        start = int(order[place]) * size
        return items[start : start + size]

    def images(self, items: Sequence[int]) -> dict[str, Any]:
        """Gather pictures.

        Args:
            items: their numbers in the picture cache.

        Returns:
            `latent` [B, C, 1, h, w], `reference` (the same), `maps` [B, M, 1, h', w'], `captions`
            and the `task`; `pictures` is None.
        """
        assert self.pictures is not None
        clips = [self.pictures[item] for item in items]
        latent = torch.stack([clip.latent for clip in clips]).float()
        return {
            "task": IMAGE,
            "latent": latent,
            "reference": latent,
            "maps": torch.stack([clip.maps for clip in clips]),
            "captions": [clip.captions[0] for clip in clips],
            "pictures": None,
        }

    def gather(
        self, items: Sequence[int], task: str, *, length: int, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Gather windows.

        Args:
            items: numbers of clips; where one has no window of one caption, the next is taken.
            task: `t2v`, `i2v` or `v2v`.
            length: latent frames T of a window.
            rng: chooses where it lies.

        Returns:
            `latent` [B, C, T, h, w], `reference` [B, C, K, h, w] with the given first latent
            frames, `maps` [B, M, T, h', w'], `captions`, the `pictures` that clips begin with,
            uint8 [B, H, W, 3], and the `task`.
        """
        given = int(rng.integers(1, min(_MAX_GIVEN, length - 1) + 1)) if task == V2V else 1
        found: dict[str, list[Any]] = {
            name: [] for name in ("latent", "reference", "maps", "captions", "pictures")
        }
        for item in items:
            clip, start = self._window(item, task, length=length, given=given, rng=rng)
            window = slice(start, start + length)
            latent = clip.latent[:, window]
            found["latent"].append(latent)
            found["reference"].append(latent[:, :given] if task == V2V else clip.images)
            found["maps"].append(clip.maps[:, window])
            found["captions"].append(_caption_of(clip, start + length - 1))
            found["pictures"].append(clip.first)
        captions = found.pop("captions")
        tensors: dict[str, Any] = {name: torch.stack(rows) for name, rows in found.items()}
        for name in ("latent", "reference"):
            tensors[name] = tensors[name].float()
        return {**tensors, "captions": captions, "task": task}

    def _window(
        self, item: int, task: str, *, length: int, given: int, rng: np.random.Generator
    ) -> tuple[CachedClip, int]:
        """Find a window whose new frames have one caption, in this clip or one of the next."""
        first, stop = (0, self.count) if item < self.count else (self.count, len(self.cache))
        for place in (*range(item, stop), *range(first, item)):
            clip = self.cache[place]
            if clip.first is None:
                expected = "a cache made with a VAE of HunyuanVideo's shape"
                raise ConfigError(str(self.cache.folder), expected=expected, got="another")
            last = clip.latent.shape[1] - length
            begins = range(last + 1) if task == V2V else range(min(last, 0) + 1)
            new = given if task == V2V else 0
            fitting = [
                s for s in begins if _caption_of(clip, s + new) == _caption_of(clip, s + length - 1)
            ]
            if fitting:
                return clip, int(rng.choice(fitting))
        raise ConfigError("latent cache", expected=f"windows of {length} latent frames")


def _caption_of(clip: CachedClip, latent: int) -> str:
    """Give the caption of a latent frame; it changes once at most."""
    return clip.captions[min(frame_of(latent) // CHUNK_FRAMES, len(clip.captions) - 1)]


def prior_of(batch: Mapping[str, Any], reference: Tensor | None = None) -> Tensor:
    """Lay out what a batch is given as the transformer's extra channels.

    Args:
        batch: see `MagicBatches`.
        reference: instead of the batch's own.

    Returns:
        [B, C + 1, T, h, w]; zeros where nothing is given.
    """
    latent = batch["latent"]
    if batch["task"] in (IMAGE, T2V):
        size, channels, *rest = latent.shape
        return latent.new_zeros(size, channels + 1, *rest)
    return image_prior(batch["reference"] if reference is None else reference, latent.shape[2])


class MagicMethod(Method):
    """Flow matching on pictures and windows, jointly with the text encoders.

    Args:
        recipe: settings.
        cache: the latents, for the validation set.
    """

    splits = exports_pipeline = True

    def __init__(self, recipe: ToyboxMagicRecipe, cache: LatentCache) -> None:
        self.recipe, self.seed = recipe, recipe.trainer.seed
        folder = Path(recipe.init or recipe.tokenizer)
        if not (folder / "tokenizer").is_dir():
            train_llama_tokenizer(
                sample_captions(20000, derive_seed(self.seed, "tokenizer")), folder
            )
        tokenizer, tokenizer_2 = load_tokenizers(folder)
        torch.manual_seed(derive_seed(self.seed, "weights"))
        self.parts: dict[str, Any] = {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2}
        self.parts |= build_toybox_encoders(tokenizer)
        self.dit = HunyuanVideoTransformer3DModel(**MAGIC_DIT_PRESETS[recipe.preset])
        use_trimmed_text(self.dit)
        _initialise(self.dit)
        self.text = MagicText(self.parts, template=TOYBOX_TEMPLATE, image_template=TOYBOX_TEMPLATE)
        # Reads the maps in the middle; training only, never exported.
        self.reader = nn.Linear(self.dit.proj_out.in_features, NUM_MAPS + 2)
        encoders = {"llava": self.parts["text_encoder"], "clip": self.parts["text_encoder_2"]}
        self.networks = {"dit": self.dit, **encoders, "reader": self.reader}
        if recipe.init:
            _copy_weights(self.networks, folder)
        self.ema_names = ("dit", "llava", "clip")
        self.optimizers = network_optimizers(
            self.networks, lr=recipe.lr, matrix_lr=recipe.matrix_lr
        )
        batches = MagicBatches(recipe, cache)
        self.vae_folder = cache.config.vae
        last, rng = range(batches.count, len(cache)), np.random.default_rng(self.seed)
        self.validation = {
            task: batches.gather(list(last)[:32], task, length=max(recipe.lengths), rng=rng)
            for task in (I2V, V2V)
        }
        if batches.pictures is not None:
            ends = range(batches.picture_count, len(batches.pictures))
            self.validation[IMAGE] = batches.images(ends)

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the flow-matching loss of one batch."""
        flow, maps = self._losses(batch, step_generator(self.seed, step))
        parts = {f"{batch['task']}_loss": flow.detach(), f"{batch['task']}_maps": maps.detach()}
        return {"loss": flow + self.recipe.map_weight * maps, **parts}

    def validate(self, step: int) -> dict[str, float]:
        """Measure the loss on fixed batches with fixed noise."""
        del step
        losses: dict[str, float] = {}
        for name, batch in self.validation.items():
            flow, maps = self._losses(batch, step_generator(self.seed, 0, tag=f"validation-{name}"))
            losses |= {f"val_{name}": float(flow), f"val_{name}_maps": float(maps)}
        return losses

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder that pipelines load: bfloat16 weights and sampling settings."""
        vae = AutoencoderKLHunyuanVideo.from_pretrained(self.vae_folder)
        export_magic_pipeline(
            folder,
            {**self.parts, "transformer": self.dit, "vae": vae},
            sampling=TOYBOX_MAGIC_SAMPLING,
        )

    def _losses(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt, predict, and compare: velocity and maps, this part's share of the means."""
        recipe, device = self.recipe, self.dit.device
        latent: Tensor = batch["latent"]
        size = len(latent)
        sigma = draw_sigmas(size, generator, shift=recipe.shift, uniform_share=recipe.uniform_share)
        noise = torch.randn(latent.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < recipe.drop_share
        unseen = bool(torch.rand((), generator=generator) < recipe.unseen_share)
        amount = recipe.reference_noise * torch.rand(size, 1, 1, 1, 1, generator=generator)
        extra = amount * torch.randn(batch["reference"].shape, generator=generator)
        rows = self.part.rows(size)
        latent, noise, sigma = (x[rows].to(device) for x in (latent, noise, sigma))
        reference = batch["reference"][rows].to(device) + extra[rows].to(device)
        seen = batch["task"] in (I2V, V2V) and not unseen
        condition = self.text(
            batch["captions"][rows],
            batch["pictures"][rows] if seen else None,
            dropped=dropped[rows],
        )
        level = sigma[:, None, None, None, None]
        x = (1 - level) * latent + level * noise
        prior = prior_of({"latent": latent, "task": batch["task"]}, reference)
        with output_of(self.dit.single_transformer_blocks[recipe.map_block]) as outputs:
            velocity = predict_velocity(self.dit, x, sigma=sigma, condition=condition, prior=prior)
        share = len(latent) / size
        loss = (velocity - (noise - latent)).square().mean() * share
        if not recipe.map_weight:
            return loss, torch.zeros_like(loss)
        maps = batch["maps"][rows].to(device)
        t, h, w = maps.shape[2:]
        read = rearrange(self.reader(outputs[0]), "b (t h w) m -> b t h w m", t=t, h=h, w=w)
        return loss, map_loss(read, maps, weight=torch.ones_like(read[..., 0, 0, 0])) * share


def draw_sigmas(
    count: int, generator: torch.Generator, *, shift: float, uniform_share: float
) -> Tensor:
    """Draw noise levels: logit-normal, shifted towards noise, some evenly instead.

    Args:
        count: how many.
        generator: source of randomness, on the CPU.
        shift: 1 leaves them as they are.
        uniform_share: share drawn evenly from [0, 1].

    Returns:
        [count].

    Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, its scheduler's config; the even share is ours.
    """
    sigma = shift_sigma(torch.sigmoid(torch.randn(count, generator=generator)), shift)
    even = torch.rand(count, generator=generator)
    is_even = torch.rand(count, generator=generator) < uniform_share
    return torch.where(is_even, even, sigma)


def export_magic_pipeline(
    folder: Path, parts: Mapping[str, Any], *, sampling: Mapping[str, Any]
) -> None:
    """Write a checkpoint folder in bfloat16; one that is there is replaced at the end.

    Args:
        folder: the folder.
        parts: components of the pipeline by name; they stay as they are.
        sampling: what the checkpoint asks of the sampler.
    """
    copies = dict(parts)
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        network = parts[name]
        if isinstance(network, HunyuanVideoTransformer3DModel | AutoencoderKLHunyuanVideo):
            copy: Any = type(network).from_config(exported_config(network))
        else:
            copy = type(network)(network.config)
        copy.load_state_dict(network.state_dict())
        copies[name] = copy.to(torch.bfloat16)
    pipeline = Magic141Pipeline(**copies, sampling=dict(sampling))
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _initialise(dit: HunyuanVideoTransformer3DModel) -> None:
    """Start as the identity: small weights, modulations and output of zero."""
    for name, module in dit.named_modules():
        if isinstance(module, nn.Linear):
            zero = name == "proj_out" or ("norm" in name and name.endswith("linear"))
            nn.init.normal_(module.weight, std=0.0 if zero else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.x_embedder.proj.weight.flatten(1))
    nn.init.zeros_(dit.x_embedder.proj.bias)


def _copy_weights(networks: Mapping[str, nn.Module], folder: Path) -> None:
    """Start from an exported run."""
    pipeline = Magic141Pipeline.from_pretrained(folder)
    for name, part in (
        ("dit", "transformer"),
        ("llava", "text_encoder"),
        ("clip", "text_encoder_2"),
    ):
        networks[name].load_state_dict(getattr(pipeline, part).state_dict())
