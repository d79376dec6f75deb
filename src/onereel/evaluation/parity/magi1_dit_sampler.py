"""Parity of whole sampling loops: recorded noise in, finished chunks and velocities out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.parity.magi1_dit_models import load_case_model
from onereel.evaluation.parity.prompt_cases import flags_from_environment
from onereel.models.text.special_tokens import (
    ChunkCaptions,
    SpecialTokens,
    build_captions,
)
from onereel.samplers.engine import ChunkEngine, ChunkTask
from onereel.samplers.guidance import GuidanceRuntime
from onereel.samplers.plan import ChunkCall, ChunkSampleConfig

Case = dict[str, Any]


def sample_config(case: Case) -> ChunkSampleConfig:
    """Translate a case's official settings.

    Args:
        case: entry of the index.

    Returns:
        The config, with `official_compat`.
    """
    runtime, engine = case["runtime"], case["engine"]
    tables = ("cfg_t_range", "prev_chunk_scales", "text_scales", "noise2clean_kvrange")
    numbers = ("num_steps", "window_size", "chunk_width", "clean_chunk_kvrange", "clean_t")
    values: Case = {k: tuple(runtime[k]) for k in tables} | {k: runtime[k] for k in numbers}
    return ChunkSampleConfig(
        **values,
        distilled=runtime["cfg_number"] == 1,
        shortcut_mode=engine.get("shortcut_mode", "8,16,16"),
        near_clean_threshold=engine.get("distill_nearly_clean_chunk_threshold", 0.3),
        near_clean_scale=float(case["env"].get("prev_chunks_scale", 0.7)),
        official_compat=True,
    )


def _captions(folder: Path, case: Case, model: Any, tensors: dict[str, Any]) -> ChunkCaptions:
    """Build the text rows of a case, one caption per generated chunk."""
    index = json.loads((folder / "index.json").read_text())
    tokens = SpecialTokens.from_tensors(
        load_file(folder / index["models"]["tokens"][case["model"]])
    )
    prefix_chunks = case["prefix_frames"] // case["runtime"]["chunk_width"]
    generated = case["chunk_num"] - prefix_chunks
    if case["chunk_captions"] is None:
        head = tensors["caption_embs_head"][0, 0]
        visible = [_pad(head, case["caption_mask_len"])] * generated
    else:
        visible = [
            _pad(tensors[f"chunk_caption_{i}_head"].flatten(0, -2), length)
            for i, (_, length) in enumerate(case["chunk_captions"])
        ]
    return build_captions(
        visible,
        model.null_caption.detach(),
        num_prefix_chunks=prefix_chunks,
        flags=flags_from_environment(case["env"]),
        tokens=tokens,
        max_length=model.config.caption_max_length,
    )


def _pad(head: torch.Tensor, length: int) -> torch.Tensor:
    """Cut a caption to its visible tokens; those past the stored head are zero."""
    if length <= head.shape[0]:
        return head[:length]
    return torch.cat((head, head.new_zeros(length - head.shape[0], head.shape[1])))


def run_sampler_case(
    folder: Path, case: Case, *, runtime: GuidanceRuntime | None = None
) -> Iterator[CaseResult]:
    """Run one recorded sampling loop.

    Args:
        folder: holds the case's tensors.
        case: entry of the index.
        runtime: how guidance is computed.

    Yields:
        A result per finished chunk and per recorded velocity, and one for the number of chunks.
    """
    tensors = load_file(folder / case["file"])
    config = sample_config(case)
    model = load_case_model(folder, case["model"], distill=config.distilled)
    captions = _captions(folder, case, model, tensors)
    noise, width = tensors["noise"], config.chunk_width
    velocities: dict[int, tuple[ChunkCall, torch.Tensor]] = {}
    task = ChunkTask(
        num_chunks=case["chunk_num"],
        latent_shape=(noise.shape[1], noise.shape[3], noise.shape[4]),
        condition=lambda c: captions.cond[c],
        null_caption=captions.null,
        prefix=tensors.get("prefix_latent"),
        noise=lambda c: noise[:, :, c * width : (c + 1) * width],
    )
    engine = ChunkEngine(
        model,
        config,
        task=task,
        runtime=runtime,
        on_velocity=lambda call, v: velocities.__setitem__(call.step, (call, v)),
    )
    tol = {"atol": case["tol"]["atol"], "rtol": case["tol"]["rtol"]}
    emitted = []
    for chunk in engine.run():
        given = 0 if task.prefix_frames == 1 else chunk.num_given
        index = chunk.index - engine.num_prefix_chunks
        emitted.append(index)
        want = tensors[f"chunk_{index}"]
        got = chunk.latent[:, :, given:]
        yield compare(f"{case['id']}.chunk_{index}", got, want=want, **tol)
    passed = emitted == list(case["emitted"])
    yield CaseResult(f"{case['id']}.emitted", passed, float(not passed), 0.0, str(emitted))
    for name, want in tensors.items():
        match = re.fullmatch(r"velocity_step_(\d+)", name)
        if match:
            call, velocity = velocities[int(match[1])]
            skip = width if call.clean_chunk is not None else 0
            yield compare(f"{case['id']}.{name}", velocity, want=want[:, :, skip:], **tol)
