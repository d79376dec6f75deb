"""The methods that train a checkpoint on somebody's own data: a LoRA, or all its weights."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from onereel.core.files import replace_folder
from onereel.core.seeds import derive_seed
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.pipelines.lora import LORA_TARGETS
from onereel.pipelines.magi1 import Magi1Pipeline
from onereel.training.flow import FlowShares, corrupt, gather_text
from onereel.training.method import Method, step_generator
from onereel.training.optim import build_optimizers
from onereel.training.own_base import Base, OwnDataRecipe
from onereel.training.own_data import OwnBatches, PriorBatches

# Attention and MLP matrices; the modulation stays as it is.
ADAPTED = tuple(name for name in LORA_TARGETS if not name.startswith("ada_"))


def make_method(
    recipe: OwnDataRecipe, base: Base, *, batches: OwnBatches | PriorBatches | None = None
) -> Method:
    """Load the transformer and what trains it.

    Args:
        recipe: the settings.
        base: what a training starts from.
        batches: for the measurements; None for a look at sizes only.

    Returns:
        The method.
    """
    methods = {"lora": LoraMethod, "finetune": FinetuneMethod}
    return methods[recipe.kind](recipe, base, batches=batches)


class _OwnDataMethod(Method):
    """Flow matching on chunks with a frozen text encoder; subclasses say what is trained.

    On batches of the prior the target is what the untrained model predicts, after DreamBooth's
    prior preservation (Ruiz et al., arXiv 2208.12242), which trains on the model's own pictures.
    """

    network: ClassVar[str]

    def __init__(
        self, recipe: OwnDataRecipe, base: Base, *, batches: OwnBatches | PriorBatches | None
    ) -> None:
        self.recipe, self.base = recipe, base
        self.seed = recipe.trainer.seed
        torch.manual_seed(derive_seed(self.seed, "weights"))
        self.dit = self._load()
        network = self._trained()
        self.networks, self.ema_names = {self.network: network}, (self.network,)
        self.optimizers = build_optimizers(
            network, lr=recipe.lr, weight_decay=recipe.weight_decay, name=self.network
        )
        self.fixed = {} if batches is None else batches.fixed()

    def _load(self) -> Magi1Transformer3DModel:
        raise NotImplementedError

    def _trained(self) -> nn.Module:
        raise NotImplementedError

    def _untrained(self) -> contextlib.AbstractContextManager[Magi1Transformer3DModel]:
        """Give the model without what is trained, without gradients."""
        raise NotImplementedError

    def train_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the flow-matching loss of one batch."""
        # With a prior the null caption is its own: guidance steers away from what that shows.
        own = bool(self.recipe.prior) and not batch["prior"]
        shares = FlowShares(i2v=self.recipe.i2v_share, drop=0.0 if own else self.recipe.drop_share)
        loss = self._loss(batch, step_generator(self.seed, step), shares)
        kind = "image" if batch["layout"] is None else "video"
        kind = f"prior_{kind}" if batch.get("prior") else kind
        return {"loss": loss, f"{kind}_loss": loss.detach()}

    def validate(self, step: int) -> dict[str, float]:
        """Measure the loss on the first clips, with fixed noise and all captions."""
        del step
        found = {}
        for name, batch in self.fixed.items():
            generator = step_generator(self.seed, 0, tag=f"fixed-{name}")
            with torch.no_grad():
                loss = self._loss(batch, generator, FlowShares(i2v=0.0, drop=0.0))
            found[f"fixed_{name}"] = float(loss)
        return found

    def _loss(self, batch: Any, generator: torch.Generator, shares: FlowShares) -> Tensor:
        device = self.base.device
        flow = corrupt(
            batch["latent"],
            batch["given"],
            layout=batch["layout"],
            shares=shares,
            generator=generator,
            device=device,
        )
        text = gather_text(
            batch["hidden"].to(device),
            batch["mask"].to(device),
            numbers=batch["numbers"].to(device),
            null=self.dit.null_caption,
            null_text=flow.null_text,
        )
        target = None
        if batch.get("prior"):
            with torch.no_grad(), self._untrained() as untrained:
                target = flow.predict(untrained, text)
        return flow.loss(flow.predict(self.dit, text), target)


