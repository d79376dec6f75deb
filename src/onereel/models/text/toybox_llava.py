"""The tiny tokenizer, LLaVA and CLIP of the shipped Magic 1-For-1 checkpoints.

Their shapes are those of the official encoders, a hundredth as wide; their weights are trained
together with the transformer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from onereel.core.errors import ConfigError
from onereel.models.text.llava import IMAGE_TOKEN, USER_HEADER

_PAD, _BEGIN, _END = "<pad>", "<|begin_of_text|>", "<|eot_id|>"
_SPECIAL: Final = (_PAD, _BEGIN, "<|start_header_id|>", "<|end_header_id|>", _END, IMAGE_TOKEN)
# The official one's system message would be ten times the prompt.
TOYBOX_TEMPLATE: Final = f"{USER_HEADER}\n\n{{}}{_END}"
TOYBOX_PROMPT_TOKENS: Final = 64
_SIZES: Final = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def train_llama_tokenizer(
    captions: Iterable[str], folder: str | Path, *, vocab_size: int = 768
) -> None:
    """Train a lower-casing byte-level tokenizer with Llama 3's special tokens.

    Args:
        captions: the texts to learn from.
        folder: where to save it: Llama's in `tokenizer`, the same for CLIP, whose texts end with
            a token of their own, in `tokenizer_2`.
        vocab_size: tokens wanted.

    Raises:
        ConfigError: the vocabulary has no room for all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(_SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise ConfigError("vocab_size", expected=f"at least {least}", got=vocab_size)
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    plain.train_from_iterator(
        ["user", *captions],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    ids = [(token, plain.token_to_id(token)) for token in (_BEGIN, _END)]
    for name, form in (("tokenizer", f"{_BEGIN} $A"), ("tokenizer_2", f"{_BEGIN} $A {_END}")):
        plain.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(plain.to_str()),
            bos_token=_BEGIN,
            eos_token=_END,
            pad_token=_PAD,
            additional_special_tokens=[t for t in _SPECIAL if t not in (_PAD, _BEGIN, _END)],
        ).save_pretrained(Path(folder) / name)


def load_tokenizers(folder: str | Path) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Read what `train_llama_tokenizer` wrote.

    Args:
        folder: its folder.

    Returns:
        Llama's and CLIP's.
    """
    llama, clip = (
        PreTrainedTokenizerFast.from_pretrained(Path(folder) / name)
        for name in ("tokenizer", "tokenizer_2")
    )
    return llama, clip


def build_toybox_encoders(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Build LLaVA, its image processor and CLIP's text tower, with fresh weights.

    Args:
        tokenizer: Llama's.

    Returns:
        Components of a pipeline by name. Of a picture of 64 x 64 pixels LLaVA sees 64 patches, of
        which 16 are kept; Llama is 128 wide, CLIP 64.
    """
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    llama = LlamaConfig(
        num_hidden_layers=4, num_key_value_heads=4, max_position_embeddings=512,
        **vocabulary, **ends, **_SIZES,
    )  # fmt: skip
    # LLaVA reads the second-last layer.
    vision = CLIPVisionConfig(num_hidden_layers=3, image_size=64, patch_size=8, **_SIZES)
    config = LlavaConfig(
        text_config=llama,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    clip = CLIPTextConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2,
        max_position_embeddings=77, **vocabulary, **ends,
    )  # fmt: skip
    sides = {"height": 64, "width": 64}
    return {
        "text_encoder": LlavaForConditionalGeneration(config).eval(),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=sides),
        "text_encoder_2": CLIPTextModel(clip).eval(),
    }
