"""FVD and KVD: distances between two folders of videos by the features of a video classifier.

The classifier is I3D trained on Kinetics-400, which we neither ship nor rewrite: give the
TorchScript archive commonly called `i3d_torchscript.pt` (about 50 MB; its licence is its
publisher's), or any callable. Values of different conventions are not comparable:

- `styleganv` (default): short side 224, other side rounded up, bilinear without antialias, centre.
- `videogpt`: the same after truncation to 8 bits. Its papers used other weights
  (`i3d_pretrained_400.pt`) and their logits, up to 10 % apart: give those as a network that is
  called with the video alone.
- `magic141`: short side 224, bicubic with antialias, centre; frames cut down to a multiple of 16.

Legend: B batch, F frames, H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onereel.core.device import pick_device
from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.distances import Features
from onereel.evaluation.feature_sets import DistanceResult, Extractor, Mmd, compare_sets
from onereel.evaluation.networks.checkpoints import load_script
from onereel.evaluation.videos import Progress, Video, choose_frames, hash_input
from onereel.media.image import check_frames
from onereel.media.scale import Pixels

Convention = Literal["styleganv", "videogpt", "magic141"]
VideoNetwork = Callable[[Tensor], Tensor]

SIDE = 224
MIN_FRAMES = 10
_MULTIPLE = 16
_HINT = "give the archive i3d_torchscript.pt that the authors of StyleGAN-V published"
_WORDS = {
    "styleganv": "short side 224 bilinear without antialias, centre",
    "videogpt": "8 bits by truncation, short side 224 bilinear without antialias, centre",
    "magic141": "short side 224 bicubic with antialias, centre, frames a multiple of 16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FvdConfig:
    """What changes the value of an FVD, and how it is computed.

    Args:
        convention: preprocessing, see the top of this file.
        num_frames: frames taken from the start of each video, at least 10; None for all.
        stride: every how many-th frame is taken.
        mmd: how the KVD is taken; None leaves it out.
        mixed: let sizes and frame counts differ inside a set; the result says so.
        batch_size: videos at once; bounds memory.
        device: torch device name, or "auto".

    Raises:
        ConfigError: a value is not possible.
    """

    convention: Convention = "styleganv"
    num_frames: int | None = 16
    stride: int = 1
    mmd: Mmd | None = "subsets"
    mixed: bool = False
    batch_size: int = 4
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_convention(self.convention)
        least = self.least_frames
        if self.num_frames is not None and self.num_frames < least:
            expected = f"at least {least}, or none for all"
            raise ConfigError("num_frames", expected=expected, got=self.num_frames)
        if self.stride < 1 or self.batch_size < 1:
            got = f"{self.stride} and {self.batch_size}"
            raise ConfigError("stride, batch_size", expected="at least 1", got=got)
        if self.mmd not in (None, *get_args(Mmd)):
            raise ConfigError("mmd", expected="subsets, all or none", got=self.mmd)

    @property
    def least_frames(self) -> int:
        """Count the frames that a video must give.

        Returns:
            What I3D needs, or the multiple of the convention.
        """
        return _MULTIPLE if self.convention == "magic141" else MIN_FRAMES


def evaluate_fvd(
    real: str | Path,
    fake: str | Path,
    *,
    network: str | Path | VideoNetwork,
    config: FvdConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, DistanceResult]:
    """Take the FVD, and the KVD from the same features.

    Args:
        real: folder of the real videos.
        fake: folder of the generated videos.
        network: path of the TorchScript archive; or a callable that takes [B, 3, F, 224, 224] in
            [-1, 1] on the config's device and gives [B, d], or [B, d, F'] which is averaged.
        config: settings.
        progress: called with (videos read, videos in both folders).

    Returns:
        Results `fvd` and, unless left out, `kvd`.

    Raises:
        MediaError: videos that cannot be scored, all of them named.
        CheckpointError: the archive cannot be used.
        ConfigError: fewer than two videos in a set.
        ShapeError: the network gave something else than finite vectors.

    Source:
        Unterthiner et al., Towards Accurate Generative Models of Video (2018).
    """
    config = config or FvdConfig()
    called, path = _resolved(network, config)
    extractor = Extractor(
        select=lambda video: select_frames(video, config=config),
        extract=lambda batch: video_features(batch, network=called, config=config),
        batch_size=config.batch_size,
        stride=config.stride,
        convention=f"{config.convention}: {_WORDS[config.convention]}",
        network=path.name if path else "given by the caller",
        network_sha256=hash_input(path) if path else None,
        mixed=config.mixed,
    )
    return compare_sets(
        real, fake, extractor=extractor, kinds=("fvd", "kvd"), mmd=config.mmd, progress=progress
    )


def _resolved(
    network: str | Path | VideoNetwork, config: FvdConfig
) -> tuple[VideoNetwork, Path | None]:
    """The network and its file."""
    if not isinstance(network, str | Path):
        return network, None
    path = Path(network)
    return load_i3d(path, convention=config.convention, device=config.device), path


def load_i3d(
    path: str | Path, *, convention: Convention = "styleganv", device: str = "cpu"
) -> VideoNetwork:
    """Load the classifier as the convention calls it.

    Args:
        path: a TorchScript archive; it is a program, take it only from those you trust.
        convention: "videogpt" calls it with the video alone, the others switch its own rescaling
            and resizing off and its features on.
        device: torch device name, or "auto".

    Returns:
        A function from [B, 3, F, 224, 224] in [-1, 1] to the network's output.

    Raises:
        CheckpointError: no such archive.
    """
    check_convention(convention)
    flags = {"rescale": False, "resize": False, "return_features": True}
    if convention == "videogpt":
        flags = {}
    return load_script(path, flags=flags, device=pick_device(device), hint=_HINT)


def preprocess(frames: Pixels, *, convention: Convention = "styleganv") -> Tensor:
    """Bring a video to the classifier's size and range.

    Args:
        frames: uint8 [F, H, W, 3].
        convention: see the top of this file.

    Returns:
        float32 [1, 3, F, 224, 224] in [-1, 1]; bicubic overshoot is kept.

    Raises:
        ShapeError: the frames are not uint8 [F, H, W, 3].
        ConfigError: the convention is not known.

    Source:
        JunyaoHu/common_metrics_on_video_quality @5f75173, fvd; DA-Group-PKU/Magic-1-For-1
        @7e4c12d, model_dit/vae/common/evaluation/metrics.py.
    """
    check_frames(frames)
    check_convention(convention)
    # Truncation to 8 bits changes nothing here: these are 8 bits, and x/255*255 is exact.
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[2:]
    if convention == "magic141":
        sides = [SIDE * n // min(height, width) for n in (height, width)]
        x = functional.interpolate(x, size=sides, mode="bicubic", antialias=True)
        # Half to even, as torchvision's centre crop.
        top, left = (round((n - SIDE) / 2) for n in sides)
    else:
        scale = SIDE / min(height, width)
        sides = [SIDE if n == min(height, width) else math.ceil(n * scale) for n in (height, width)]
        x = functional.interpolate(x, size=sides, mode="bilinear")
        top, left = ((n - SIDE) // 2 for n in sides)
    x = x[:, :, top : top + SIDE, left : left + SIDE]
    return ((x - 0.5) * 2).permute(1, 0, 2, 3)[None]  # [1, 3, F, H, W]


def select_frames(video: Video, *, config: FvdConfig) -> Pixels:
    """Take the frames of a video that its features are of.

    Args:
        video: the video.
        config: settings.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        MediaError: the video is too short.
    """
    chosen = choose_frames(video, num_frames=config.num_frames, stride=config.stride)
    if len(chosen) < config.least_frames:
        got = f"{len(chosen)} at stride {config.stride}"
        expected = f"at least {config.least_frames} frames"
        raise MediaError(f"video {video.path} is too short", expected=expected, got=got)
    if config.convention == "magic141":
        chosen = chosen[: len(chosen) // _MULTIPLE * _MULTIPLE]
    return chosen


def video_features(batch: list[Pixels], *, network: VideoNetwork, config: FvdConfig) -> Features:
    """Take the features of videos of one shape.

    Args:
        batch: uint8 [F, H, W, 3] each.
        network: see `evaluate_fvd`.
        config: settings.

    Returns:
        One vector per video, [B, d].
    """
    device = pick_device(config.device)
    videos = torch.cat([preprocess(frames, convention=config.convention) for frames in batch])
    with torch.inference_mode():
        output = network(videos.to(device))
    if output.ndim == 3:
        output = output.mean(dim=2)
    features: Features = output.double().cpu().numpy()
    return features


def check_convention(convention: str) -> None:
    """Refuse a convention that is not there.

    Args:
        convention: its name.

    Raises:
        ConfigError: it is not known.
    """
    if convention not in get_args(Convention):
        known = ", ".join(get_args(Convention))
        raise ConfigError("convention", expected=f"one of {known}", got=convention)
