"""Pictures of a folder, found by what a text says: an index that is built once.

The index is one safetensors file: an embedding per picture, and in its metadata the pictures with
sizes and times. Opening it again embeds only what is new or changed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from onereel.core.errors import ConfigError, MediaError
from onereel.core.files import write_atomically
from onereel.media.image import rgb_from_pil

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
INDEX_NAME = ".onereel-index.safetensors"
_BATCH = 32


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """A picture that fits a text.

    Args:
        path: its file.
        similarity: cosine, -1 to 1.
    """

    path: Path
    similarity: float


class PictureIndex:
    """Pictures of a folder and all below, by text-image similarity.

    Args:
        folder: of the pictures.
        model: transformers' `CLIPModel`, or another with its `get_text_features` and
            `get_image_features`.
        processor: that model's.
        path: of the index; None takes a hidden file in the folder.

    Raises:
        MediaError: the folder holds no picture that can be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: Any,
        *,
        processor: Any,
        path: Path | None = None,
    ) -> None:
        self.folder, self.model, self.processor = Path(folder), model.eval(), processor
        self.path = path or self.folder / INDEX_NAME
        self.paths, self.embeddings = self._open()

    @torch.no_grad()
    def search(self, text: str, *, count: int = 1) -> list[FoundPicture]:
        """Find the pictures that fit a text best.

        Args:
            text: what they shall show.
            count: how many.

        Returns:
            Best first; fewer when there are fewer.

        Raises:
            ConfigError: the text is empty.
        """
        if not text.strip():
            raise ConfigError("prompt", expected="a text", got=repr(text))
        inputs = self.processor(text=[text], return_tensors="pt", padding=True, truncation=True)
        row = _rows(self.model.get_text_features(**inputs.to(self.model.device)))
        scores = self.embeddings @ row[0]
        best = torch.topk(scores, min(count, len(self.paths)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [FoundPicture(self.folder / self.paths[i], score) for score, i in pairs]

    def _open(self) -> tuple[list[str], torch.Tensor]:
        """Read what is known, embed the rest, and store all of it."""
        files = {
            str(file.relative_to(self.folder)): _stamp(file) for file in _pictures(self.folder)
        }
        known = self._known()
        rows = {name: known[name][1] for name in files if known.get(name, ("",))[0] == files[name]}
        new = [name for name in files if name not in rows]
        broken = []
        for start in range(0, len(new), _BATCH):
            found, bad = self._embed(new[start : start + _BATCH])
            rows.update(found)
            broken += bad
        if broken:
            warnings.warn(
                f"{len(broken)} pictures cannot be read: {', '.join(broken[:5])}", stacklevel=3
            )
        if not rows:
            raise MediaError(
                f"{self.folder} holds no picture that can be read",
                hint=f"put some there ({', '.join(sorted(SUFFIXES))})",
            )
        names = sorted(rows)
        embeddings = torch.stack([rows[name] for name in names])
        if new or len(known) != len(rows):
            self._store({name: files[name] for name in names}, embeddings)
        return names, embeddings

    def _known(self) -> dict[str, tuple[str, torch.Tensor]]:
        """Read the stored index; one of another model, or a damaged one, says nothing."""
        try:
            with safe_open(self.path, "pt") as file:
                stored = json.loads(file.metadata()["pictures"])
                if file.metadata()["model"] != self._model_name():
                    return {}
                rows = file.get_tensor("embeddings")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return {}
        return {name: (stamp, row) for (name, stamp), row in zip(stored.items(), rows, strict=True)}

    def _store(self, stamps: dict[str, str], embeddings: torch.Tensor) -> None:
        metadata = {"pictures": json.dumps(stamps), "model": self._model_name()}
        data = save({"embeddings": embeddings.contiguous()}, metadata)
        try:
            write_atomically(self.path, lambda file: file.write(data))
        except OSError as error:
            warnings.warn(
                f"the index cannot be kept in {self.path} ({error.strerror})", stacklevel=4
            )

    def _model_name(self) -> str:
        """Tell models apart: their name, and a sum over their weights."""
        total = sum(float(p.detach().double().abs().sum()) for p in self.model.parameters())
        return f"{type(self.model).__name__} {total:.6g}"

    @torch.no_grad()
    def _embed(self, names: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Embed some pictures; returns rows by name, and the names of those that are broken."""
        pictures, good, broken = [], [], []
        for name in names:
            try:
                with PIL.Image.open(self.folder / name) as image:
                    pictures.append(rgb_from_pil(image))
                good.append(name)
            except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
                broken.append(name)
        if not good:
            return {}, broken
        inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
        rows = _rows(self.model.get_image_features(**inputs))
        return dict(zip(good, rows, strict=True)), broken


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MediaError(f"{folder} is no folder", hint="name a folder of pictures")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _rows(features: Any) -> torch.Tensor:
    """Normalise features; newer transformers wrap them."""
    rows = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(rows.float(), dim=-1).cpu()
