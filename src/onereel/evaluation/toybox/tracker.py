"""The Toybox instrument: from a video to the tracks of its objects. Start with `track`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ShapeError
from onereel.evaluation.toybox.background import estimate_scene, show_first
from onereel.evaluation.toybox.camera import estimate_camera
from onereel.evaluation.toybox.components import Blob, find_blobs, match_shapes
from onereel.evaluation.toybox.coverage import find_saturated, measure_cover
from onereel.evaluation.toybox.tracks import Track, Tracking
from onereel.world import COLOURS

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer[Any]]

_STRETCH = 192  # frames that share one background
_ROAM = 2.0  # screens that the camera may travel within a stretch
_GATE = 2.5  # largest cost of a link
_COLOUR_COST = 2.0
_RESUME_S = 0.75  # how long a lost object may stay away
_WHOLE = 0.9  # of the radius so far; a smaller object is partly hidden
_HIDDEN = 0.95  # of the radius around that time; the same, looking back
_TOUCHING = 0.985  # of the radius nearby; an object at the edge that is smaller goes on outside
_LOOKS_WHOLE = 0.8  # overlap from which an object that always touches the edge has a shape
_VOTES = 8  # frames whose shape is looked at
_SETTLE = 3  # frames that a new colour must last


def track(video: Bytes, *, background: Floats | None = None, fps: int = 24) -> Tracking:
    """Find the objects of a video, their paths, and the camera's.

    Args:
        video: uint8 [F, H, W, 3].
        background: the scene without objects as frame 0 sees it, [H, W, 3] in 0..255, NaN where
            it is not known; None estimates it from the video.
        fps: frames per second.

    Returns:
        The tracking. A frame in which an object is partly hidden (by the edge of the frame, by
        something grey or by another object) counts as cut. Objects of one colour that touch are
        seen as one.

    Raises:
        ShapeError: the video or the background has another shape or type.

    Source:
        spec/evaluation.md 9.2.
    """
    _check(video, background)
    covered = find_saturated(video)
    camera = estimate_camera(video, covered)
    seen = np.full(video.shape[1:], np.nan)
    blobs: list[Blob] = []
    for part in _stretches(camera, size=video.shape[1:3]):
        scene = estimate_scene(video[part], covered[part], camera=camera[part], known=background)
        cover = measure_cover(video[part], covered[part], scene=scene, camera=camera[part])
        blobs += find_blobs(video[part], cover, first=part.start, zoom=camera[part, 2])
        here = show_first(scene, camera[0]) if np.isnan(seen).any() else seen
        seen = np.where(np.isnan(seen), here, seen)
    chains = [part for chain in _link(blobs, fps=fps) for part in _split_by_colour(chain)]
    tracks = [_finish(chain, zoom=camera[:, 2], fps=fps) for chain in chains]
    return Tracking(
        tracks=tuple(sorted(tracks, key=lambda found: -len(found.frames))),
        camera=camera,
        background=seen,
        covered=covered,
        height=video.shape[1],
        width=video.shape[2],
        fps=fps,
    )


def _check(video: Bytes, background: Floats | None) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise ShapeError(
            "video",
            expected="uint8 [F, H, W, 3] with at least one frame",
            got=f"{video.dtype} {list(video.shape)}",
        )
    if background is not None and background.shape != video.shape[1:]:
        raise ShapeError(
            "background", expected=f"{list(video.shape[1:])}", got=f"{list(background.shape)}"
        )


def _stretches(camera: Floats, *, size: tuple[int, int]) -> list[slice]:
    """Cut the video where it gets long or the camera is far from where the stretch began."""
    starts = [0]
    limit = _ROAM * np.array([size[1], size[0]])
    for frame in range(1, len(camera)):
        away = np.abs(camera[frame, :2] - camera[starts[-1], :2])
        if frame - starts[-1] >= _STRETCH or np.any(away > limit):
            starts.append(frame)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(camera)], strict=True)]


@dataclass(kw_only=True, slots=True)
class _Chain:
    """A track while it grows: its objects, and what the next frame should show."""

    blobs: list[Blob] = field(default_factory=list)
    radius: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)
    whole: list[Blob] = field(default_factory=list)

    def add(self, blob: Blob, *, patience: int) -> None:
        """Append an object and update the expectation."""
        self.blobs.append(blob)
        stale = not self.whole or blob.frame - self.whole[-1].frame > patience
        if stale or blob.r > 1.1 * self.radius:
            self.radius, self.velocity, self.whole = blob.r, (0.0, 0.0), [blob]
        elif blob.r >= _WHOLE * self.radius:
            self.whole = [*self.whole[-4:], blob]
            old, steps = self.whole[0], blob.frame - self.whole[0].frame
            self.velocity = ((blob.x - old.x) / steps, (blob.y - old.y) / steps)
            self.radius += 0.2 * (blob.r - self.radius)

    def expect(self, frame: int) -> tuple[float, float]:
        """Continue at constant velocity from where the object was last seen whole."""
        last = self.whole[-1]
        steps = frame - last.frame
        return (last.x + steps * self.velocity[0], last.y + steps * self.velocity[1])

    def cost(self, blob: Blob, patience: int) -> float:
        """Rate how badly an object continues the track; infinite when it cannot."""
        away = blob.frame - self.blobs[-1].frame
        lost = away > 1
        if away > patience + 1 or (lost and blob.colour != self.blobs[-1].colour):
            return float("inf")
        x, y = self.expect(blob.frame)
        distance = float(np.hypot(blob.x - x, blob.y - y)) / (4 * self.radius)
        cost = distance + abs(blob.r - self.radius) / self.radius
        return cost + _COLOUR_COST * (blob.colour != self.blobs[-1].colour)


def _link(blobs: list[Blob], *, fps: int) -> list[_Chain]:
    """Link the objects of all frames by linear assignment."""
    from scipy.optimize import linear_sum_assignment

    patience = round(_RESUME_S * fps)
    chains: list[_Chain] = []
    frames: dict[int, list[Blob]] = {}
    for blob in blobs:
        frames.setdefault(blob.frame, []).append(blob)
    for frame, found in frames.items():
        live = [c for c in chains if frame - c.blobs[-1].frame <= patience + 1]
        costs = np.array([[min(c.cost(b, patience), 1e3) for b in found] for c in live])
        taken = set()
        if len(live):
            for i, j in zip(*linear_sum_assignment(costs), strict=True):
                if costs[i, j] < _GATE:
                    live[i].add(found[j], patience=patience)
                    taken.add(int(j))
        for j, blob in enumerate(found):
            if j not in taken:
                chains.append(_Chain())
                chains[-1].add(blob, patience=patience)
    return chains


def _split_by_colour(chain: _Chain) -> list[list[Blob]]:
    """Cut a chain where its colour changes for good; a short flicker keeps its neighbours'."""
    runs: list[list[Blob]] = []
    for blob in chain.blobs:
        if runs and runs[-1][-1].colour == blob.colour:
            runs[-1].append(blob)
        else:
            runs.append([blob])
    parts: list[list[Blob]] = []
    named: list[int] = []
    for run in runs:
        if parts and (len(run) < _SETTLE or run[0].colour == named[-1]):
            parts[-1] += run
        else:
            parts.append(list(run))
            named.append(run[0].colour)
    return parts


