"""Parity cases of the MAGI-1 transformer, sampler and prompt conditioning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from onereel.core.errors import CheckpointError
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.parity.magi1_dit_models import load_case_model, plain_tensors
from onereel.evaluation.parity.magi1_dit_sampler import run_sampler_case
from onereel.evaluation.parity.prompt_cases import run_prompt_case, run_token_rows_case
from onereel.models.magi_dit.fp8 import Fp8Linear
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.nn.embeddings import time_features
from onereel.nn.rope import RotaryBands
from onereel.samplers.plan import ChunkSampleConfig, plan_calls, stage_window
from onereel.samplers.schedule import step_intervals, time_grid

Case = dict[str, Any]


def _tensors(folder: Path, case: Case) -> dict[str, torch.Tensor]:
    return load_file(folder / case["file"])


def _close(case: Case, label: str, got: torch.Tensor, want: torch.Tensor) -> CaseResult:
    name = f"{case['id']}.{label}" if label else case["id"]
    tol = case["tol"]
    return compare(name, got.float(), want=want.float(), atol=tol["atol"], rtol=tol["rtol"])


def _exact(name: str, got: object, want: object) -> CaseResult:
    same = got == want
    note = "" if same else f"expected {want}, got {got}"
    return CaseResult(name, same, 0.0 if same else 1.0, 0.0, note[:200])


def _rope(folder: Path, case: Case) -> Iterator[CaseResult]:
    tensors = _tensors(folder, case)
    rope = RotaryBands(tensors["bands"].numel())
    rope.bands.data.copy_(tensors["bands"])
    with torch.no_grad():
        table = torch.cat(rope(tuple(case["shape_thw"])), dim=-1)
    yield _close(case, "", table[tensors["row_index"]], tensors["table"])


def _schedule(folder: Path, case: Case) -> Iterator[CaseResult]:
    for name, want in _tensors(folder, case).items():
        kind, steps, rest = name.split("_", 2)
        if kind == "interval":
            got = torch.tensor(step_intervals(int(steps), rest.replace("_", ",")))
        elif rest.startswith("kind_"):
            got = time_grid(int(steps), kind=rest.removeprefix("kind_"))
        elif rest.startswith("shift_"):
            got = time_grid(int(steps), shift=float(rest.removeprefix("shift_")))
        else:
            got = time_grid(int(steps), shortcut_mode=rest.replace("_", ","))
        yield _close(case, name, got, want)


def _stages(folder: Path, case: Case) -> Iterator[CaseResult]:
    del folder
    for table in case["tables"]:
        config = ChunkSampleConfig(
            window_size=table["window"], num_steps=table["window"], noise2clean_kvrange=()
        )
        windows = [
            stage_window(
                stage, config, num_chunks=table["chunk_num"], num_prefix_chunks=table["offset"]
            )
            for stage in range(len(table["chunk_start"]))
        ]
        got = {
            "chunk_start": [w.start for w, _ in windows],
            "chunk_end": [w.stop for w, _ in windows],
            "t_start": [a.start for _, a in windows],
            "t_end": [a.stop for _, a in windows],
        }
        label = f"n{table['chunk_num']}_w{table['window']}_o{table['offset']}"
        yield _exact(f"{case['id']}.{label}", got, {key: table[key] for key in got})


def _cfg_lookup(folder: Path, case: Case) -> Iterator[CaseResult]:
    tensors = _tensors(folder, case)
    config = ChunkSampleConfig(
        cfg_t_range=tuple(case["cfg_t_range"]),
        prev_chunk_scales=tuple(case["prev_chunk_scales"]),
        text_scales=tuple(case["text_scales"]),
    )
    weights = [config.guidance_weights(t) for t in tensors["t"].tolist()]
    for label, column in (("prev", 0), ("text", 1)):
        got = torch.tensor([w[column] for w in weights])
        yield _close(case, label, got, tensors[label])


def _kv_range(folder: Path, case: Case) -> Iterator[CaseResult]:
    data = json.loads((folder / case["file"]).read_text())
    for number, table in enumerate(data["tables"]):
        config = ChunkSampleConfig(
            num_steps=table["num_steps"],
            window_size=table["window"],
            noise2clean_kvrange=tuple(table["noise2clean_kvrange"]),
            clean_chunk_kvrange=table["clean_chunk_kvrange"],
        )
        offset = table["offset"]
        rows: list[list[Any]] = []
        for call in plan_calls(config, num_chunks=table["chunk_num"], num_prefix_chunks=offset):
            extra = call.clean_chunk is not None
            lead = ([config.num_steps], [call.clean_range]) if extra else ([], [])
            ranges = [list(r) for r in (*lead[1], *call.ranges) if r is not None]
            indices = [*lead[0], *call.grid_indices]
            rows.append(
                [call.step, call.stage, call.step_in_stage, call.slice_point]
                + [len(indices), int(extra), indices, ranges]
            )
        visible = config.prefix_chunks_visible()
        prefix = [[max(0, c + 1 - visible), c + 1] for c in range(offset)]
        listed = {row[0] for row in table["rows"]}  # long tables are recorded every few steps
        got = {"rows": [row for row in rows if row[0] in listed], "prefix": prefix}
        want = {"rows": table["rows"], "prefix": table["prefix_range"]}
        yield _exact(f"{case['id']}.table{number}", got, want)


@torch.no_grad()
def _embedders(folder: Path, case: Case) -> Iterator[CaseResult]:
    tensors = _tensors(folder, case)
    model = load_case_model(folder, case["model"])
    embedder = model.condition_embedder
    yield _close(case, "t_features", time_features(tensors["t"]), tensors["t_features"])
    time = embedder.time_embedder(tensors["t"], torch.float32)
    yield _close(case, "t_embedding", time, tensors["t_embedding"])
    text = tensors["caption_embs_head"]
    for dropped, label in ((False, "y_adaln_cond"), (True, "y_adaln_uncond")):
        tokens, row = embedder.text_embedder(text, torch.tensor([[dropped]]))
        yield _close(case, label, row, tensors[label])
    yield _close(case, "y_xattn", tokens[0, 0], tensors["y_xattn_head"])


@torch.no_grad()
def _forward(folder: Path, case: Case) -> Iterator[CaseResult]:
    tensors = _tensors(folder, case)
    dtype = getattr(torch, case["params_dtype"].removeprefix("torch."))
    distill = bool(case["engine"].get("distill"))
    model = load_case_model(folder, case["model"], dtype=dtype, distill=distill)
    cache = _CaseCache(case["tokens_per_chunk"])
    for i, call in enumerate(case["calls"]):
        inputs = {k: tensors[f"call{i}.{k}"] for k in ("x", "t", "y_head", "mask_len")}
        velocity = _run_forward_call(model, call, inputs, cache)
        want = tensors[f"call{i}.velocity"]
        yield _loose(case, f"call{i}", velocity, want)
        if f"call{i}.cache_layer0" in tensors and "dump_cache" in call:
            got = cache.rows(*call["dump_cache"])
            yield _close(case, f"call{i}.cache", got, tensors[f"call{i}.cache_layer0"])


def _loose(case: Case, label: str, got: torch.Tensor, want: torch.Tensor) -> CaseResult:
    """Compare at the tolerance, and where the index says so bound the mean error by the std."""
    result = _close(case, label, got, want)
    share = case["tol"].get("mean_abs_below_times_std")
    if share is None:
        return result
    mean = (got.float() - want.float()).abs().mean().item() / want.float().std().item()
    note = f"mean error {mean:.4f} of std, bound {share}"
    return CaseResult(
        result.name, result.passed and mean < share, result.max_error, result.tolerance, note
    )


class _CaseCache:
    """All keys and values of a case, in the layout of the dumps: rows of [key, value]."""

    def __init__(self, tokens_per_chunk: int) -> None:
        self.tokens = tokens_per_chunk
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def past(self, slice_point: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Return the keys before a call."""
        rows = slice_point * self.tokens
        return [(k[:, :, :rows], v[:, :, :rows]) for k, v in self.layers] or None

    def write(self, slice_point: int, kept: Any) -> None:
        """Store the keys of a call from its first chunk on."""
        rows = slice_point * self.tokens
        old = self.layers or [(k[:, :, :0], v[:, :, :0]) for k, v in kept]
        self.layers = [
            (torch.cat((a[0][:, :, :rows], b[0]), 2), torch.cat((a[1][:, :, :rows], b[1]), 2))
            for a, b in zip(old, kept, strict=True)
        ]

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return chunks of layer 0 as [rows, G, 2E]; chunks never written are zero."""
        layer = torch.cat(self.layers[0], dim=-1)[0].transpose(0, 1)
        missing = end * self.tokens - layer.shape[0]
        if missing > 0:
            layer = torch.cat((layer, layer.new_zeros(missing, *layer.shape[1:])))
        return layer[start * self.tokens : end * self.tokens]


def _run_forward_call(
    model: Magi1Transformer3DModel, call: Case, inputs: dict[str, torch.Tensor], cache: _CaseCache
) -> torch.Tensor:
    """Make one recorded call, reading and writing the cache as it says."""
    batch, chunks, start = call.get("B", 1), call["R"], call["s"]
    text = inputs["y_head"].unflatten(0, (batch, chunks))[:, :, 0]
    positions = torch.arange(text.shape[2])
    mask = positions < inputs["mask_len"].view(batch, chunks, 1)
    uses_cache = not call.get("nocache") and (call.get("prefix") or call.get("extra") or start > 0)
    update = bool(call.get("update") and uses_cache)
    kept_chunks = (chunks - 1 if call.get("near") else chunks) if update else 0
    step_size = None
    if model.config.enable_distillation:
        step_size = 8.0 / call.get("interval", 1) if call["S"] == 12 else call["S"] / 2
    output = model(
        inputs["x"],
        inputs["t"],
        text,
        mask,
        kv_range=[(0, 1)] if batch > 1 else [tuple(r) for r in call["kv"]],
        slice_point=start,
        caption_dropout=bool(call.get("drop", False)),
        step_size=step_size,
        past_key_values=cache.past(start) if uses_cache and start > 0 else None,
        keep_chunks=kept_chunks,
    )
    if update:
        cache.write(start, output.key_values)
    return output.sample


@torch.no_grad()
def _fp8_linear(folder: Path, case: Case) -> Iterator[CaseResult]:
    tensors = plain_tensors(_tensors(folder, case))
    for kind in ("per_tensor", "per_channel"):
        parts = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(kind)}
        rows, columns = parts["weight"].shape[-2:]
        layer = Fp8Linear(columns, rows, smooth=kind == "per_channel")
        layer.quantize_input = True
        layer.weight.data = parts["weight"][0]
        for name in ("weight_scale", "input_scale", "smooth_scale"):
            if name in parts:
                getattr(layer, name).copy_(parts[name])
        quantized = layer.quantized_input(parts["x"]).float()
        yield compare(
            f"{case['id']}.{kind}.x", quantized, want=parts["x_quantised_as_f32"], atol=0.0
        )
        yield _close(case, f"{kind}.y", layer(parts["x"]).bfloat16(), parts["y"])


def _sampler(folder: Path, case: Case) -> Iterator[CaseResult]:
    yield from run_sampler_case(folder, case)


def _prompt(folder: Path, case: Case) -> Iterator[CaseResult]:
    yield from run_prompt_case(folder, case)


def _token_rows(folder: Path, case: Case) -> Iterator[CaseResult]:
    yield from run_token_rows_case(folder, case)


_KINDS: dict[str, Callable[[Path, Case], Iterator[CaseResult]]] = {
    "rope": _rope,
    "schedule": _schedule,
    "stages": _stages,
    "cfg_lookup": _cfg_lookup,
    "kv_range": _kv_range,
    "embedders": _embedders,
    "forward": _forward,
    "fp8_linear": _fp8_linear,
    "sampler": _sampler,
    "prompt": _prompt,
    "token_rows": _token_rows,
}


def run(folder: Path) -> Iterator[CaseResult]:
    """Run every case of a folder.

    Args:
        folder: holds index.json and the tensors it names.

    Yields:
        One or more results per case.

    Raises:
        CheckpointError: a case is of an unknown kind.
    """
    index = json.loads((folder / "index.json").read_text())
    for case in index["cases"]:
        if case["kind"] not in _KINDS:
            raise CheckpointError(
                f"{folder}: case kind '{case['kind']}'", expected=f"one of {', '.join(_KINDS)}"
            )
        yield from _KINDS[case["kind"]](folder, case)
    yield from _full_size(folder)


def _full_size(folder: Path) -> Iterator[CaseResult]:
    """Compare the full-size models' tensor names and shapes, when their manifest is there."""
    from onereel.evaluation.parity.magi1_dit_models import full_size_results

    path = folder / "full_size_keys.json"
    if path.is_file():
        yield from full_size_results(path)
