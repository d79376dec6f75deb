"""Tokens of prompt and picture with tiny Llama, LLaVA and CLIP networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.text.llava import (
    IMAGE_TEMPLATE,
    IMAGE_TOKEN,
    PROMPT_TEMPLATE,
    USER_HEADER,
    crop_states,
    encode_image_tokens,
    encode_pooled,
    encode_prompt_tokens,
    expand_image,
    join_tokens,
    select_image_tokens,
    template_length,
)
from onereel.models.text.t5 import TextFeatures

PATCHES, WIDTH = 16, 8  # of the tiny networks


@pytest.fixture(scope="module")
def tokenizer(llava_parts: dict[str, Any]) -> PreTrainedTokenizerFast:
    return llava_parts["tokenizer"]


@pytest.fixture(scope="module")
def llava(llava_parts: dict[str, Any]) -> LlavaForConditionalGeneration:
    return llava_parts["text_encoder"]


@pytest.fixture(scope="module")
def image_processor(llava_parts: dict[str, Any]) -> CLIPImageProcessorPil:
    return llava_parts["image_processor"]


def picture(value: int) -> Image.Image:
    pixels = np.random.default_rng(value).integers(0, 255, (20, 30, 3), np.uint8)
    return Image.fromarray(pixels)


# --- the prompt -------------------------------------------------------------------------------


def test_the_third_last_layer_without_the_template(
    tokenizer: PreTrainedTokenizerFast, llava: LlavaForConditionalGeneration
) -> None:
    model = llava.model.language_model
    features = encode_prompt_tokens(
        ["a cat", "two dogs run"], tokenizer, language_model=model, crop=None, num_tokens=32
    )
    assert features.embeds.shape == (2, 32, WIDTH)
    # Bytes, one token each, and the end of the turn.
    assert features.mask.sum(dim=1).tolist() == [len("a cat") + 1, len("two dogs run") + 1]
    ids = tokenizer(PROMPT_TEMPLATE.replace("{}", "a cat"), return_tensors="pt").input_ids
    layers: list[torch.Tensor] = []
    hook = model.layers[1].register_forward_hook(
        lambda _m, _i, out: layers.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    own = layers[0].reshape(ids.shape[1], WIDTH)[template_length(tokenizer, PROMPT_TEMPLATE) :]
    torch.testing.assert_close(features.visible()[0], own, atol=1e-5, rtol=1e-5)


def test_braces_are_text_and_long_prompts_are_cut(
    tokenizer: PreTrainedTokenizerFast, llava: LlavaForConditionalGeneration
) -> None:
    def encode(prompt: str) -> TextFeatures:
        return encode_prompt_tokens(
            prompt,
            tokenizer,
            language_model=llava.model.language_model,
            crop=None,
            num_tokens=8,
        )

    assert int(encode("{0} {}").mask.sum()) == len("{0} {}") + 1
    long = encode("12345678 and more")
    assert bool(long.mask.all())
    assert torch.equal(long.embeds, encode("12345678 and less").embeds)
    assert not torch.equal(long.embeds, encode("02345678").embeds)


def test_another_tokenizer_is_noticed(
    tokenizer: PreTrainedTokenizerFast, llava: LlavaForConditionalGeneration
) -> None:
    with pytest.raises(ConfigError, match="expected 95, got"):
        encode_prompt_tokens("a", tokenizer, language_model=llava.model.language_model)


def test_states_that_are_not_there_are_refused() -> None:
    mask = torch.ones(1, 4)
    with pytest.raises(ShapeError, match="more than 2 layers"):
        crop_states([torch.zeros(1, 4, 2)] * 2, mask, crop=0)
    with pytest.raises(ShapeError, match="4 tokens"):
        crop_states([torch.zeros(1, 4, 2)] * 3, mask, crop=4)


def test_clip_summarises_without_a_template(llava_parts: dict[str, Any]) -> None:
    encoder: CLIPTextModel = llava_parts["text_encoder_2"]
    tokenizer = llava_parts["tokenizer_2"]
    pooled = encode_pooled(["a cat", "a dog", "a cat"], tokenizer, encoder=encoder)
    assert pooled.shape == (3, WIDTH)
    torch.testing.assert_close(pooled[0], pooled[2])
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)
    assert torch.equal(
        encode_pooled("a cat that is long", tokenizer, encoder=encoder),
        encode_pooled("a cat that is lost", tokenizer, encoder=encoder),
    )


# --- the picture ------------------------------------------------------------------------------


def test_every_fourth_patch_and_all_other_tokens(
    tokenizer: PreTrainedTokenizerFast,
    llava: LlavaForConditionalGeneration,
    image_processor: Any,
) -> None:
    def look(image: Image.Image, **options: Any) -> torch.Tensor:
        return encode_image_tokens(
            image, tokenizer, image_processor=image_processor, llava=llava, **options
        )

    tokens = look(picture(0))
    # Two line ends, a quarter of the patches, the end of the turn.
    assert tokens.shape == (1, 2 + PATCHES // 4 + 1, WIDTH)
    every = look(picture(0), stride=1)
    assert torch.equal(tokens[:, 2:-1], every[:, 2:-1][:, ::4])
    assert not torch.allclose(tokens, look(picture(1)), atol=1e-4)

    ids = tokenizer(IMAGE_TEMPLATE.replace("{}", IMAGE_TOKEN), return_tensors="pt").input_ids[0]
    ids = expand_image(ids, llava.config.image_token_id, num_patches=PATCHES)
    pixels = image_processor(images=picture(0), return_tensors="pt").pixel_values
    with torch.no_grad():
        states = llava(
            input_ids=ids[None], pixel_values=pixels, output_hidden_states=True
        ).hidden_states
    torch.testing.assert_close(every[0], states[-1][0, -every.shape[1] :])


def test_exactly_one_picture_and_one_header() -> None:
    with pytest.raises(ShapeError, match="exactly 1, got 0"):
        expand_image(torch.tensor([1, 2]), 9, num_patches=4)
    with pytest.raises(ShapeError, match="exactly 1, got 2"):
        expand_image(torch.tensor([9, 9]), 9, num_patches=4)
    for ids in ([1, 2, 9], [7, 8, 7, 8, 9]):
        with pytest.raises(ShapeError, match="exactly once"):
            select_image_tokens(
                torch.tensor(ids), torch.zeros(len(ids), 2), header=[7, 8], image_id=9
            )
    with pytest.raises(ShapeError, match="3 tokens"):
        select_image_tokens(torch.tensor([7, 8, 9]), torch.zeros(2, 2), header=[7, 8], image_id=9)


def test_patches_before_the_header_still_count() -> None:
    ids = torch.tensor([9, 9, 7, 8, 9, 9, 9, 5])
    hidden = torch.arange(8.0)[:, None]
    kept = select_image_tokens(ids, hidden, header=[7, 8], image_id=9, stride=2)
    assert kept.flatten().tolist() == [4, 6, 7]


def test_padding_stays_at_the_end() -> None:
    prompt = TextFeatures(torch.ones(2, 3, 4), torch.tensor([[1, 0, 0], [1, 1, 0]]).bool())
    joined = join_tokens(torch.zeros(1, 2, 4), prompt)
    assert joined.embeds[:, :, 0].tolist() == [[0, 0, 1, 1, 1]] * 2
    assert joined.mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]


def test_the_header_is_part_of_both_templates_once() -> None:
    for template in (PROMPT_TEMPLATE, IMAGE_TEMPLATE):
        assert template.count(USER_HEADER) == template.count("{}") == 1
