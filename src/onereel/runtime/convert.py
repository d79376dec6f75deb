"""Between the official folder layout and ours, streaming: one shard in memory at a time.

Values are kept bit for bit. Norm gains are stored as `gain - 1` officially; on the way back they
get the dtype of the bias beside them whenever that loses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch

from onereel.core.errors import CheckpointError, ConfigError, OutOfMemory
from onereel.models.magi_dit import weights as dit_weights
from onereel.models.magi_vae import weights as vae_weights
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text.special_tokens import SpecialTokens
from onereel.runtime.layout import CONFIG, ModelPart, keeps_fp32, key_map_arguments
from onereel.runtime.load import stored_dtype
from onereel.runtime.magic_convert import check_magic, stored_bytes_of, write_magic
from onereel.runtime.official_config import official_json, official_vae_json
from onereel.runtime.quantize import DYNAMIC, QUANTIZATION, STORED, check_level, packed_tensors
from onereel.runtime.shard_writing import Named, write_shards
from onereel.runtime.source import MAGIC141, MODEL_INDEX, ModelSource
from onereel.runtime.verify import Parts, model_parts

_CROSS = (".attn2.to_k.", ".attn2.to_v.")
_QKV = (".attn.to_q.", ".attn.to_k.", ".attn.to_v.")
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model",
)  # fmt: skip
_TOKENS_FILE: Final = "special_tokens.safetensors"
# Module paths are part of the file format of saved pipelines.
_PIPELINE: Final[dict[str, Any]] = {
    "_class_name": "Magi1Pipeline",
    "scheduler": [None, None],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["onereel.models.magi_dit.model", "Magi1Transformer3DModel"],
    "vae": ["onereel.models.magi_vae.model", "AutoencoderKLMagi1"],
}


def convert(
    source: ModelSource,
    out_folder: Path | str,
    *,
    to: Literal["folder", "official"] = "folder",
    dtype: torch.dtype | None = None,
    max_shard_gb: float = 5.0,
    level: str | None = None,
) -> Path:
    """Write a checkpoint in the other layout, or in the same one with another dtype or shards.

    Args:
        source: the checkpoint.
        out_folder: what to write; it must not exist or be empty.
        to: `folder` for ours, `official` for SandAI-org/MAGI-1's.
        dtype: of the transformer's and the VAE's matrices; float8 weights, scales and the parts
            that compute in float32 keep theirs. None keeps all.
        max_shard_gb: size from which weights are split over files, in 10^9 bytes.
        level: of `quantize.py`, to which the transformer's weights are rounded, and LLaVA's; our
            layout only.

    Returns:
        What to pass to `resolve_model`: the folder, or the JSON config inside it.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        ConfigError: the folder is not empty, or the official layout cannot say what ours does.
        OutOfMemory: the disk is too small.
    """
    out = Path(out_folder)
    if max_shard_gb <= 0:
        raise ConfigError("max_shard_gb", expected="more than 0", got=max_shard_gb)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists already", hint="choose a new or empty folder")
    _check_storable(level)
    options = _Options(dtype, int(max_shard_gb * 1e9), level)
    if source.family == MAGIC141:
        check_magic(source, to=to, level=level)
        stored = stored_bytes_of(source)
        write = functools.partial(
            write_magic, source, dtype=dtype, max_bytes=options.max_bytes, level=level
        )
    else:
        parts = model_parts(source)
        _check_level(parts, to=to, level=level)
        stored = _stored_bytes(parts)
        write = functools.partial(_write, source, parts, to=to, options=options)
    staging = out.absolute().with_name(out.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _check_disk(stored, staging)
        result = write(staging)
        if out.exists():
            out.rmdir()
        staging.rename(out.absolute())
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # only there when something went wrong
    return out / result


def _check_disk(needed: int, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold, as far as the stored sizes tell."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutOfMemory(
            f"disk at {folder.parent}", expected=f"{needed / 1e9:.1f} GB free",
            got=f"{free / 1e9:.1f} GB", hint="convert to another disk",
        )  # fmt: skip


def _stored_bytes(parts: Parts) -> int:
    assert parts.transformer is not None and parts.vae is not None
    assert parts.text_encoder is not None
    stored = (parts.transformer.tensors, parts.vae.tensors, parts.text_encoder)
    return sum(part.num_bytes for part in stored)


def _write(source: ModelSource, parts: Parts, out: Path, *, to: str, options: _Options) -> str:
    write = _write_folder if to == "folder" else _write_official
    return write(source, parts, out, options)


class _Options:
    """What every weight file is written with."""

    def __init__(self, dtype: torch.dtype | None, max_bytes: int, level: str | None) -> None:
        self.dtype, self.max_bytes, self.level = dtype, max_bytes, level


def _check_storable(level: str | None) -> None:
    """Refuse levels that files cannot hold."""
    if level is None or level in STORED:
        return
    if level != DYNAMIC:
        check_level(level)
    raise ConfigError(
        "--quantize", expected=f"one of {', '.join(STORED)}", got=level,
        hint="give this one to `onereel generate`",
    )  # fmt: skip


def _check_level(parts: Parts, *, to: str, level: str | None) -> None:
    """Refuse another level than the stored one, and a layout that has no place for any."""
    assert parts.transformer is not None
    stored = parts.transformer.quantization
    if (level or stored) and to == "official":
        raise ConfigError("--to official", expected="whole weights", got=level or stored)
    if level is not None and stored not in (None, level):
        raise ConfigError("--quantize", expected=f"{stored}, as they are stored", got=level)


def _write_folder(source: ModelSource, parts: Parts, out: Path, options: _Options) -> str:
    """Write our layout."""
    import diffusers

    for label, part in (("transformer", parts.transformer), ("vae", parts.vae)):
        assert part is not None
        folder = out / label
        level = part.quantization or (options.level if label == "transformer" else None)
        _write_part(part, folder, "diffusion_pytorch_model", options=options, level=level)
        model: Any = part.build()
        model.save_config(folder)
        if level is not None:
            path = folder / CONFIG
            config = {**json.loads(path.read_text("utf-8")), QUANTIZATION: level}
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _copy_text(source, out / "text_encoder", out / "tokenizer")
    index = {
        "_diffusers_version": diffusers.__version__,
        **_PIPELINE,
        "sampling": parts.sampling,
    }
    (out / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _copy_tokens(parts, out)
    return ""


def _write_official(source: ModelSource, parts: Parts, out: Path, options: _Options) -> str:
    """Write the official layout, and the JSON config that points into it."""
    transformer, vae = parts.transformer, parts.vae
    assert transformer is not None and vae is not None
    dtype = options.dtype or stored_dtype(transformer)
    name = source.name.removesuffix("_config")
    config = official_json(
        transformer.config, vae=vae.config, sampling=parts.sampling, dtype=dtype, name=name
    )
    vae_config = official_vae_json(vae.config)
    engine = config["engine_config"]
    weights = "inference_weight" + ".fp8" * engine["fp8_quant"] + ".distill" * engine["distill"]
    load = out / config["runtime_config"]["load"] / weights
    _write_part(transformer, load, "model", options=options, official=True)
    folder = out / config["runtime_config"]["vae_pretrained"]
    _write_part(vae, folder, "diffusion_pytorch_model", options=options, official=True)
    _write_json(folder / CONFIG, vae_config)
    text = out / config["runtime_config"]["t5_pretrained"] / "t5-v1_1-xxl"
    _copy_text(source, text, text)
    _copy_tokens(parts, out)
    _write_json(out / f"{name}_config.json", config)
    return f"{name}_config.json"


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def _copy_text(source: ModelSource, encoder: Path, tokenizer: Path) -> None:
    """Copy the text encoder's and the tokenizer's files as they are."""
    for component, target in (("text_encoder", encoder), ("tokenizer", tokenizer)):
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.folder(component).iterdir()):
            is_tokenizer = path.name in _TOKENIZER_FILES
            if path.is_file() and is_tokenizer == (component == "tokenizer"):
                shutil.copyfile(path, target / path.name)


def _copy_tokens(parts: Parts, out: Path) -> None:
    if parts.special_tokens is not None:
        SpecialTokens.load(parts.special_tokens).save(out / _TOKENS_FILE)


def _write_part(
    part: ModelPart,
    folder: Path,
    stem: str,
    *,
    options: _Options,
    official: bool = False,
    level: str | None = None,
) -> None:
    """Convert and write one model's weights."""
    model = dataclasses.replace(part, quantization=level).build()

    def converted(items: Iterable[Named]) -> Iterator[Named]:
        ours = _ours(part, items, options.dtype)
        if level is not None and part.quantization is None:
            ours = packed_tensors(model, ours)
        return to_official(part, ours) if official else ours

    planned = [(name, tensor.nbytes) for name, tensor in converted(part.tensors.meta().items())]
    write_shards(
        converted(part.tensors.tensors()), folder, stem=stem, planned=planned,
        max_bytes=options.max_bytes,
    )  # fmt: skip


