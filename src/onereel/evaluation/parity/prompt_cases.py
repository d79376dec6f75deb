"""Golden cases of prompt conditioning: special tokens, null rows, the padded layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from onereel.evaluation.parity.case import CaseResult, compare
from onereel.models.text import (
    ConditioningFlags,
    PaddedLayout,
    SpecialTokens,
    build_captions,
    padded_layout,
)

_TRUE = ("1", "true", "yes", "y", "on", "enabled")
_VARIABLES = {
    "PAD_STATIC": "static_first_frames",
    "PAD_DYNAMIC": "dynamic_first_frames",
    "PAD_BORDERNESS": "borderness",
    "PAD_HQ": "hq",
    "PAD_THREE_D_MODEL": "three_d_model",
    "PAD_TWO_D_ANIME": "two_d_anime",
    "PAD_DURATION": "duration",
    "NEG_PROMPT": "negative",
}
_TEXT_LENGTH = 800
_STORED_TAIL = 32  # a full-length caption is recorded by its last tokens only
_NULL_KEY = "y_embedder.null_caption_embedding"


def flags_from_environment(env: Mapping[str, str]) -> ConditioningFlags:
    """Read the official code's environment variables, as recorded in a case.

    Args:
        env: names and values; unknown names are ignored, as the official code does.

    Returns:
        The flags.

    Source: spec magi1-dit 1.2, 6.2.
    """
    values = {flag: env.get(name, "").lower() in _TRUE for name, flag in _VARIABLES.items()}
    return ConditioningFlags(**values)


def run_prompt_case(folder: Path, case: Mapping[str, Any]) -> list[CaseResult]:
    """Run one case of kind `prompt`.

    Args:
        folder: the golden folder, with `index.json`.
        case: the case's entry in the index.

    Returns:
        The results: the padded layout against the record, and the visible tokens against both.
    """
    golden = load_file(folder / case["file"])
    tokens, null_embedding = _load_model_text(folder, case["model"])
    head, shown = golden["caption_embs_head"][0, 0], int(case["caption_mask_len"])
    caption = head.new_zeros(_TEXT_LENGTH, head.shape[-1])
    tail_only = shown == _TEXT_LENGTH
    caption[-_STORED_TAIL:] = head if tail_only else 0
    if not tail_only:
        caption[: len(head)] = head
    flags = flags_from_environment(case["env"])
    prefix, chunks = int(case["clean_chunks"]), int(case["chunk_num"])
    layout = padded_layout(
        caption,
        shown,
        null_embedding=null_embedding,
        num_chunks=chunks,
        num_prefix_chunks=prefix,
        flags=flags,
        tokens=tokens,
    )
    captions = build_captions(
        [caption[:shown]] * (chunks - prefix),
        null_embedding,
        num_prefix_chunks=prefix,
        flags=flags,
        tokens=tokens,
        max_length=_TEXT_LENGTH,
    )
    # Of a full-length caption only special tokens are known at the front.
    front = len(case["special_token_keys"]) if tail_only else golden["cond_first"].shape[1]
    pairs = _layout_pairs(layout, golden, front) | {
        "visible_cond": (torch.cat(captions.cond), _visible(layout, 0)),
        "visible_null": (captions.null.repeat(chunks, 1), _visible(layout, 1)),
    }
    return [
        compare(f"{case['id']}/{name}", got, want=want, atol=case["tol"]["atol"])
        for name, (got, want) in pairs.items()
    ]


def run_token_rows_case(folder: Path, case: Mapping[str, Any]) -> list[CaseResult]:
    """Run the case of kind `token_rows`: every name finds its row of the token table.

    Args:
        folder: the golden folder, with `index.json`.
        case: the case's entry in the index.

    Returns:
        One result per token table.
    """
    rows = _expand_ranges(case["other_tokens_rows"])
    results = []
    for model, file in json.loads((folder / "index.json").read_text())["models"]["tokens"].items():
        tokens = SpecialTokens.load(folder / file)
        got = torch.cat([tokens.row(name) for name in rows])
        want = load_file(folder / file)["other_tokens"].half().float()[list(rows.values())]
        results.append(compare(f"{case['id']}/{model}", got, want=want, atol=0.0))
    return results


def _load_model_text(folder: Path, model: str) -> tuple[SpecialTokens, Tensor]:
    """Load a golden model's token table and its null caption."""
    models = json.loads((folder / "index.json").read_text())["models"]
    tokens = SpecialTokens.load(folder / models["tokens"][model])
    return tokens, load_file(folder / models[model]["file"])[_NULL_KEY].float()


def _layout_pairs(
    layout: PaddedLayout, golden: Mapping[str, Tensor], front: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the ends of our layout with the recorded ones."""
    pairs = {}
    for row, side in enumerate(("cond", "null")):
        first = front if side == "cond" else golden["null_first"].shape[1]
        last = golden[f"{side}_last"].shape[1]
        rows = layout.rows[row]
        pairs[f"{side}_first"] = (rows[:, :first], golden[f"{side}_first"][:, :first])
        pairs[f"{side}_last"] = (rows[:, -last:], golden[f"{side}_last"])
        lengths = layout.mask[row].sum(dim=-1).long()
        pairs[f"{side}_mask_len"] = (lengths, golden[f"{side}_mask_len"])
    return pairs


def _visible(layout: PaddedLayout, row: int) -> Tensor:
    return layout.rows[row][layout.mask[row].bool()]


def _expand_ranges(rows: Mapping[str, Any]) -> dict[str, int]:
    """Read the index's table, in which `DURATION_1..8` at `7..14` stands for eight rows."""
    found = {}
    for name, place in rows.items():
        if ".." not in name:
            found[name] = int(place)
            continue
        stem, counts = name.rsplit("_", 1)
        first, last = (int(part) for part in counts.split(".."))
        start = int(str(place).split("..")[0])
        found |= {f"{stem}_{first + i}": start + i for i in range(last - first + 1)}
    return found
