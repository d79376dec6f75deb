"""What Magic 1-For-1 reads: Llama's view of the prompt, LLaVA's of the picture, CLIP's summary.

Legend: P prompts, S tokens, K width of the language model.

Llama is the language model inside LLaVA, so one LLaVA serves both. Of the prompt its third-last
hidden states are taken, of the picture its last, normed ones.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, model_dit/models/magic_141_video (templates and
numbers are part of the model's interface).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.text.t5 import TextFeatures

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPTextModel, LlavaForConditionalGeneration, PreTrainedTokenizerBase

USER_HEADER: Final = "<|start_header_id|>user<|end_header_id|>"
_SYSTEM: Final = "<|start_header_id|>system<|end_header_id|>\n\n"
_USER: Final = f"<|eot_id|>{USER_HEADER}\n\n{{}}<|eot_id|>"
IMAGE_TOKEN: Final = "<image>"

PROMPT_TEMPLATE: Final = (
    f"{_SYSTEM}Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects.4. background environment, light, style and atmosphere."
    f"5. camera angles, movements, and transitions used in the video:{_USER}"
)
IMAGE_TEMPLATE: Final = (
    f"{_SYSTEM}Describe the video by detailing the following aspects: "
    "1. The central subject and overarching message or purpose of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial arrangement of objects within "
    "the scene.3. Actions, events, behaviors, temporal sequences, and physical movements or "
    "transformations of objects.4. Behavior, facial expressions, emotions, speaking style, eye "
    "gaze, head orientation, body orientation, gestures (hand and body), and changes in these "
    "elements for the main character.5. The background setting, lighting, artistic style, and "
    "overall mood or tone of the scene.6. Camera angles, movements, transitions, and other filming "
    f"techniques employed in the video:{_USER}"
)
NEGATIVE_PROMPT: Final = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, "
    "bad hands, bad teeth, bad eyes, bad limbs, distortion"
)

PROMPT_CROP: Final = 95  # tokens of PROMPT_TEMPLATE before the prompt, Llama 3's first one included
PROMPT_TOKENS: Final = 256
PROMPT_SKIP: Final = 2
IMAGE_STRIDE: Final = 4
_CLIP_TOKENS: Final = 77


def crop_states(
    hidden_states: Sequence[Tensor], mask: Tensor, *, skip: int = PROMPT_SKIP, crop: int
) -> TextFeatures:
    """Take the layer that counts and drop the template's tokens.

    Args:
        hidden_states: of embeddings and layers, each [P, S, K].
        mask: [P, S], ones then zeros.
        skip: layers between the one taken and the last.
        crop: leading tokens to drop.

    Returns:
        The features of the remaining tokens, those hidden by the mask included.

    Raises:
        ShapeError: there are not that many layers or tokens.
    """
    if skip >= len(hidden_states) or not 0 <= crop < mask.shape[1]:
        raise ShapeError(
            "hidden states",
            expected=f"more than {skip} layers and {crop} tokens",
            got=f"{len(hidden_states)} layers of {mask.shape[1]} tokens",
        )
    return TextFeatures(hidden_states[-1 - skip][:, crop:], mask[:, crop:].bool())


def template_length(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Count the tokens before the prompt, the tokenizer's own first token included.

    Args:
        tokenizer: the language model's.
        template: holds `{}` where the prompt goes.

    Returns:
        Number of tokens.
    """
    return len(tokenizer(template.partition("{}")[0]).input_ids)


