"""Train a small T5 tokenizer on the captions of a data set.

Half of the vocabulary are sub-word pieces of a Unigram model, every ASCII sign among them, so that
a word nobody has seen is spelt instead of lost. The rest are the commonest whole words: on a few
hundred words Unigram training alone prunes most of them, and whole words are easier to learn from.
"""

from __future__ import annotations

import collections
import importlib.util
import io
import re
import string
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import sentencepiece
from transformers import T5Tokenizer

from onereel.core.errors import BackendUnavailable, ConfigError
from onereel.models.text.clean import clean_prompt

_REQUIRED: Final = string.ascii_lowercase + string.digits + string.punctuation
MIN_VOCAB_SIZE: Final = 2 * (len(_REQUIRED) + 16)
_SPACE: Final = "\u2581"  # begins a piece that begins a word
_WORD: Final = re.compile(r"(?<!\S)[^\W_]+")
# A split of a word costs at least this for its first piece, so a known word is never split.
_WORD_SCORE: Final = -1.0


def train_tokenizer(
    captions: Iterable[str], folder: str | Path, *, vocab_size: int, max_length: int = 800
) -> T5Tokenizer:
    """Train a lower-casing Unigram tokenizer and save it in the layout of transformers.

    Ids: 0 padding, 1 end, 2 unknown. The same captions in the same order give the same tokenizer.

    Args:
        captions: the texts to learn from; they are cleaned like prompts.
        folder: where to save; `T5Tokenizer.from_pretrained` and `AutoTokenizer` read it.
        vocab_size: pieces wanted; a few texts may yield fewer.
        max_length: the length the tokenizer states as its limit.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: there is no text, or the vocabulary is too small.
        BackendUnavailable: protobuf, which writes the trained model, is missing.
    """
    if importlib.util.find_spec("google.protobuf") is None:
        raise BackendUnavailable("protobuf is missing", hint="pip install protobuf")
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError("vocab_size", expected=f"at least {MIN_VOCAB_SIZE}", got=vocab_size)
    texts = [text for text in (clean_prompt(caption) for caption in captions) if text]
    if not texts:
        raise ConfigError("captions", expected="at least one text", got="none")
    model = _add_words(_train_unigram(texts, vocab_size // 2), texts, vocab_size)
    with tempfile.TemporaryDirectory() as work:
        # Only the converted file is kept: it needs neither sentencepiece nor protobuf to load.
        (Path(work) / "spiece.model").write_bytes(model)
        tokenizer = T5Tokenizer.from_pretrained(work, extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    saved: T5Tokenizer = T5Tokenizer.from_pretrained(folder)
    return saved


def _train_unigram(texts: list[str], vocab_size: int) -> bytes:
    """Return the trained sentencepiece model, serialized."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc_cf",  # case folding included
        required_chars=_REQUIRED,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def _add_words(model: bytes, texts: list[str], vocab_size: int) -> bytes:
    """Fill the vocabulary with the commonest words, and let each win over its own splits."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces = {piece.piece: piece for piece in proto.pieces}
    folded = (unicodedata.normalize("NFKC", text).casefold() for text in texts)
    counts = collections.Counter(word for text in folded for word in _WORD.findall(text))
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        name = _SPACE + word
        if name in pieces:
            pieces[name].score = _WORD_SCORE
        elif len(proto.pieces) < vocab_size:
            proto.pieces.add(piece=name, score=_WORD_SCORE)
    return bytes(proto.SerializeToString(deterministic=True))
