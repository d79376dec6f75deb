"""Captions and first pictures of a batch to what the Magic 1-For-1 transformer is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from onereel.models.magic_dit.model import MagicCondition
from onereel.models.text.llava import (
    IMAGE_TOKEN,
    USER_HEADER,
    crop_states,
    expand_image,
    join_tokens,
    select_image_tokens,
    template_length,
)

NOTHING = ""  # the caption of an item whose text is dropped, and the negative prompt


class MagicText:
    """Encodes each distinct caption of a batch once, with gradients where they are on.

    Args:
        parts: `tokenizer`, `text_encoder`, `image_processor`, `tokenizer_2` and `text_encoder_2`
            of a pipeline.
        template: text around a prompt.
        image_template: text around a picture.
    """

    def __init__(self, parts: dict[str, Any], *, template: str, image_template: str) -> None:
        self.tokenizer: PreTrainedTokenizerBase = parts["tokenizer"]
        self.tokenizer_2: PreTrainedTokenizerBase = parts["tokenizer_2"]
        self.llava, self.clip = parts["text_encoder"], parts["text_encoder_2"]
        self.template, self.crop = template, template_length(self.tokenizer, template)
        processor = parts["image_processor"]
        self._mean, self._std = (
            torch.tensor(values)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )
        vision = self.llava.config.vision_config
        self._ids: dict[tuple[int, str], Tensor] = {}
        ids = self.tokenizer(image_template.replace("{}", IMAGE_TOKEN), return_tensors="pt")
        image_id = self.llava.config.image_token_id
        patches = (vision.image_size // vision.patch_size) ** 2
        self.image_ids = expand_image(ids.input_ids[0], image_id, num_patches=patches)
        header = self.tokenizer(USER_HEADER, add_special_tokens=False).input_ids
        places = torch.arange(len(self.image_ids))[:, None]
        self.kept = select_image_tokens(
            self.image_ids, places, header=header, image_id=image_id
        ).flatten()

    def __call__(
        self,
        captions: Sequence[str],
        pictures: Tensor | None = None,
        *,
        dropped: Tensor | None = None,
    ) -> MagicCondition:
        """Encode a batch.

        Args:
            captions: B texts.
            pictures: B first pictures, uint8 [B, H, W, 3] of LLaVA's size; None without any.
            dropped: items whose text is dropped, boolean [B].

        Returns:
            The condition of B rows.
        """
        texts = list(captions)
        if dropped is not None:
            texts = [NOTHING if d else t for t, d in zip(texts, dropped.tolist(), strict=True)]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        distinct = list(numbers)
        rows = torch.tensor([numbers[text] for text in texts], device=self.llava.device)
        ids, mask = self._padded(self.tokenizer, [self.template.replace("{}", t) for t in distinct])
        output = self.llava.model.language_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        prompt = crop_states(output.hidden_states, mask, crop=self.crop)
        prompt = type(prompt)(prompt.embeds[rows], prompt.mask[rows])
        pooled = self.clip(input_ids=self._padded(self.tokenizer_2, distinct)[0]).pooler_output
        seen = prompt.embeds[:, :0] if pictures is None else self.look(pictures)
        joined = join_tokens(seen, prompt)
        return MagicCondition(joined.embeds, joined.mask, pooled[rows])

    def look(self, pictures: Tensor) -> Tensor:
        """Let LLaVA look at pictures.

        Args:
            pictures: uint8 [B, H, W, 3] of its size.

        Returns:
            [B, S, K].
        """
        device = self.llava.device
        pixels = pictures.permute(0, 3, 1, 2).float().cpu() / 255
        hidden: Tensor = self.llava(
            input_ids=self.image_ids.to(device).expand(len(pictures), -1),
            pixel_values=((pixels - self._mean) / self._std).to(device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        ).hidden_states[-1]
        return hidden[:, self.kept.to(device)]

    def _padded(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Give the tokens [P, S] of texts, and the mask of the visible ones."""
        for text in texts:
            if (id(tokenizer), text) not in self._ids:
                self._ids[id(tokenizer), text] = torch.tensor(tokenizer(text).input_ids)
        rows = [self._ids[id(tokenizer), text] for text in texts]
        fill = float(tokenizer.pad_token_id or 0)
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return ids.to(self.llava.device), mask.long().to(self.llava.device)
