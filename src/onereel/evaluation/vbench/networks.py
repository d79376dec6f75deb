"""What VBench's networks must do, and what they are.

Each network is a small Protocol: any callable that does this can be passed in `Networks`.
`adapters.py` loads those that need no other package. A dimension whose network is absent is
reported as not computed; nothing ever takes its place.

Source:
    sizes and licences: spec/evaluation.md 2.5, sizes approximate; where it says "check", the terms
    were not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from onereel.evaluation.vbench.detections import Detection
from onereel.evaluation.vbench.features import Pixels


class ImageEmbedder(Protocol):
    """Turns pictures into features."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Embed normalised pictures float32 [N, 3, h, w] as [N, D]."""
        ...


class ImageTextEmbedder(ImageEmbedder, Protocol):
    """Turns pictures and texts into features of one space."""

    def embed_text(self, texts: Sequence[str], /) -> Tensor:
        """Embed texts as [N, D]."""
        ...


class VideoTextEmbedder(Protocol):
    """Turns short videos and texts into features of one space."""

    def embed_video(self, frames: Tensor, /) -> Tensor:
        """Embed eight normalised frames float32 [8, 3, 224, 224] as [D]."""
        ...

    def embed_text(self, texts: Sequence[str], /) -> Tensor:
        """Embed texts as [N, D]."""
        ...


class PairNetwork(Protocol):
    """Looks at two frames: interpolates the frame between them, or estimates the flow."""

    def __call__(self, first: Tensor, second: Tensor, /) -> Tensor:
        """Map two frames float32 [1, 3, H, W] to one, or to a flow [1, 2, H, W] in pixels.

        The interpolator's frames are in 0..1 with sides that are multiples of 16, those of the flow
        in 0..255 with multiples of 8.
        """
        ...


class ImagingScorer(Protocol):
    """Rates the technical quality of pictures."""

    def __call__(self, frames: Tensor, /) -> Tensor:
        """Rate frames float32 [N, 3, h, w] in 0..1 with N numbers in 0..100."""
        ...


class PointTracker(Protocol):
    """Follows a grid of 10 x 10 points through a video."""

    def __call__(self, frames: Pixels, /) -> npt.NDArray[Any]:
        """Follow points through uint8 [F, H, W, 3]; give (x, y) in pixels, [F, 10, 10, 2]."""
        ...


class Detector(Protocol):
    """Finds objects in frames, with a dense caption each."""

    def __call__(self, frames: Pixels, /) -> Sequence[Sequence[Detection]]:
        """List the objects of every frame of uint8 [N, H, W, 3]; `detector_size` is its size."""
        ...


class Captioner(Protocol):
    """Describes frames."""

    def __call__(self, frames: Pixels, /) -> Sequence[str]:
        """Describe every frame of uint8 [N, H, W, 3]; the official one sees 384 x 384."""
        ...


