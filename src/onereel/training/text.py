"""The recipe of the toybox T5: learns, from captions alone, which words belong together.

Beside a transformer that draws single objects well, a text encoder can stay a bag of words: what
tells it that in "a red disc above a blue square" the disc is the red one, and the upper one, is a
faint signal in the loss of many pixels. So it learns to read first. From the token of an object's
colour, and from that of its shape, linear layers read the object's colour, shape, size, motion,
direction and relation to the others. The world knows the answers; the layers are thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from onereel.core.seeds import derive_seed
from onereel.models.text.presets import build_text_encoder
from onereel.training.data import BatchStream
from onereel.training.engine import Method, Stream, TrainerConfig
from onereel.training.optim import network_optimizers
from onereel.world import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    SceneSpec,
    caption,
    object_words,
    sample_spec,
)

_OPPOSITE: Final = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
}
# What is read, and its answers; the first one of the last three says that nothing is said.
QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "size": tuple(SIZES),
    "motion": ("none", *MOTIONS),
    "direction": ("none", *DIRECTIONS),
    "relation": ("none", *RELATIONS),
}
_VALIDATION = 512  # captions


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyboxTextRecipe:
    """Settings of the toybox text encoder's training.

    Args:
        preset: of the text encoder.
        tokenizer: folder of its tokenizer.
        near: folder of an encoder whose output it shall stay near, of any depth, or empty: what a
            transformer has learned to read is of some use then.
        near_weight: weight of the squared distance from it, relative to its variance.
        several_share: share of captions with two or three objects.
        batch_size: captions per step.
        lr: AdamW's learning rate.
        matrix_lr: Muon's learning rate for the blocks' matrices; None gives them to AdamW.
        workers: background processes that write captions.
        trainer: settings of the loop.
    """

    preset: str = "toybox"
    tokenizer: str = "runs/toybox-tokenizer"
    near: str = ""
    near_weight: float = 0.2
    several_share: float = 0.75
    batch_size: int = 128
    lr: float = 2e-3
    matrix_lr: float | None = 3e-3
    workers: int = 1
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(max_steps=400, warmup_steps=50, bf16=None)
    )

    def build(self) -> tuple[Method, Stream]:
        """Make the encoder with its optimizer, and the stream of captions.

        Returns:
            The method and the stream.
        """
        tokenizer = T5Tokenizer.from_pretrained(self.tokenizer)
        return TextMethod(self, tokenizer), BatchStream(
            TextBatches(self, tokenizer, tag="text"), workers=self.workers
        )


class TextBatches:
    """Captions with what can be read from them; batch i depends on the seed and i only.

    Args:
        recipe: sizes and the seed.
        tokenizer: of the encoder.
        tag: names the stream; another one gives other captions.
    """

    def __init__(
        self, recipe: ToyboxTextRecipe, tokenizer: PreTrainedTokenizerBase, *, tag: str
    ) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.seed = derive_seed(recipe.trainer.seed, tag)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Write batch `index`.

        Returns:
            `ids` and `mask` [B, S]; for N words of objects `row` and `place` [N], where they are,
            and `answers` [N, questions].
        """
        rng = np.random.default_rng(derive_seed(self.seed, "batch", index))
        share = self.recipe.several_share
        specs = [sample_spec(rng, several_share=share) for _ in range(self.recipe.batch_size)]
        texts = [caption(spec, rng) for spec in specs]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        words = [
            (row, tokens.char_to_token(row, place), answers(spec, number))
            for row, (text, spec) in enumerate(zip(texts, specs, strict=True))
            for number, places in enumerate(object_words(text, spec))
            for place in places
        ]
        row, place, wanted = zip(*words, strict=True)
        return {
            "ids": tokens.input_ids,
            "mask": tokens.attention_mask,
            "row": torch.tensor(row),
            "place": torch.tensor(place),
            "answers": torch.tensor(wanted),
        }


def answers(spec: SceneSpec, number: int) -> list[int]:
    """Answer the questions about one object.

    Args:
        spec: the scene.
        number: of the object; the first one is the one that moves.

    Returns:
        The place of each answer in `QUESTIONS`.
    """
    thing, relation = spec.objects[number], spec.relation
    acts = number == 0
    given = {
        "colour": thing.colour,
        "shape": thing.shape,
        "size": thing.size,
        "motion": spec.motion if acts else "none",
        "direction": (spec.direction or "none") if acts else "none",
        "relation": relation if acts or not relation else _OPPOSITE[relation],
    }
    return [kinds.index(given[name] or "none") for name, kinds in QUESTIONS.items()]


class TextMethod(Method):
    """Cross-entropy of what linear layers read from single tokens.

    Args:
        recipe: settings.
        tokenizer: of the encoder.
    """

    ema_names = ("text",)

    def __init__(self, recipe: ToyboxTextRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        torch.manual_seed(derive_seed(recipe.trainer.seed, "weights"))
        self.text = build_text_encoder(recipe.preset, len(tokenizer))
        self.other: T5EncoderModel | None = None
        if recipe.near:
            other = T5EncoderModel.from_pretrained(recipe.near).float()
            self.other = other.to(recipe.trainer.device).eval()
        outputs = sum(len(kinds) for kinds in QUESTIONS.values())
        self.reader = nn.Linear(self.text.config.d_model, outputs)
        self.networks = {"text": self.text, "reader": self.reader}
        self.optimizers = network_optimizers(
            self.networks, lr=recipe.lr, matrix_lr=recipe.matrix_lr
        )
        held_out = TextBatches(recipe, tokenizer, tag="text-validation")
        self.validation = [held_out[i] for i in range(-(-_VALIDATION // recipe.batch_size))]

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the cross-entropies of one batch."""
        del step
        hidden = self._encode(self.text, batch)
        parts = {
            f"{name}_loss": F.cross_entropy(read, answer)
            for name, read, answer in self._read(hidden, batch)
        }
        loss = torch.stack(list(parts.values())).sum()
        if self.other is not None:
            with torch.no_grad():
                other = self._encode(self.other, batch)
            mask = batch["mask"].bool()
            parts["distance"] = (hidden - other)[mask].square().mean() / other[mask].var()
            loss = loss + self.recipe.near_weight * parts["distance"]
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Measure how much is read right from captions that are never trained on."""
        del step
        right: dict[str, list[Tensor]] = {name: [] for name in QUESTIONS}
        for batch in self.validation:
            batch = {name: value.to(self.text.device) for name, value in batch.items()}
            for name, read, answer in self._read(self._encode(self.text, batch), batch):
                right[name].append((read.argmax(1) == answer).float())
        return {f"val_{name}": float(torch.cat(values).mean()) for name, values in right.items()}

    def export(self, folder: Path) -> None:
        """Write the encoder in bfloat16, and its tokenizer beside it."""
        copy = T5EncoderModel(self.text.config)
        copy.load_state_dict(self.text.state_dict())
        copy.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def _encode(self, encoder: Any, batch: Any) -> Tensor:
        hidden: Tensor = encoder(
            input_ids=batch["ids"], attention_mask=batch["mask"]
        ).last_hidden_state
        return hidden

    def _read(self, hidden: Tensor, batch: Any) -> list[tuple[str, Tensor, Tensor]]:
        """Give, per question, what is read [N, answers] and what is right [N]."""
        read = self.reader(hidden[batch["row"], batch["place"]])
        sizes = [len(kinds) for kinds in QUESTIONS.values()]
        columns = zip(QUESTIONS, read.split(sizes, dim=1), batch["answers"].T, strict=True)
        return list(columns)
