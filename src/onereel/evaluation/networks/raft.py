"""RAFT: optical flow by looking up all-pairs correlations again and again.

B batch, H W height and width of the frames, h w an eighth of them, P pixels (h * w). Names of
modules are those of the official checkpoint, so that it loads as it is. Read `Raft.forward` first.

Source:
    Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", 2020;
    spec/evaluation.md 7. The official weights are under the BSD-3 licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from onereel.core.errors import CheckpointError, ShapeError
from onereel.evaluation.networks.checkpoints import load_state

HIDDEN = 128
CONTEXT = 128
NUM_LEVELS = 4
RADIUS = 4
ITERATIONS = 20
MIN_SIDE = 64  # the coarsest correlation level has one value per axis there


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution and of the shortcut.
        norm: class of the normalisation, which takes the number of channels.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = functional.relu(self.norm2(self.conv2(y)))
        return functional.relu(self.downsample(x) + y)


class Encoder(nn.Module):
    """Features at an eighth of the resolution.

    Args:
        outputs: channels.
        norm: class of the normalisation.
    """

    def __init__(self, outputs: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.norm1 = norm(64)
        self.layer1 = self._stage(64, 64, 1, norm)
        self.layer2 = self._stage(64, 96, 2, norm)
        self.layer3 = self._stage(96, 128, 2, norm)
        self.conv2 = nn.Conv2d(128, outputs, 1)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, norm: type[nn.Module]) -> nn.Sequential:
        return nn.Sequential(
            ResidualBlock(inputs, outputs, stride=stride, norm=norm),
            ResidualBlock(outputs, outputs, stride=1, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode frames [B, 3, H, W] in [-1, 1] to [B, outputs, h, w]."""
        x = functional.relu(self.norm1(self.conv1(x)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class MotionEncoder(nn.Module):
    """Mixes the correlations at the current estimate with the estimate itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(NUM_LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, 126, 3, padding=1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        """Encode flow [B, 2, h, w] and correlation [B, 324, h, w] to [B, 128, h, w]."""
        c = functional.relu(self.convc2(functional.relu(self.convc1(correlation))))
        f = functional.relu(self.convf2(functional.relu(self.convf1(flow))))
        mixed = functional.relu(self.conv(torch.cat((c, f), dim=1)))
        return torch.cat((mixed, flow), dim=1)


class SeparableGru(nn.Module):
    """A convolutional GRU, once along rows and once along columns."""

    def __init__(self) -> None:
        super().__init__()
        channels = HIDDEN + CONTEXT + 128  # hidden state, context, motion
        self.convz1 = nn.Conv2d(channels, HIDDEN, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(channels, HIDDEN, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(channels, HIDDEN, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(channels, HIDDEN, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(channels, HIDDEN, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(channels, HIDDEN, (5, 1), padding=(2, 0))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Update the hidden state h [B, 128, h, w] by the input x [B, 256, h, w]."""
        rows = (self.convz1, self.convr1, self.convq1)
        columns = (self.convz2, self.convr2, self.convq2)
        for conv_z, conv_r, conv_q in (rows, columns):
            both = torch.cat((h, x), dim=1)
            z, r = torch.sigmoid(conv_z(both)), torch.sigmoid(conv_r(both))
            q = torch.tanh(conv_q(torch.cat((r * h, x), dim=1)))
            h = (1 - z) * h + z * q
        return h


class FlowHead(nn.Module):
    """Reads the change of the flow out of the hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HIDDEN, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, 128, h, w] to [B, 2, h, w]."""
        return self.conv2(functional.relu(self.conv1(h)))


class UpdateBlock(nn.Module):
    """One iteration: new hidden state, and how far it moves the estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.gru = SeparableGru()
        self.flow_head = FlowHead()
        self.mask = nn.Sequential(
            nn.Conv2d(HIDDEN, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 9 * 8 * 8, 1),
        )

    def forward(
        self, h: Tensor, context: Tensor, correlation: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give the hidden state and the flow's change."""
        motion = self.encoder(flow, correlation)
        h = self.gru(h, torch.cat((context, motion), dim=1))
        return h, self.flow_head(h)


class Raft(nn.Module):
    """Optical flow between two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = Encoder(256, nn.InstanceNorm2d)
        self.cnet = Encoder(HIDDEN + CONTEXT, nn.BatchNorm2d)
        self.update_block = UpdateBlock()

    def forward(
        self, first: Tensor, second: Tensor, num_iterations: int = ITERATIONS
    ) -> tuple[Tensor, Tensor]:
        """Estimate where every pixel of the first frame is in the second.

        Args:
            first: float [B, 3, H, W] in 0..255, H and W multiples of 8 (see `pad_frames`).
            second: like `first`.
            num_iterations: how often the estimate is refined.

        Returns:
            Flow (x, y) at an eighth of the resolution in its own pixels [B, 2, h, w], and at full
            resolution [B, 2, H, W].

        Raises:
            ShapeError: the frames do not fit.
        """
        _check_pair(first, second)
        first, second = 2 * (first / 255) - 1, 2 * (second / 255) - 1
        pyramid = correlation_pyramid(self.fnet(first), self.fnet(second))
        h, context = self.cnet(first).split((HIDDEN, CONTEXT), dim=1)
        h, context = torch.tanh(h), functional.relu(context)
        start = _pixel_grid(h)
        coords = start
        for _ in range(num_iterations):
            correlation = look_up(pyramid, coords)
            h, change = self.update_block(h, context, correlation, coords - start)
            coords = coords + change
        flow = coords - start
        return flow, upsample(flow, 0.25 * self.update_block.mask(h))


def correlation_pyramid(first: Tensor, second: Tensor) -> list[Tensor]:
    """Compare every pixel of the first features with every pixel of the second.

    Args:
        first: features [B, C, h, w].
        second: features [B, C, h, w].

    Returns:
        Four levels [B * P, 1, h / 2**level, w / 2**level], P = h * w.
    """
    channels, height, width = first.shape[1:]
    first = rearrange(first, "b c h w -> b (h w) c")
    second = rearrange(second, "b c h w -> b c (h w)")
    volume = torch.matmul(first, second) / channels**0.5
    levels = [rearrange(volume, "b p (h w) -> (b p) 1 h w", h=height, w=width)]
    for _ in range(NUM_LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


def look_up(pyramid: list[Tensor], coords: Tensor) -> Tensor:
    """Read a window of correlations around the current estimate, at every level.

    Args:
        pyramid: what `correlation_pyramid` gave.
        coords: estimated positions (x, y) in pixels [B, 2, h, w].

    Returns:
        [B, 4 * 81, h, w]; zero outside the second frame.
    """
    batch, _, height, width = coords.shape
    steps = torch.arange(-RADIUS, RADIUS + 1, device=coords.device, dtype=coords.dtype)
    # The official window is transposed: its first axis moves along x.
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # [9, 9, 2]
    centres = rearrange(coords, "b xy h w -> (b h w) 1 1 xy")
    found = []
    for level, volume in enumerate(pyramid):
        size = torch.tensor(
            (volume.shape[3], volume.shape[2]), device=coords.device, dtype=coords.dtype
        )
        # Pixel x is at (2x + 1) / W - 1 in this convention, which a width of 1 does not break.
        grid = (2 * (centres / 2**level + window) + 1) / size - 1
        values = functional.grid_sample(volume, grid, align_corners=False)
        found.append(rearrange(values, "(b h w) 1 i j -> b (i j) h w", b=batch, h=height, w=width))
    return torch.cat(found, dim=1)


def upsample(flow: Tensor, mask: Tensor) -> Tensor:
    """Bring the flow to full resolution: each pixel is a mixture of its 3x3 coarse neighbours.

    Args:
        flow: [B, 2, h, w].
        mask: unnormalised weights [B, 9 * 64, h, w].

    Returns:
        [B, 2, 8 h, 8 w], in pixels of that resolution.
    """
    height, width = flow.shape[-2:]
    weights = rearrange(mask, "b (k i j) h w -> b 1 k i j h w", k=9, i=8, j=8).softmax(dim=2)
    patches = functional.unfold(8 * flow, 3, padding=1)
    patches = rearrange(patches, "b (xy k) (h w) -> b xy k 1 1 h w", k=9, h=height, w=width)
    return rearrange((weights * patches).sum(dim=2), "b xy i j h w -> b xy (h i) (w j)")


def pad_frames(frames: Tensor, multiple: int = 8) -> tuple[Tensor, tuple[int, int]]:
    """Repeat the edge pixels until both sides are multiples; the smaller half goes top and left.

    Args:
        frames: float [B, C, H, W].
        multiple: of the sides.

    Returns:
        The padded frames, and (rows above, columns left) that were added.
    """
    rows, columns = (-frames.shape[-2]) % multiple, (-frames.shape[-1]) % multiple
    top, left = rows // 2, columns // 2
    padded = functional.pad(frames, (left, columns - left, top, rows - top), mode="replicate")
    return padded, (top, left)


def official_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint's tensors to the names used here.

    Args:
        weights: the state dict, with or without the prefix `module.`.

    Returns:
        Without that prefix, and without `norm3`, a second name of `downsample.1`.
    """
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    return {name: value for name, value in plain.items() if ".norm3." not in name}


def load_raft(path: str | Path, *, device: str | torch.device = "cpu") -> Raft:
    """Load an official checkpoint such as `raft-things.pth`.

    Args:
        path: the file: a state dict saved by torch.
        device: where to put the network.

    Returns:
        The network, ready for inference.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a RAFT checkpoint.
    """
    saved = load_state(path)
    network = Raft()
    try:
        network.load_state_dict(official_weights(saved), strict=True)
    except (RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not the weights of RAFT ({' '.join(str(error).split())})",
            hint="take raft-things.pth of the authors' models.zip; the small variant does not fit",
        ) from error
    return network.eval().requires_grad_(False).to(device)


def _check_pair(first: Tensor, second: Tensor) -> None:
    shape = tuple(first.shape)
    if tuple(second.shape) != shape or len(shape) != 4 or shape[1] != 3:
        got = f"{list(shape)} and {list(second.shape)}"
        raise ShapeError("frames", expected="two of shape [B, 3, H, W]", got=got)
    if shape[2] % 8 or shape[3] % 8 or min(shape[2:]) < MIN_SIDE:
        raise ShapeError(
            "frames",
            expected=f"sides that are multiples of 8 and at least {MIN_SIDE}",
            got=f"{shape[3]}x{shape[2]}",
            hint="pad them with pad_frames; enlarge smaller ones and say so",
        )


def _pixel_grid(like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack((x, y)).to(device=like.device, dtype=like.dtype)
    return grid.expand(len(like), -1, -1, -1)  # [B, 2, h, w]
