"""Models of the parity cases: recorded tiny weights, and the six full sizes on the meta device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onereel.evaluation.parity.case import CaseResult
from onereel.models.magi_dit.fp8 import set_input_quantization
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import OfficialModelConfig, transformer_kwargs
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magi_dit.weights import account, official_to_ours, ours_to_official


def plain_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Upcast stored bfloat16 to float32, leaving float8 and float32 as they are.

    Args:
        state: tensors by name.

    Returns:
        The same names.
    """
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in state.items()}


def load_case_model(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, distill: bool = False
) -> Magi1Transformer3DModel:
    """Build a recorded tiny model through the official config and key map.

    Args:
        folder: holds index.json and the model's file.
        name: of the model in the index.
        dtype: dtype of all that the official code does not promote to float32.
        distill: whether calls carry the step-size embedding.

    Returns:
        The model, with official float8 rounding of inputs.
    """
    entry = json.loads((folder / "index.json").read_text())["models"][name]
    fields = OfficialModelConfig.__dataclass_fields__
    config = OfficialModelConfig(**{k: v for k, v in entry["model_config"].items() if k in fields})
    fp8 = bool(entry.get("engine", {}).get("fp8_quant"))
    model = Magi1Transformer3DModel(**transformer_kwargs(config, distill=distill, fp8=fp8))
    state = official_to_ours(
        plain_tensors(load_file(folder / entry["file"])),
        num_kv_heads=config.num_query_groups,
        head_dim=config.kv_channels,
        gated=config.gated_linear_unit,
    )
    account(state, model.state_dict(), where=name)
    model.load_state_dict(state)
    _lower(model, dtype)
    set_input_quantization(model, True)
    return model.eval()


def _lower(model: Magi1Transformer3DModel, dtype: torch.dtype) -> None:
    """Cast what the official code keeps in `dtype`."""
    promoted = set(Magi1Transformer3DModel._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if not promoted & set(name.split(".")) and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def full_size_results(path: Path) -> Iterator[CaseResult]:
    """Check tensor names, shapes and counts of the released sizes.

    Args:
        path: manifest with, per variant, `tensors` (name -> [shape, dtype]) and `num_parameters`.

    Yields:
        One result per variant.
    """
    manifest: dict[str, Any] = json.loads(path.read_text())
    for variant, entry in manifest.items():
        if not isinstance(entry, dict) or "tensors" not in entry:
            continue
        with torch.device("meta"):
            model = Magi1Transformer3DModel(**DIT_PRESETS[variant])
        config = model.config
        state = ours_to_official(
            model.state_dict(),
            num_kv_heads=config.num_kv_heads,
            head_dim=config.attention_head_dim,
            gated=config.gated_linear_unit,
        )
        want = {k: tuple(shape) for k, (shape, _) in entry["tensors"].items()}
        got = {k: tuple(v.shape) for k, v in state.items()}
        wrong = [k for k in {*want, *got} if want.get(k) != got.get(k)]
        count = sum(v.numel() for v in state.values())
        passed = not wrong and count == entry["num_parameters"]
        note = f"{len(got)} tensors, {count} parameters, {len(wrong)} differ"
        yield CaseResult(f"full_size.{variant}", passed, float(len(wrong)), 0.0, note)
