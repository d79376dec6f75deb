"""The text encoder's files: a T5 in transformers' layout, as safetensors or as `.bin` shards."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel, T5Tokenizer

from onereel.core.errors import CheckpointError
from onereel.models.magi_dit.weights import account
from onereel.runtime.shards import TensorFolder, find_weights, open_tensors, read_json

_BIN: Final = "pytorch_model.bin"
_TIED: Final = "encoder.embed_tokens.weight"  # the same tensor as shared.weight
_TOKENIZER_FILES: Final = ("tokenizer.json", "spiece.model")
# A whole T5 holds a decoder, too, which is not needed here.
_UNUSED: Final = ("decoder.", "lm_head.")

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPart:
    """The text encoder of a checkpoint, nothing of it loaded.

    Args:
        folder: where it is.
        config: sizes.
        tensors: headers of safetensors files; None where the weights are `.bin` files.
        bins: the `.bin` files.
    """

    folder: Path
    config: T5Config
    tensors: TensorFolder | None
    bins: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights on disk."""
        if self.tensors is not None:
            return self.tensors.num_bytes
        return sum(path.stat().st_size for path in self.bins)

    def account(self) -> None:
        """Check names and shapes of safetensors files; `.bin` files are accounted when loaded.

        Raises:
            CheckpointError: something is missing, left over or of another shape.
        """
        if self.tensors is None:
            return
        with torch.device("meta"):
            expected = dict(T5EncoderModel(self.config).state_dict())
        found = {k: t for k, t in self.tensors.meta().items() if not k.startswith(_UNUSED)}
        for state in (expected, found):
            state.pop(_TIED, None)
        account(found, expected, where=str(self.folder))

    def named_tensors(self) -> Iterator[Named]:
        """Read the tensors one by one, whatever the files.

        Yields:
            Names and CPU tensors.
        """
        if self.tensors is not None:
            yield from self.tensors.tensors()
        for path in self.bins:
            yield from torch.load(path, mmap=True, weights_only=True, map_location="cpu").items()

    def digests(self) -> dict[str, str]:
        """Hash every tensor's bytes.

        Returns:
            Names to SHA-256 in hexadecimal.
        """
        if self.tensors is not None:
            return self.tensors.digests()
        return {name: _digest(tensor) for name, tensor in self.named_tensors()}


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def text_part(folder: Path) -> TextPart:
    """Read a text encoder's config and find its files, all of them whole.

    Args:
        folder: holds `config.json` and the weights.

    Returns:
        The part.

    Raises:
        CheckpointError: a file is missing, truncated or of another model.
    """
    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type") != "t5":
        raise CheckpointError(f"{path}: model_type", expected="t5", got=values.get("model_type"))
    config = T5Config(**values)
    if find_weights(folder) is not None:
        return TextPart(folder=folder, config=config, tensors=open_tensors(folder), bins=())
    return TextPart(folder=folder, config=config, tensors=None, bins=_bin_files(folder))


def _bin_files(folder: Path) -> tuple[Path, ...]:
    index = folder / f"{_BIN}.index.json"
    content = read_json(index) if index.is_file() else {}
    names = sorted(set(content.get("weight_map", {}).values())) or [_BIN]
    files = tuple(folder / name for name in names)
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file", expected="the text encoder's weights",
                hint="download it again",
            )  # fmt: skip
    _check_sizes(files, int(content.get("metadata", {}).get("total_size", 0)), index)
    return files


def _check_sizes(files: tuple[Path, ...], expected: int, index: Path) -> None:
    """Find truncated downloads: a torch file is a zip archive, whose table is at its end."""
    for path in files:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip and not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path}: size", expected="a whole file",
                got=f"{path.stat().st_size} bytes that end early",
                hint="the file is truncated: download it again",
            )  # fmt: skip
    found = sum(path.stat().st_size for path in files)
    if found < expected:
        raise CheckpointError(
            f"{index}: shards", expected=f"at least {expected} bytes", got=f"{found} bytes",
            hint="a file is truncated: download it again",
        )  # fmt: skip


def load_text_encoder(
    part: TextPart, *, dtype: torch.dtype, device: torch.device
) -> T5EncoderModel:
    """Load a text encoder, every tensor accounted for.

    Args:
        part: what `text_part` returned.
        dtype: of the model.
        device: where to put it.

    Returns:
        The encoder in evaluation mode.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    encoder, info = T5EncoderModel.from_pretrained(
        part.folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    unexpected = {name for name in info["unexpected_keys"] if not name.startswith(_UNUSED)}
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(unexpected - {_TIED}),
        "of wrong shape": sorted(str(key) for key in info["mismatched_keys"]),
    }
    found = [f"{len(keys)} {kind} ({keys[0]}, ...)" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{part.folder}: tensors do not fit the config: {'; '.join(found)}")
    encoder.to(device)
    encoder.train(False)
    return encoder


def check_tokenizer(folder: Path) -> None:
    """Check that a tokenizer's files are there.

    Args:
        folder: of the tokenizer.

    Raises:
        CheckpointError: none of the files that hold a vocabulary is there.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder}: no tokenizer", expected=" or ".join(_TOKENIZER_FILES),
            hint="the checkpoint is incomplete",
        )  # fmt: skip


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a T5 tokenizer.

    Args:
        folder: of the tokenizer.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: its files are missing.
    """
    check_tokenizer(folder)
    tokenizer: PreTrainedTokenizerBase = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
