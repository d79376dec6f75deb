"""What a training on somebody's own data starts from: its settings and the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from onereel.core.device import pick_device
from onereel.core.errors import ConfigError
from onereel.media.scale import Policy
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.text.special_tokens import SpecialTokens
from onereel.runtime.load import default_dtype, load_part
from onereel.runtime.source import ModelSource, resolve_model
from onereel.runtime.verify import Parts, model_parts
from onereel.training.method import TrainerConfig
from onereel.training.own_files import DataShape

KINDS = ("lora", "finetune")


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnDataRecipe:
    """Settings of a training on somebody's own data.

    Args:
        kind: `lora` or `finetune`.
        data: folder of videos and pictures with captions, or a JSONL file.
        prior: the same, of what the model makes already and shall go on making as it does: on
            these the target is what the model without the training predicts; empty for none.
        prior_share: share of steps on the prior.
        model: checkpoint to start from, as of `onereel generate`.
        width: columns that everything is brought to; the checkpoint's own where None.
        height: rows; the checkpoint's own where None.
        policy: how pictures of another shape are brought to it: `crop`, `fit` or `pad`.
        rank: of the LoRA.
        alpha: the LoRA's update is scaled by alpha / rank; None takes the rank.
        batch_size: pieces of video per step.
        image_batch_size: single frames per step of those.
        image_share: share of steps on single frames where there are videos.
        t2v_share: share of pieces that start a video rather than continue one.
        i2v_share: share of those whose first latent frame is given.
        drop_share: share of items trained with the null caption; with a prior, of its items alone.
        lr: learning rate.
        weight_decay: of matrices, in `finetune`.
        workers: background processes that gather batches.
        trainer: settings of the loop.
    """

    data: str
    prior: str = ""
    prior_share: float = 0.5
    kind: str = "lora"
    model: str = "toybox-magi"
    width: int | None = None
    height: int | None = None
    policy: str = "crop"
    rank: int = 16
    alpha: float | None = None
    batch_size: int = 4
    image_batch_size: int = 16
    image_share: float = 0.25
    t2v_share: float = 0.65
    i2v_share: float = 0.4
    drop_share: float = 0.1
    lr: float = 1e-4
    weight_decay: float = 0.01
    workers: int = 0
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_steps=1000,
            schedule="cosine",
            hold=0.5,
            warmup_steps=20,
            ema_decay=0.99,
        )
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("kind", expected=" or ".join(KINDS), got=self.kind)
        for name in ("rank", "batch_size", "image_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(name, expected="at least 1", got=getattr(self, name))
        for name in ("lr", "alpha"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(name, expected="more than 0", got=value)
        for name in ("image_share", "t2v_share", "i2v_share", "drop_share", "prior_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, expected="0 to 1", got=getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The checkpoint that a training starts from, its headers read and nothing loaded.

    Args:
        source: where it is.
        parts: its headers.
        shape: what data is brought to.
        device: where to train.
    """

    source: ModelSource
    parts: Parts
    shape: DataShape
    device: torch.device

    @property
    def config(self) -> Any:
        """The transformer's arguments."""
        assert self.parts.transformer is not None
        return self.parts.transformer.config

    @property
    def tokens(self) -> SpecialTokens | None:
        """The table of special tokens, where the checkpoint has one."""
        path = self.parts.special_tokens
        return None if path is None else SpecialTokens.load(path)

    def load_transformer(self, dtype: torch.dtype | None = None) -> Magi1Transformer3DModel:
        """Load the transformer onto the device, in the checkpoint's dtype where none is given."""
        assert self.parts.transformer is not None
        dtype = dtype or default_dtype(self.source, self.parts, device=self.device)
        model = load_part(self.parts.transformer, dtype=dtype, device=self.device)
        assert isinstance(model, Magi1Transformer3DModel)
        return model


def open_base(recipe: OwnDataRecipe) -> Base:
    """Check the checkpoint and the sizes of a recipe.

    Args:
        recipe: the settings.

    Returns:
        What a training starts from.

    Raises:
        ConfigError: the weights are distilled, or a size or the model's name is wrong.
        CheckpointError: the checkpoint is incomplete or damaged.
        BackendUnavailable: the device is not there.
    """
    source = resolve_model(recipe.model)
    parts = model_parts(source)
    assert parts.transformer is not None
    if parts.transformer.config["enable_distillation"]:
        raise ConfigError(
            f"model '{source.name}'", expected="base weights", got="distilled ones",
            hint="train on the base checkpoint; its LoRA usually works on the distilled one, too",
        )  # fmt: skip
    if recipe.kind == "finetune" and source.official is not None:
        raise ConfigError(
            f"model '{source.name}'", expected="a checkpoint folder",
            got="an official JSON config", hint="make one with `onereel models convert`",
        )  # fmt: skip
    defaults = {"width": 64, "height": 64, "fps": 24, **parts.sampling}
    policy: Policy = recipe.policy  # type: ignore[assignment]  # DataShape checks it
    shape = DataShape(
        width=int(recipe.width or defaults["width"]),
        height=int(recipe.height or defaults["height"]),
        fps=int(defaults["fps"]),
        policy=policy,
    )
    return Base(source=source, parts=parts, shape=shape, device=pick_device(recipe.trainer.device))
