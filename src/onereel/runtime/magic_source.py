"""A Magic 1-For-1 checkpoint on disk: where its parts lie, what their headers say, loading one.

Parts come from one folder that `save_pretrained` wrote, or each from a place of its own.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

from onereel.core.errors import CheckpointError
from onereel.models.magi_dit.weights import account
from onereel.runtime.load import no_foreign_bars
from onereel.runtime.magic import load_transformer, load_vae
from onereel.runtime.magic_rounded import (
    ROUNDED_PARTS,
    ROUNDED_TENSORS,
    can_stream,
    empty_network,
    load_rounded,
    stored_level,
)
from onereel.runtime.quantize import DYNAMIC, check_stored, quantize
from onereel.runtime.shards import TensorFolder, open_tensors, read_json
from onereel.runtime.source import MODEL_INDEX, ModelSource

TEXT_PARTS: Final = (
    *("tokenizer", "text_encoder", "image_processor", "tokenizer_2", "text_encoder_2"),
)
PARTS: Final = (*TEXT_PARTS, "transformer", "vae")
NETWORKS: Final = ("text_encoder", "text_encoder_2", "transformer", "vae")
_DIFFUSERS: Final[dict[str, Any]] = {
    "transformer": HunyuanVideoTransformer3DModel,
    "vae": AutoencoderKLHunyuanVideo,
}
_CONFIG: Final = "config.json"
_SMALL: Final = 500_000_000  # numbers; 2 GB in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicFiles:
    """Where the parts of a checkpoint lie.

    Args:
        name: what to call it.
        places: folder of every part in `PARTS`; the transformer's and the VAE's may be a file.
        sampling: its sampling settings, fields of `MagicSampleConfig`.
        makes_pictures: whether its weights were trained to make the first picture, too.
        classes: library and class by part, where an index names them.
    """

    name: str
    places: Mapping[str, Path]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    makes_pictures: bool = True
    classes: Mapping[str, str] = field(default_factory=dict)

    def tensors(self, part: str) -> TensorFolder | None:
        """Read the headers of a network's weights.

        Args:
            part: one of `NETWORKS`.

        Returns:
            What they say; None for a PyTorch file, which has no headers.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        place = self.places[part]
        is_folder = place.is_dir() and any(place.glob("*.safetensors"))
        return open_tensors(place) if is_folder else None

    def level(self, part: str) -> str | None:
        """Read in how many bits a network's weights are stored.

        Args:
            part: one of `NETWORKS`.

        Returns:
            A level of `quantize.py`, or None for whole weights.

        Raises:
            CheckpointError: its config is damaged, or the level unknown.
        """
        level = stored_level(self.config(part), where=str(self.places[part] / _CONFIG))
        if level is not None and part not in ROUNDED_PARTS:
            raise CheckpointError(
                f"{self.places[part]}: {level} weights", expected="whole ones", got=level
            )
        return level

    def config(self, part: str) -> dict[str, Any] | None:
        """Read a network's config.

        Args:
            part: one of `NETWORKS`.

        Returns:
            What it says; None where there is none, as beside a PyTorch file.

        Raises:
            CheckpointError: it is damaged.
        """
        place = self.places[part]
        file = (place if place.is_dir() else place.parent) / _CONFIG
        return read_json(file) if file.is_file() else None


def magic_files(source: ModelSource, *, needed: Collection[str] = PARTS) -> MagicFiles:
    """Read the index of a checkpoint's folder.

    Args:
        source: a folder of this family.
        needed: parts that must be there.

    Returns:
        Where its parts lie.

    Raises:
        CheckpointError: a part is missing, or the index is damaged.
    """
    index = read_json(source.path / MODEL_INDEX)
    places = {part: source.path / part for part in PARTS}
    for part, place in places.items():
        if part in needed and not place.is_dir():
            raise CheckpointError(
                f"{place}: no such folder", hint="the checkpoint is incomplete; save it again"
            )
    sampling = index.get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(
            f"{source.path / MODEL_INDEX}: sampling", expected="an object", got=sampling
        )
    return MagicFiles(
        name=source.name,
        places=places,
        sampling=sampling,
        makes_pictures=source.pipeline_class == "Magic141Pipeline",
        classes={part: str(index[part][1]) for part in PARTS if part in index},
    )


def check_parts(files: MagicFiles) -> None:
    """Account for all tensors of transformer and VAE, and compare what the parts say.

    Args:
        files: the checkpoint.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit.
    """
    configs = {part: files.config(part) for part in NETWORKS}
    for part, config in configs.items():
        found, level = files.tensors(part), files.level(part)
        if found is None or config is None:
            continue
        _check_class(part, config, where=str(found.path))
        if level is not None:
            model = empty_network(part, config, level=level)
        elif part in _DIFFUSERS and "_class_name" in config:
            with torch.device("meta"):
                model = _DIFFUSERS[part].from_config(config)
        else:
            continue
        account(found.meta(), model.state_dict(), where=str(found.path))
    _check_widths(configs)


def _check_class(part: str, config: Mapping[str, Any], *, where: str) -> None:
    """Refuse a transformer or a VAE of another family, which takes other arguments."""
    if part not in _DIFFUSERS:
        return
    wanted = _DIFFUSERS[part].__name__
    if config.get("_class_name", wanted) != wanted:
        raise CheckpointError(
            f"{where}: _class_name", expected=wanted, got=config["_class_name"],
            hint="the parts belong to different checkpoints",
        )  # fmt: skip


