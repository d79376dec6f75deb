"""Training a checkpoint on own data: what is trained, saved, exported, and what survives."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import write_counting_video
from PIL import Image
from safetensors.torch import load_file

from onereel import Magi1Pipeline, Magi1Transformer3DModel
from onereel.core import files
from onereel.core.errors import ConfigError, OutOfMemory
from onereel.training import finetune, own_base
from onereel.training.engine import Trainer, TrainResult
from onereel.training.finetune import ADAPTED, LoraMethod
from onereel.training.flow import FlowShares
from onereel.training.loop import checkpoint_activations
from onereel.training.method import Method, Stream, TrainerConfig, step_generator
from onereel.training.own_base import OwnDataRecipe, open_base
from onereel.training.own_run import prepare_run

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos and a picture."""
    folder = tmp_path_factory.mktemp("own") / "data"
    folder.mkdir()
    for name, frames in (("a", 24), ("b", 75)):
        write_counting_video(folder / f"{name}.mp4", frames)
    Image.new("RGB", (32, 32), (240, 240, 240)).save(folder / "c.png")
    for name, caption in (("a", "a grey square"), ("b", "a square"), ("c", "a white picture")):
        (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.fixture
def recipe(data: Path, tiny_checkpoint: Path) -> OwnDataRecipe:
    trainer = TrainerConfig(max_steps=6, schedule="cosine", ema_decay=0.9, log_every=1)
    return OwnDataRecipe(
        data=str(data), model=str(tiny_checkpoint), rank=4, lr=1e-2, batch_size=2,
        image_batch_size=3, trainer=trainer,
    )  # fmt: skip


def prepare(recipe: OwnDataRecipe, out: Path, **options: Any) -> tuple[Method, Stream, list[str]]:
    lines: list[str] = []
    method, stream = prepare_run(recipe, out, say=lines.append, **options)
    return method, stream, lines


def train(recipe: OwnDataRecipe, out: Path, *, resume: bool = False) -> TrainResult:
    method, stream, _ = prepare(recipe, out, resume=resume)
    trainer = Trainer(method, stream, config=recipe.trainer, out=out, quiet=True)
    return trainer.fit(resume=resume)


def interrupted_after(recipe: OwnDataRecipe, out: Path, steps: int) -> TrainResult:
    method, stream, _ = prepare(recipe, out)
    trainer = Trainer(method, stream, config=recipe.trainer, out=out, quiet=True)

    class Stopping:
        def batches(self, start: int) -> Iterator[Any]:
            for index, batch in enumerate(stream.batches(start), start):
                if index == steps - 1:
                    trainer._interrupt()
                yield batch

    trainer.stream = Stopping()
    return trainer.fit()


def test_a_lora_learns_and_its_checkpoints_hold_nothing_else(
    recipe: OwnDataRecipe, tmp_path: Path
) -> None:
    loop = dataclasses.replace(recipe.trainer, max_steps=30)
    method, stream, lines = prepare(recipe, tmp_path / "run")
    assert lines[0].endswith("2 videos and 1 pictures can be used")
    assert lines[-1] == "3/3 captions encoded"
    before = method.validate(0)
    trainer = Trainer(method, stream, config=loop, out=tmp_path / "run", quiet=True)
    result = trainer.fit()
    assert set(before) == {"fixed_image", "fixed_video"} == set(result.metrics)
    assert all(result.metrics[name] < 0.9 * before[name] for name in before)
    assert result.checkpoint is not None
    state = torch.load(result.checkpoint, weights_only=True)
    names = list(state["networks"]["lora"])
    assert len(names) == 2 * 2 * len(ADAPTED) and all("lora" in name for name in names)
    exported = load_file(tmp_path / "run" / "export" / LORA)
    assert len(exported) == len(names)
    assert not any("ada_modulate" in name for name in exported)


def test_a_resumed_run_ends_as_an_uninterrupted_one(recipe: OwnDataRecipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    stopped = interrupted_after(recipe, tmp_path / "parts", 3)
    assert stopped.reason == "interrupted" and stopped.progress.step == 3
    assert train(recipe, tmp_path / "parts", resume=True).progress.step == 6
    whole, parts = (load_file(tmp_path / name / "export" / LORA) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_must_not_change_between_the_parts_of_a_run(
    recipe: OwnDataRecipe, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(dataclasses.replace(recipe, trainer=TrainerConfig(max_steps=1)), out)
    with pytest.raises(ConfigError, match="expected a folder without checkpoints"):
        prepare(recipe, out)
    for changes, words in (
        ({"rank": 8}, "rank: expected 4, got 8"),
        ({"alpha": 8.0}, "alpha: expected 4, got 8.0"),
        ({"width": 48}, "size: expected 32x32, got 48x32"),
        ({"kind": "finetune"}, "kind: expected lora, got finetune"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(dataclasses.replace(recipe, **changes), out, resume=True)
    lines = prepare(recipe, out, resume=True)[2]
    assert not any("warning" in line or "encoded" in line for line in lines)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("a.mp4", "a.txt"):
        (fewer / name).write_bytes((data / name).read_bytes())
    lines = prepare(dataclasses.replace(recipe, data=str(fewer)), out, resume=True)[2]
    assert lines[-1].startswith("warning: the data has changed since this run began")


def test_strength_is_in_the_exported_weights(recipe: OwnDataRecipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, alpha=8.0)
    method, stream, _ = prepare(recipe, tmp_path / "run")
    assert isinstance(method, LoraMethod) and method.scale == 2.0
    for name, value in method.dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    method.export(tmp_path / "export")
    batch = next(iter(stream.batches(0)))
    loss = method._loss(batch, step_generator(0, 0), FlowShares(i2v=0, drop=0))
    plain = LoraMethod(recipe, open_base(recipe), batches=None)
    unchanged = plain._loss(batch, step_generator(0, 0), FlowShares(i2v=0, drop=0))
    pipe = Magi1Pipeline.from_pretrained(recipe.model)
    pipe.load_lora_weights(tmp_path / "export" / LORA)
    plain.dit = pipe.transformer
    loaded = plain._loss(batch, step_generator(0, 0), FlowShares(i2v=0, drop=0))
    assert torch.allclose(loaded, loss, rtol=1e-5)
    assert not torch.allclose(unchanged, loss, rtol=1e-3)


def test_pictures_alone_and_fewer_than_a_batch(
    recipe: OwnDataRecipe, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("c.png", "c.txt"):
        (folder / name).write_bytes((data / name).read_bytes())
    result = train(dataclasses.replace(recipe, data=str(folder)), tmp_path / "run")
    assert result.reason == "steps" and list(result.metrics) == ["fixed_image"]
    assert result.progress.samples == 6 * recipe.image_batch_size
    assert (tmp_path / "run" / "export" / LORA).is_file()


def test_a_finetuned_checkpoint_loads_and_leaves_the_base_alone(
    recipe: OwnDataRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    files = {path: path.read_bytes() for path in tiny_checkpoint.rglob("*") if path.is_file()}
    train(dataclasses.replace(recipe, kind="finetune", lr=1e-3), out)
    for path, content in files.items():
        assert path.read_bytes() == content and path.stat().st_nlink == 1
        copy = out / "export" / path.relative_to(tiny_checkpoint)
        if "transformer" not in path.parts:
            assert copy.read_bytes() == content
    base, trained = (
        Magi1Transformer3DModel.from_pretrained(folder / "transformer")
        for folder in (tiny_checkpoint, out / "export")
    )
    assert dict(base.config) == dict(trained.config) | {"_name_or_path": base.config._name_or_path}
    pairs = list(zip(base.parameters(), trained.parameters(), strict=True))
    assert sum(not torch.equal(one, other) for one, other in pairs) > 20
    assert all(one.dtype == other.dtype for one, other in pairs)
    frames = Magi1Pipeline.from_pretrained(out / "export")("a square", num_frames=4).frames
    assert frames.shape == (1, 4, 32, 32, 3)
    longer = dataclasses.replace(recipe.trainer, max_steps=7)
    train(dataclasses.replace(recipe, kind="finetune", trainer=longer), out, resume=True)
    assert (out / "export" / "vae" / "config.json").is_file()


def test_activations_computed_twice_give_the_same_loss(
    recipe: OwnDataRecipe, tmp_path: Path
) -> None:
    losses = []
    for name, twice in (("kept", False), ("twice", True)):
        method, stream, _ = prepare(recipe, tmp_path / name)
        if twice:
            checkpoint_activations(method)
        loss = method.train_step(next(iter(stream.batches(0))), 0)["loss"]
        loss.backward()
        gradient = next(p for n, p in method.networks["lora"].named_parameters() if "lora_B" in n)
        losses.append((float(loss.detach()), gradient.grad))
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] is not None and torch.allclose(losses[0][1], losses[1][1])


def test_adapters_stay_float32_on_a_base_of_half_precision(
    recipe: OwnDataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_base, "default_dtype", lambda *_args, **_options: torch.bfloat16)
    method, stream, _ = prepare(recipe, tmp_path / "run")
    assert isinstance(method, LoraMethod)
    assert method.dit.get_parameter("blocks.0.attn1.to_q.base_layer.weight").dtype is torch.bfloat16
    before = [value.clone() for value in method.networks["lora"].parameters()]
    Trainer(method, stream, config=recipe.trainer, out=tmp_path / "run", quiet=True).fit()
    pairs = list(zip(before, method.networks["lora"].parameters(), strict=True))
    assert all(value.dtype is torch.float32 for _, value in pairs)
    assert all(not torch.equal(old, value) for old, value in pairs)


def test_wrong_settings_and_weights_are_refused(
    recipe: OwnDataRecipe, tiny_distilled: Path
) -> None:
    with pytest.raises(ConfigError, match="expected base weights, got distilled ones"):
        open_base(dataclasses.replace(recipe, model=str(tiny_distilled)))
    for changes, words in (
        ({"kind": "all"}, "kind: expected lora or finetune"),
        ({"rank": 0}, "rank: expected at least 1"),
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"drop_share": 1.5}, "drop_share: expected 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(recipe, **changes)
    with pytest.raises(ConfigError, match="width: expected a multiple of 16, got 40"):
        open_base(dataclasses.replace(recipe, width=40))


def test_a_full_disk_ends_the_run_and_spares_the_checkpoint_before(
    recipe: OwnDataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    first = interrupted_after(recipe, out, 3)
    exported = (out / "export" / LORA).read_bytes()
    save = torch.save

    def fill(state: Any, file: Any) -> None:
        class Full:
            def write(self, data: bytes) -> int:
                if file.tell() > 4096:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return int(file.write(data))

            def flush(self) -> None: ...

        save(state, Full())

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(
            OutOfMemory, match=r"step-00000006.pt cannot be written: the disk is full"
        ):
            train(recipe, out, resume=True)
    names = [path.name for path in (out / "checkpoints").iterdir()]
    assert first.checkpoint is not None and names == [first.checkpoint.name]
    assert (out / "export" / LORA).read_bytes() == exported
    assert train(recipe, out, resume=True).progress.step == 6


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        kept = disk / "step-1.pt"
        for size, outcome in (
            (100_000, contextlib.nullcontext()),
            (300_000, pytest.raises(OutOfMemory, match="step-1.pt .* the disk is full")),
        ):
            state = {"a": torch.zeros(size)}
            with outcome:
                files.write_atomically(kept, functools.partial(torch.save, state))
        assert [path.name for path in disk.iterdir()] == [kept.name]
        assert torch.load(kept, weights_only=True)["a"].shape == (100_000,)
        from safetensors.torch import save_file

        def write(folder: Path) -> None:
            save_file({"a": torch.zeros(300_000)}, folder / "a.safetensors")

        with pytest.raises(OutOfMemory, match="export cannot be written: the disk is full"):
            files.replace_folder(disk / "export", write)
        assert [path.name for path in disk.iterdir()] == [kept.name]


def test_a_full_disk_while_the_cache_is_filled(recipe: OwnDataRecipe, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk, pytest.raises(OutOfMemory) as caught:
        prepare(recipe, disk / "run")
    assert "the disk is full" in str(caught.value) and "free some space" in str(caught.value.hint)


def test_the_report_tells_what_only_encoding_finds(
    recipe: OwnDataRecipe, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.mp4", "a.txt"):
        (folder / name).write_bytes((data / name).read_bytes())
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.txt").write_text("noise")
    lines = prepare(dataclasses.replace(recipe, data=str(folder)), tmp_path / "run")[2]
    assert any(line.startswith("left out: cut.png: ") for line in lines)
    stored = json.loads((tmp_path / "run" / "data-report.json").read_text())
    assert [entry["file"] for entry in stored["skipped"]] == ["cut.png"]
    assert (stored["videos"], stored["pictures"]) == (1, 0)
    (folder / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError, match="expected at least one usable video or picture"):
        prepare(dataclasses.replace(recipe, data=str(folder)), tmp_path / "other")


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video and a picture of what a model makes already."""
    folder = tmp_path_factory.mktemp("prior") / "data"
    folder.mkdir()
    write_counting_video(folder / "a.mp4", 48)
    Image.new("RGB", (32, 32), (10, 200, 10)).save(folder / "b.png")
    for name, caption in (("a", "something else"), ("b", "a green picture")):
        (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("kind", ["lora", "finetune"])
def test_a_prior_holds_the_model_to_what_it_predicted(
    kind: str, recipe: OwnDataRecipe, prior: Path, tmp_path: Path
) -> None:
    loop = dataclasses.replace(recipe.trainer, max_steps=40)
    changed = {}
    for share in (0.0, 0.7):
        held = dataclasses.replace(recipe, kind=kind, prior=str(prior), prior_share=share, lr=3e-3)
        out = tmp_path / str(share)
        method, stream, lines = prepare(held, out)
        assert lines[1].endswith("1 videos and 1 pictures can be used")
        begin = method.validate(0)
        assert begin["fixed_prior_image"] == begin["fixed_prior_video"] == 0
        result = Trainer(method, stream, config=loop, out=out, quiet=True).fit()
        assert result.metrics["fixed_image"] < begin["fixed_image"]
        changed[share] = result.metrics["fixed_prior_image"] + result.metrics["fixed_prior_video"]
    assert 0 < changed[0.7] < 0.5 * changed[0.0]


def test_adapters_train_on_after_a_look_without_them(
    recipe: OwnDataRecipe, prior: Path, tmp_path: Path
) -> None:
    method, _, _ = prepare(dataclasses.replace(recipe, prior=str(prior)), tmp_path)
    assert isinstance(method, LoraMethod)
    wanted = [p.requires_grad for p in method.dit.parameters()]
    with method._untrained():
        pass
    assert [p.requires_grad for p in method.dit.parameters()] == wanted
    assert any(wanted)


def test_a_prior_without_a_usable_file_is_refused(recipe: OwnDataRecipe, tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "a.mp4").write_bytes(b"broken")
    (tmp_path / "prior" / "a.txt").write_text("a thing")
    with pytest.raises(ConfigError, match="at least one usable video or picture"):
        prepare(dataclasses.replace(recipe, prior=str(tmp_path / "prior")), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_with_a_prior_only_its_own_captions_are_dropped(
    recipe: OwnDataRecipe, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops: list[float] = []
    whole = finetune.corrupt

    def watched(*args: Any, shares: FlowShares, **named: Any) -> Any:
        drops.append(shares.drop)
        return whole(*args, shares=shares, **named)

    monkeypatch.setattr(finetune, "corrupt", watched)
    for folder, wanted in (("", {0.5}), (str(prior), {0.0, 0.5})):
        settings = dataclasses.replace(recipe, prior=folder, drop_share=0.5)
        method, stream, _ = prepare(settings, tmp_path / (folder and "prior"))
        drops.clear()
        for step, batch in enumerate(itertools.islice(stream.batches(0), 8)):
            method.train_step(batch, step)
            if folder:
                assert drops[-1] == (0.5 if batch["prior"] else 0.0)
        assert set(drops) == wanted
