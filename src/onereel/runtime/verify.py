"""Accounting for a checkpoint before anything heavy is loaded.

`preflight` reads headers only and raises at the first problem; `verify` goes on, lists all
problems, and hashes the weights.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from onereel.core.errors import CheckpointError, ConfigError, OneReelError
from onereel.models.text.special_tokens import SpecialTokens
from onereel.runtime.layout import (
    ModelPart,
    read_sampling,
    sample_config,
    transformer_part,
    vae_part,
)
from onereel.runtime.shards import TensorFolder
from onereel.runtime.source import ModelSource
from onereel.runtime.text_files import TextPart, check_tokenizer, text_part


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What the files of one component hold.

    Args:
        path: its folder.
        num_files: weight files.
        num_tensors: stored tensors; 0 where headers do not tell.
        num_parameters: stored numbers; 0 where headers do not tell.
        num_bytes: of the weights.
        dtypes: tensors per dtype.
    """

    path: str
    num_files: int
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What was found.

    Args:
        name: of the checkpoint.
        path: of the folder or JSON.
        kind: `folder` or `official`.
        parts: components by name, those that could be read.
        sampling: the checkpoint's sampling settings.
        special_tokens: path of the table, or None.
        problems: what is wrong, in words; empty when all is well.
        model_hash: of all weights, where it was asked for and they are well.
    """

    name: str
    path: str
    kind: str
    parts: Mapping[str, PartReport]
    sampling: Mapping[str, Any]
    special_tokens: str | None
    problems: tuple[str, ...] = ()
    model_hash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "ok": self.ok}


@dataclass(kw_only=True, slots=True)
class Parts:
    """The components of a checkpoint as far as they were read, and what is wrong with them."""

    transformer: ModelPart | None = None
    vae: ModelPart | None = None
    text_encoder: TextPart | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    special_tokens: str | None = None


def model_parts(source: ModelSource) -> Parts:
    """Read and check all headers of a checkpoint.

    Args:
        source: the checkpoint.

    Returns:
        Its components, nothing loaded.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        ConfigError: a config or the sampling settings are wrong.
    """
    parts = Parts()
    for check in _checks(source, parts):
        check()
    return parts


def preflight(source: ModelSource) -> VerifyReport:
    """Check a checkpoint by its headers alone, in milliseconds.

    Args:
        source: the checkpoint.

    Returns:
        What was found, without problems.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        ConfigError: a config or the sampling settings are wrong.
    """
    return _report(source, model_parts(source))


def verify(source: ModelSource, *, deep: bool = False) -> VerifyReport:
    """Check a checkpoint, list everything that is wrong, and hash its weights.

    Args:
        source: the checkpoint.
        deep: read all values and look for NaN and infinity.

    Returns:
        What was found.
    """
    parts, problems = Parts(), []
    checks = list(_checks(source, parts))
    if deep:
        checks.append(lambda: _refuse_non_finite(parts))
    for check in checks:
        try:
            check()
        except OneReelError as error:
            problems.append(str(error))
    digest = None
    if not problems:
        digest = hash_parts(parts)
    return _report(source, parts, problems=tuple(problems), model_hash=digest)


def _checks(source: ModelSource, parts: Parts) -> Iterator[Callable[[], None]]:
    """List the checks; each fills in what it reads, so later ones can compare."""

    def sampling() -> None:
        parts.sampling = read_sampling(source)
        sample_config(parts.sampling)

    def transformer() -> None:
        parts.transformer = transformer_part(source)
        parts.transformer.account()

    def vae() -> None:
        parts.vae = vae_part(source)
        parts.vae.account()

    def text_encoder() -> None:
        parts.text_encoder = text_part(source.folder("text_encoder"))
        parts.text_encoder.account()

    yield from (sampling, transformer, vae, text_encoder)
    yield lambda: check_tokenizer(source.folder("tokenizer"))
    yield lambda: _check_guidance(source, parts)
    yield lambda: _check_widths(parts)
    yield lambda: _check_tokens(source, parts)


def _check_guidance(source: ModelSource, parts: Parts) -> None:
    """Compare the kind of weights with the kind of sampling."""
    if parts.transformer is None:
        return
    distilled = bool(parts.transformer.config["enable_distillation"])
    if source.official is not None and source.official.engine.fp8_quant and not distilled:
        raise ConfigError(
            f"{source.path}: engine_config.distill of fp8 weights", expected="true", got="false",
            hint="fp8 weights were only released distilled",
        )  # fmt: skip
    parts.sampling.setdefault("distilled", distilled)
    if parts.sampling["distilled"] != distilled:
        kind = "distilled weights, one pass" if distilled else "base weights, three-way guidance"
        raise ConfigError(
            f"{source.path}: sampling.distilled", expected=f"{distilled} for {kind}",
            got=parts.sampling["distilled"],
        )  # fmt: skip


def _check_widths(parts: Parts) -> None:
    """Compare what one component gives with what another takes."""
    if parts.transformer is None:
        return
    config = parts.transformer.config
    pairs = []
    if parts.vae is not None:
        channels = config["in_channels"] // (2 if config["half_channel_vae"] else 1)
        pairs.append(("latent channels", channels, parts.vae.config["z_dim"], "VAE"))
    if parts.text_encoder is not None:
        width = parts.text_encoder.config.d_model
        pairs.append(("caption channels", config["cross_attention_dim"], width, "text encoder"))
    for what, wanted, got, other in pairs:
        if wanted != got:
            raise CheckpointError(
                f"{what} of the transformer and the {other}", expected=str(wanted), got=got,
                hint=f"the {other} belongs to another checkpoint",
            )  # fmt: skip


def _check_tokens(source: ModelSource, parts: Parts) -> None:
    """Read the token table, if there is one."""
    path = source.special_tokens_file()
    if path is None:
        return
    parts.special_tokens = str(path)
    width = SpecialTokens.load(path).width
    wanted = width if parts.transformer is None else parts.transformer.config["cross_attention_dim"]
    if width != wanted:
        raise CheckpointError(f"{path}: token width", expected=str(wanted), got=width)


def _refuse_non_finite(parts: Parts) -> None:
    """Name the tensors that hold NaN or infinity."""
    bad = []
    for label, part in _weights(parts):
        tensors = part.named_tensors() if isinstance(part, TextPart) else part.tensors()
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                bad.append(f"{label}: {name}")
    if bad:
        shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinity ({shown})", hint="download them again"
        )


def _weights(parts: Parts) -> Iterator[tuple[str, TensorFolder | TextPart]]:
    """List the components' weights."""
    for label, part in (("transformer", parts.transformer), ("vae", parts.vae)):
        if part is not None:
            yield label, part.tensors
    if parts.text_encoder is not None:
        yield "text_encoder", parts.text_encoder


