"""Text: prompts to features, special tokens, chunk captions. Read `t5.py` first.

`clean.py` is the caption cleaner, `t5.py` runs the encoder, `special_tokens.py` makes the caption
of every chunk, `tokenizer.py` trains a small tokenizer, `presets.py` names the encoders.
`llava.py` is what the Magic 1-For-1 family reads instead: Llama, LLaVA and CLIP.
"""

from onereel.models.text.clean import clean_caption, clean_prompt
from onereel.models.text.presets import TEXT_PRESETS, build_text_encoder
from onereel.models.text.special_tokens import (
    ChunkCaptions,
    ConditioningFlags,
    PaddedLayout,
    SpecialTokens,
    build_captions,
    padded_layout,
    stack_captions,
)
from onereel.models.text.t5 import TextFeatures, encode_prompts, encode_token_ids
from onereel.models.text.tokenizer import train_tokenizer

__all__ = [
    "TEXT_PRESETS",
    "ChunkCaptions",
    "ConditioningFlags",
    "PaddedLayout",
    "SpecialTokens",
    "TextFeatures",
    "build_captions",
    "build_text_encoder",
    "clean_caption",
    "clean_prompt",
    "encode_prompts",
    "encode_token_ids",
    "padded_layout",
    "stack_captions",
    "train_tokenizer",
]
