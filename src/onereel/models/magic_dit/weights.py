"""Key maps between the official layout of the transformer and diffusers', and strict loading.

The official layout is HunyuanVideo's. Besides the names three things differ: query, key and value
rows (and, in single blocks, the MLP's) are stored as one matrix there, the last modulation's shift
and scale rows are in the other order, and Magic 1-For-1 has 33 input channels instead of 16.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/models/magic_141_video/modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from diffusers import HunyuanVideoTransformer3DModel

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.magi_dit.weights import account
from onereel.models.magic_dit.model import use_trimmed_text
from onereel.models.magic_dit.presets import IN_CHANNELS, MAGIC_DIT_PRESETS

Tensors = dict[str, torch.Tensor]
Stems = tuple[str, ...]

# Whole training modules and DMD2 students carry these in front of every name.
_WRAPPERS = ("hydit_unimodel.guidance_model.feedforward_model.", "module.", "model.")
_SWAPPED = "final_layer.adaLN_modulation.1"
_GUIDANCE = ("guidance_in.", "time_text_embed.guidance_embedder.")

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TOP: dict[str, Stems] = {
    "img_in.proj": ("x_embedder.proj",),
    "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    _SWAPPED: ("norm_out.linear",),
}
_REFINER: dict[str, Stems] = {
    "self_attn_qkv": _QKV,
    "self_attn_proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm_out.linear",),
    "norm1": ("norm1",),
    "norm2": ("norm2",),
}
_DOUBLE: dict[str, Stems] = {
    "img_mod.linear": ("norm1.linear",),
    "txt_mod.linear": ("norm1_context.linear",),
    "img_attn_qkv": _QKV,
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_q_norm": ("attn.norm_q",),
    "img_attn_k_norm": ("attn.norm_k",),
    "txt_attn_q_norm": ("attn.norm_added_q",),
    "txt_attn_k_norm": ("attn.norm_added_k",),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp.fc1": ("ff.net.0.proj",),
    "img_mlp.fc2": ("ff.net.2",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",),
    "txt_mlp.fc2": ("ff_context.net.2",),
}
_SINGLE: dict[str, Stems] = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.linear": ("norm.linear",),
    "q_norm": ("attn.norm_q",),
    "k_norm": ("attn.norm_k",),
}


class _Section(NamedTuple):
    """A part of the network; names in it are prefix, block number if any, stem, suffix."""

    official: str
    ours: str
    stems: dict[str, Stems]


_SECTIONS = (
    _Section(
        "txt_in.individual_token_refiner.blocks.",
        "context_embedder.token_refiner.refiner_blocks.",
        _REFINER,
    ),
    _Section("double_blocks.", "transformer_blocks.", _DOUBLE),
    _Section("single_blocks.", "single_transformer_blocks.", _SINGLE),
    _Section("", "", _TOP),
)


def is_official(keys: Mapping[str, Any]) -> bool:
    """Tell whether the keys are those of the official (HunyuanVideo) layout."""
    return "img_in.proj.weight" in keys


def strip_wrapper(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Remove what training wrappers put in front of every name.

    Args:
        state: names to tensors.

    Returns:
        The same tensors; names change only where all of them carry the prefix.
    """
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            return strip_wrapper({name[len(prefix) :]: value for name, value in state.items()})
    return dict(state)


def _parse(name: str, side: Literal["official", "ours"]) -> tuple[_Section, str, str, str]:
    """Cut a name into its section, block number with dot, stem, and suffix with dot."""
    section = next(s for s in _SECTIONS if name.startswith(getattr(s, side)))
    rest, number = name[len(getattr(section, side)) :], ""
    if section.stems is not _TOP:
        number, _, rest = rest.partition(".")
        number += "."
    stem, _, suffix = rest.rpartition(".")
    return section, number, stem, f".{suffix}"


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2)
    return torch.cat((second, first))


def _split_rows(name: str, tensor: torch.Tensor, *, parts: int, dim: int) -> list[torch.Tensor]:
    """Cut a fused matrix or bias: three projections of `dim` rows, then the MLP's."""
    if parts == 1:
        return [tensor]
    rest = tensor.shape[0] - 3 * dim
    if rest < 0 or (rest > 0) != (parts == 4):
        raise CheckpointError(
            name,
            expected=f"3 x {dim} rows" + " and the MLP's" * (parts == 4),
            got=tensor.shape[0],
            hint="use the config that belongs to these weights",
        )
    return list(tensor.split([dim] * 3 + [rest] * (parts - 3)))


