"""A small video classifier trained on Toybox itself, whose features measure distribution distance.

Legend: B batch, C channels, F frames, H W height and width, D features (64).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from onereel.core.errors import CheckpointError, ShapeError
from onereel.world import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    SceneSpec,
    render,
    sample_clip,
    sample_spec,
    simulate,
)

Video = npt.NDArray[np.uint8]
Batch = tuple[Tensor, dict[str, Tensor]]

CHECKPOINT = Path(__file__).with_name("world_features.safetensors")
SIZE = 64  # height and width the classifier sees
NUM_FRAMES = 16  # that it sees: every third of the first two seconds
STRIDE = 3
MIN_FRAMES = STRIDE * (NUM_FRAMES - 1) + 1
NUM_FEATURES = 64
_WIDTHS = (16, 32, 40, NUM_FEATURES)
_MAX_OBJECTS = 3
# name -> (number of outputs, whether several can be true at once)
_LABELS = {
    "colours": (len(COLOURS), True),
    "shapes": (len(SHAPES), True),
    "count": (_MAX_OBJECTS, False),
    "direction": (len(DIRECTIONS) + 1, False),  # the last one: none
    "event": (len(MOTIONS), False),
}
# far from the seeds of other uses
_FIRST_SEED, _SCALE_SEED, _TEST_SEED = 3_000_000_000, 2_500_000_000, 2_000_000_000
_CLIPS, _STILLS = 8, 16  # per batch
_SEEN_AT_ONCE = tuple(name for name in MOTIONS if name not in ("appear", "occlude"))
_SCALE_SHARE = 24  # training clips per clip that serves to measure the spread of the features


class WorldClassifier(nn.Module):
    """Four 3-D convolutions, pooling over time and space, and one linear head.

    Half of the channels are pooled by their maximum, for an object covers a few hundredths of the
    picture; the others by their mean, which sees what is wrong everywhere, such as noise.

    Source:
        spec/evaluation.md 9.7.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = _WIDTHS
        self.body = nn.Sequential(
            nn.Conv3d(3, a, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2)),
            nn.GroupNorm(4, a),
            nn.SiLU(),
            nn.Conv3d(a, b, 3, stride=2, padding=1),
            nn.GroupNorm(4, b),
            nn.SiLU(),
            nn.Conv3d(b, c, 3, stride=2, padding=1),
            nn.GroupNorm(4, c),
            nn.SiLU(),
            nn.Conv3d(c, d, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(d, sum(size for size, _ in _LABELS.values()))
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))

    def features(self, clips: Tensor) -> Tensor:
        """Give what the head sees, in units of its spread among the world's own clips.

        Args:
            clips: what `prepare` gave, stacked: [B, 3, 16, 64, 64].

        Returns:
            [B, D], mean 0 and variance 1 on true clips.
        """
        return (self._pooled(clips) - self.centre) / self.spread

    def _pooled(self, clips: Tensor) -> Tensor:
        found = self.body(clips)
        half = found.shape[1] // 2
        highest, mean = found[:, :half].amax(dim=(2, 3, 4)), found[:, half:].mean(dim=(2, 3, 4))
        return torch.cat([highest, mean], dim=1)

    @torch.inference_mode()
    def set_scale(self, clips: Tensor) -> None:
        """Measure centre and spread of the features.

        Args:
            clips: true ones, [B, 3, 16, 64, 64].
        """
        pooled = torch.cat([self._pooled(part) for part in clips.split(_CLIPS)])
        self.centre.copy_(pooled.mean(dim=0))
        self.spread.copy_(pooled.std(dim=0).clamp(min=1e-6))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Classify clips.

        Args:
            clips: [B, 3, 16, 64, 64].

        Returns:
            Logits by the name of the label, each [B, number of classes].
        """
        sizes = [size for size, _ in _LABELS.values()]
        parts = self.head(self._pooled(clips)).split(sizes, dim=1)
        return dict(zip(_LABELS, parts, strict=True))


def prepare(video: Video) -> Tensor:
    """Pick the frames that the classifier sees and scale them to its size.

    Args:
        video: uint8 [F, H, W, 3] at 24 frames per second; only the first 46 frames count.

    Returns:
        float32 [3, 16, 64, 64] in [-1, 1].

    Raises:
        ShapeError: not such an array, or fewer than 46 frames.
    """
    if video.ndim != 4 or video.shape[3] != 3 or len(video) < MIN_FRAMES:
        raise ShapeError(
            "video",
            expected=f"[F, H, W, 3] with at least {MIN_FRAMES} frames",
            got=str(list(video.shape)),
        )
    frames = torch.from_numpy(np.ascontiguousarray(video[:MIN_FRAMES:STRIDE]))
    frames = frames.permute(3, 0, 1, 2).float() / 127.5 - 1  # [3, F, H, W]
    if frames.shape[2:] == (SIZE, SIZE):
        return frames
    return functional.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True)


def world_features(videos: Iterable[Video], *, model: WorldClassifier) -> npt.NDArray[np.float32]:
    """Take the features of videos on the CPU.

    Args:
        videos: each uint8 [F, H, W, 3], at least 46 frames.
        model: what `load_world_classifier` gave.

    Returns:
        [n, 64], one row per video.

    Raises:
        ShapeError: a video is too short, or there is none.
    """
    rows = []
    with torch.inference_mode():
        for video in videos:
            # one at a time: the last bits do not depend on what else is in a batch
            rows.append(model.features(prepare(video)[None])[0].numpy())
    if not rows:
        raise ShapeError("videos", expected="at least one", got="none")
    return np.stack(rows)


def load_world_classifier(path: Path = CHECKPOINT) -> WorldClassifier:
    """Load the classifier's weights.

    Args:
        path: a file that `save_world_classifier` wrote; the default travels with the package.

    Returns:
        The classifier in float32, for inference.

    Raises:
        CheckpointError: the file is missing, damaged or of another network.
    """
    model = WorldClassifier()
    try:
        weights = load_file(path)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(str(path), expected="the world classifier", got=error) from error
    return model.eval().requires_grad_(False)


def save_world_classifier(model: WorldClassifier, path: Path) -> None:
    """Write the weights in bfloat16, half the size at no loss that matters here.

    Args:
        model: a trained classifier.
        path: a `.safetensors` file.
    """
    weights = {name: value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path)


def classifier_sha256(path: Path = CHECKPOINT) -> str:
    """Hash the weights' file; distances are comparable only between equal hashes.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def train_world_classifier(
    num_clips: int = 12_000,
    *,
    num_stills: int = 48_000,
    learning_rate: float = 2e-3,
    seed: int = 0,
    on_batch: Callable[[str, int, float], None] | None = None,
) -> WorldClassifier:
    """Train on single frames, which are cheap and teach shapes, then on clips.

    Every scene is seen once; one in ten is of a held-out combination.

    Args:
        num_clips: how many clips.
        num_stills: how many single frames.
        learning_rate: at its peak, which a tenth of each stage's way leads to.
        seed: of the weights and the scenes.
        on_batch: called after every batch with what is trained on, how many of them so far, and
            the loss.

    Returns:
        The classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldClassifier()
    first = _FIRST_SEED + seed * (num_clips + num_stills)
    stages = (("stills", _stills, num_stills, _STILLS), ("clips", _clips, num_clips, _CLIPS))
    for name, draw, num, size in stages:
        steps = num // size
        if not steps:
            continue
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.1
        )
        for step in range(steps):
            clips, wanted = draw(first + step * size, size)
            loss = _loss(model(clips), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_batch is not None:
                on_batch(name, (step + 1) * size, float(loss.detach()))
        first += num
    some = range(max(2, num_clips // _CLIPS // _SCALE_SHARE))
    model.set_scale(torch.cat([_clips(_SCALE_SEED + i * _CLIPS, _CLIPS)[0] for i in some]))
    return model.eval().requires_grad_(False)


def label_accuracy(model: WorldClassifier, *, num_clips: int = 256) -> dict[str, float]:
    """Measure on clips that training never draws how often each label is right.

    Args:
        model: a classifier.
        num_clips: how many.

    Returns:
        Share of right labels by name; a set is right when all of it is.
    """
    right = dict.fromkeys(_LABELS, 0.0)
    with torch.inference_mode():
        for first in range(0, num_clips, _CLIPS):
            clips, wanted = _clips(_TEST_SEED + first, _CLIPS)
            for name, logits in model(clips).items():
                if _LABELS[name][1]:
                    hits = ((logits > 0) == (wanted[name] > 0.5)).all(dim=1)
                else:
                    hits = logits.argmax(dim=1) == wanted[name]
                right[name] += float(hits.float().mean())
    batches = len(range(0, num_clips, _CLIPS))
    return {name: total / batches for name, total in right.items()}


def _clips(first: int, num: int) -> Batch:
    """Clips [B, 3, 16, 64, 64] of consecutive seeds and their labels."""
    seeds = range(first, first + num)
    clips = [sample_clip(s, num_frames=MIN_FRAMES, held_out=_is_held_out(s)) for s in seeds]
    videos = torch.stack([prepare(clip.video) for clip in clips])
    return videos, _stacked([_labels(clip.specs[0]) for clip in clips])


def _stills(first: int, num: int) -> Batch:
    """First frames [B, 3, 1, 64, 64] of scenes that show all objects in them, and their labels."""
    frames, labels = [], []
    for seed in range(first, first + num):
        rng = np.random.default_rng(seed)
        spec = sample_spec(rng, held_out=_is_held_out(seed), motions=_SEEN_AT_ONCE)
        frame = torch.from_numpy(render(simulate(spec, seed, num_frames=1)))
        frames.append(frame.permute(3, 0, 1, 2).float() / 127.5 - 1)
        found = _labels(spec)
        labels.append({name: found[name] for name in ("colours", "shapes", "count")})
    return torch.stack(frames), _stacked(labels)


def _is_held_out(seed: int) -> bool:
    return seed % 10 == 9


def _stacked(labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([label[name] for label in labels]) for name in labels[0]}


def _labels(spec: SceneSpec) -> dict[str, Tensor]:
    colours = {thing.colour for thing in spec.objects}
    shapes = {thing.shape for thing in spec.objects}
    directions = (*DIRECTIONS, None)
    return {
        "colours": torch.tensor([float(name in colours) for name in COLOURS]),
        "shapes": torch.tensor([float(name in shapes) for name in SHAPES]),
        "count": torch.tensor(len(spec.objects) - 1),
        "direction": torch.tensor(directions.index(spec.direction)),
        "event": torch.tensor(MOTIONS.index(spec.motion)),
    }


def _loss(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    losses = []
    for name, target in wanted.items():
        size, several = _LABELS[name]
        if several:
            entropy = functional.binary_cross_entropy_with_logits(logits[name], target)
            losses.append(entropy * size)
        else:
            losses.append(functional.cross_entropy(logits[name], target))
    return torch.stack(losses).sum()
