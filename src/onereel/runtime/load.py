"""From a checkpoint on disk to components in memory, strictly and with a low peak.

Models are built on the meta device and take their tensors one by one, so that the peak is the model
itself plus one tensor, whatever the layout. Every tensor is accounted for before the first is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel
from transformers.utils import logging as transformers_logging

from onereel.core.device import parse_dtype
from onereel.core.errors import CheckpointError
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text.special_tokens import SpecialTokens
from onereel.runtime.layout import ModelPart, keeps_fp32
from onereel.runtime.quantize import (
    DYNAMIC,
    STORED,
    QuantizedLinear,
    check_stored,
    packed_tensors,
    quantize,
)
from onereel.runtime.source import ModelSource
from onereel.runtime.text_files import load_text_encoder, load_tokenizer
from onereel.runtime.verify import Parts, hash_parts, model_parts

_SMALL_CHECKPOINT = 500_000_000  # numbers; 2 GB in float32
_SMALL_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


@contextlib.contextmanager
def no_foreign_bars() -> Iterator[None]:
    """Keep the progress bars of transformers off the screen, which is the caller's."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Components:
    """What a pipeline is made of.

    Args:
        tokenizer: the T5 tokenizer.
        text_encoder: the T5 encoder.
        transformer: the diffusion transformer.
        vae: the VAE.
        special_tokens: the table of special tokens, where the checkpoint has one.
        sampling: fields of `ChunkSampleConfig`, and height, width, fps, num_frames and seed, as
            far as the checkpoint says.
        model_hash: SHA-256 over all weights.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: T5EncoderModel
    transformer: Magi1Transformer3DModel
    vae: AutoencoderKLMagi1
    special_tokens: SpecialTokens | None
    sampling: dict[str, Any]
    model_hash: str


def load_components(
    source: ModelSource,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    text_device: torch.device | str | None = None,
    level: str | None = None,
) -> Components:
    """Load all components of a checkpoint.

    Args:
        source: what `resolve_model` returned.
        device: where the transformer and the VAE go.
        dtype: of their weights; parts that must be float32 stay so, and float8 weights stay
            float8. None takes `default_dtype`.
        text_device: where the text encoder goes; None takes `device`, or the CPU where an official
            config says so. It is float32 on the CPU and of the same dtype as the rest elsewhere.
        level: of `quantize.py`, to which the transformer and the text encoder are rounded.

    Returns:
        The components, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit.
        ConfigError: a config or the sampling settings are wrong.
    """
    device = torch.device(device)
    parts = model_parts(source)
    dtype = dtype or default_dtype(source, parts)
    text_device = torch.device(text_device or text_device_of(source, device))
    tokenizer, text_encoder = load_text(source, parts, dtype=dtype, device=text_device, level=level)
    tokens = parts.special_tokens
    transformer, vae = load_networks(parts, dtype=dtype, device=device, level=level)
    return Components(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        special_tokens=None if tokens is None else SpecialTokens.load(tokens),
        sampling=parts.sampling,
        model_hash=hash_parts(parts),
    )


def load_networks(
    parts: Parts, *, dtype: torch.dtype, device: torch.device, level: str | None = None
) -> tuple[Magi1Transformer3DModel, AutoencoderKLMagi1]:
    """Load what makes videos of encoded prompts.

    Args:
        parts: the checkpoint's headers.
        dtype: of the weights, see `load_components`.
        device: where they go.
        level: of `quantize.py`, to which the transformer is rounded.

    Returns:
        The transformer and the VAE.
    """
    assert parts.transformer is not None and parts.vae is not None
    transformer = load_part(parts.transformer, dtype=dtype, device=device, level=level)
    vae = load_part(parts.vae, dtype=dtype, device=device)
    assert isinstance(transformer, Magi1Transformer3DModel) and isinstance(vae, AutoencoderKLMagi1)
    return transformer, vae


def load_text(
    source: ModelSource,
    parts: Parts,
    *,
    dtype: torch.dtype,
    device: torch.device,
    level: str | None = None,
) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Load what encodes prompts.

    Args:
        source: the checkpoint.
        parts: its headers.
        dtype: of the weights on a GPU; on the CPU they are float32.
        device: where the encoder goes.
        level: of `quantize.py`, to which its weights are rounded.

    Returns:
        The tokenizer and the encoder.
    """
    assert parts.text_encoder is not None
    dtype = torch.float32 if device.type == "cpu" else dtype
    encoder = load_text_encoder(parts.text_encoder, dtype=dtype, device=device)
    if level is not None:
        quantize(encoder, level)
    return load_tokenizer(source.folder("tokenizer")), encoder


