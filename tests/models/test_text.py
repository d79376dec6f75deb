"""Prompts to features, special tokens, chunk captions, tokenizer."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel, T5Tokenizer

from onereel.core.errors import CheckpointError, ConfigError, ShapeError
from onereel.models.text import (
    TEXT_PRESETS,
    ConditioningFlags,
    SpecialTokens,
    build_captions,
    build_text_encoder,
    clean_caption,
    clean_prompt,
    encode_prompts,
    encode_token_ids,
    padded_layout,
    stack_captions,
    train_tokenizer,
)
from onereel.models.text.special_tokens import OTHER_ROWS

CAPTIONS = [
    f"A {colour} {shape} {verb} on a {back} background, slowly."
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("disc", "square", "ring", "triangle")
    for verb in ("bounces", "rotates", "moves left")
    for back in ("white", "black")
]
WIDTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, path, vocab_size=256)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> T5Tokenizer:
    return T5Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    torch.manual_seed(0)
    return build_text_encoder("toybox", len(tokenizer))


@pytest.fixture
def tokens() -> SpecialTokens:
    generator = torch.Generator().manual_seed(1)
    return SpecialTokens.from_tensors(
        {
            name: torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
            for name, rows in {"caption_token": 1, "logo_token": 1, "other_tokens": 20}.items()
        }
    )


def rows(count: int, start: int = 0) -> Tensor:
    """Return distinct text rows [count, WIDTH]."""
    return torch.arange(start, start + count).float()[:, None].expand(count, WIDTH) + 100


# --- cleaning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "once"),
    [
        ("Meet 10.0.0.1 at 3:45 ", "meet at 3:45"),
        ("see http://a.b.com/x now", "see now"),
        ("write to bob@home", "write to bob"),
        ("a\tb\r\nc", "a b c"),
        ("photo.png", ""),
        ("<person> & <i>dog</i>", "person dog"),
        ("a1b2 walks", "walks"),
    ],
)
def test_cleaning_steps(text: str, once: str) -> None:
    assert clean_caption(text) == once


def test_cleaning_twice_differs_from_once() -> None:
    text = "&lt;b&gt;bold&lt;/b&gt;"
    assert clean_caption(text) != clean_prompt(text) == clean_caption(clean_caption(text))


def test_unreadable_markup_is_an_error_of_ours() -> None:
    with pytest.raises(ConfigError, match="prompt"):
        clean_caption("a <![ b")


# --- encoding ---------------------------------------------------------------------------------


def test_features_equal_the_official_padded_run(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    prompts = ["a red disc bounces", "A blue ring; it rotates slowly, then stops"]
    found = encode_prompts(prompts, tokenizer, encoder=encoder, max_length=60)
    padded = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        max_length=60,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = encoder(**padded).last_hidden_state
    lengths = padded.attention_mask.sum(dim=1).tolist()
    assert found.embeds.shape == (2, max(lengths), 128) and found.embeds.dtype == torch.float32
    for index, length in enumerate(lengths):
        torch.testing.assert_close(found.visible()[index], hidden[index, :length])
        assert found.mask[index].sum() == length
        assert not found.embeds[index, length:].any()


def test_each_distinct_prompt_is_encoded_once_and_alone(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    calls = []
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    many = encode_prompts(
        ["a ring", "a red square moves", "A RING", "a ring"], tokenizer, encoder=encoder
    )
    hook.remove()
    assert len(calls) == 2
    alone = encode_prompts("a ring", tokenizer, encoder=encoder)
    for index in (0, 2, 3):
        assert torch.equal(many.visible()[index], alone.visible()[0])


def test_batches_give_the_same_features(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> None:
    ids = [tokenizer(text).input_ids for text in CAPTIONS[:7]] + [[1], [5, 1]]
    single = encode_token_ids(ids, encoder, batch_size=1)
    for one, other in zip(single, encode_token_ids(ids, encoder, batch_size=4), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompts", ["", "  \n", ["a ring", ""], [], [3], [None], ["\ud800"]])
def test_what_is_no_prompt_is_refused(
    prompts: object, tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        encode_prompts(prompts, tokenizer, encoder=encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x" * 100_001, "a." * 30_000, "<a " * 20_000])
def test_floods_are_refused_at_once(
    text: str, tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="characters"):
        encode_prompts(text, tokenizer, encoder=encoder)
    assert time.perf_counter() - start < 2


def test_a_very_long_prompt_is_cut_with_one_warning(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    text = "ring " * 10_000
    total = len(tokenizer(clean_prompt(text), verbose=False).input_ids)
    start = time.perf_counter()
    with pytest.warns(UserWarning) as caught:
        found = encode_prompts(text, tokenizer, encoder=encoder, max_length=20)
    assert time.perf_counter() - start < 5
    assert len(caught) == 1
    assert f"dropped {total - 20} tokens, from 'ring" in str(caught[0].message)
    cut = tokenizer(text, max_length=20, truncation=True).input_ids
    assert cut[-1] == tokenizer.eos_token_id
    torch.testing.assert_close(found.embeds[0], encode_token_ids([cut], encoder)[0])


def test_chinese_is_warned_of_and_leaves_the_end_token(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel
) -> None:
    with pytest.warns(UserWarning, match="4 Chinese characters.*everything in '你好'") as caught:
        found = encode_prompts(["你好", "a ring 世界"], tokenizer, encoder=encoder)
    assert len(caught) == 1
    assert found.mask.sum(dim=1).tolist()[0] == 1


# --- special tokens ---------------------------------------------------------------------------


def test_rows_are_rounded_through_float16(tokens: SpecialTokens) -> None:
    assert tokens.other_tokens.dtype == torch.float32
    assert torch.equal(tokens.other_tokens, tokens.other_tokens.half().float())


def test_token_names() -> None:
    assert [OTHER_ROWS[f"DURATION_{n}"] for n in range(1, 9)] == list(range(7, 15))
    assert (OTHER_ROWS["HQ"], OTHER_ROWS["TWO_D_ANIME"]) == (1, 16)


def test_duration_saturates(tokens: SpecialTokens) -> None:
    assert torch.equal(tokens.duration(1), tokens.other_tokens[7:8])
    assert torch.equal(tokens.duration(8), tokens.duration(500))
    with pytest.raises(ConfigError, match="did you mean 'BORDERNESS'"):
        tokens.row("BORDER")


def test_tables_survive_both_formats(tokens: SpecialTokens, tmp_path: Path) -> None:
    arrays = {name: getattr(tokens, name).double().numpy() for name in SpecialTokens.__slots__}
    np.savez(tmp_path / "table.npz", **arrays)
    tokens.save(tmp_path / "table.safetensors")
    for file in tmp_path.iterdir():
        assert torch.equal(SpecialTokens.load(file).other_tokens, tokens.other_tokens)


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    good = {
        "caption_token": np.zeros((1, 4)),
        "logo_token": np.zeros((1, 4)),
        "other_tokens": np.zeros((17, 4)),
    }
    faults = {
        "few": {"other_tokens": np.zeros((16, 4))},
        "narrow": {"logo_token": np.zeros((1, 3))},
        "nan": {"caption_token": np.full((1, 4), np.nan)},
        "big": {"caption_token": np.full((1, 4), 1e6)},
        "whole": {"caption_token": np.zeros((1, 4), dtype=np.int64)},
        "pickle": {"caption_token": np.array([[{}]], dtype=object)},
        "more": {"extra": np.zeros(1)},
    }
    for name, fault in faults.items():
        np.savez(tmp_path / f"{name}.npz", **(good | fault))
        with pytest.raises(CheckpointError):
            SpecialTokens.load_npz(tmp_path / f"{name}.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "few.npz").read_bytes()[:200])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    for name in ("cut.npz", "cut.safetensors", "missing.npz", "table.pt"):
        with pytest.raises(CheckpointError, match="special tokens"):
            SpecialTokens.load(tmp_path / name)


# --- captions of chunks -----------------------------------------------------------------------


def test_order_of_tokens_and_countdown(tokens: SpecialTokens) -> None:
    flags = ConditioningFlags(hq=True, duration=True, static_first_frames=True)
    texts = [rows(3), rows(5, start=10)]
    found = build_captions(
        texts, rows(60), num_prefix_chunks=1, flags=flags, tokens=tokens, max_length=800
    )
    assert [len(row) for row in found.cond] == [0, 3 + 3, 3 + 5]
    for left, text, row in zip((2, 1), texts, found.cond[1:], strict=True):
        front = [tokens.duration(left), tokens.row("HQ"), tokens.row("STATIC_FIRST_FRAMES")]
        assert torch.equal(row, torch.cat([*front, text]))
    assert torch.equal(found.null, rows(50))


def test_captions_are_cut_at_their_end(tokens: SpecialTokens) -> None:
    flags = ConditioningFlags(hq=True)
    found = build_captions(
        [rows(4)], rows(60), num_prefix_chunks=0, flags=flags, tokens=tokens, max_length=4
    )
    assert torch.equal(found.cond[0], torch.cat([tokens.row("HQ"), rows(3)]))


def test_negative_tokens_push_null_rows_out(tokens: SpecialTokens) -> None:
    flags = ConditioningFlags(negative=True)
    front = torch.cat([tokens.row(n) for n in ("BORDERNESS", "TRANS", "LOGO", "CAPTION")])
    common = {"num_prefix_chunks": 0, "flags": flags, "tokens": tokens, "max_length": 800}
    found = build_captions([rows(2)], rows(60), **common)
    assert torch.equal(found.null, torch.cat([front, rows(46)]))
    own = build_captions([rows(2)], rows(60), **common, negative_features=rows(70, start=5))
    assert torch.equal(own.null, torch.cat([front, rows(70, start=5)]))
    assert torch.equal(found.cond[0], rows(2))


def test_without_any_text_all_rows_are_null(tokens: SpecialTokens) -> None:
    flags = ConditioningFlags(hq=True, duration=True)
    common = {"num_prefix_chunks": 1, "flags": flags, "tokens": tokens, "max_length": 800}
    found = build_captions([rows(0), rows(0)], rows(60), **common)
    assert len(found.cond) == 3 and all(torch.equal(row, rows(50)) for row in found.cond)
    mixed = build_captions([rows(0), rows(2)], rows(60), **common)
    assert [len(row) for row in mixed.cond] == [0, 50, 4]


def test_visible_rows_are_the_unmasked_rows_of_the_official_layout(tokens: SpecialTokens) -> None:
    flags = ConditioningFlags(
        hq=True, duration=True, dynamic_first_frames=True, two_d_anime=True, negative=True
    )
    for shown in (0, 5, 58, 60):
        found = build_captions(
            [rows(shown)] * 10,
            rows(60, start=200),
            num_prefix_chunks=2,
            flags=flags,
            tokens=tokens,
            max_length=60,
        )
        layout = padded_layout(
            rows(60),
            shown,
            null_embedding=rows(60, start=200),
            num_chunks=12,
            num_prefix_chunks=2,
            flags=flags,
            tokens=tokens,
        )
        assert layout.rows.shape == (2, 12, 60, WIDTH) and layout.mask.shape == (2, 12, 60)
        for chunk, row in enumerate(found.cond):
            assert torch.equal(row, layout.rows[0, chunk][layout.mask[0, chunk].bool()])
            assert torch.equal(found.null, layout.rows[1, chunk][layout.mask[1, chunk].bool()])


def test_stacking() -> None:
    stacked, mask = stack_captions([rows(2), rows(0), rows(3)], length=4)
    assert mask.sum(dim=1).tolist() == [2, 0, 3]
    assert torch.equal(stacked[2][mask[2]], rows(3)) and not stacked[~mask].any()
    with pytest.raises(ShapeError):
        stack_captions([rows(2)], length=1)


def test_wrong_inputs_to_captions(tokens: SpecialTokens) -> None:
    plain, hq = ConditioningFlags(), ConditioningFlags(hq=True)
    common = {"num_prefix_chunks": 0, "max_length": 800}
    with pytest.raises(ConfigError, match="special_tokens.npz"):
        build_captions([rows(2)], rows(60), flags=hq, tokens=None, **common)
    with pytest.raises(ConfigError):
        build_captions([], rows(60), flags=plain, tokens=None, **common)
    with pytest.raises(ShapeError, match="chunk 0"):
        build_captions([rows(2)[:, :3]], rows(60), flags=plain, tokens=None, **common)
    with pytest.raises(ShapeError, match="negative"):
        build_captions(
            [rows(2)],
            rows(60),
            flags=plain,
            tokens=None,
            **common,
            negative_features=rows(2)[:, :3],
        )
    assert len(build_captions([rows(2)], rows(60), flags=plain, tokens=None, **common).cond) == 1


# --- tokenizer and presets --------------------------------------------------------------------


def test_tokenizer_loads_folds_case_and_spells(folder: Path, tokenizer: T5Tokenizer) -> None:
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2)
    assert len(tokenizer) <= 256
    text = "A RED disc: qwxyz 0123456789 (really?)"
    found = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in found and found[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(found, skip_special_tokens=True) == text.lower()
    assert (
        len(tokenizer("red squares bounce").input_ids)
        > len(tokenizer("Red square bounces").input_ids)
        == 4
    )
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == found
    assert tokenizer("火").input_ids[-2:] == [2, 1]


def test_tokenizer_training_is_repeatable(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(CAPTIONS), tmp_path, vocab_size=256)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_tokenizer_refuses_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="captions"):
        train_tokenizer(["", "你"], tmp_path, vocab_size=256)
    with pytest.raises(ConfigError, match="vocab_size"):
        train_tokenizer(CAPTIONS, tmp_path, vocab_size=10)


def test_presets() -> None:
    assert set(TEXT_PRESETS) == {"t5-v1_1-xxl", "toybox"}
    with torch.device("meta"):
        xxl = build_text_encoder("t5-v1_1-xxl")
    assert sum(p.numel() for p in xxl.parameters()) == 4_762_310_656
    assert xxl.config.is_gated_act and xxl.config.dense_act_fn == "gelu_new"
    with pytest.raises(ConfigError, match="did you mean 'toybox'"):
        build_text_encoder("toyboks", 100)
    with pytest.raises(ConfigError, match="vocab_size"):
        build_text_encoder("toybox")