def official_to_ours(state: Mapping[str, torch.Tensor], *, dim: int) -> Tensors:
    """Rename and split official tensors.

    Args:
        state: official names to tensors (meta tensors work).
        dim: width D of the tokens.

    Returns:
        diffusers' names to tensors; parts of fused matrices are views.

    Raises:
        CheckpointError: a name is not known, or a fused matrix has another number of rows.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        section, number, stem, suffix = _parse(name, "official")
        if stem not in section.stems:
            raise CheckpointError(
                f"unknown tensor '{name}'", hint="this is not a HunyuanVideo transformer"
            )
        targets = section.stems[stem]
        value = _swap_halves(tensor) if stem == _SWAPPED else tensor
        parts = _split_rows(name, value, parts=len(targets), dim=dim)
        for target, part in zip(targets, parts, strict=True):
            out[f"{section.ours}{number}{target}{suffix}"] = part
    return out


def ours_to_official(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Rename and fuse diffusers' tensors; the inverse of `official_to_ours`.

    Args:
        state: diffusers' names to tensors (meta tensors work).

    Returns:
        Official names to tensors.

    Raises:
        CheckpointError: a name is not known, or a part of a fused matrix is missing.
    """
    out: Tensors = {}
    for name, tensor in state.items():
        section, number, stem, suffix = _parse(name, "ours")
        theirs = next((t for t, stems in section.stems.items() if stem in stems), None)
        if theirs is None:
            raise CheckpointError(f"tensor '{name}' has no place in the official layout")
        parts = [f"{section.ours}{number}{part}{suffix}" for part in section.stems[theirs]]
        absent = [part for part in parts if part not in state]
        if absent:
            raise CheckpointError(f"missing tensor '{absent[0]}' beside '{name}'")
        if name == parts[0]:
            fused = torch.cat([state[part] for part in parts]) if parts[1:] else tensor
            fused = _swap_halves(fused) if theirs == _SWAPPED else fused
            out[f"{section.official}{number}{theirs}{suffix}"] = fused
    return out


def widen_input(
    state: Mapping[str, torch.Tensor],
    *,
    in_channels: int = IN_CHANNELS,
    init: Literal["zero", "norm"] = "zero",
    generator: torch.Generator | None = None,
) -> Tensors:
    """Give text-to-video weights the input channels of the image prior.

    The guidance embedder of HunyuanVideo's own distilled weights is left out.

    Args:
        state: tensors in the official or in diffusers' layout.
        in_channels: input channels wanted.
        init: new channels are zero, or normal with the old weight's mean and deviation.
        generator: of the `norm` draw, on the weight's device.

    Returns:
        The tensors, those of the input convolution replaced.

    Raises:
        CheckpointError: the input convolution is missing or has more channels already.
        ConfigError: `init` is not known.

    Source: alisson-anjos/Magic-1-For-1-UI @09ec251 (an earlier public revision).
    """
    name = "img_in.proj.weight" if is_official(state) else "x_embedder.proj.weight"
    old = state.get(name)
    if old is None or old.shape[1] > in_channels:
        got = "none" if old is None else f"{old.shape[1]} channels"
        raise CheckpointError(name, expected=f"at most {in_channels} input channels", got=got)
    if init not in ("zero", "norm"):
        raise ConfigError("init", expected="zero or norm", got=init)
    new = old.new_zeros(old.shape[0], in_channels - old.shape[1], *old.shape[2:])
    if init == "norm":
        noise = torch.randn(new.shape, generator=generator, device=new.device)
        new = (noise * old.float().std() + old.float().mean()).to(old.dtype)
    kept = {k: v for k, v in state.items() if not k.startswith(_GUIDANCE)}
    return kept | {name: torch.cat((old, new), dim=1)}


def build_transformer(
    state: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> HunyuanVideoTransformer3DModel:
    """Build a transformer that holds the given tensors themselves, every one accounted for.

    Args:
        state: tensors in the official or in diffusers' layout, training wrappers' names allowed.
        config: arguments of the class; None for Magic 1-For-1's.

    Returns:
        The model in evaluation mode, its attention without masks where the text allows.

    Raises:
        CheckpointError: tensors are missing, unexpected or of the wrong shape.
    """
    values = dict(MAGIC_DIT_PRESETS["magic141"] if config is None else config)
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(**values)
    tensors = strip_wrapper(state)
    if is_official(tensors):
        dim = values["num_attention_heads"] * values["attention_head_dim"]
        tensors = official_to_ours(tensors, dim=dim)
    account(tensors, model.state_dict(), where="transformer")
    model.load_state_dict(tensors, strict=True, assign=True)
    use_trimmed_text(model)
    return model.eval()