def _finish(blobs: list[Blob], *, zoom: Floats, fps: int) -> Track:
    """Turn linked objects into a track: flag frames that show a part only, vote on the shape."""
    r = np.array([b.r for b in blobs])
    frames = np.array([b.frame for b in blobs])
    edge = np.array([b.cut for b in blobs])
    size = r / zoom[frames]
    cut = edge & _smaller_than_whole(frames, size, whole=~edge)
    cut |= _partly_hidden(frames, size, cut=cut, fps=fps)
    shape, overlap = _vote(blobs, r=r, cut=cut)
    colour = Counter(b.colour for b in blobs).most_common(1)[0][0]
    return Track(
        colour=COLOURS[colour],
        shape=shape,
        frames=frames,
        x=np.array([b.x for b in blobs]),
        y=np.array([b.y for b in blobs]),
        r=r,
        cut=cut,
        rgb=np.array([b.rgb for b in blobs]),
        shape_iou=overlap,
    )


def _vote(blobs: list[Blob], *, r: Floats, cut: Bools) -> tuple[str | None, float]:
    """Let up to eight frames vote on the shape, best those that show all of the object."""
    places = np.flatnonzero(~cut)
    whole = len(places) > 0
    if not whole:
        places = np.sort(np.argsort(r)[-_VOTES:])
    chosen = places[np.unique(np.linspace(0, len(places) - 1, _VOTES).round().astype(int))]
    names, overlaps = match_shapes([blobs[i] for i in chosen])
    # the overlap decides a draw
    weights = {name: 0.0 for name in names}
    for name, value in zip(names, overlaps, strict=True):
        weights[name] += 1.0 + 1e-3 * float(value)
    overlap = float(overlaps.mean())
    if not whole and overlap < _LOOKS_WHOLE:
        return None, float("nan")
    return max(weights, key=lambda name: weights[name]), overlap


def _smaller_than_whole(frames: Ints, size: Floats, *, whole: Bools) -> Bools:
    """Find frames whose size falls short of the nearest frames that show the object whole."""
    places = np.flatnonzero(whole)
    if not len(places):
        return np.ones(len(size), bool)
    smaller = np.zeros(len(size), bool)
    for i in np.flatnonzero(~whole):
        nearest = places[np.argsort(np.abs(frames[places] - frames[i]))[:5]]
        smaller[i] = size[i] < _TOUCHING * np.median(size[nearest])
    return smaller


def _partly_hidden(frames: Ints, size: Floats, *, cut: Bools, fps: int) -> Bools:
    """Find frames whose size falls short of the second around them, and their neighbours."""
    hidden = np.zeros(len(size), bool)
    for i, frame in enumerate(frames):
        around = (np.abs(frames - frame) <= fps) & ~cut
        if around.sum() >= 3:
            hidden[i] = size[i] < _HIDDEN * np.quantile(size[around], 0.8)
    flagged = frames[hidden]
    if len(flagged):
        hidden |= np.abs(frames[:, None] - flagged).min(axis=1) <= max(1, round(0.1 * fps))
    return hidden
