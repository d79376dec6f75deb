"""LPIPS v0.1: a perceptual distance between pictures, on AlexNet or VGG16 features.

Nothing is downloaded. The backbone is torchvision's ImageNet file, the heads are the authors' file.

| file | size | licence |
|---|---|---|
| `alexnet-owt-7be5be79.pth` | 61 M parameters, 244 MB (2.5 M of them are used) | BSD-3-Clause |
| `vgg16-397923af.pth` | 138 M parameters, 553 MB (14.7 M of them are used) | BSD-3-Clause |
| heads `alex.pth`, `vgg.pth` of version 0.1 | 1152 and 1472 numbers, 6 to 8 kB | BSD-2-Clause |

Legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from onereel.core.errors import CheckpointError, ConfigError, ShapeError
from onereel.evaluation.networks.checkpoints import check_names, load_state

Net = Literal["alex", "vgg"]

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HINTS = {
    "alex": "take alexnet-owt-7be5be79.pth of torchvision and v0.1/alex.pth of LPIPS",
    "vgg": "take vgg16-397923af.pth of torchvision and v0.1/vgg.pth of LPIPS",
}
# The smallest side that leaves something after all strides.
_SMALLEST = {"alex": 31, "vgg": 16}
# The classifiers of the backbone files, which LPIPS has no use for.
_UNUSED = "classifier."


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
    return layers, (1, 4, 7, 9, 11)


def _vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers: list[nn.Module] = []
    taps = []
    inputs = 3
    for widths in _VGG_WIDTHS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        taps.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(taps)


class Lpips(nn.Module):
    """Distance between two pictures by the features of a classifier.

    Args:
        net: the backbone, "alex" or "vgg".

    Source:
        Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (2018),
        section 3, equation 1; version 0.1 of its code.
    """

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in get_args(Net):
            raise ConfigError("net", expected="alex or vgg", got=net)
        self.net: Net = net
        self.sha256: dict[str, str] = {}  # of the files the weights came from
        self.features, self.taps = _alexnet() if net == "alex" else _vgg16()
        widths = [_width(self.features, tap) for tap in self.taps]
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the distance of each pair.

        Args:
            x: [B, 3, H, W] in [-1, 1].
            y: [B, 3, H, W] in [-1, 1].

        Returns:
            At least 0, [B].

        Raises:
            ShapeError: the two do not fit, or are too small for the backbone.
        """
        return self.layers(x, y).sum(dim=1)

    def layers(self, x: Tensor, y: Tensor) -> Tensor:
        """Take each tap's share of the distance.

        Args:
            x: [B, 3, H, W] in [-1, 1].
            y: [B, 3, H, W] in [-1, 1].

        Returns:
            At least 0, [B, 5].

        Raises:
            ShapeError: the two do not fit, or are too small for the backbone.
        """
        smallest = _SMALLEST[self.net]
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < smallest:
            raise ShapeError(
                "pictures",
                expected=f"two of [B, 3, H, W], at least {smallest} pixels each way",
                got=f"{list(x.shape)} and {list(y.shape)}",
            )
        # One pass over both: the backbone's weights are read once.
        both = (torch.cat([x, y]) - self.shift) / self.scale
        shares: list[Tensor] = []
        for i, layer in enumerate(self.features):
            both = layer(both)
            if i in self.taps:
                first, second = _unit(both).chunk(2)
                head = self.heads[len(shares)]
                shares.append(head((first - second).square()).mean(dim=(1, 2, 3)))
        return torch.stack(shares, dim=1)


def _width(features: nn.Sequential, tap: int) -> int:
    conv = features[tap - 1]
    assert isinstance(conv, nn.Conv2d)
    return conv.out_channels


def _unit(features: Tensor) -> Tensor:
    """Vectors of length 1 at every place."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def load_lpips(
    backbone: str | Path,
    heads: str | Path,
    *,
    net: Net = "alex",
    device: str | torch.device = "cpu",
) -> Lpips:
    """Load the published weights.

    Args:
        backbone: torchvision's file, keys `features.N.weight|bias`; its classifier is left out.
        heads: the authors' file, keys `lin{k}.model.1.weight`.
        net: which backbone the files are of.
        device: where to put the network.

    Returns:
        The network, ready for inference.

    Raises:
        CheckpointError: a file is missing or damaged, or holds other tensors.
    """
    network = Lpips(net)
    tensors = load_state(backbone, hint=_HINTS[net])
    found = {k: v for k, v in tensors.items() if not k.startswith(_UNUSED)}
    expected = network.features.state_dict(prefix="features.")
    check_names(found, expected, where=backbone)
    linear = load_state(heads, hint=_HINTS[net])
    wanted = {f"lin{k}.model.1.weight": head.weight for k, head in enumerate(network.heads)}
    check_names(linear, {k: v for k, v in wanted.items() if isinstance(v, Tensor)}, where=heads)
    if any(bool((tensor < 0).any()) for tensor in linear.values()):
        raise CheckpointError(f"{heads}: a weight is negative", hint=_HINTS[net])
    renamed = {f"heads.{k}.weight": linear[name] for k, name in enumerate(wanted)}
    network.load_state_dict({**found, **renamed}, strict=True)
    for path in (Path(backbone), Path(heads)):
        with path.open("rb") as file:
            network.sha256[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return network.eval().requires_grad_(False).to(device)


def lpips_frames(
    network: Lpips,
    video: npt.NDArray[np.uint8],
    *,
    reference: npt.NDArray[np.uint8],
    batch_size: int = 8,
) -> npt.NDArray[np.float64]:
    """Take the distance of every frame to its reference.

    Args:
        network: with weights.
        video: uint8 [F, H, W, 3].
        reference: uint8, the same shape.
        batch_size: frames at once; bounds memory, not the result.

    Returns:
        At least 0 each, [F]; a video's value is their mean.

    Raises:
        ShapeError: the two do not fit, or are too small for the backbone.
    """
    if video.shape != reference.shape:
        got = list(video.shape)
        raise ShapeError("video", expected=f"{list(reference.shape)} as its reference", got=got)
    values = []
    with torch.inference_mode():
        for start in range(0, len(video), batch_size):
            pair = (_signed(network, frames[start : start + batch_size]) for frames in
                    (video, reference))  # fmt: skip
            values.append(network(*pair).double().cpu().numpy())
    return np.concatenate(values)


def _signed(network: Lpips, frames: npt.NDArray[np.uint8]) -> Tensor:
    """Frames as the network takes them, [B, 3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(network.shift.device)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
