"""Golden cases of the text room: prompt cleaning, and a tiny T5 encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from onereel.core.errors import CheckpointError
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.models.text import clean_caption, clean_prompt, encode_token_ids

_T5_ATOL = 1e-5  # stated in the folder's index
_TIED_KEYS = ["encoder.embed_tokens.weight"]


def run(folder: Path) -> Iterator[CaseResult]:
    """Run every case of a folder of family `magi1_text`.

    Args:
        folder: holds `text_cleaning.json` and `tiny_t5_*`.

    Yields:
        One result per text and per encoded sequence.
    """
    yield from run_cleaning_cases(folder)
    yield from run_encoder_cases(folder)


def run_cleaning_cases(folder: Path) -> Iterator[CaseResult]:
    """Compare cleaned texts with the recorded ones, exactly.

    Args:
        folder: holds `text_cleaning.json`.

    Yields:
        One result per text.
    """
    cases = json.loads((folder / "text_cleaning.json").read_text(encoding="utf-8"))["cases"]
    for number, case in enumerate(cases):
        got = {"once": clean_caption(case["text"]), "twice": clean_prompt(case["text"])}
        wrong = [f"{key}: {text!r} is not {case[key]!r}" for key, text in got.items()]
        wrong = [line for key, line in zip(got, wrong, strict=True) if got[key] != case[key]]
        yield CaseResult(
            name=f"clean_{number:02d}",
            passed=not wrong,
            max_error=float(len(wrong)),
            tolerance=0.0,
            note="; ".join(wrong) or f"{case['text'][:40]!r}",
        )


def run_encoder_cases(folder: Path) -> Iterator[CaseResult]:
    """Encode the recorded token sequences, padded as recorded and without padding.

    Args:
        folder: holds `tiny_t5_*`.

    Yields:
        Two results per sequence.
    """
    index = json.loads((folder / "tiny_t5_index.json").read_text())
    encoder = _load_encoder(index["config"], folder / "tiny_t5_weights.safetensors")
    golden = load_file(folder / "tiny_t5_cases.safetensors")
    ids, mask, hidden = (
        golden[name] for name in ("input_ids", "attention_mask", "last_hidden_state")
    )
    with torch.no_grad():
        padded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    token_ids = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    short = encode_token_ids(token_ids, encoder, batch_size=1)
    for number, want in enumerate(hidden):
        visible: Tensor = want[mask[number].bool()]
        yield compare(f"t5_{number}/padded", padded[number], want=want, atol=_T5_ATOL)
        yield compare(f"t5_{number}/visible", short[number], want=visible, atol=_T5_ATOL)


def _load_encoder(config: Mapping[str, Any], weights: Path) -> T5EncoderModel:
    """Build the encoder of the index and load its weights strictly."""
    values = dict(config)
    values["feed_forward_proj"] = str(values["feed_forward_proj"]).split()[0]  # a remark follows
    encoder = T5EncoderModel(T5Config(**values, dropout_rate=0.0))
    encoder.train(False)
    report = encoder.load_state_dict(load_file(weights), strict=False)
    missing = [key for key in report.missing_keys if key not in _TIED_KEYS]
    if missing or report.unexpected_keys:
        raise CheckpointError(f"{weights}: missing {missing}, unexpected {report.unexpected_keys}")
    return encoder