class ActionClassifier(Protocol):
    """Names the action in a short video."""

    def __call__(self, frames: Pixels, /) -> Sequence[tuple[str, float]]:
        """List (action, probability) for uint8 [16, H, W, 3], the most likely first."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticHead:
    """A linear layer on CLIP features that says how pretty a picture is.

    Args:
        weight: [D] floats.
        bias: one float.
        description: where it came from.
    """

    weight: npt.NDArray[np.float64]
    bias: float
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkInfo:
    """What a user should know before downloading a network.

    Args:
        name: of the network and its training.
        size: parameters and download.
        licence: of the weights.
        source: how it gets in.
    """

    name: str
    size: str
    licence: str
    source: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.name} ({self.size}; licence: {self.licence})"


_CLIP_SOURCE = "load_clip with a folder or hub name: transformers"
_PLUGIN = "a plug-in of yours"

NETWORKS = {
    "dino": NetworkInfo(
        name="DINO v1 ViT-B/16",
        size="86 M parameters, 343 MB",
        licence="Apache-2.0",
        source="load_dino with a folder or the hub name facebook/dino-vitb16: transformers",
    ),
    "clip_b32": NetworkInfo(
        name="CLIP ViT-B/32",
        size="151 M parameters, 340 MB",
        licence="MIT",
        source=f"{_CLIP_SOURCE}, openai/clip-vit-base-patch32",
    ),
    "clip_l14": NetworkInfo(
        name="CLIP ViT-L/14",
        size="428 M parameters, 0.9 GB in half precision",
        licence="MIT",
        source=f"{_CLIP_SOURCE}, openai/clip-vit-large-patch14",
    ),
    "aesthetic_head": NetworkInfo(
        name="LAION aesthetic head sa_0_4_vit_l_14_linear",
        size="769 numbers",
        licence="MIT",
        source="load_aesthetic_head with the file",
    ),
    "flow": NetworkInfo(
        name="RAFT trained on FlyingThings",
        size="5.3 M parameters, 21 MB",
        licence="BSD-3",
        source="load_flow with the file raft-things.pth: our own network",
    ),
    "interpolator": NetworkInfo(
        name="AMT-S",
        size="3 M parameters, 12 MB",
        licence="CC BY-NC 4.0, not for commercial use",
        source=_PLUGIN,
    ),
    "imaging": NetworkInfo(
        name="MUSIQ trained on SPAQ",
        size="27 M parameters, 155 MB",
        licence="MUSIQ Apache-2.0; the converted file comes with pyiqa, check its terms",
        source="load_imaging_scorer when pyiqa is installed, or a plug-in of yours",
    ),
    "dreamsim": NetworkInfo(
        name="DreamSim ensemble",
        size="about 1 GB",
        licence="MIT",
        source=_PLUGIN,
    ),
    "tracker": NetworkInfo(
        name="CoTracker2",
        size="about 0.2 GB",
        licence="CC BY-NC 4.0, not for commercial use",
        source=_PLUGIN,
    ),
    "viclip": NetworkInfo(
        name="ViCLIP-L trained on InternVid-10M-FLT",
        size="0.43 B parameters, 1.7 GB",
        licence="check",
        source=_PLUGIN,
    ),
    "detector": NetworkInfo(
        name="GRiT ViT-B with detection and dense captions",
        size="0.8 GB, needs detectron2",
        licence="MIT",
        source=_PLUGIN,
    ),
    "captioner": NetworkInfo(
        name="Tag2Text swin-B",
        size="several GB",
        licence="Apache-2.0",
        source=_PLUGIN,
    ),
    "actions": NetworkInfo(
        name="UMT ViT-L/16 for Kinetics-400",
        size="0.3 B parameters, 0.6 to 1.2 GB",
        licence="check",
        source=_PLUGIN,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """The networks at hand; None is a network that is not there. `NETWORKS` describes each.

    Args:
        dino: for subject_consistency and i2v_subject.
        clip_b32: for background_consistency and appearance_style.
        clip_l14: for aesthetic_quality.
        aesthetic_head: for aesthetic_quality.
        flow: for dynamic_degree and the filter for still videos.
        interpolator: for motion_smoothness.
        imaging: for imaging_quality.
        dreamsim: for i2v_background.
        tracker: for camera_motion.
        viclip: for overall_consistency and temporal_style.
        detector: for objects, their colours and places.
        captioner: for scene.
        actions: for human_action.
    """

    dino: ImageEmbedder | None = None
    clip_b32: ImageTextEmbedder | None = None
    clip_l14: ImageEmbedder | None = None
    aesthetic_head: AestheticHead | None = None
    flow: PairNetwork | None = None
    interpolator: PairNetwork | None = None
    imaging: ImagingScorer | None = None
    dreamsim: ImageEmbedder | None = None
    tracker: PointTracker | None = None
    viclip: VideoTextEmbedder | None = None
    detector: Detector | None = None
    captioner: Captioner | None = None
    actions: ActionClassifier | None = None

    def descriptions(self) -> dict[str, str]:
        """Describe the networks at hand.

        Returns:
            By name; what a plug-in says of itself in `description`, else its class.
        """
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: getattr(network, "description", "") or type(network).__name__
            for name, network in present.items()
            if network is not None
        }

    def lacking(self, names: Sequence[str]) -> str:
        """Say which of some networks are absent.

        Args:
            names: of the networks a dimension needs.

        Returns:
            What is needed, its size, licence and source; empty when everything is there.
        """
        absent = [NETWORKS[name] for name in names if getattr(self, name) is None]
        return "needs " + ", and ".join(f"{i}: {i.source}" for i in absent) if absent else ""
