"""The sizes of a Magic 1-For-1 checkpoint's networks: all that an estimate needs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS
from onereel.runtime.magic_rounded import ROUNDED_TENSORS
from onereel.runtime.magic_source import NETWORKS, MagicFiles

RELEASED: Final = "magic141"  # the 13B model; its weights were never released
_USUAL: Final = {"patch_size": 2, "mlp_ratio": 4.0}  # diffusers' defaults
# Matrices whose rows are looked up, which stay as they are.
_LOOKED_UP: Final = ("embed_tokens.weight", "token_embedding.weight", "position_embedding.weight")
_BFLOAT16 = 2
_PIECE: Final = (5, 8, 8)  # latent frames, rows and columns whose decoding is counted


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSize:
    """How many numbers a network's weights are.

    Args:
        matrices: in the matrices that `quantize.py` may round.
        rest: in all other tensors.
        rounded_bytes: of what is stored in few bits.
    """

    matrices: int
    rest: int
    rounded_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicShapes:
    """The networks of a checkpoint.

    Args:
        name: what to call it.
        sizes: of the networks' weights.
        transformer: its config.
        vae: its config; the released one's is empty, diffusers' defaults.
        sampling: settings of the checkpoint.
    """

    name: str
    sizes: Mapping[str, NetworkSize]
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)


def read_magic_shapes(files: MagicFiles) -> MagicShapes:
    """Read a checkpoint's headers and configs; a PyTorch file's config is the released model's.

    Args:
        files: the checkpoint.

    Returns:
        The shapes.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return MagicShapes(
        name=files.name,
        sizes={part: _stored_size(files, part) for part in NETWORKS},
        transformer=_USUAL | (files.config("transformer") or MAGIC_DIT_PRESETS[RELEASED]),
        vae=files.config("vae") or {},
        sampling=files.sampling,
    )


@functools.cache
def released_shapes() -> MagicShapes:
    """Build the 13B model with the encoders that its code names, on the meta device.

    Returns:
        The shapes.

    Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d; LLaVA is xtuner/llava-llama-3-8b-v1_1, CLIP
        openai/clip-vit-large-patch14, both by their public configs.
    """
    llava = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=128320,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
    )
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    transformer = MAGIC_DIT_PRESETS[RELEASED]
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "text_encoder": LlavaForConditionalGeneration(llava),
            "text_encoder_2": CLIPTextModel(clip),
            "transformer": HunyuanVideoTransformer3DModel(**transformer),
            "vae": AutoencoderKLHunyuanVideo(),
        }
    return MagicShapes(
        name=RELEASED,
        sizes={
            part: _size((name, tensor.shape) for name, tensor in network.named_parameters())
            for part, network in networks.items()
        },
        transformer=transformer,
        vae={},
    )


def decoding_flops(shapes: MagicShapes) -> float:
    """Count what decoding costs, on the meta device.

    Args:
        shapes: the networks.

    Returns:
        Operations per pixel of a frame.
    """
    frames, height, width = _PIECE
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo.from_config(dict(shapes.vae)).eval()
        latent = torch.empty(1, vae.config.latent_channels, *_PIECE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(latent)
    return counter.get_total_flops() / ((4 * frames - 3) * 64 * height * width)


def _stored_size(files: MagicFiles, part: str) -> NetworkSize:
    found = files.tensors(part)
    if found is not None:
        rounded = {name for name in found.infos if name.endswith(ROUNDED_TENSORS)}
        size = _size((n, info.shape) for n, info in found.infos.items() if n not in rounded)
        num_bytes = sum(found.infos[name].num_bytes for name in rounded)
        return dataclasses.replace(size, rounded_bytes=num_bytes)
    # A PyTorch file has no headers: about as large as what it holds, in bfloat16.
    place = files.places[part]
    stored = [place] if place.is_file() else [path for path in place.iterdir() if path.is_file()]
    return NetworkSize(matrices=sum(path.stat().st_size for path in stored) // _BFLOAT16, rest=0)


def _size(tensors: Iterable[tuple[str, Iterable[int]]]) -> NetworkSize:
    matrices = rest = 0
    for name, shape in tensors:
        lengths = tuple(shape)
        if len(lengths) == 2 and not name.endswith(_LOOKED_UP):
            matrices += math.prod(lengths)
        else:
            rest += math.prod(lengths)
    return NetworkSize(matrices=matrices, rest=rest)
