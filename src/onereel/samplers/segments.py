"""Long videos in segments: which latent frames each makes, and what it is told of the last.

The paper of Magic 1-For-1 (arXiv 2502.07701) names a sliding window at test time, and its released
code has none: the rule below is ours. Segments share `overlap` latent frames; the next one gets
them as its reference and makes them anew, and of the two the earlier is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from onereel.core.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One pass of the sampler.

    Args:
        index: its place.
        start: first latent frame of the video that it makes.
        stop: the one after its last.
        overlap: its leading frames that the segment before has made already.
    """

    index: int
    start: int
    stop: int
    overlap: int

    @property
    def num_latents(self) -> int:
        """Latent frames of the pass."""
        return self.stop - self.start

    def first_frame(self, factor: int = 4) -> int:
        """Find the first frame of the video that no segment before has made.

        Args:
            factor: frames per latent frame but the first, which stands for one.

        Returns:
            Its number, counted from 0.
        """
        latent = self.start + self.overlap
        return 0 if latent == 0 else (latent - 1) * factor + 1


def plan_segments(num_latents: int, *, segment_latents: int, overlap: int = 1) -> list[Segment]:
    """Cut a video into segments of one length; the last one may be shorter.

    Args:
        num_latents: latent frames of the video; at 4 frames each it has 4 * (num_latents - 1) + 1.
        segment_latents: latent frames of a segment.
        overlap: latent frames that neighbours share.

    Returns:
        The segments in order.

    Raises:
        ConfigError: a number is out of range.
    """
    if num_latents < 1:
        raise ConfigError("num_latents", expected="at least 1", got=num_latents)
    if not 1 <= overlap < segment_latents:
        expected = f"1 to {segment_latents - 1}, less than a segment"
        raise ConfigError("overlap", expected=expected, got=overlap)
    segments: list[Segment] = []
    start = 0
    while not segments or segments[-1].stop < num_latents:
        stop = min(start + segment_latents, num_latents)
        segments.append(
            Segment(index=len(segments), start=start, stop=stop, overlap=overlap if segments else 0)
        )
        start = stop - overlap
    return segments


def last_latents(latent: torch.Tensor, overlap: int) -> torch.Tensor:
    """Carry a segment's last latent frames over as they are.

    The cheapest rule. The first latent frame of a video stands for one picture and later ones for
    four, so models that were trained on one given frame want the last picture encoded again.

    Args:
        latent: of the finished segment, [B, C, T, H, W].
        overlap: frames to carry.

    Returns:
        [B, C, overlap, H, W].
    """
    return latent[:, :, -overlap:]


def keep_overlap(latent: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Keep a segment's leading frames as the segment before made them.

    Args:
        latent: of the segment, [B, C, T, H, W].
        reference: the frames that it was given, [B, C, R, H, W].

    Returns:
        [B, C, T, H, W].
    """
    return torch.cat((reference.to(latent), latent[:, :, reference.shape[2] :]), dim=2)


def channel_statistics(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure every channel over frames and pixels.

    Args:
        latent: [B, C, T, H, W].

    Returns:
        Means and standard deviations, each [B, C, 1, 1, 1].
    """
    wide = latent.float()
    axes = (2, 3, 4)
    return wide.mean(axes, keepdim=True), wide.std(axes, correction=0, keepdim=True)


def match_statistics(
    latent: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor], *, strength: float
) -> torch.Tensor:
    """Move every channel's mean and deviation towards others, against the drift of colours.

    Args:
        latent: of a segment, [B, C, T, H, W].
        wanted: see `channel_statistics`, of the first segment.
        strength: 0 changes nothing, 1 takes the wanted ones.

    Returns:
        [B, C, T, H, W].
    """
    mean, deviation = channel_statistics(latent)
    matched = (latent - mean) / deviation.clamp_min(1e-6) * wanted[1] + wanted[0]
    return torch.lerp(latent.float(), matched, strength).to(latent.dtype)


def sample_segments(
    segments: Sequence[Segment],
    *,
    reference: torch.Tensor,
    sample: Callable[[Segment, torch.Tensor], torch.Tensor],
    carry: Callable[[torch.Tensor, int], torch.Tensor] = last_latents,
) -> Iterator[tuple[Segment, torch.Tensor]]:
    """Make a video segment by segment; only the last one is held.

    Args:
        segments: see `plan_segments`.
        reference: latents of the given first frames, [B, C, R, H, W].
        sample: makes a segment's latents [B, C, T, H, W] from its reference.
        carry: makes the next reference from a finished segment and the overlap.

    Yields:
        Each segment with all of its latents, the overlap included.

    Raises:
        ShapeError: `sample` returns another number of frames than the segment has.
    """
    for position, segment in enumerate(segments):
        latent = sample(segment, reference)
        if latent.shape[2] != segment.num_latents:
            raise ShapeError(
                f"segment {segment.index}",
                expected=f"{segment.num_latents} latent frames",
                got=latent.shape[2],
            )
        yield segment, latent
        if position + 1 < len(segments):
            reference = carry(latent, segments[position + 1].overlap)