@torch.no_grad()
def encode_prompt_tokens(
    prompts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    language_model: Any,
    template: str = PROMPT_TEMPLATE,
    crop: int | None = PROMPT_CROP,
    num_tokens: int = PROMPT_TOKENS,
    device: torch.device | str | None = None,
) -> TextFeatures:
    """Encode prompts with the Llama inside LLaVA.

    Args:
        prompts: one or more texts.
        tokenizer: Llama's.
        language_model: a `LlamaModel`, or the whole LLaVA.
        template: text around the prompt.
        crop: tokens before the prompt; None counts them.
        num_tokens: positions kept; longer prompts are cut, shorter ones padded.
        device: where to run; None takes the model's.

    Returns:
        [P, num_tokens, K] and the mask of the prompts' own tokens.

    Raises:
        ConfigError: the tokenizer cuts the template into another number of tokens than the model
            was trained with.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    counted = template_length(tokenizer, template)
    if crop is not None and counted != crop:
        raise ConfigError(
            "tokens of the prompt template",
            expected=str(crop),
            got=counted,
            hint="use the tokenizer of llava-llama-3-8b-v1_1-transformers, with its first token",
        )
    batch = tokenizer(
        [template.replace("{}", text) for text in texts],
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=counted + num_tokens,
        return_tensors="pt",
    ).to(device or language_model.device)
    output = language_model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        output_hidden_states=True,
        use_cache=False,
    )
    return crop_states(output.hidden_states, batch.attention_mask, crop=counted)


@torch.no_grad()
def encode_pooled(
    prompts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: CLIPTextModel,
    device: torch.device | str | None = None,
) -> Tensor:
    """Summarise prompts with CLIP's text tower; no template, longer ones are cut.

    Args:
        prompts: one or more texts.
        tokenizer: CLIP's.
        encoder: the text tower.
        device: where to run; None takes the encoder's.

    Returns:
        [P, width of CLIP].
    """
    batch = tokenizer(
        [prompts] if isinstance(prompts, str) else list(prompts),
        padding="max_length",
        truncation=True,
        max_length=min(_CLIP_TOKENS, encoder.config.max_position_embeddings),
        return_tensors="pt",
    )
    ids = batch.input_ids.to(device or encoder.device)
    pooled: Tensor = encoder(input_ids=ids).pooler_output
    return pooled


def expand_image(ids: Tensor, image_id: int, *, num_patches: int) -> Tensor:
    """Give every patch of the picture its own position.

    Args:
        ids: token ids [S] with one image token.
        image_id: id of the image token.
        num_patches: positions that it stands for.

    Returns:
        Token ids [S - 1 + num_patches].

    Raises:
        ShapeError: there is not exactly one image token.
    """
    places = (ids == image_id).nonzero().flatten().tolist()
    if len(places) != 1:
        raise ShapeError("image tokens", expected="exactly 1", got=len(places))
    at = places[0]
    return torch.cat((ids[:at], ids.new_full((num_patches,), image_id), ids[at + 1 :]))


def select_image_tokens(
    ids: Tensor,
    hidden: Tensor,
    *,
    header: Sequence[int],
    image_id: int,
    stride: int = IMAGE_STRIDE,
) -> Tensor:
    """Keep what LLaVA says of the picture: all behind the user's header, few of the patches.

    Args:
        ids: expanded token ids [S].
        hidden: states [S, K].
        header: token ids of `USER_HEADER`.
        image_id: id of the image token.
        stride: of the patches, every such one is kept, from the first on.

    Returns:
        [S', K].

    Raises:
        ShapeError: the header does not occur exactly once, or ids and states differ in length.
    """
    if len(ids) != len(hidden):
        raise ShapeError("hidden states", expected=f"{len(ids)} tokens", got=len(hidden))
    wanted = torch.tensor(list(header), device=ids.device)
    starts = (ids.unfold(0, len(wanted), 1) == wanted).all(dim=1).nonzero().flatten().tolist()
    if len(starts) != 1:
        raise ShapeError("user header", expected="exactly once in the text", got=len(starts))
    is_image = ids == image_id
    keep = ~is_image | ((is_image.cumsum(0) - 1) % stride == 0)
    keep[: starts[0] + len(wanted)] = False
    return hidden[keep]


@torch.no_grad()
def encode_image_tokens(
    image: Image.Image,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_processor: Any,
    llava: LlavaForConditionalGeneration,
    template: str = IMAGE_TEMPLATE,
    stride: int = IMAGE_STRIDE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Let LLaVA look at the reference picture; the user's prompt is not told.

    Args:
        image: the picture as given, not cut to a bucket.
        tokenizer: LLaVA's.
        image_processor: CLIP's image processor.
        llava: the whole model.
        template: text around the picture.
        stride: every such patch is kept.
        device: where to run; None takes the model's.

    Returns:
        [1, S, K]; 146 tokens with LLaVA-Llama-3-8B.

    Raises:
        ShapeError: the tokenizer does not know the header or the image token.
    """
    text = tokenizer(template.replace("{}", IMAGE_TOKEN), return_tensors="pt").input_ids[0]
    header = tokenizer(USER_HEADER, add_special_tokens=False).input_ids
    image_id = llava.config.image_token_id
    vision = llava.config.vision_config
    ids = expand_image(text, image_id, num_patches=(vision.image_size // vision.patch_size) ** 2)
    pixels = image_processor(images=image, return_tensors="pt").pixel_values
    device = device or llava.device
    # The whole model is called, since offloading hooks sit there; one row of logits is the least.
    output = llava(
        input_ids=ids[None].to(device),
        pixel_values=pixels.to(device, llava.dtype),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
    )
    hidden = output.hidden_states[-1][0]
    return select_image_tokens(
        ids.to(hidden.device), hidden, header=header, image_id=image_id, stride=stride
    )[None]


def join_tokens(image_tokens: Tensor, prompt: TextFeatures) -> TextFeatures:
    """Put the picture's tokens before the prompt's, so that padding stays at the end.

    Args:
        image_tokens: [1 or P, S, K], all visible.
        prompt: features of P prompts.

    Returns:
        Features of S more tokens.
    """
    rows = prompt.embeds.shape[0]
    tokens = image_tokens.expand(rows, -1, -1).to(prompt.embeds)
    visible = prompt.mask.new_ones(tokens.shape[:2])
    return TextFeatures(
        torch.cat((tokens, prompt.embeds), dim=1), torch.cat((visible, prompt.mask), dim=1)
    )