def _check_widths(configs: Mapping[str, dict[str, Any] | None]) -> None:
    """Compare what one part gives with what another takes, where configs are there."""
    transformer, vae = configs["transformer"], configs["vae"]
    llava, clip = configs["text_encoder"], configs["text_encoder_2"]
    if transformer is None or "in_channels" not in transformer:
        return
    pairs = []
    if vae is not None and "latent_channels" in vae:
        wanted = 2 * vae["latent_channels"] + 1
        pairs.append(("in_channels", wanted, "twice the VAE's latent channels and a mask"))
    if llava is not None and "hidden_size" in llava.get("text_config", {}):
        pairs.append(("text_embed_dim", llava["text_config"]["hidden_size"], "LLaVA's width"))
    if clip is not None and "hidden_size" in clip:
        pairs.append(("pooled_projection_dim", clip["hidden_size"], "CLIP's width"))
    for name, wanted, what in pairs:
        if transformer.get(name, wanted) != wanted:
            raise CheckpointError(
                f"transformer: {name}", expected=f"{wanted}, {what}", got=transformer[name],
                hint="the parts belong to different checkpoints",
            )  # fmt: skip


def default_dtype(files: MagicFiles, device: torch.device) -> torch.dtype:
    """Choose the dtype of the weights.

    Args:
        files: the checkpoint.
        device: where it will run.

    Returns:
        Float32 for small checkpoints on a CPU; else that of most numbers of the transformer, or
        bfloat16 where no header tells.
    """
    found = files.tensors("transformer")
    if found is None:
        return torch.bfloat16
    if device.type == "cpu" and found.num_parameters < _SMALL:
        return torch.float32
    sizes: dict[torch.dtype, int] = {}
    for name, info in found.infos.items():
        if info.dtype.is_floating_point and not name.endswith(ROUNDED_TENSORS):
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def hash_files(files: MagicFiles, *, parts: Collection[str] = NETWORKS) -> str:
    """Hash the weights of a checkpoint: names, dtypes, shapes and bytes of all tensors.

    Args:
        files: the checkpoint.
        parts: networks that count.

    Returns:
        SHA-256 in hexadecimal; of a PyTorch file its bytes count.
    """
    lines = []
    for part in parts:
        found = files.tensors(part)
        if found is None:
            lines += [f"{part} {_digest(file)}\n" for file in _files(files.places[part])]
            continue
        for name, digest in found.digests().items():
            info = found.infos[name]
            lines.append(f"{part}/{name} {info.dtype} {list(info.shape)} {digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_part(
    files: MagicFiles,
    part: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    level: str | None = None,
) -> Any:
    """Load one part, strictly.

    Args:
        files: the checkpoint.
        part: one of `PARTS`.
        dtype: of a network's weights.
        device: where a network runs.
        level: to which the weights of LLaVA and the transformer are rounded, see `quantize.py`.

    Returns:
        The network in evaluation mode, the tokenizer or the image processor.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit.
        ConfigError: the weights are stored in another level.
    """
    place = files.places[part]
    if part in ROUNDED_PARTS:
        stored = files.level(part)
        check_stored(level, stored=stored)
        if level != DYNAMIC and (level or stored):
            tensors = files.tensors(part)
            if can_stream(part, tensors, stored=stored):
                assert tensors is not None
                return load_rounded(
                    part, tensors, config=files.config(part) or {}, level=str(level or stored),
                    dtype=dtype, device=device,
                )  # fmt: skip
    if part in ("transformer", "vae"):
        model = (load_transformer if part == "transformer" else load_vae)(place, dtype=dtype)
    elif part in ("text_encoder", "text_encoder_2"):
        model = _text_network(part, place, dtype=dtype)
    else:
        return _reader(files, part)
    if level is not None and part in ROUNDED_PARTS:
        quantize(model, level)
    return model.to(device)


def _text_network(part: str, place: Path, *, dtype: torch.dtype) -> Any:
    name = "LlavaForConditionalGeneration" if part == "text_encoder" else "CLIPTextModel"
    try:
        with no_foreign_bars():
            model, report = getattr(transformers, name).from_pretrained(
                place, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place}: no {name} ({str(error).splitlines()[0]})", hint="download it again"
        ) from error
    wrong = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if wrong:
        raise CheckpointError(
            f"{place}: {len(wrong)} tensors of {name} are missing or of another shape",
            got=sorted(wrong)[0], hint="download it again",
        )  # fmt: skip
    return model.eval()


def _reader(files: MagicFiles, part: str) -> Any:
    """Load a tokenizer or the image processor by the class that the index names."""
    usual = "AutoImageProcessor" if part == "image_processor" else "AutoTokenizer"
    name = files.classes.get(part, usual)
    kind = getattr(importlib.import_module("transformers"), name, None)
    if kind is None:
        raise CheckpointError(
            f"{part}: {name}", expected="a class of transformers", hint="update transformers"
        )
    try:
        return kind.from_pretrained(files.places[part], local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{files.places[part]}: no {part} ({str(error).splitlines()[0]})",
            hint="copy it from the checkpoint again",
        ) from error
