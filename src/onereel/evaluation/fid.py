"""FID and KID: distances between the frames of two folders by Inception features.

The network is the Inception-v3 of the 2015 TensorFlow graph (pool3, 2048 numbers), as a TorchScript
archive that takes uint8 pictures and scales them itself (about 95 MB, Apache-2.0), or torchmetrics
where it and torch-fidelity are installed (which fetches the weights unless given their file), or
any callable.

- `plain` (default): every frame taken counts as a picture; the network does the scaling.
- `magic141`: the first frame of each video, bicubic with antialias to 299 x 299, rounded to 8 bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onereel.core.device import pick_device
from onereel.core.errors import BackendUnavailable, ConfigError
from onereel.evaluation.distances import Features
from onereel.evaluation.feature_sets import DistanceResult, Extractor, Mmd, compare_sets
from onereel.evaluation.networks.checkpoints import load_script
from onereel.evaluation.videos import Progress, Video, choose_frames, hash_input
from onereel.media.scale import Pixels

Convention = Literal["plain", "magic141"]
ImageNetwork = Callable[[Tensor], Tensor]

TORCHMETRICS = "torchmetrics"
SIDE = 299
_HINT = "give the archive inception-2015-12-05.pt that the authors of StyleGAN published"
_WORDS = {
    "plain": "every frame taken is a picture, scaled by the network",
    "magic141": "first frame of each video, bicubic with antialias to 299x299, 8 bits",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FidConfig:
    """What changes the value of a FID, and how it is computed.

    Args:
        convention: which frames and what scaling, see the top of this file.
        num_frames: frames taken from the start of each video; None for all. The convention
            "magic141" always takes one.
        stride: every how many-th frame is taken.
        mmd: how the KID is taken; None leaves it out, and no features are kept in memory.
        mixed: let sizes and frame counts differ inside a set; the result says so.
        batch_size: pictures at once; bounds memory.
        device: torch device name, or "auto".

    Raises:
        ConfigError: a value is not possible.
    """

    convention: Convention = "plain"
    num_frames: int | None = None
    stride: int = 1
    mmd: Mmd | None = None
    mixed: bool = False
    batch_size: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.convention not in get_args(Convention):
            raise ConfigError("convention", expected="plain or magic141", got=self.convention)
        counts = [self.stride, self.batch_size]
        counts += [] if self.num_frames is None else [self.num_frames]
        if min(counts) < 1:
            raise ConfigError("num_frames, stride, batch_size", expected="at least 1", got=counts)
        if self.mmd not in (None, *get_args(Mmd)):
            raise ConfigError("mmd", expected="subsets, all or none", got=self.mmd)


def evaluate_fid(
    real: str | Path,
    fake: str | Path,
    *,
    network: str | Path | ImageNetwork,
    config: FidConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, DistanceResult]:
    """Take the FID and, when asked, the KID of the same features.

    Args:
        real: folder of the real videos.
        fake: folder of the generated videos.
        network: path of the TorchScript archive; or "torchmetrics"; or a callable that takes uint8
            [B, 3, H, W] on the config's device and gives [B, d].
        config: settings.
        progress: called with (videos read, videos in both folders).

    Returns:
        Results `fid` and, when asked, `kid`; their counts are of pictures.

    Raises:
        MediaError: videos that cannot be scored, all of them named.
        CheckpointError: the archive cannot be used.
        BackendUnavailable: torchmetrics or torch-fidelity is not installed.
        ConfigError: fewer than two pictures in a set.
        ShapeError: the network gave something else than finite vectors.

    Source:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017).
    """
    config = config or FidConfig()
    called, name, path = _resolved(network, config.device)
    extractor = Extractor(
        select=lambda video: select_pictures(video, config=config),
        extract=lambda batch: picture_features(batch, network=called, config=config),
        batch_size=config.batch_size if config.convention == "magic141" else 1,
        stride=config.stride,
        convention=f"{config.convention}: {_WORDS[config.convention]}",
        network=name,
        network_sha256=hash_input(path) if path else None,
        mixed=config.mixed,
    )
    return compare_sets(
        real, fake, extractor=extractor, kinds=("fid", "kid"), mmd=config.mmd, progress=progress
    )


def _resolved(
    network: str | Path | ImageNetwork, device: str
) -> tuple[ImageNetwork, str, Path | None]:
    """The network, its name in the result, and its file."""
    if network == TORCHMETRICS:
        return torchmetrics_inception(device), TORCHMETRICS, None
    if isinstance(network, str | Path):
        path = Path(network)
        return load_inception(path, device=device), path.name, path
    return network, "given by the caller", None


def load_inception(path: str | Path, *, device: str = "cpu") -> ImageNetwork:
    """Load the classifier so that it gives features.

    Args:
        path: a TorchScript archive; it is a program, take it only from those you trust.
        device: torch device name, or "auto".

    Returns:
        A function from uint8 [B, 3, H, W] to features [B, 2048].

    Raises:
        CheckpointError: no such archive.
    """
    flags = {"return_features": True}
    return load_script(path, flags=flags, device=pick_device(device), hint=_HINT)


def torchmetrics_inception(device: str = "cpu", *, weights: str | None = None) -> ImageNetwork:
    """Take the network that torchmetrics and torch-fidelity bring.

    Args:
        device: torch device name, or "auto".
        weights: torch-fidelity's weight file; None lets it fetch or find them.

    Returns:
        A function from uint8 [B, 3, H, W] to features [B, 2048].

    Raises:
        BackendUnavailable: torchmetrics or torch-fidelity is not installed.
    """
    try:
        module = importlib.import_module("torchmetrics.image.fid")
        network = module.NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=["2048"],
            feature_extractor_weights_path=weights,
        )
    except ImportError as error:
        raise BackendUnavailable(
            "FID through torchmetrics",
            expected="torchmetrics and torch-fidelity",
            got=error,
            hint="install them with torchvision, or give the path of a TorchScript Inception",
        ) from error
    called: ImageNetwork = network.to(pick_device(device))
    return called


def select_pictures(video: Video, *, config: FidConfig) -> Pixels:
    """Take the frames of a video that count.

    Args:
        video: the video.
        config: settings.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        MediaError: the video is too short.
    """
    if config.convention == "magic141":
        return video.frames[:1]
    return choose_frames(video, num_frames=config.num_frames, stride=config.stride)


def picture_features(batch: list[Pixels], *, network: ImageNetwork, config: FidConfig) -> Features:
    """Take the features of all frames of videos of one size.

    Args:
        batch: uint8 [F, H, W, 3] each.
        network: see `evaluate_fid`.
        config: settings.

    Returns:
        One vector per frame, [n, d].
    """
    frames = np.concatenate(batch)
    device = pick_device(config.device)
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(frames), config.batch_size):
            piece = np.ascontiguousarray(frames[start : start + config.batch_size])
            pictures = torch.from_numpy(piece).permute(0, 3, 1, 2)
            if config.convention == "magic141":
                pictures = _resized(pictures)
            outputs.append(network(pictures.to(device)).double().cpu().numpy())
    features: Features = np.concatenate(outputs)
    return features


def _resized(pictures: Tensor) -> Tensor:
    size = (SIDE, SIDE)
    x = functional.interpolate(pictures.float(), size=size, mode="bicubic", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)