def default_dtype(
    source: ModelSource, parts: Parts, *, device: torch.device | str | None = None
) -> torch.dtype:
    """Choose the dtype of the transformer and the VAE.

    Args:
        source: the checkpoint.
        parts: its headers.
        device: where they will run, where that is known.

    Returns:
        The official config's dtype, or that of the stored matrices; but float32 for small
        checkpoints on a CPU, most of which compute in bfloat16 slowly.
    """
    assert parts.transformer is not None
    small = parts.transformer.tensors.num_parameters < _SMALL_CHECKPOINT
    if device is not None and torch.device(device).type == "cpu" and small:
        return torch.float32
    if source.official is not None:
        return parse_dtype(source.official.model.params_dtype)
    return stored_dtype(parts.transformer)


def stored_dtype(part: ModelPart) -> torch.dtype:
    """Find the dtype that most of a part's numbers are stored in, float8 aside.

    Args:
        part: what is stored.

    Returns:
        A floating dtype.
    """
    sizes: dict[torch.dtype, int] = {}
    for info in part.tensors.infos.values():
        if info.dtype.is_floating_point and info.dtype not in _SMALL_FLOATS:
            numbers = info.num_bytes // info.dtype.itemsize
            sizes[info.dtype] = sizes.get(info.dtype, 0) + numbers
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def text_device_of(source: ModelSource, device: torch.device) -> torch.device:
    """Choose where prompts are encoded.

    Args:
        source: the checkpoint; an official config may ask for the CPU.
        device: of the other networks.

    Returns:
        The device.
    """
    on_cpu = source.official is not None and source.official.runtime.t5_device == "cpu"
    return torch.device("cpu") if on_cpu else device


def load_part(
    part: ModelPart,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    level: str | None = None,
) -> nn.Module:
    """Load the transformer or the VAE.

    Args:
        part: its headers; names and shapes must have been accounted for.
        dtype: of the weights, see `load_components`; None keeps what is stored.
        device: where to put them.
        level: of `quantize.py`, to which weights are rounded as they are read; None keeps them.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: a tensor is missing or unknown.
        ConfigError: the weights are stored in another level.
    """
    check_stored(level, stored=part.quantization)
    model, tensors = part.build(), part.our_tensors()
    if level in STORED and part.quantization is None:
        quantize(model, str(level))
        tensors = packed_tensors(model, tensors)
    assign_tensors(model, tensors, dtype=dtype, device=device)
    if level == DYNAMIC:
        quantize(model, level)
    return model


def assign_tensors(
    model: nn.Module,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Put tensors into a model on the meta device, one by one.

    Args:
        model: takes the tensors themselves.
        tensors: our names and values.
        dtype: of the weights; None keeps each tensor's.
        device: where to put them.

    Raises:
        CheckpointError: a tensor is missing or unknown.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    left = set(model.state_dict())
    for name, tensor in tensors:
        if name not in left:
            raise CheckpointError(f"unexpected tensor '{name}'")
        left.remove(name)
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        wanted_dtype = target_dtype(type(model), name, tensor=tensor, dtype=dtype)
        if isinstance(owner, QuantizedLinear) and leaf != "bias":
            wanted_dtype = tensor.dtype
        value = tensor.to(device, wanted_dtype).contiguous()
        if name in buffers:
            owner.register_buffer(leaf, value)
        else:
            wanted = parameters[name].requires_grad
            setattr(owner, leaf, nn.Parameter(value, requires_grad=wanted))
    if left:
        raise CheckpointError(f"{len(left)} tensors are missing ({min(left)}, ...)")


def target_dtype(
    model_class: type[nn.Module], name: str, *, tensor: torch.Tensor, dtype: torch.dtype | None
) -> torch.dtype:
    """Choose the dtype of one tensor.

    Args:
        model_class: our class.
        name: our name of the tensor.
        tensor: as stored.
        dtype: of the model; None keeps what is stored.

    Returns:
        float32 for the parts of the model that compute in it, the stored one for float8 weights,
        `dtype` for the rest.
    """
    if dtype is None or tensor.dtype in _SMALL_FLOATS or not tensor.dtype.is_floating_point:
        return tensor.dtype
    return torch.float32 if keeps_fp32(model_class, name) else dtype