def hash_parts(parts: Parts) -> str:
    """Hash the weights of a checkpoint, whatever files they are in.

    Names, dtypes, shapes and bytes of all tensors count; shards, compression, metadata and order do
    not. The two layouts of the same weights have different hashes.

    Args:
        parts: what `model_parts` returned.

    Returns:
        SHA-256 in hexadecimal.
    """
    lines = []
    for label, part in _weights(parts):
        folder = part.tensors if isinstance(part, TextPart) else part
        for name, digest in part.digests().items():
            info = None if folder is None else folder.infos[name]
            kind = "" if info is None else f"{info.dtype} {list(info.shape)}"
            lines.append(f"{label}/{name} {kind} {digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def vae_hash(source: ModelSource) -> str:
    """Hash the weights of a checkpoint's VAE alone.

    Args:
        source: the checkpoint; nothing but its VAE need be there.

    Returns:
        SHA-256 in hexadecimal.
    """
    return hash_parts(Parts(vae=vae_part(source)))


def _report(
    source: ModelSource,
    parts: Parts,
    *,
    problems: tuple[str, ...] = (),
    model_hash: str | None = None,
) -> VerifyReport:
    return VerifyReport(
        name=source.name,
        path=str(source.path),
        kind=source.kind,
        parts={label: _part_report(part) for label, part in _weights(parts)},
        sampling=parts.sampling,
        special_tokens=parts.special_tokens,
        problems=problems,
        model_hash=model_hash,
    )


def _part_report(part: TensorFolder | TextPart) -> PartReport:
    folder = part.tensors if isinstance(part, TextPart) else part
    path = part.folder if isinstance(part, TextPart) else part.path
    if folder is None:
        assert isinstance(part, TextPart)
        return PartReport(
            path=str(path), num_files=len(part.bins), num_tensors=0, num_parameters=0,
            num_bytes=part.num_bytes, dtypes={},
        )  # fmt: skip
    dtypes = collections.Counter(str(i.dtype).removeprefix("torch.") for i in folder.infos.values())
    return PartReport(
        path=str(path),
        num_files=len(folder.files),
        num_tensors=len(folder.infos),
        num_parameters=folder.num_parameters,
        num_bytes=folder.num_bytes,
        dtypes=dict(dtypes),
    )
