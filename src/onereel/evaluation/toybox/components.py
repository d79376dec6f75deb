"""Objects in single frames: connected pixels of one colour, their centroid, area and shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.evaluation.toybox.coverage import NOTHING, Cover, grow, smallest_area
from onereel.world import SHAPES
from onereel.world.shapes import half_plane_distances, soften

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.integer[Any]]

_GROW = 2  # pixels around a component that still count to it
_FLOOR = 0.06  # smaller shares are noise
_INNER = 0.9  # shares of pixels that show the object's own colour
_EDGE_SHARE = 0.25  # a rim pixel that is covered this much shows that the object goes on outside
_PLATEAU = (0.5, 1.25)  # bounds for the share in an object's middle
_ANGLE_STEP = 7.5  # degrees
_EDGES = (1.0, 3.0)  # widths of the templates' edges in pixels: as rendered, and softened
_PERIODS = {"disc": 1.0, "square": 90.0, "triangle": 120.0, "diamond": 180.0}  # degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """One object in one frame.

    Args:
        frame: number within the video.
        colour: index into the palette.
        x: centroid column in pixels.
        y: centroid row in pixels.
        r: radius of the disc of equal area in pixels.
        cut: reaches the edge of the frame.
        rgb: mean colour of the inner pixels, [3]; NaN where there are none.
        share: coverage in a window around the object, [h, w].
        corner: (row, column) of the window's first pixel.
    """

    frame: int
    colour: int
    x: float
    y: float
    r: float
    cut: bool
    rgb: Floats
    share: Floats
    corner: tuple[int, int]


def find_blobs(video: Bytes, cover: Cover, *, first: int, zoom: Floats) -> list[Blob]:
    """Find the objects of a stretch of video.

    Args:
        video: its frames, [F, H, W, 3].
        cover: what `measure_cover` gave for them.
        first: number of the stretch's first frame.
        zoom: of the camera per frame, [F]; small objects are small far away.

    Returns:
        The objects in the order of the frames.

    Source:
        spec/evaluation.md 9.2, steps 2 and 3.
    """
    present = np.bincount(cover.labels.ravel(), minlength=NOTHING + 1)[:NOTHING]
    smallest = smallest_area(video.shape[1], zoom)
    blobs: list[Blob] = []
    for colour in np.flatnonzero(present >= smallest.min()):
        blobs += _blobs_of_colour(video, cover, colour=int(colour), first=first, smallest=smallest)
    return sorted(blobs, key=lambda blob: blob.frame)


def _blobs_of_colour(
    video: Bytes, cover: Cover, *, colour: int, first: int, smallest: Floats
) -> list[Blob]:
    """Find the objects of one colour: all windows at once, of one size."""
    from scipy.ndimage import find_objects, label

    own = cover.labels == colour
    within = np.zeros((3, 3, 3), int)
    within[1] = 1  # neighbours within a frame, diagonals included, none across frames
    numbers, _ = label(own, structure=within)
    boxes = find_objects(numbers)
    areas = np.bincount(numbers.ravel(), minlength=len(boxes) + 1)
    kept = [i for i, box in enumerate(boxes, 1) if areas[i] >= smallest[box[0].start]]
    if not kept:
        return []
    windows = _Windows.around([boxes[i - 1] for i in kept], size=own.shape[1:])
    number = windows.cut(numbers)
    mine = number == np.array(kept)[:, None, None]
    other = (number > 0) & ~mine & (areas[number] >= smallest[windows.frames][:, None, None])
    share, near = np.zeros(own.shape, np.float32), np.zeros(own.shape, bool)
    share.ravel()[cover.places] = cover.share[:, colour]
    near.ravel()[cover.places] = cover.open[:, colour]
    support = mine | (grow(mine, _GROW) & windows.cut(near) & ~other)
    weight = np.where(support, windows.cut(share), np.float32(0.0))
    return windows.measure(video, weight, mine=mine, colour=colour, first=first)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Windows:
    """Windows of one size around N objects, moved inside the frame: frames, tops, lefts [N]."""

    frames: Ints
    tops: Ints
    lefts: Ints
    tall: int
    wide: int

    @classmethod
    def around(cls, boxes: list[tuple[slice, slice, slice]], *, size: tuple[int, int]) -> _Windows:
        """Put windows around the boxes of components."""
        edges = np.array(
            [[b[0].start, b[1].start, b[1].stop, b[2].start, b[2].stop] for b in boxes]
        )
        tall = min(int((edges[:, 2] - edges[:, 1]).max()) + 2 * _GROW + 2, size[0])
        wide = min(int((edges[:, 4] - edges[:, 3]).max()) + 2 * _GROW + 2, size[1])
        tops = np.clip((edges[:, 1] + edges[:, 2] - tall) // 2, 0, size[0] - tall)
        lefts = np.clip((edges[:, 3] + edges[:, 4] - wide) // 2, 0, size[1] - wide)
        return cls(frames=edges[:, 0], tops=tops, lefts=lefts, tall=tall, wide=wide)

    @property
    def rows(self) -> Ints:
        """Rows of the windows' pixels, [N, tall, 1]."""
        return self.tops[:, None, None] + np.arange(self.tall)[:, None]

    @property
    def cols(self) -> Ints:
        """Columns of the windows' pixels, [N, 1, wide]."""
        return self.lefts[:, None, None] + np.arange(self.wide)

    def cut(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut the windows out of [F, H, W, ...]."""
        return np.asarray(volume[self.frames[:, None, None], self.rows, self.cols])

    def measure(
        self, video: Bytes, weight: Floats, *, mine: Bools, colour: int, first: int
    ) -> list[Blob]:
        """Turn the shares in the windows into objects."""
        weight = weight / _plateau(weight, mine)[:, None, None]
        weight[weight < _FLOOR] = 0.0
        area = np.maximum(weight.sum(axis=(1, 2), dtype=np.float64), 1e-6)
        x = (weight * (self.cols + 0.5)).sum(axis=(1, 2)) / area
        y = (weight * (self.rows + 0.5)).sum(axis=(1, 2)) / area
        rim = (self.rows == 0) | (self.rows == video.shape[1] - 1)
        rim = rim | (self.cols == 0) | (self.cols == video.shape[2] - 1)
        cut = (rim & mine & (weight > _EDGE_SHARE)).any(axis=(1, 2))
        inner = weight > _INNER
        count = inner.sum(axis=(1, 2))[:, None]
        total = (self.cut(video) * inner[..., None]).sum(axis=(1, 2), dtype=np.float64)
        rgb = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return [
            Blob(
                frame=first + int(self.frames[i]),
                colour=colour,
                x=float(x[i]),
                y=float(y[i]),
                r=math.sqrt(area[i] / math.pi),
                cut=bool(cut[i]),
                rgb=rgb[i],
                share=weight[i],
                corner=(int(self.tops[i]), int(self.lefts[i])),
            )
            for i in range(len(area))
        ]


def _plateau(weight: Floats, mine: Bools) -> Floats:
    """Measure the share in the objects' middle, 1 unless they fade or their colour is off: [N]."""
    level = np.ones(len(weight))
    known = np.zeros(len(weight), bool)
    for steps in (2, 1):
        middle = ~grow(~mine, steps)
        count = middle.sum(axis=(1, 2))
        enough = (count >= 4) & ~known
        mean = (weight * middle).sum(axis=(1, 2)) / np.maximum(count, 1)
        level = np.where(enough, np.clip(mean, *_PLATEAU), level)
        known |= enough
    return level


def match_shapes(blobs: list[Blob]) -> tuple[list[str], Floats]:
    """Compare objects with the renderer's own pictures of the four shapes.

    Args:
        blobs: objects that were seen whole.

    Returns:
        The best shape of each, and its overlap (sum of minima over sum of maxima), [N].

    Source:
        spec/evaluation.md 9.2, step 3; the templates with soft edges are an addition, for
        videos that a codec or a VAE has softened.
    """
    tall = max(blob.share.shape[0] for blob in blobs)
    wide = max(blob.share.shape[1] for blob in blobs)
    seen = np.zeros((len(blobs), 1, tall, wide), np.float32)
    for place, blob in zip(seen, blobs, strict=True):
        place[0, : blob.share.shape[0], : blob.share.shape[1]] = np.minimum(blob.share, 1.0)
    best = np.stack([_best_overlap(shape, seen, blobs=blobs) for shape in SHAPES], axis=1)
    return [SHAPES[i] for i in best.argmax(axis=1)], best.max(axis=1)


def draw_templates(
    shape: str,
    *,
    centres: Floats,
    radii: Floats,
    angles: Floats,
    size: tuple[int, int],
    edge: float = 1.0,
) -> Floats:
    """Draw a shape at several places and angles as the renderer does.

    Args:
        shape: one of the four names.
        centres: (x, y) in pixels, [N, 2].
        radii: in pixels, [N].
        angles: in radians, [A].
        size: (height, width) of the pictures.
        edge: width of the ramp at the outline in pixels, 1 as rendered.

    Returns:
        Coverage, float32 [N, A, H, W].
    """
    cols = np.arange(size[1], dtype=np.float32) + np.float32(0.5)
    rows = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5)
    x, y, radius = (
        a.astype(np.float32)[:, None, None, None] for a in (centres[:, 0], centres[:, 1], radii)
    )
    turn = angles.astype(np.float32)[None, :, None, None]
    edges = half_plane_distances(shape, cols - x, dy=rows - y, radius=radius, angle=turn)
    return np.broadcast_to(soften(edges, edge), (len(radii), len(angles), *size))


def _best_overlap(shape: str, seen: Floats, *, blobs: list[Blob]) -> Floats:
    """Find the largest overlap of each object with a shape over all angles: [N]."""
    centres = np.array([(b.x - b.corner[1], b.y - b.corner[0]) for b in blobs])
    radii = np.array([b.r for b in blobs])
    angles = np.radians(np.arange(0.0, _PERIODS[shape], _ANGLE_STEP))
    best = np.zeros(len(blobs))
    for edge in _EDGES:
        drawn = draw_templates(
            shape, centres=centres, radii=radii, angles=angles, size=seen.shape[2:], edge=edge
        )
        away = np.abs(drawn - seen).sum(axis=(2, 3))
        both = drawn.sum(axis=(2, 3)) + seen.sum(axis=(2, 3))
        best = np.maximum(best, ((both - away) / np.maximum(both + away, 1e-6)).max(axis=1))
    return best
