"""The networks of a Magic 1-For-1 run: loaded when first used, all there or taking turns."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.loaders.lora_pipeline import HunyuanVideoLoraLoaderMixin

from onereel.pipelines.lora import add_loras
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.runtime.block_groups import bring_by_block, has_own_memory
from onereel.runtime.load import no_foreign_bars
from onereel.runtime.magic_source import TEXT_PARTS, MagicFiles, load_part

Turns = Literal["stay", "move", "reload"]
_GROUPS = ("texts", "transformer", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """How networks are loaded, and where they stay.

    Args:
        device: that computes.
        dtype: of the weights.
        level: to which weights are rounded, or None.
        turns: `stay` keeps all on the device; `move` leaves those that do not work on the CPU;
            `reload` drops them, and loads them again when their turn comes: the least memory. The
            transformer's blocks then take turns, too, on a device with a memory of its own.
    """

    device: torch.device
    dtype: torch.dtype
    level: str | None = None
    turns: Turns = "stay"

    @property
    def by_block(self) -> bool:
        """Whether the transformer's blocks take turns."""
        return self.turns == "reload" and has_own_memory(self.device)


class MagicParts:
    """The networks of a checkpoint.

    Args:
        files: the checkpoint.
        place: how and where they are loaded.
        loras: files of adapters for the transformer, with their strengths.
    """

    def __init__(
        self, files: MagicFiles, place: Place, *, loras: Sequence[tuple[str, float]] = ()
    ) -> None:
        self.files, self.place, self.loras = files, place, tuple(loras)
        self._loaded: dict[str, Any] = {}
        self._last = ""  # the group that works

    @property
    def transformer(self) -> Any:
        """The velocity network, or what stands for it."""
        return self._part("transformer")

    @property
    def vae(self) -> Any:
        """The VAE, or what stands for it."""
        return self._part("vae")

    @property
    def texts(self) -> Magic141Pipeline:
        """A pipeline of what reads texts and pictures; its other networks are not there."""
        pipeline: Magic141Pipeline = self.bring("texts")
        return pipeline

    def release_texts(self) -> None:
        """Let go what reads texts, if it is there."""
        self._drop("texts")

    def bring(self, group: str) -> Any:
        """Load a group, unless it is there; where networks take turns, the others leave.

        Args:
            group: `texts`, `transformer` or `vae`.

        Returns:
            The pipeline or network, on the device.
        """
        if group == self._last and group in self._loaded:
            return self._loaded[group]
        turns, self._last = self.place.turns, group
        for other in _GROUPS:
            if other != group and other in self._loaded and turns != "stay":
                if turns == "reload":
                    self._drop(other)
                else:
                    self._loaded[other].to("cpu")
        if group not in self._loaded:
            self._loaded[group] = self._load(group)
        elif turns == "move":
            self._loaded[group].to(self.place.device)
        return self._loaded[group]

    def _part(self, group: str) -> Any:
        return self.bring(group) if self.place.turns == "stay" else _InTurn(self, group)

    def _drop(self, group: str) -> None:
        if self._loaded.pop(group, None) is None:
            return
        gc.collect()
        if self.place.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, group: str) -> Any:
        if group != "texts":
            by_block = self.place.by_block and group == "transformer"
            device = torch.device("cpu") if by_block else self.place.device
            network = self._load_part(group, device)
            if group == "transformer":
                add_loras(HunyuanVideoLoraLoaderMixin, network, loras=self.loras)
            if by_block:
                bring_by_block(network, self.place.device)
            return network
        readers = {part: self._load_part(part, self.place.device) for part in TEXT_PARTS}
        sampling = dict(self.files.sampling)
        with no_foreign_bars():
            return Magic141Pipeline(**readers, transformer=None, vae=None, sampling=sampling)

    def _load_part(self, part: str, device: torch.device) -> Any:
        place = self.place
        return load_part(self.files, part, dtype=place.dtype, device=device, level=place.level)


class _InTurn:
    """Stands for a network that is on the device only while it works."""

    _owner: MagicParts
    _group: str

    def __init__(self, owner: MagicParts, group: str) -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_group", group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner.bring(self._group), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._owner.bring(self._group), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._owner.bring(self._group)(*args, **kwargs)
