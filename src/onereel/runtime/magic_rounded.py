"""Networks of Magic 1-For-1 whose weights are stored in few bits, or rounded while they are read.

A stored level is in the part's `config.json`, under the key that MAGI-1's parts have, too. LLaVA's
tensors have the names of the network itself then, not those that transformers gives to files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from accelerate import init_empty_weights
from diffusers import HunyuanVideoTransformer3DModel

from onereel.core.errors import CheckpointError
from onereel.models.magi_dit.weights import account
from onereel.models.magic_dit.model import use_trimmed_text
from onereel.models.magic_dit.weights import is_official
from onereel.runtime.load import assign_tensors
from onereel.runtime.quantize import QUANTIZATION, STORED, packed_tensors, quantize
from onereel.runtime.shards import TensorFolder

ROUNDED_PARTS: Final = ("text_encoder", "transformer")
ROUNDED_TENSORS: Final = (".packed", ".scale")  # how their names end


def stored_level(config: Mapping[str, Any] | None, *, where: str) -> str | None:
    """Read in how many bits a part's weights are stored.

    Args:
        config: of the part, or None.
        where: what to name in an error.

    Returns:
        One of `STORED`, or None for whole weights.

    Raises:
        CheckpointError: the level is unknown.
    """
    level = None if config is None else config.get(QUANTIZATION)
    if level is not None and level not in STORED:
        raise CheckpointError(
            f"{where}: {QUANTIZATION}", expected=f"one of {', '.join(STORED)}", got=level
        )
    return level


def empty_network(part: str, config: Mapping[str, Any], *, level: str | None) -> Any:
    """Build LLaVA or the transformer without weights.

    Args:
        part: one of `ROUNDED_PARTS`.
        config: as stored.
        level: to which its linear layers are rounded; None leaves them whole.

    Returns:
        The network on the meta device; buffers that are in no file are there.
    """
    values = {key: value for key, value in config.items() if key != QUANTIZATION}
    with init_empty_weights(include_buffers=False):
        if part == "transformer":
            network: Any = HunyuanVideoTransformer3DModel.from_config(values)
        else:
            llava = transformers.LlavaConfig.from_dict(values)
            network = transformers.LlavaForConditionalGeneration(llava)
    if level is not None:
        quantize(network, level)
    return network


def can_stream(part: str, tensors: TensorFolder | None, *, stored: str | None) -> bool:
    """Tell whether tensors have the network's own names, so that each can be rounded as it comes.

    Args:
        part: one of `ROUNDED_PARTS`.
        tensors: the headers, or None.
        stored: level in which they are stored.

    Returns:
        False where the network has to be loaded whole first.
    """
    if tensors is None:
        return False
    return stored is not None or (part == "transformer" and not is_official(tensors.infos))


def load_rounded(
    part: str,
    tensors: TensorFolder,
    *,
    config: Mapping[str, Any],
    level: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Load a network tensor by tensor, so that whole weights are never all in memory.

    Args:
        part: one of `ROUNDED_PARTS`; see `can_stream`.
        tensors: the files.
        config: as stored.
        level: one of `STORED`: of the weights, or to which they are rounded.
        dtype: of what is not rounded.
        device: where to put it.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape.
    """
    stored = config.get(QUANTIZATION)
    expected = empty_network(part, config, level=stored)
    account(tensors.meta(), expected.state_dict(), where=str(tensors.path))
    network = expected if stored else empty_network(part, config, level=level)
    stream = tensors.tensors()
    assign_tensors(
        network,
        stream if stored else packed_tensors(network, stream),
        dtype=dtype,
        device=device,
    )
    network.to(device)  # buffers that are in no file
    if part == "transformer":
        use_trimmed_text(network)
    return network.eval().requires_grad_(False)