def _ours(part: ModelPart, items: Iterable[Named], dtype: torch.dtype | None) -> Iterator[Named]:
    """Rename tensors to ours, and change the dtype of matrices where asked for."""
    for stored, value in items:
        for name, tensor in part.to_ours({stored: value}).items():
            plain = tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
            plain = plain and not (part.quantization and name.endswith(".scale"))
            if dtype is not None and plain and not keeps_fp32(part.model_class, name):
                tensor = tensor.to(dtype)
            yield name, tensor


def to_official(part: ModelPart, items: Iterable[Named]) -> Iterator[Named]:
    """Convert a stream of our tensors to the official layout.

    Args:
        part: whose tensors they are.
        items: our names and tensors in any order; those that are stored fused wait for each other.

    Yields:
        Official names and tensors.

    Raises:
        CheckpointError: one of several fused tensors is missing.
    """
    is_vae = part.model_class is AutoencoderKLMagi1
    biases = {name: info.dtype for name, info in _our_meta(part).items() if name.endswith(".bias")}
    waiting: dict[str, torch.Tensor] = {}
    for name, tensor in items:
        waiting[name] = tensor
        together = _together(name, _QKV if is_vae else _CROSS)
        if any(other not in waiting for other in together):
            continue
        state = {other: waiting.pop(other) for other in together}
        if is_vae:
            yield from vae_weights.ours_to_official(state).items()
            continue
        for theirs, value in dit_weights.ours_to_official(
            state, **key_map_arguments(part.config)
        ).items():
            narrow = biases.get(name.removesuffix(".weight") + ".bias")
            yield theirs, _narrow_gain(value, state[name], narrow)
    if waiting:
        raise CheckpointError(f"tensors without their companions: {', '.join(sorted(waiting)[:3])}")


def _our_meta(part: ModelPart) -> dict[str, torch.Tensor]:
    return part.to_ours(part.tensors.meta())


def _together(name: str, fused: Sequence[str]) -> list[str]:
    """List the tensors that are stored as one with this one."""
    own = next((infix for infix in fused if infix in name), None)
    return [name] if own is None else [name.replace(own, infix) for infix in fused]


def _narrow_gain(
    value: torch.Tensor, gain: torch.Tensor, dtype: torch.dtype | None
) -> torch.Tensor:
    """Store a shifted gain as its bias is stored, where that gives the same gain again."""
    shifted = value.dtype == torch.float32 and dtype not in (None, value.dtype)
    if not shifted or value.is_meta or value is gain:
        return value
    assert dtype is not None
    small = value.to(dtype)
    return small if torch.equal(small.float() + 1.0, gain.float()) else value
