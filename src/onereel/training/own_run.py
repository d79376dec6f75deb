"""A run on somebody's own videos and pictures: check the data, fill the cache, load what trains.

    recipe = OwnDataRecipe(data="clips", rank=16, lr=1e-3)
    method, stream = prepare_run(recipe, Path("run"), say=print)
    Trainer(method, stream, config=recipe.trainer, out="run").fit()

The text encoder and the VAE are used once, to fill the run's cache, and are not in memory while the
transformer trains.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onereel.core.errors import CheckpointError, ConfigError
from onereel.core.files import write_atomically
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text import encode_prompts
from onereel.pipelines.files import file_hash
from onereel.runtime.layout import sample_config
from onereel.runtime.load import default_dtype, load_part, no_foreign_bars
from onereel.runtime.text_files import load_text_encoder, load_tokenizer
from onereel.training.checkpoint import latest_checkpoint
from onereel.training.data import BatchStream
from onereel.training.finetune import make_method
from onereel.training.method import Method, Stream
from onereel.training.own_base import Base, OwnDataRecipe, open_base
from onereel.training.own_cache import OwnCache, OwnClip, fingerprint
from onereel.training.own_data import OwnBatches, PriorBatches
from onereel.training.own_files import REPORT, DataReport, scan_data

_RUN = "run.json"

Say = Callable[[str], None]


def prepare_run(
    recipe: OwnDataRecipe, out: Path, *, say: Say, resume: bool = False
) -> tuple[Method, Stream]:
    """Check the data, fill the run's cache, and load what is trained.

    Args:
        recipe: the settings.
        out: the run's folder; takes `data-report.json`, `run.json` and `cache/`.
        say: takes lines for the screen.
        resume: go on with the run in that folder, if there is one.

    Returns:
        The method and the stream.

    Raises:
        ConfigError: a setting is wrong, nothing of the data can be used, or the folder holds
            another run.
        CheckpointError: the checkpoint is incomplete or damaged.
        OutOfMemory: the disk is full.
        BackendUnavailable: the device is not there.
    """
    base = open_base(recipe)
    if latest_checkpoint(out / "checkpoints") is not None and not resume:
        raise ConfigError(str(out), expected="a folder without checkpoints", hint="use --resume")
    identity = _identity(recipe, base)
    _check_identity(identity, out)
    report = check_data(recipe, base, say=say)
    report.save(out)
    report.require_usable()
    cache = _open_cache(base, out / "cache")
    _fill_cache(cache, report, base, say=say)
    report.save(out)  # encoding opens every file to its end, and finds more
    for line in report.lines():
        say(line)
    report.require_usable()
    clips = cache.clips(report.files)
    cache.remove_stale(clips)
    _claim(identity, fingerprint([dataclasses.astuple(clip) for clip in clips]), out, say=say)
    batches = _batches(clips, recipe, base)
    return make_method(recipe, base, batches=batches), BatchStream(batches, workers=recipe.workers)


def check_data(recipe: OwnDataRecipe, base: Base, *, say: Say) -> DataReport:
    """Look at all files of the data, and say what was found.

    Args:
        recipe: names the data.
        base: says what they are brought to.
        say: takes lines for the screen.

    Returns:
        The report, possibly without a usable file.

    Raises:
        ConfigError: there is no such folder, nothing in it, or its JSONL has a broken line.
    """
    reports = [scan_data(Path(data), base.shape) for data in (recipe.data, recipe.prior) if data]
    for report in reports:
        for line in (*report.lines(), report.summary()):
            say(line)
    for prior in reports[1:]:
        prior.require_usable()
        reports[0].add_prior(prior)
    return reports[0]


def _batches(
    clips: Sequence[OwnClip], recipe: OwnDataRecipe, base: Base
) -> OwnBatches | PriorBatches:
    """Make the batches, of two kinds where there is a prior."""
    sampling = sample_config(base.parts.sampling)
    own, prior = (
        OwnBatches(
            [clip for clip in clips if clip.prior == is_prior],
            recipe,
            tokens=base.tokens,
            max_length=int(base.config["caption_max_length"]),
            window=sampling.window_size,
            shift=sampling.shift,
        )
        for is_prior in (False, True)
    )
    if not recipe.prior:
        return own
    if not prior.clips:
        raise ConfigError(f"prior {recipe.prior}", expected="a usable file", got="none",
                          hint=f"{REPORT} in the run's folder says why")  # fmt: skip
    return PriorBatches(own, prior, share=recipe.prior_share)


def _open_cache(base: Base, folder: Path) -> OwnCache:
    """Fingerprint the networks that fill the cache."""
    vae, text = base.parts.vae, base.parts.text_encoder
    assert vae is not None and text is not None
    tokenizer = base.source.folder("tokenizer")
    words = {path.name: file_hash(path) for path in sorted(tokenizer.iterdir()) if path.is_file()}
    return OwnCache(
        folder,
        shape=base.shape,
        vae_hash=fingerprint(dict(vae.config), vae.tensors.digests()),
        text_hash=fingerprint(text.digests(), words, base.config["caption_max_length"]),
    )


def _fill_cache(cache: OwnCache, report: DataReport, base: Base, *, say: Say) -> None:
    """Encode what is missing, one network in memory at a time."""
    dtype = default_dtype(base.source, base.parts, device=base.device)
    if cache.missing_files(report.files):
        assert base.parts.vae is not None
        vae = load_part(base.parts.vae, dtype=dtype, device=base.device)
        assert isinstance(vae, AutoencoderKLMagi1)
        cache.add_files(report, vae, tell=_progress("files encoded", say))
        del vae
    if cache.missing_texts(report.files):
        assert base.parts.text_encoder is not None
        tokenizer = load_tokenizer(base.source.folder("tokenizer"))
        text_dtype = torch.float32 if base.device.type == "cpu" else dtype
        with no_foreign_bars():
            encoder = load_text_encoder(
                base.parts.text_encoder, dtype=text_dtype, device=base.device
            )
        limit = int(base.config["caption_max_length"])

        def encode(text: str) -> Tensor:
            found = encode_prompts(text, tokenizer, encoder=encoder, max_length=limit)
            return found.visible()[0]

        cache.add_texts(report, encode, tell=_progress("captions encoded", say))
    cache.recall_notes(report)


def _progress(what: str, say: Say) -> Callable[[int, int], None]:
    """Say every few files how far it is."""

    def tell(done: int, wanted: int) -> None:
        if done == wanted or done % max(1, wanted // 5) == 0:
            say(f"{done}/{wanted} {what}")

    return tell


def _identity(recipe: OwnDataRecipe, base: Base) -> dict[str, Any]:
    """Collect what must not change between the parts of a run."""
    part = base.parts.transformer
    assert part is not None
    lora = {"rank": recipe.rank, "alpha": recipe.alpha or recipe.rank}
    return {
        "kind": recipe.kind,
        "model": fingerprint(part.tensors.digests()),
        "size": f"{base.shape.width}x{base.shape.height}",
        **(lora if recipe.kind == "lora" else {}),
    }


def _check_identity(identity: dict[str, Any], out: Path) -> None:
    """Refuse to go on with a run that was begun with other settings."""
    if latest_checkpoint(out / "checkpoints") is None or not (out / _RUN).is_file():
        return
    try:
        stored = json.loads((out / _RUN).read_text("utf-8"))
        names = {name: stored.get(name) for name in identity}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{out / _RUN} is damaged", hint="use another --out") from error
    for name, value in identity.items():
        if names[name] != value:
            raise ConfigError(
                f"the run in {out}: {name}", expected=names[name], got=value,
                hint="go on with the settings it was begun with, or use another --out",
            )  # fmt: skip


def _claim(identity: dict[str, Any], data: str, out: Path, *, say: Say) -> None:
    """Write down what the run is; tell when its data has changed since."""
    path = out / _RUN
    if latest_checkpoint(out / "checkpoints") is not None and path.is_file():
        if json.loads(path.read_text("utf-8")).get("data") != data:
            say("warning: the data has changed since this run began; it goes on with the new data")
    text = json.dumps({**identity, "data": data}, indent=1).encode()
    write_atomically(path, lambda file: file.write(text))
