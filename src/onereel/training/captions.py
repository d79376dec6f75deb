"""Captions of a batch to the text that every chunk is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from onereel.models.text.special_tokens import NULL_VISIBLE
from onereel.training.flow import FlowBatch, gather_text


class CaptionEncoder:
    """Encodes each distinct caption of a batch once; keeps the token numbers of all it has met.

    Args:
        tokenizer: of the encoder.
        encoder: a `T5EncoderModel`; gradients reach it where they are on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self._ids: dict[str, list[int]] = {}

    def __call__(
        self, captions: Sequence[Sequence[str]], flow: FlowBatch, *, null: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode captions; clean chunks and dropped items get the null caption.

        Args:
            captions: one per item and chunk.
            flow: the corrupted batch.
            null: the learned null caption [rows, K].

        Returns:
            Rows [B, R, S, K] in float32 and visible tokens [B, R, S].
        """
        device = null.device
        distinct = sorted({c for item in captions for c in item[flow.layout.num_clean :]})
        ids = [torch.tensor(self.token_ids(c), device=device) for c in distinct]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(i) for i in ids], device=device)
        mask = torch.arange(padded.shape[1], device=device)[None] < lengths[:, None]
        hidden = self.encoder(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        numbers = {caption: i for i, caption in enumerate(distinct)}
        # A clean chunk's caption may be nowhere else: its number is of no meaning.
        index = [[numbers.get(caption, 0) for caption in item] for item in captions]
        return gather_text(
            hidden,
            mask,
            numbers=torch.tensor(index, device=device),
            null=null,
            null_text=flow.null_text,
        )

    def token_ids(self, caption: str) -> list[int]:
        """Give a caption's token numbers.

        Args:
            caption: the text.

        Returns:
            Its numbers, the end token included.
        """
        if caption not in self._ids:
            self._ids[caption] = list(self.tokenizer(caption).input_ids)
        return self._ids[caption]


def null_rows(flow: FlowBatch, null: Tensor) -> tuple[Tensor, Tensor]:
    """Show every chunk the null caption.

    Args:
        flow: the corrupted batch.
        null: the learned null caption [rows, K].

    Returns:
        Rows [B, R, S, K] and visible tokens [B, R, S], all of them.
    """
    rows = null[:NULL_VISIBLE].expand(*flow.times.shape, -1, -1)
    return rows, torch.ones(rows.shape[:3], dtype=torch.bool, device=rows.device)
