"""Networks loaded from the user's disk or hub: transformers, pyiqa, our RAFT, plug-ins.

Everything runs in float32. The official CLIP runs in half precision on a GPU, so that scores of
the two differ by about 1e-3 there.

Source:
    spec/evaluation.md 2.3 and 2.5; the position embedding of DINO: general knowledge of
    facebookresearch/dino vision_transformer.py, not compared with the official weights.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onereel.core.config import check_keys
from onereel.core.errors import BackendUnavailable, CheckpointError, ConfigError
from onereel.evaluation.networks.checkpoints import load_state
from onereel.evaluation.networks.raft import load_raft
from onereel.evaluation.vbench.networks import NETWORKS, AestheticHead, Networks
from onereel.evaluation.videos import hash_input

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NUM_TOKENS = 77
_PYIQA_METRIC = "musiq-spaq"


class DinoEmbedder:
    """DINO's class token after the last normalisation.

    Args:
        model: a `ViTModel` of transformers.
        description: what it is and where it came from.
    """

    def __init__(self, model: Any, *, description: str = "") -> None:
        if not hasattr(model.embeddings, "interpolate_pos_encoding"):
            raise BackendUnavailable("this version of transformers", expected="ViTModel of 5.x")
        self._model = model
        self.description = description
        # transformers resizes the position embedding to the grid; the official code does so by a
        # factor that is a tenth of a patch too large, which shifts every position a little.
        model.embeddings.interpolate_pos_encoding = self._positions

    def __call__(self, images: Tensor) -> Tensor:
        """Embed pictures of any size.

        Args:
            images: normalised float32 [N, 3, h, w].

        Returns:
            [N, D].
        """
        images = images.to(self._model.device)
        return self._model(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        table = self._model.embeddings.position_embeddings
        return dino_positions(table, (height, width), patch=self._model.config.patch_size)


def dino_positions(table: Tensor, size: tuple[int, int], *, patch: int) -> Tensor:
    """Resize DINO's position embedding as the official network does.

    Args:
        table: for the training size, class token first, [1, 1 + side * side, D].
        size: (height, width) of the pictures.
        patch: side of a patch in pixels.

    Returns:
        [1, 1 + rows * columns, D].
    """
    side = round((table.shape[1] - 1) ** 0.5)
    rows, columns = size[0] // patch, size[1] // patch
    if rows * columns == side * side and size[0] == size[1]:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


class ClipEmbedder:
    """CLIP's projected features of pictures and texts.

    Args:
        model: a `CLIPModel` of transformers.
        tokenizer: its `CLIPTokenizer`, or None when texts are never embedded.
        description: what it is and where it came from.
    """

    def __init__(self, model: Any, *, tokenizer: Any = None, description: str = "") -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.description = description

    def __call__(self, images: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            images: normalised float32 [N, 3, 224, 224].

        Returns:
            [N, D].
        """
        seen = self._model.vision_model(pixel_values=images.to(self._model.device))
        return self._model.visual_projection(seen.pooler_output)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: cut after 77 tokens.

        Returns:
            [N, D].

        Raises:
            CheckpointError: the folder had no tokenizer.
        """
        if self._tokenizer is None:
            raise CheckpointError(f"{self.description}: no tokenizer beside the weights")
        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=_NUM_TOKENS,
            return_tensors="pt",
        ).to(self._model.device)
        read = self._model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return self._model.text_projection(read.pooler_output)


class FlowEstimator:
    """RAFT with twenty iterations.

    Args:
        network: our RAFT.
        description: what it is and where it came from.
    """

    def __init__(self, network: nn.Module, *, description: str = "") -> None:
        self._network = network
        self.description = description

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Estimate the flow between two padded frames.

        Args:
            first: float32 [1, 3, H, W] in 0..255.
            second: like `first`.

        Returns:
            [1, 2, H, W] in pixels.
        """
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            _, flow = self._network(first.to(device), second.to(device))
        return flow


class MusiqScorer:
    """MUSIQ of pyiqa.

    Args:
        metric: what `pyiqa.create_metric` gave.
        device: where it is.
        description: what it is and where it came from.
    """

    def __init__(self, metric: Any, *, device: torch.device, description: str = "") -> None:
        self._metric = metric
        self._device = device
        self.description = description

    def __call__(self, frames: Tensor) -> Tensor:
        """Rate frames.

        Args:
            frames: float32 [N, 3, h, w] in 0..1.

        Returns:
            [N] in 0..100.
        """
        return torch.as_tensor(self._metric(frames.to(self._device))).reshape(len(frames))


