"""What the tracker finds in a video, and the same made of the simulator's own state.

Every metric of this room takes a `Tracking` and never asks where it came from, so each can be
tested on the truth alone. Positions are screen pixels, y down, pixel i covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.world import COLOURS, SHAPES, Episode, reach, screen_positions

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One object through time. Arrays have one row per frame in which it was seen (K of them).

    Args:
        colour: palette name.
        shape: majority over uncut frames, None when it was never seen whole.
        frames: ascending frame numbers, [K].
        x: centroid column in pixels, [K].
        y: centroid row in pixels, [K].
        r: radius of the disc of equal area in pixels, [K].
        cut: touches the frame's edge, so that r and the centroid are off, [K].
        rgb: mean colour of the inner pixels, [K, 3] in 0..255; NaN where there are none.
        shape_iou: overlap with the best template, mean over the frames that voted.
    """

    colour: str
    shape: str | None
    frames: Ints
    x: Floats
    y: Floats
    r: Floats
    cut: Bools
    rgb: Floats
    shape_iou: float = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """Everything the tracker says about one video.

    Args:
        tracks: the objects, longest first.
        camera: (cx, cy, zoom) per frame as `Episode.camera` has it, frame 0 at (0, 0, 1), [F, 3].
        background: the scene without objects as frame 0 sees it, [H, W, 3] in 0..255; NaN where
            it never came into sight.
        covered: pixels near a saturated pixel (dilated), which are not background, [F, H, W].
        height: in pixels.
        width: in pixels.
        fps: frames per second.
    """

    tracks: tuple[Track, ...]
    camera: Floats
    background: Floats
    covered: Bools
    height: int
    width: int
    fps: int = 24

    @property
    def num_frames(self) -> int:
        """Count the frames.

        Returns:
            F.
        """
        return len(self.camera)


def truth(episode: Episode, video: npt.NDArray[np.uint8] | None = None) -> Tracking:
    """Make the tracking that a perfect tracker would give.

    Args:
        episode: the simulated scene.
        video: its frames uint8 [F, H, W, 3]; gives `background` and `covered`, which are NaN and
            False without.

    Returns:
        One track per object, with the frames in which half of it can be seen.
    """
    x, y, r = (np.asarray(a, dtype=np.float64) for a in screen_positions(episode))
    size = (episode.height, episode.width)
    tracks = []
    for i in range(x.shape[1]):
        visible = episode.state[:, i, 8] >= 0.5
        for colour in dict.fromkeys(episode.state[visible, i, 7].astype(int).tolist()):
            frames = np.flatnonzero(visible & (episode.state[:, i, 7] == colour))
            shape = SHAPES[int(episode.state[0, i, 6])]
            at = (x[frames, i], y[frames, i], r[frames, i])
            angles = episode.state[frames, i, 5]
            left, right, up, down = np.array([reach(shape, float(a)) for a in angles]).T * at[2]
            cut = (at[0] < left) | (at[0] > size[1] - right) | (at[1] < up)
            cut |= at[1] > size[0] - down
            tracks.append(
                Track(
                    colour=COLOURS[colour],
                    shape=shape,
                    frames=frames,
                    x=at[0],
                    y=at[1],
                    r=at[2],
                    cut=cut,
                    rgb=episode.rgb[frames, i].astype(np.float64),
                    shape_iou=1.0,
                )
            )
    covered = np.zeros((episode.num_frames, *size), dtype=bool)
    background = np.full((*size, 3), np.nan)
    if video is not None:
        covered = np.ptp(video.astype(np.int16), axis=3) > 40
        frames = np.where(covered[..., None], np.nan, video.astype(np.float64))
        with np.errstate(all="ignore"):
            seen = ~covered.all(axis=0)
            background[seen] = np.nanmedian(frames[:, seen], axis=0)
    return Tracking(
        tracks=tuple(sorted(tracks, key=lambda track: -len(track.frames))),
        camera=episode.camera.astype(np.float64),
        background=background,
        covered=covered,
        height=size[0],
        width=size[1],
        fps=episode.fps,
    )
