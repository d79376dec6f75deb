"""The MAGI recipe: what a batch holds, what the loss counts, what is exported."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_vae import VAE_PRESETS
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text.special_tokens import NULL_VISIBLE
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.training.data import BatchStream
from onereel.training.engine import Trainer
from onereel.training.latent_cache import LatentCache, build_cache, write_shard
from onereel.training.magi import (
    TOYBOX_SAMPLING,
    WIDTH,
    MagiBatches,
    MagiMethod,
    ToyboxMagiRecipe,
)
from onereel.training.magi_layout import Layout
from onereel.world import sample_captions

START = Layout(num_clean=0, ages=(1, 0), aligned=False)
CONTINUE = Layout(num_clean=1, ages=(2, 1, 0), aligned=True)


@pytest.fixture
def cache(recipe: ToyboxMagiRecipe) -> LatentCache:
    return LatentCache(recipe.cache)


class _Recorder(nn.Module):
    """Stands in for the transformer: keeps what it is given, answers with the true velocity.

    What the loss must not count (frames of `ignored`) is answered with nonsense.
    """

    def __init__(self, dit: Any, latent: Tensor, *, ignored: Tensor) -> None:
        super().__init__()
        self.null_caption, self.device = dit.null_caption, torch.device("cpu")
        self.latent, self.ignored = latent, ignored

    def forward(
        self, x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None, **options: Any
    ) -> SimpleNamespace:
        self.x, self.times, self.text, self.mask, self.options = x, times, text, mask, options
        t = times.repeat_interleave(x.shape[2] // times.shape[1], dim=1)[:, None, :, None, None]
        velocity = (self.latent - x) / (1 - t)
        return SimpleNamespace(sample=torch.where(self.ignored, 1e3, velocity))


def _record(
    recipe: ToyboxMagiRecipe,
    layout: Layout | None,
    *,
    ignored: tuple[int, ...] = (),
    **changes: Any,
) -> tuple[_Recorder, MagiMethod, dict[str, Any], float]:
    """Run one loss on a recorder; `ignored` are frames that it answers wrongly."""
    recipe = dataclasses.replace(recipe, **changes)
    cache = LatentCache(recipe.cache)
    method, batches = MagiMethod(recipe, cache), MagiBatches(recipe, cache)
    rng = np.random.default_rng(0)
    batch = (
        batches.images([0, 1, 2], rng)
        if layout is None
        else batches.pieces([0, 1, 2, 3], layout, rng=rng)
    )
    wrong = torch.zeros(batch["latent"].shape[2], dtype=torch.bool)
    wrong[list(ignored)] = True
    recorder = _Recorder(method.dit, batch["latent"], ignored=wrong[None, None, :, None, None])
    method.dit = recorder  # type: ignore[assignment]
    return recorder, method, batch, float(method.train_step(batch, 0)["loss"])


def _found(cache: LatentCache, latent: Tensor) -> tuple[int, set[int]]:
    """Find the clip of a piece, and the chunks it may start at: several where nothing moves."""
    frames = latent.shape[1]
    places: dict[int, set[int]] = {}
    for item in range(len(cache)):
        whole = cache[item].latent.float()
        for start in range(0, whole.shape[1] - frames + 1, WIDTH):
            if torch.equal(whole[:, start : start + frames], latent):
                places.setdefault(item, set()).add(start // WIDTH)
    ((item, starts),) = places.items()
    return item, starts


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_depend_on_the_index_only(
    recipe: ToyboxMagiRecipe, cache: LatentCache, workers: int
) -> None:
    reference = [MagiBatches(recipe, cache)[i] for i in range(6)]
    assert [batch["layout"] is None for batch in reference] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    stream = BatchStream(MagiBatches(recipe, cache), workers=workers)
    for start in (0, 3):
        for index, batch in enumerate(itertools.islice(stream.batches(start), 3), start):
            for name in ("latent", "given"):
                assert torch.equal(batch[name], reference[index][name])
            assert batch["layout"] == reference[index]["layout"]
            assert [tuple(c) for c in batch["captions"]] == reference[index]["captions"]


def test_pieces_are_cut_at_chunks_and_starts_begin_where_the_clip_does(
    recipe: ToyboxMagiRecipe, cache: LatentCache
) -> None:
    batches = MagiBatches(dataclasses.replace(recipe, shift=1.5), cache)
    latest = 0
    for index in (i for i in range(40) if not batches.is_image(i)):
        batch = batches[index]
        layout = batch["layout"]
        assert batch["latent"].shape == (2, 16, WIDTH * layout.num_chunks, 4, 4)
        assert layout.shift == 1.5
        for latent, given, captions in zip(
            batch["latent"], batch["given"], batch["captions"], strict=True
        ):
            item, starts = _found(cache, latent)
            clip = cache[item]
            assert item < batches.count == 13
            assert layout.num_clean or 0 in starts
            assert captions in [clip.captions[s : s + layout.num_chunks] for s in starts]
            assert any(torch.equal(given, clip.images[:, s : s + 1].float()) for s in starts)
            latest = max(latest, *starts) if layout.num_clean else latest
    assert latest > 0


def test_starts_can_have_clips_of_their_own(
    recipe: ToyboxMagiRecipe, cache: LatentCache, stored: Path, tmp_path: Path
) -> None:
    short = dataclasses.replace(cache.config, min_chunks=1, max_chunks=1, seed=9)
    vae = AutoencoderKLMagi1.from_pretrained(stored / "vae").eval()
    next(build_cache(short, tmp_path / "short", clips=0))
    write_shard(vae, short, folder=tmp_path / "short", shard=0)
    starts = LatentCache(tmp_path / "short")
    batches = MagiBatches(dataclasses.replace(recipe, start_cache=str(tmp_path / "short")), cache)
    seen = set()
    for index in (i for i in range(40) if not batches.is_image(i)):
        batch = batches[index]
        clean = batch["layout"].num_clean
        for latent in batch["latent"]:
            item, _ = _found(starts if clean == 0 else cache, latent)
            seen.add((clean, item))
    assert len({item for clean, item in seen if clean == 0}) > 3
    assert any(clean for clean, _ in seen)
    for name, folder, word in (
        ("start_cache", recipe.image_cache, "images_only"),
        ("image_cache", recipe.cache, "images_only"),
    ):
        with pytest.raises(ConfigError, match=word):
            MagiBatches(dataclasses.replace(recipe, **{name: folder}), cache)
    other = dataclasses.replace(short, vae="another")
    next(build_cache(other, tmp_path / "other", clips=0))
    with pytest.raises(ConfigError, match="other: vae"):
        MagiBatches(dataclasses.replace(recipe, start_cache=str(tmp_path / "other")), cache)


def test_long_pieces_take_the_next_long_clip_of_their_own_side(
    recipe: ToyboxMagiRecipe, cache: LatentCache
) -> None:
    layout = Layout(num_clean=2, ages=(3, 2, 1, 0), aligned=True)
    lengths = [cache.num_chunks(i) for i in range(len(cache))]
    held_out = lengths.index(4)
    recipe = dataclasses.replace(recipe, image_cache="", validation_items=len(cache) - held_out)
    batches = MagiBatches(recipe, cache)
    batch = batches.pieces([held_out], layout, rng=np.random.default_rng(0))
    item, _ = _found(cache, batch["latent"][0])
    assert item == held_out + lengths[held_out:].index(6)
    rare = dataclasses.replace(layout, num_clean=3)
    with pytest.raises(ConfigError, match="clips of 7 chunks"):
        batches.pieces([0], rare, rng=np.random.default_rng(0))


def test_validation_is_held_out(recipe: ToyboxMagiRecipe, cache: LatentCache) -> None:
    images, *pieces = MagiMethod(recipe, cache).validation
    for batch in pieces:
        assert {_found(cache, latent)[0] for latent in batch["latent"]} <= {13, 14, 15}
    pictures = LatentCache(recipe.image_cache)
    for latent, item in zip(images["latent"], (5, 6, 7), strict=True):
        assert torch.equal(latent, pictures[item].images.float())


def test_images_come_from_the_first_two_chunks_without_a_cache_of_their_own(
    recipe: ToyboxMagiRecipe, cache: LatentCache
) -> None:
    batches = MagiBatches(dataclasses.replace(recipe, image_cache=""), cache)
    chunks = set()
    for index in range(2):
        batch = batches[index]
        for latent, (caption,) in zip(batch["latent"], batch["captions"], strict=True):
            (found,) = [
                (i, c)
                for i in range(len(cache))
                for c in range(cache.num_chunks(i))
                if torch.equal(cache[i].images[:, c : c + 1].float(), latent)
            ]
            assert cache[found[0]].captions[found[1]] == caption
            chunks.add(found[1])
    assert chunks == {0, 1}


def test_too_few_clips_are_named(recipe: ToyboxMagiRecipe, cache: LatentCache) -> None:
    for items, word in ((16, "more than 16 clips"), (8, "images.*more than 8"), (0, "at least 1")):
        with pytest.raises(ConfigError, match=word):
            MagiBatches(dataclasses.replace(recipe, validation_items=items), cache)


def test_a_missing_cache_is_named_with_the_command_that_makes_it(
    recipe: ToyboxMagiRecipe, tmp_path: Path
) -> None:
    for name in ("cache", "image_cache"):
        changed = dataclasses.replace(recipe, **{name: str(tmp_path / "none")})
        with pytest.raises(CheckpointError, match="onereel train cache --vae DIR --out .*none"):
            changed.build()


@pytest.mark.parametrize("layout", [None, START, CONTINUE])
def test_the_true_velocity_has_no_loss(recipe: ToyboxMagiRecipe, layout: Layout | None) -> None:
    recorder, _, batch, loss = _record(recipe, layout, i2v_share=0.0)
    assert loss < 1e-6
    chunks = 1 if layout is None else layout.num_chunks
    assert recorder.times.shape == recorder.options["caption_dropout"].shape
    assert recorder.times.shape == (len(batch["latent"]), chunks)
    assert recorder.options["kv_range"] == ([(0, 1)] if layout is None else layout.kv_range())
    assert _record(recipe, layout, ignored=(-1,), i2v_share=0.0)[3] > 1e3


def test_the_given_frame_is_pasted_as_it_is_and_not_counted(recipe: ToyboxMagiRecipe) -> None:
    recorder, _, batch, loss = _record(recipe, START, ignored=(0,), i2v_share=1.0)
    assert torch.equal(recorder.x[:, :, :1], batch["given"]) and loss < 1e-6
    assert not torch.equal(recorder.x[:, :, 1:], batch["latent"][:, :, 1:])
    recorder, _, batch, loss = _record(recipe, START, ignored=(0,), i2v_share=0.0)
    assert loss > 1e3
    for first, given in zip(recorder.x[:, :, :1], batch["given"], strict=True):
        assert not torch.equal(first, given)


def test_pieces_with_clean_chunks_and_images_get_no_given_frame(recipe: ToyboxMagiRecipe) -> None:
    for layout in (CONTINUE, None):
        recorder, _, batch, _ = _record(recipe, layout, i2v_share=1.0)
        for first, given in zip(recorder.x[:, :, :1], batch["given"], strict=True):
            assert not torch.equal(first, given)


def test_clean_chunks_carry_the_null_caption_and_are_not_counted(recipe: ToyboxMagiRecipe) -> None:
    recorder, method, batch, loss = _record(
        recipe, CONTINUE, ignored=tuple(range(WIDTH)), drop_share=0.0
    )
    assert loss < 1e-6
    null = recorder.null_caption[:NULL_VISIBLE]
    assert recorder.mask is not None
    for row in range(len(batch["latent"])):
        assert torch.equal(recorder.text[row, 0][recorder.mask[row, 0]], null)
        for chunk in (1, 2, 3):
            caption = batch["captions"][row][chunk]
            ids = torch.tensor([method.tokenizer(caption).input_ids])
            alone = method.text(input_ids=ids).last_hidden_state[0]
            seen = recorder.text[row, chunk][recorder.mask[row, chunk]]
            torch.testing.assert_close(seen, alone, rtol=1e-3, atol=1e-4)
    assert not recorder.options["caption_dropout"][:, 1:].any()
    assert (recorder.times[:, 0] >= 0.95).all()


def test_dropped_items_use_the_null_rows(recipe: ToyboxMagiRecipe) -> None:
    recorder, _, _, _ = _record(recipe, START, drop_share=1.0)
    assert recorder.options["caption_dropout"].all()
    visible = recorder.text if recorder.mask is None else recorder.text[recorder.mask]
    null = recorder.null_caption[:NULL_VISIBLE]
    assert torch.equal(visible.reshape(-1, *null.shape), null.expand(8, -1, -1))


def test_gradients_reach_clean_chunks_the_null_caption_and_the_text_encoder(
    recipe: ToyboxMagiRecipe, cache: LatentCache
) -> None:
    method = MagiMethod(recipe, cache)
    nn.init.normal_(method.dit.proj_out.weight, std=0.1)  # it starts at zero
    batch = MagiBatches(recipe, cache).pieces([0, 1], CONTINUE, rng=np.random.default_rng(0))
    batch["latent"].requires_grad_()
    method.train_step(batch, 0)["loss"].backward()
    assert batch["latent"].grad[:, :, :WIDTH].abs().amax((1, 2, 3, 4)).min() > 0
    assert method.dit.null_caption.grad[:NULL_VISIBLE].abs().sum() > 0
    trained = [p.grad for p in method.text.parameters()]
    assert all(g is not None for g in trained) and sum(float(g.abs().sum()) for g in trained) > 0


@pytest.mark.parametrize("layout", [None, CONTINUE])
def test_reading_the_maps_trains_the_blocks_before_it(
    recipe: ToyboxMagiRecipe, cache: LatentCache, layout: Layout | None
) -> None:
    recipe = dataclasses.replace(recipe, map_weight=0.5)
    method, batches = MagiMethod(recipe, cache), MagiBatches(recipe, cache)
    rng = np.random.default_rng(0)
    batch = (
        batches.images([0, 1], rng) if layout is None else batches.pieces([0, 1], layout, rng=rng)
    )
    losses = method.train_step(batch, 0)
    kind = "image" if layout is None else "video"
    expected = losses[f"{kind}_loss"] + 0.5 * losses[f"{kind}_maps"]
    torch.testing.assert_close(losses["loss"], expected)
    # From an output of zero the velocity alone gives the blocks no gradient.
    losses["loss"].backward()
    first, second = method.dit.blocks
    assert float(first.attn1.to_q.weight.grad.norm()) > 0
    assert second.attn1.to_q.weight.grad is None or not second.attn1.to_q.weight.grad.any()
    assert float(method.reader.weight.grad.norm()) > 0


def test_one_step_lowers_the_loss(recipe: ToyboxMagiRecipe, cache: LatentCache) -> None:
    method = MagiMethod(recipe, cache)
    batch = MagiBatches(recipe, cache).pieces([0, 1], CONTINUE, rng=np.random.default_rng(0))
    before = method.train_step(batch, 0)["loss"]
    before.backward()
    for optimizer in method.optimizers.values():
        optimizer.step()
    assert method.train_step(batch, 0)["loss"] < before


def test_a_resumed_run_is_the_same_bit_by_bit(recipe: ToyboxMagiRecipe, tmp_path: Path) -> None:
    def run(folder: str, steps: int, *, resume: bool = False) -> MagiMethod:
        method, stream = recipe.build()
        config = dataclasses.replace(recipe.trainer, max_steps=steps)
        trainer = Trainer(method, stream, config=config, out=tmp_path / folder, quiet=True)
        assert set(trainer.fit(resume=resume).metrics) == {"val_image", "val_start", "val_continue"}
        assert isinstance(method, MagiMethod)
        return method

    straight, _ = run("a", 4), run("b", 2)
    resumed = run("b", 4, resume=True)
    for name, network in straight.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, resumed.networks[name].state_dict()[key]), key
    for file in (
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ):
        assert (tmp_path / "a/export" / file).read_bytes() == (
            tmp_path / "b/export" / file
        ).read_bytes()


def test_the_export_is_a_small_pipeline_in_bfloat16(
    recipe: ToyboxMagiRecipe, cache: LatentCache, tmp_path: Path
) -> None:
    AutoencoderKLMagi1(**VAE_PRESETS["toybox"]).save_pretrained(tmp_path / "vae")
    method = MagiMethod(dataclasses.replace(recipe, preset="toybox", shift=1.7), cache)
    nn.init.normal_(method.dit.proj_out.weight)
    method.vae_folder = str(tmp_path / "vae")
    for _ in range(2):  # the second replaces the first
        method.export(tmp_path / "export")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "vae"]
    files = list((tmp_path / "export").rglob("*.safetensors"))
    assert len(files) == 3 and sum(f.stat().st_size for f in files) < 12 * 10**6
    configs = [f.read_text() for f in (tmp_path / "export").rglob("*.json")]
    assert configs and not any(str(tmp_path) in text for text in configs)
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118
    pipeline = Magi1Pipeline.from_pretrained(tmp_path / "export")
    assert dict(pipeline.config.sampling) == {
        k: list(v) if isinstance(v, tuple) else v for k, v in TOYBOX_SAMPLING.items()
    } | {"shift": 1.7}
    for part, source in (("transformer", method.dit), ("text_encoder", method.text)):
        loaded = getattr(pipeline, part).state_dict()
        for key, value in source.state_dict().items():
            assert torch.equal(loaded[key].float(), value.bfloat16().float()), key
    assert all(p.dtype == torch.float32 for p in method.dit.parameters())


def test_a_run_can_start_from_an_export(
    recipe: ToyboxMagiRecipe, cache: LatentCache, tmp_path: Path
) -> None:
    first = MagiMethod(recipe, cache)
    nn.init.normal_(first.dit.proj_out.weight)
    first.export(tmp_path / "export")
    second = MagiMethod(dataclasses.replace(recipe, init=str(tmp_path / "export")), cache)
    for name in ("dit", "text"):  # the reader is not exported
        for key, value in first.networks[name].state_dict().items():
            found = second.networks[name].state_dict()[key]
            assert torch.equal(found, value.bfloat16().float()), key


def test_a_missing_tokenizer_is_trained(
    recipe: ToyboxMagiRecipe, cache: LatentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = lambda count, seed: sample_captions(200, seed)  # noqa: E731
    monkeypatch.setattr("onereel.training.magi.sample_captions", few)
    folder = tmp_path / "tokenizer"
    changed = dataclasses.replace(recipe, tokenizer=str(folder), vocab_size=180)
    method = MagiMethod(changed, cache)
    assert (folder / "tokenizer_config.json").is_file()
    assert len(method.tokenizer) == method.text.config.vocab_size <= 180
    (caption,) = itertools.islice(sample_captions(1, 7), 1)
    assert (
        method.tokenizer.decode(method.captions.token_ids(caption), skip_special_tokens=True)
        == caption
    )