def load_dino(source: str | Path, *, device: str | torch.device = "cpu") -> DinoEmbedder:
    """Load DINO through transformers.

    Args:
        source: a folder, or a hub name such as `facebook/dino-vitb16`.
        device: where to put it.

    Returns:
        The network.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import ViTModel

    model = _pretrained(ViTModel, source, "dino", add_pooling_layer=False)
    config = model.config
    what = f"patch {config.patch_size}, width {config.hidden_size}"
    description = _describe("dino", source, f"{what}, {config.num_hidden_layers} layers")
    return DinoEmbedder(model.to(device), description=description)


def load_clip(
    source: str | Path, *, name: str = "clip_b32", device: str | torch.device = "cpu"
) -> ClipEmbedder:
    """Load CLIP through transformers.

    Args:
        source: a folder, or a hub name such as `openai/clip-vit-base-patch32`.
        name: `clip_b32` or `clip_l14`, for messages and the description.
        device: where to put it.

    Returns:
        The network.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model = _pretrained(CLIPModel, source, name)
    tokenizer = _pretrained(CLIPTokenizer, source, name) if name == "clip_b32" else None
    config = model.config.vision_config
    what = f"patch {config.patch_size}, width {config.hidden_size}"
    description = _describe(name, source, f"{what}, {config.num_hidden_layers} layers")
    return ClipEmbedder(model.to(device), tokenizer=tokenizer, description=description)


def load_aesthetic_head(path: str | Path) -> AestheticHead:
    """Load LAION's linear head.

    Args:
        path: `sa_0_4_vit_l_14_linear.pth`, or the same in safetensors.

    Returns:
        The head.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    path = Path(path)
    try:
        weights = load_state(path)
        weight, bias = weights["weight"].double().numpy(), weights["bias"].double().numpy()
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}", expected="tensors 'weight' and 'bias'") from error
    if weight.ndim != 2 or weight.shape[0] != 1 or bias.shape != (1,):
        got = f"{list(weight.shape)} and {list(bias.shape)}"
        raise CheckpointError(f"{path}", expected="weight [1, D] and bias [1]", got=got)
    description = _describe("aesthetic_head", path)
    return AestheticHead(weight=weight[0], bias=float(bias[0]), description=description)


def load_flow(path: str | Path, *, device: str | torch.device = "cpu") -> FlowEstimator:
    """Load RAFT.

    Args:
        path: `raft-things.pth`.
        device: where to put it.

    Returns:
        The estimator.

    Raises:
        CheckpointError: the file is missing or is not a RAFT checkpoint.
    """
    network = load_raft(path, device=device)
    return FlowEstimator(network, description=_describe("flow", path))


def load_imaging_scorer(*, device: str | torch.device = "cpu") -> MusiqScorer:
    """Load MUSIQ of pyiqa, which downloads its weights itself.

    Args:
        device: where to put it.

    Returns:
        The scorer.

    Raises:
        BackendUnavailable: pyiqa is not installed.
    """
    name = "pyiqa"  # optional, never a dependency: it brings torchvision and timm
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = "pip install pyiqa (check the terms of its weights), or give a plug-in"
        raise BackendUnavailable("pyiqa is not installed", hint=hint) from error
    metric = package.create_metric(_PYIQA_METRIC, device=torch.device(device))
    version = getattr(package, "__version__", "of unknown version")
    description = f"{NETWORKS['imaging']}, {_PYIQA_METRIC} of pyiqa {version}"
    return MusiqScorer(metric, device=torch.device(device), description=description)


def load_plugin(spec: str) -> Any:
    """Call a function of the user's that makes a network.

    Args:
        spec: `package.module:function`; the function takes no arguments.

    Returns:
        What it made.

    Raises:
        ConfigError: there is no such function.
    """
    module, _, name = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        expected = "package.module:function that can be imported"
        raise ConfigError(f"plug-in '{spec}'", expected=expected, got=str(error)) from error
    return factory()


def load_networks(sources: Mapping[str, str], *, device: str | torch.device = "cpu") -> Networks:
    """Load networks by name.

    Args:
        sources: by field of `Networks`: a folder, file or hub name for those that we load, `pyiqa`
            for imaging, or `package.module:function` for any.
        device: where to put those that we load.

    Returns:
        The networks.

    Raises:
        ConfigError: a name is unknown, or a network can only be a plug-in.
        CheckpointError: weights cannot be loaded.
        BackendUnavailable: a package is missing.
    """
    check_keys(sources, NETWORKS, where="networks")
    return Networks(**{name: _load(name, text, device) for name, text in sources.items()})


def _load(name: str, source: str, device: str | torch.device) -> Any:
    if _FACTORY.fullmatch(source):
        return load_plugin(source)
    if name == "dino":
        return load_dino(source, device=device)
    if name in ("clip_b32", "clip_l14"):
        return load_clip(source, name=name, device=device)
    if name == "aesthetic_head":
        return load_aesthetic_head(source)
    if name == "flow":
        return load_flow(source, device=device)
    if name == "imaging" and source == "pyiqa":
        return load_imaging_scorer(device=device)
    raise ConfigError(f"network '{name}'", expected=NETWORKS[name].source, got=source)


def _pretrained(kind: Any, source: str | Path, name: str, **options: Any) -> Any:
    try:
        loaded = kind.from_pretrained(str(source), **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        info = NETWORKS[name]
        raise CheckpointError(
            f"{source}: {info.name} cannot be loaded ({error})", hint=f"{info}: {info.source}"
        ) from error
    return loaded.eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded


def _describe(name: str, source: str | Path, what: str = "") -> str:
    path = Path(source)
    origin = f"{source}, sha256 {hash_input(path)}" if path.exists() else f"hub {source}"
    return ", ".join(part for part in (str(NETWORKS[name]), what, origin) if part)
