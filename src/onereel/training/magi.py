"""The recipe of the toybox MAGI transformer and its text encoder.

Single latent frames first (appearance is learned there at a fraction of the cost), then pieces of
up to six chunks with one image batch in every few. The T5 encoder is trained along.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text.presets import build_text_encoder
from onereel.models.text.tokenizer import train_tokenizer
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.training.captions import CaptionEncoder
from onereel.training.data import BatchStream, shuffled_index
from onereel.training.distributed import through
from onereel.training.engine import Method, Stream, TrainerConfig, step_generator
from onereel.training.flow import FlowShares, corrupt
from onereel.training.hooks import exported_config, output_of
from onereel.training.latent_cache import CachedClip, LatentCache, check_alike, open_caches
from onereel.training.magi_layout import Layout, sample_layout
from onereel.training.optim import network_optimizers
from onereel.training.scene_maps import NUM_MAPS, map_loss
from onereel.world import sample_captions

WIDTH = 6  # latent frames per chunk
BAND_RATIO = 2.2  # between the rotary frequencies that training starts from

# What the checkpoint asks of the sampler; see ChunkSampleConfig. The rest are MAGI's own values.
TOYBOX_SAMPLING: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "fps": 24,
    "num_frames": 96,
    "num_steps": 16,
    "window_size": 1,
    "noise2clean_kvrange": (2,),
    "prev_chunk_scales": (1.0, 1.0, 1.0, 1.0, 1.0),
    "text_scales": (3.0, 3.0, 3.0, 2.0, 1.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxMagiRecipe:
    """Settings of the toybox MAGI training.

    Args:
        preset: of the transformer and the text encoder.
        cache: folder of the latent cache, or several, separated by commas.
        image_cache: folder of a latent cache of single images; the clips' own where empty.
        start_cache: as `cache`, for pieces that start a video, of which every clip can be one chunk
            long; `cache` where empty.
        tokenizer: folder of the tokenizer; trained there when missing.
        vocab_size: of a new tokenizer.
        batch_size: pieces of video per step.
        image_batch_size: single latent frames per image step.
        image_steps: steps on single frames alone, at the start.
        image_every: afterwards every such step is an image step; 0 for none.
        window: chunks in flight when videos are made.
        shift: of the sampler's time grid.
        t2v_share: share of pieces that start a video rather than continue one.
        i2v_share: share of those whose first latent frame is given.
        drop_share: share of items trained with the null caption.
        map_weight: weight of reading the scene maps; 0 for plain flow matching.
        map_block: the maps are read behind this block, counted from 0.
        init: folder of a run's export to start from, or empty.
        text: folder of a text encoder to start from, of `toybox-text`; that of `init` where empty.
        lr: AdamW's learning rate.
        matrix_lr: Muon's learning rate for the blocks' matrices; None gives them to AdamW.
        workers: background processes that gather batches.
        validation_items: pieces of the fixed validation set, taken from the cache's end.
        trainer: settings of the loop.
    """

    preset: str = "toybox"
    cache: str = "runs/toybox-latents"
    image_cache: str = "runs/toybox-images"
    start_cache: str = ""
    tokenizer: str = "runs/toybox-tokenizer"
    vocab_size: int = 320
    batch_size: int = 16
    image_batch_size: int = 128
    image_steps: int = 1000
    image_every: int = 4
    window: int = 1
    shift: float = 3.0
    t2v_share: float = 0.35
    i2v_share: float = 0.4
    drop_share: float = 0.1
    map_weight: float = 0.3
    map_block: int = 3
    init: str = ""
    text: str = ""
    lr: float = 1.5e-3
    matrix_lr: float | None = 3e-3
    workers: int = 1
    validation_items: int = 64
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_minutes=91.5,
            schedule="time",
            hold=0.5,
            warmup_steps=50,
            ema_decay=0.998,
            bf16=None,
            validate_minutes=5.0,
        )
    )

    def build(self) -> tuple[Method, Stream]:
        """Make the networks with their optimizers, and the stream of cached pieces.

        Returns:
            The method and the stream.
        """
        cache = open_caches(self.cache)
        return MagiMethod(self, cache), BatchStream(MagiBatches(self, cache), workers=self.workers)


class MagiBatches:
    """Batches of a latent cache; batch i depends on the recipe's seed and i only.

    Args:
        recipe: sizes, shares and the seed.
        cache: the latents; its last clips are left to the validation.
    """

    def __init__(self, recipe: ToyboxMagiRecipe, cache: LatentCache) -> None:
        self.recipe, self.cache = recipe, cache
        self.pictures = open_caches(recipe.image_cache) if recipe.image_cache else None
        self.starts = open_caches(recipe.start_cache) if recipe.start_cache else None
        for other in (self.pictures, self.starts):
            if other is not None:
                check_alike(cache, other, images_only=other is self.pictures)
        self.seed = derive_seed(recipe.trainer.seed, "magi-pieces")
        if recipe.validation_items < 1:
            raise ConfigError("validation_items", expected="at least 1")
        self.count = self.picture_count = _training_clips(cache, recipe)
        if self.pictures is not None:
            self.picture_count = _training_clips(self.pictures, recipe)

    def is_image(self, index: int) -> bool:
        """Tell whether batch `index` holds single frames."""
        every = self.recipe.image_every
        return index < self.recipe.image_steps or bool(every and index % every == 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Gather batch `index`.

        Returns:
            `latent` [B, C, T, h, w], `given` [B, C, 1, h, w] with the first frame as an image,
            `maps` [B, M, T, h', w'], `captions` per item and chunk, and the `layout`, None for
            single frames.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "batch", index))
        if self.is_image(index):
            places = range(
                index * self.recipe.image_batch_size, (index + 1) * self.recipe.image_batch_size
            )
            items = [shuffled_index(p, self.picture_count, seed=self.seed) for p in places]
            return self.images(items, rng)
        layout = sample_layout(
            rng,
            t2v_share=self.recipe.t2v_share,
            window=self.recipe.window,
            shift=self.recipe.shift,
        )
        places = range(index * self.recipe.batch_size, (index + 1) * self.recipe.batch_size)
        if layout.num_clean == 0 and self.starts is not None:
            items = [shuffled_index(p, len(self.starts), seed=self.seed + 2) for p in places]
            among = range(len(self.starts))
            return self._gather(self.starts, items, layout, among=among, rng=rng)
        items = [shuffled_index(p, self.count, seed=self.seed + 1) for p in places]
        return self.pieces(items, layout, rng=rng)

    def images(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        """Gather single frames: the first frame of a random chunk of each clip."""
        frames, captions, maps = [], [], []
        for item in items:
            clip = self.cache[item] if self.pictures is None else self.pictures[item]
            # Early chunks show what the caption says; later ones may have lost it.
            chunk = int(rng.integers(0, min(2, len(clip.captions))))
            frames.append(clip.images[:, chunk : chunk + 1])
            maps.append(clip.image_maps[:, chunk : chunk + 1])
            captions.append(clip.captions[chunk : chunk + 1])
        latent = torch.stack(frames).float()
        return {
            "latent": latent,
            "given": latent,
            "maps": torch.stack(maps),
            "captions": captions,
            "layout": None,
        }

    def pieces(
        self, items: Sequence[int], layout: Layout, *, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Gather pieces of one layout; those without clean chunks start where their clip does."""
        validation = range(self.count, len(self.cache))
        among = validation if items[0] in validation else range(self.count)
        return self._gather(self.cache, items, layout, among=among, rng=rng)

    def _gather(
        self,
        cache: LatentCache,
        items: Sequence[int],
        layout: Layout,
        *,
        among: range,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        latents, given, captions, maps = [], [], [], []
        for item in items:
            clip = _long_enough(cache, item, layout.num_chunks, among=among)
            spare = len(clip.captions) - layout.num_chunks
            start = int(rng.integers(0, spare + 1)) if layout.num_clean else 0
            stop = start + layout.num_chunks
            latents.append(clip.latent[:, WIDTH * start : WIDTH * stop])
            given.append(clip.images[:, start : start + 1])
            maps.append(clip.maps[:, WIDTH * start : WIDTH * stop])
            captions.append(clip.captions[start:stop])
        return {
            "latent": torch.stack(latents).float(),
            "given": torch.stack(given).float(),
            "maps": torch.stack(maps),
            "captions": captions,
            "layout": layout,
        }


def _long_enough(cache: LatentCache, item: int, num_chunks: int, *, among: range) -> CachedClip:
    """Return a clip, or the next one of a part of a cache that has enough chunks."""
    for place in itertools.chain(range(item, among.stop), range(among.start, item)):
        if cache.num_chunks(place) >= num_chunks:
            return cache[place]
    raise ConfigError("latent cache", expected=f"clips of {num_chunks} chunks")


def _training_clips(cache: LatentCache, recipe: ToyboxMagiRecipe) -> int:
    """Count the clips before those of the validation."""
    count = len(cache) - recipe.validation_items
    if count < 1:
        expected = f"more than {recipe.validation_items} clips"
        raise ConfigError(str(cache.folder), expected=expected, got=len(cache))
    return count


class MagiMethod(Method):
    """Flow matching on chunks, jointly with the text encoder.

    Args:
        recipe: settings.
        cache: the latents, for the validation set.
    """

    splits = exports_pipeline = True

    def __init__(self, recipe: ToyboxMagiRecipe, cache: LatentCache) -> None:
        self.recipe = recipe
        self.seed = recipe.trainer.seed
        folder = Path(recipe.tokenizer)
        if not (folder / "tokenizer_config.json").is_file():
            texts = sample_captions(20000, derive_seed(self.seed, "tokenizer"))
            train_tokenizer(texts, folder, vocab_size=recipe.vocab_size)
        self.tokenizer = T5Tokenizer.from_pretrained(folder)
        torch.manual_seed(derive_seed(self.seed, "weights"))
        self.text = _text_encoder(recipe, len(self.tokenizer))
        self.captions = CaptionEncoder(self.tokenizer, self.text)
        self.dit = Magi1Transformer3DModel(**DIT_PRESETS[recipe.preset])
        _initialise(self.dit)
        if recipe.init:
            _copy_weights(self.dit, Path(recipe.init))
        # Reads the maps in the middle; training only, never exported.
        self.reader = nn.Linear(self.dit.proj_out.in_features, NUM_MAPS + 2)
        self.networks = {"dit": self.dit, "text": self.text, "reader": self.reader}
        self.ema_names = ("dit", "text")
        self.optimizers = network_optimizers(
            self.networks, lr=recipe.lr, matrix_lr=recipe.matrix_lr
        )
        batches = MagiBatches(recipe, cache)
        self.vae_folder = cache.config.vae
        last = range(batches.count, len(cache))
        rng = np.random.default_rng(derive_seed(self.seed, "validation"))
        window = recipe.window
        layouts = (
            Layout(
                num_clean=clean,
                ages=tuple(reversed(range(count))),
                aligned=True,
                window=window,
                shift=recipe.shift,
            )
            for clean, count in ((0, window), (1, max(1, window - 1)))
        )
        pictures = batches.pictures
        ends = last if pictures is None else range(len(pictures) - len(last), len(pictures))
        self.validation = [batches.images(ends, rng)]
        self.validation += [batches.pieces(list(last)[:32], layout, rng=rng) for layout in layouts]

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the flow-matching loss of one batch."""
        flow, maps = self._losses(batch, step_generator(self.seed, step))
        kind = "image" if batch["layout"] is None else "video"
        parts = {f"{kind}_loss": flow.detach(), f"{kind}_maps": maps.detach()}
        return {"loss": flow + self.recipe.map_weight * maps, **parts}

    def validate(self, step: int) -> dict[str, float]:
        """Measure the loss on fixed pieces with fixed noise."""
        del step
        losses = {}
        for name, batch in zip(("image", "start", "continue"), self.validation, strict=True):
            generator = step_generator(self.seed, 0, tag=f"validation-{name}")
            flow, maps = self._losses(batch, generator)
            losses[f"val_{name}"] = float(flow)
            if self.recipe.map_weight > 0:
                losses[f"val_{name}_maps"] = float(maps)
        return losses

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder that pipelines load: bfloat16 weights and sampling settings."""
        export_pipeline(
            folder,
            tokenizer=self.tokenizer,
            text_encoder=self.text,
            transformer=self.dit,
            vae=AutoencoderKLMagi1.from_pretrained(self.vae_folder),
            sampling=TOYBOX_SAMPLING | {"shift": self.recipe.shift},
        )

    def _losses(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt, predict, and compare on the frames that are not given: velocity and maps."""
        flow = corrupt(
            batch["latent"],
            batch["given"],
            layout=batch["layout"],
            shares=FlowShares(i2v=self.recipe.i2v_share, drop=self.recipe.drop_share),
            generator=generator,
            device=self.dit.device,
        )
        rows = self.part.rows(len(flow.x))
        flow = flow.take(rows)
        null = through(self.dit, lambda dit: dit.null_caption[:])
        text = self.captions(batch["captions"][rows], flow, null=null)
        reads = self.recipe.map_weight > 0
        block = self.dit.blocks[self.recipe.map_block] if reads else None
        with output_of(block) as outputs:
            velocity = flow.predict(self.dit, text)
        loss = flow.loss(velocity)
        if not reads:
            return loss, torch.zeros_like(loss)
        maps = batch["maps"][rows].to(self.dit.device)
        t, h, w = maps.shape[2:]
        read = rearrange(self.reader(outputs[0]), "b (t h w) m -> b t h w m", t=t, h=h, w=w)
        weight = flow.weight[:, 0, :, 0, 0]
        return loss, map_loss(read, maps, weight=weight, total=flow.total)


def export_pipeline(
    folder: Path,
    *,
    tokenizer: T5Tokenizer,
    text_encoder: T5EncoderModel,
    transformer: Magi1Transformer3DModel,
    vae: AutoencoderKLMagi1,
    sampling: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder in bfloat16; one that is there is replaced at the end.

    Args:
        folder: the folder.
        tokenizer: of the text encoder.
        text_encoder: stays as it is, like the other networks.
        transformer: the denoiser.
        vae: the VAE.
        sampling: what the checkpoint asks of the sampler.
    """
    copies: dict[str, Any] = {
        "transformer": Magi1Transformer3DModel.from_config(exported_config(transformer)),
        "text_encoder": type(text_encoder)(text_encoder.config),
        "vae": AutoencoderKLMagi1.from_config(exported_config(vae)),
    }
    originals = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
    for name, network in copies.items():
        network.load_state_dict(originals[name].state_dict())
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    pipeline = Magi1Pipeline(tokenizer=tokenizer, sampling=dict(sampling), **copies)
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _initialise(dit: Magi1Transformer3DModel) -> None:
    """Start as the identity: small weights, and an output of zero."""
    for module in dit.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for block in dit.blocks:
        # Gates of zero would stop the gradient through the normalised branches.
        torch.nn.init.constant_(block.get_parameter("ada_modulate_layer.1.bias"), 0.5)
        for name in ("norm2.weight", "norm4.weight"):
            torch.nn.init.constant_(block.get_parameter(name), 0.1)
    torch.nn.init.zeros_(dit.proj_out.weight)
    if dit.place_embedder is not None:
        torch.nn.init.normal_(dit.place_embedder.linear.weight, std=0.1)
    # Four bands a factor of ten apart leave one that tells neighbours from each other, and time and
    # space share it; training moves the idle ones, but over thousands of steps.
    bands = dit.rope.bands
    bands.data.copy_(BAND_RATIO ** -torch.arange(len(bands), dtype=bands.dtype))


def _text_encoder(recipe: ToyboxMagiRecipe, vocab_size: int) -> T5EncoderModel:
    """Build the text encoder, or take one that has begun, whatever its depth."""
    folder = recipe.text or (str(Path(recipe.init) / "text_encoder") if recipe.init else "")
    if not folder:
        return build_text_encoder(recipe.preset, vocab_size)
    text: T5EncoderModel = T5EncoderModel.from_pretrained(folder).float().eval()
    if text.config.vocab_size != vocab_size:
        got = text.config.vocab_size
        raise ConfigError(
            f"{folder}: vocab_size", expected=f"the tokenizer's {vocab_size}", got=got
        )
    return text


def _copy_weights(dit: Magi1Transformer3DModel, folder: Path) -> None:
    """Start from an exported run; places that it does not know have no effect at first."""
    state = Magi1Transformer3DModel.from_pretrained(folder / "transformer").state_dict()
    if dit.place_embedder is not None:
        places = torch.zeros_like(dit.place_embedder.linear.weight)
        state.setdefault("place_embedder.linear.weight", places)
    dit.load_state_dict(state)