class _Adapters(nn.Module):
    """The trained matrices alone, so that checkpoints and averages do not hold the base."""

    def __init__(self, dit: Magi1Transformer3DModel) -> None:
        super().__init__()
        trained = {n: p for n, p in dit.named_parameters() if p.requires_grad}
        self.matrices = nn.ParameterDict({n.replace(".", "/"): p for n, p in trained.items()})
        self.enable_gradient_checkpointing = dit.enable_gradient_checkpointing


class LoraMethod(_OwnDataMethod):
    """Trains low-rank updates of the attention and MLP matrices.

    Source: LoRA (Hu et al., arXiv 2106.09685).
    """

    network = "lora"

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return (self.recipe.alpha or self.recipe.rank) / self.recipe.rank

    def _load(self) -> Magi1Transformer3DModel:
        from peft import LoraConfig

        dit = self.base.load_transformer()
        dit.requires_grad_(False)
        rank = self.recipe.rank
        alpha = self.recipe.alpha or rank
        dit.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ADAPTED)))
        return dit

    def _trained(self) -> nn.Module:
        for parameter in self.dit.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return _Adapters(self.dit)

    @contextlib.contextmanager
    def _untrained(self) -> Iterator[Magi1Transformer3DModel]:
        self.dit.disable_adapters()
        try:
            yield self.dit
        finally:
            self.dit.enable_adapters()

    def export(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, with alpha / rank in the weights.

        Readers that know nothing of alpha then apply the update at its full strength.
        """
        from peft import get_peft_model_state_dict

        layers = {
            name: value.detach().cpu() * (self.scale if "lora_B" in name else 1.0)
            for name, value in get_peft_model_state_dict(self.dit).items()
        }
        replace_folder(
            folder,
            lambda part: Magi1Pipeline.save_lora_weights(part, transformer_lora_layers=layers),
        )


class FinetuneMethod(_OwnDataMethod):
    """Trains all weights of the transformer."""

    network = "dit"

    def _load(self) -> Magi1Transformer3DModel:
        self.frozen: Magi1Transformer3DModel | None = None
        if self.recipe.prior:
            self.frozen = self.base.load_transformer().requires_grad_(False)
        return self.base.load_transformer(torch.float32).requires_grad_(True)

    def _untrained(self) -> contextlib.AbstractContextManager[Magi1Transformer3DModel]:
        assert self.frozen is not None
        return contextlib.nullcontext(self.frozen)

    def _trained(self) -> nn.Module:
        return self.dit

    def export(self, folder: Path) -> None:
        """Write a checkpoint folder: the base's, with the new transformer in its stored dtypes."""
        part = self.base.parts.transformer
        assert part is not None
        state = {
            name: value.to("cpu", part.tensors.infos[name].dtype)
            for name, value in self.dit.state_dict().items()
        }

        def write(staging: Path) -> None:
            for item in self.base.source.path.iterdir():
                if item.name != "transformer":
                    _take(item, staging / item.name, earlier=folder / item.name)
            model = part.build()
            model.load_state_dict(state, assign=True)
            assert isinstance(model, Magi1Transformer3DModel)
            model.save_pretrained(staging / "transformer")

        replace_folder(folder, write)


def _take(item: Path, target: Path, *, earlier: Path) -> None:
    """Copy a file or folder of the base; what an earlier export holds takes no space again.

    Links are made to our own copies only: whoever writes into an export must not reach the base.
    """
    copy: Callable[[Any, Any], object] = _link if earlier.exists() else shutil.copy2
    item = earlier if earlier.exists() else item
    if item.is_dir():
        shutil.copytree(item, target, copy_function=copy)
    else:
        copy(item, target)


def _link(source: Any, target: Any) -> None:
    """Link a file, or copy it where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
