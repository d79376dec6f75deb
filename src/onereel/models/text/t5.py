"""From prompts to text features: clean, tokenize, encode only the tokens that count.

P prompts, S text tokens of the longest prompt, K channels of the encoder. The official code runs
the encoder on 800 padded tokens; attention is masked and positions are relative, so the features of
the real tokens are the same without the padding.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from onereel.core.errors import ConfigError
from onereel.models.text.clean import CHINESE, clean_prompt
from onereel.models.text.special_tokens import stack_captions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHARACTERS: Final = 100_000
# Cleaning takes time quadratic in the parts of one word and in the tags; no prompt has so many.
_ENDLESS_WORD = re.compile(r"\b(?:[a-zA-Z0-9]++[.\-]++){1000}")
MAX_TAGS: Final = 1000


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """What the text encoder says about P prompts.

    Args:
        embeds: [P, S, K] float32, zeros after a prompt's last token.
        mask: [P, S] bool, True for a prompt's own tokens.
    """

    embeds: Tensor
    mask: Tensor

    def visible(self) -> list[Tensor]:
        """Return each prompt's own tokens.

        Returns:
            P tensors [S_p, K].
        """
        return [row[keep] for row, keep in zip(self.embeds, self.mask, strict=True)]


def encode_prompts(
    prompts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: nn.Module,
    max_length: int = 800,
    clean: bool = True,
    batch_size: int = 1,
    device: torch.device | str | None = None,
) -> TextFeatures:
    """Encode prompts with a T5 encoder, each distinct prompt once.

    Args:
        prompts: one or more texts.
        tokenizer: the T5 tokenizer.
        encoder: a `T5EncoderModel`.
        max_length: prompts of more tokens are cut, with a warning.
        clean: clean the text as in training.
        batch_size: prompts per call of the encoder; with 1, the features of a prompt do not
            depend on the other prompts in the last bit.
        device: where to run; None takes the encoder's.

    Returns:
        The features, padded only to the longest prompt, on that device.

    Raises:
        ConfigError: a prompt is not text, is empty, or is too long to be one.

    Source: spec magi1-vae-t5-io 6.
    """
    texts = _check_prompts(prompts)
    cleaned = {text: clean_prompt(text) if clean else text for text in dict.fromkeys(texts)}
    if clean:
        _warn_of_lost_text(cleaned)
    distinct = list(dict.fromkeys(cleaned.values()))
    token_ids = _tokenize(distinct, tokenizer, max_length)
    encoded = encode_token_ids(token_ids, encoder, batch_size=batch_size, device=device)
    features = dict(zip(distinct, encoded, strict=True))
    return TextFeatures(*stack_captions([features[cleaned[text]] for text in texts]))


@torch.no_grad()
def encode_token_ids(
    token_ids: Sequence[Sequence[int]],
    encoder: nn.Module,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """Encode token sequences of any lengths.

    Args:
        token_ids: the sequences, each with its end token, without padding.
        encoder: a `T5EncoderModel`.
        batch_size: sequences per call of the encoder; neighbours in length go together.
        device: where to run; None takes the encoder's.

    Returns:
        One [S, K] float32 per sequence.
    """
    device = next(encoder.parameters()).device if device is None else torch.device(device)
    order = sorted(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        columns = [torch.tensor(token_ids[index], device=device)[:, None] for index in batch]
        ids, mask = stack_captions(columns)  # [B, S, 1], [B, S]; T5's padding id is 0 too
        hidden = encoder(input_ids=ids[..., 0], attention_mask=mask.long()).last_hidden_state
        for index, row, keep in zip(batch, hidden, mask, strict=True):
            found[index] = row[keep].float()
    return [found[index] for index in range(len(token_ids))]


def _check_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Refuse what cannot be a prompt."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ConfigError("prompt", expected="at least one text", got="none")
    for text in dict.fromkeys(texts):
        if not isinstance(text, str):
            raise ConfigError("prompt", expected="text", got=type(text).__name__)
        if not text.strip():
            raise ConfigError(
                "prompt",
                expected="text",
                got=repr(text),
                hint="describe what the video shows, such as 'a red disc bounces'",
            )
        _check_size(text)
    return texts


def _check_size(text: str) -> None:
    """Refuse what would take minutes to clean, or what no tokenizer can read."""
    endless = text.count("<") > MAX_TAGS or _ENDLESS_WORD.search(text)
    if len(text) > MAX_CHARACTERS or endless:
        raise ConfigError(
            "prompt",
            expected=f"at most {MAX_CHARACTERS} characters, in words",
            got=f"{len(text)} characters beginning '{text[:40]}'",
            hint="the text encoder reads about 500 words",
        )
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ConfigError("prompt", expected="UTF-8 text", got=ascii(text[:40]))


def _warn_of_lost_text(cleaned: dict[str, str]) -> None:
    """Tell once what the text encoder will never see."""
    emptied = [text for text, result in cleaned.items() if not result]
    chinese = sum(len(run) for text in cleaned for run in CHINESE.findall(text))
    losses = []
    if chinese:
        losses.append(f"{chinese} Chinese characters, which this text encoder does not know")
    if emptied:
        losses.append(f"everything in '{emptied[0][:40]}'")
    if losses:
        message = f"prompt: removed {' and '.join(losses)}. hint: describe the scene in English"
        warnings.warn(message, stacklevel=3)


def _tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[int]]:
    """Tokenize, cutting long texts before the end token and telling once what was dropped."""
    if max_length < 1:
        raise ConfigError("max_length", expected="at least 1 token", got=max_length)
    kept, dropped = [], []
    for text in texts:
        ids = list(tokenizer(text, verbose=False).input_ids)
        if len(ids) > max_length:
            end = [ids.pop()] if ids[-1] == tokenizer.eos_token_id else []
            cut = ids[max_length - len(end) :]
            dropped.append(cut)
            ids = ids[: max_length - len(end)] + end
        kept.append(ids)
    if dropped:
        counts = ", ".join(str(len(cut)) for cut in dropped)
        begin = tokenizer.decode(dropped[0][:12], skip_special_tokens=True)
        message = (
            f"prompt: the text encoder reads {max_length} tokens; dropped {counts} tokens, "
            f"from '{begin} ...' on. hint: shorten the prompt"
        )
        warnings.warn(message, stacklevel=3)
    return kept
