"""What the instrument itself gets wrong: known scenes, distorted as a codec or a VAE would.

No number of a model can be read more finely than this table, which `measure_floor` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onereel.core.errors import ConfigError
from onereel.evaluation.measure import Measurement, missing, summarize
from onereel.evaluation.toybox.camera import steps_between
from onereel.evaluation.toybox.components import draw_templates
from onereel.evaluation.toybox.prompts import prompt_scores
from onereel.evaluation.toybox.tracker import track
from onereel.evaluation.toybox.tracks import Tracking
from onereel.world import (
    COLOURS,
    NUM_BACKGROUNDS,
    PALETTE,
    SHAPES,
    SIZES,
    Episode,
    SceneSpec,
    reach,
    render,
    sample_clip,
    screen_positions,
)

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
RoundTrip = Callable[[Bytes], Bytes]

_FIRST_SEED = 700_000
_OVERLAP = 0.5  # pixels that one object may take from another for both to count as whole
_CORNERS = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Distortion:
    """What is done to true videos before they are measured.

    Args:
        noise: standard deviation of the noise added to each channel, in levels.
        blur: standard deviation of the blur in pixels, before the noise.
        touching: scenes of two discs of different colours that touch, instead of random ones.
        coded: passes the round trip that the caller gives.
    """

    noise: float = 0.0
    blur: float = 0.0
    touching: bool = False
    coded: bool = False


ROWS: Mapping[str, Distortion] = {
    "clean": Distortion(),
    "noise_4": Distortion(noise=4.0),
    "blur_0.6_noise_4": Distortion(noise=4.0, blur=0.6),
    "blur_1.0_noise_4": Distortion(noise=4.0, blur=1.0),
    "touching_noise_3": Distortion(noise=3.0, touching=True),
    "touching_blur_0.6_noise_3": Distortion(noise=3.0, blur=0.6, touching=True),
    "round_trip": Distortion(coded=True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Score:
    """How one scene was measured; NaN or empty where a scene has nothing of the kind."""

    centroid: Floats
    radius: Floats
    count: Floats
    colour: Floats
    shape: Floats
    camera: Floats
    at_rest: float
    camera_event: float
    all_correct: float


def measure_floor(
    *,
    scenes: int = 150,
    size: int = 64,
    num_frames: int = 24,
    rows: Sequence[str] | None = None,
    round_trip: RoundTrip | None = None,
    report: Callable[[str, int], None] | None = None,
) -> dict[str, Measurement]:
    """Measure known scenes and compare with what the simulator says.

    Args:
        scenes: random scenes per row.
        size: height and width in pixels.
        num_frames: of every scene.
        rows: names from `ROWS`; None means all, the round trip only where one is given.
        round_trip: codes and decodes a video uint8 [F, H, W, 3], for the row `round_trip`.
        report: is told the row and the number of its scenes done after each.

    Returns:
        Per row "row/quantity": `centroid_error` and `centroid_max` of objects seen whole (px),
        `radius_error` (share), `count`, `colour` (shares of frames), `shape` (share of objects),
        `camera_error` and `camera_max` of moving cameras (px per frame, at the screen's corners),
        `at_rest` (share of resting cameras found at rest), and of scenes with a prompt how many
        have all of it (`all_correct`), and of their pans and zooms how many count
        (`camera_event`).

    Raises:
        ConfigError: a row is not known, or `round_trip` is asked for without one.

    Source:
        spec/evaluation.md 9.2.
    """
    chosen = list(rows) if rows is not None else [n for n in ROWS if not ROWS[n].coded]
    if rows is None and round_trip is not None:
        chosen.append("round_trip")
    results: dict[str, Measurement] = {}
    for name in chosen:
        if name not in ROWS:
            raise ConfigError("rows", expected=f"some of {', '.join(ROWS)}", got=name)
        if ROWS[name].coded and round_trip is None:
            raise ConfigError("rows", expected="a round trip for this row", got=name)
        scores = []
        for episode, video, spec in _scenes(ROWS[name], scenes, size=size, num_frames=num_frames):
            shown = video if round_trip is None or not ROWS[name].coded else round_trip(video)
            scores.append(compare(track(shown, fps=episode.fps), episode, spec=spec))
            if report is not None:
                report(name, len(scores))
        results |= {f"{name}/{key}": value for key, value in _summary(scores).items()}
    return results


def distort(video: Bytes, *, noise: float = 0.0, blur: float = 0.0, seed: int = 0) -> Bytes:
    """Blur a video and add noise.

    Args:
        video: uint8 [F, H, W, 3].
        noise: standard deviation in levels.
        blur: standard deviation in pixels.
        seed: of the noise.

    Returns:
        uint8 of the same shape.
    """
    from scipy.ndimage import gaussian_filter

    if not noise and not blur:
        return video
    values = gaussian_filter(video.astype(np.float32), (0.0, blur, blur, 0.0))
    values = values + np.random.default_rng(seed).normal(0.0, noise, video.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _scenes(
    row: Distortion, scenes: int, *, size: int, num_frames: int
) -> Iterator[tuple[Episode, Bytes, SceneSpec | None]]:
    for seed in range(_FIRST_SEED, _FIRST_SEED + scenes):
        if row.touching:
            episode, spec = touching_discs(seed, size=size), None
            video = render(episode)
        else:
            clip = sample_clip(seed, num_frames=num_frames, height=size, width=size)
            episode, video, spec = clip.episode, clip.video, clip.specs[0]
        yield episode, distort(video, noise=row.noise, blur=row.blur, seed=seed), spec


def touching_discs(seed: int, *, size: int = 64, num_frames: int = 4) -> Episode:
    """Make a scene of two discs of different colours that touch and drift together.

    Args:
        seed: draws colours, sizes, places and the background.
        size: height and width in pixels.
        num_frames: of the scene.

    Returns:
        The episode.
    """
    rng = np.random.default_rng((seed, 5))
    radii = rng.choice(list(SIZES.values()), 2) * size
    colours = rng.choice(len(COLOURS), 2, replace=False)
    angle, drift = rng.uniform(0, 2 * math.pi), rng.uniform(-1.0, 1.0, 2)
    apart = radii.sum() * np.array([math.cos(angle), math.sin(angle)])
    state = np.zeros((num_frames, 2, 9), np.float32)
    middle = size / 2 + rng.uniform(-0.1, 0.1, 2) * size
    for i, sign in enumerate((-0.5, 0.5)):
        state[:, i, :2] = middle + sign * apart + np.arange(num_frames)[:, None] * drift
    state[..., 2:4], state[..., 4] = drift * 24, radii
    state[..., 6], state[..., 7], state[..., 8] = SHAPES.index("disc"), colours, 1.0
    palette = np.array([PALETTE[COLOURS[c]] for c in colours], np.float32)
    return Episode(
        state=state,
        camera=np.tile(np.array([0.0, 0.0, 1.0], np.float32), (num_frames, 1)),
        opacity=np.ones((num_frames, 2), np.float32),
        rgb=np.tile(palette, (num_frames, 1, 1)),
        events=(),
        height=size,
        width=size,
        fps=24,
        background=int(rng.integers(NUM_BACKGROUNDS)),
        floor_y=None,
        slab=None,
        period=1.5 * size,
    )


def compare(found: Tracking, episode: Episode, *, spec: SceneSpec | None = None) -> _Score:
    """Hold a tracking against the simulator.

    Args:
        found: what the tracker says.
        episode: the scene it was given.
        spec: what its prompt asks for, where it has one.

    Returns:
        Errors of every object and frame seen whole, and what was right.
    """
    whole, gone = _sights(episode)
    x, y, r = screen_positions(episode)
    colours = episode.state[..., 7].astype(int)
    rows = [
        (int(f), COLOURS.index(t.colour), t.x[k], t.y[k], t.r[k], i)
        for i, t in enumerate(found.tracks)
        for k, f in enumerate(t.frames)
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    centroid, radius, shape = [], [], []
    for i in range(x.shape[1]):
        names = []
        for f in np.flatnonzero(whole[:, i]):
            there = table[(table[:, 0] == f) & (table[:, 1] == colours[f, i])]
            if not len(there):
                continue
            away = np.hypot(there[:, 2] - x[f, i], there[:, 3] - y[f, i])
            best = int(away.argmin())
            centroid.append(float(away[best]))
            radius.append(abs(float(there[best, 4] / r[f, i]) - 1.0))
            names.append(found.tracks[int(there[best, 5])].shape)
        if names:
            shape.append(max(SHAPES, key=names.count) == SHAPES[int(episode.state[0, i, 6])])
    count, colour = [], []
    for f in np.flatnonzero((whole | gone).all(axis=1)):
        here = sorted(table[table[:, 0] == f, 1].astype(int).tolist())
        count.append(len(here) == int(whole[f].sum()))
        colour.append(here == sorted(colours[f, whole[f]].tolist()))
    moving = bool(np.any(episode.camera != episode.camera[0]))
    asked = prompt_scores(found, spec) if spec is not None else {}
    return _Score(
        centroid=np.array(centroid),
        radius=np.array(radius),
        count=np.array(count, dtype=np.float64),
        colour=np.array(colour, dtype=np.float64),
        shape=np.array(shape, dtype=np.float64),
        camera=_camera_errors(found, episode) if moving else np.zeros(0),
        at_rest=math.nan if moving else float(np.all(found.camera == found.camera[0])),
        camera_event=asked.get("event_acc", math.nan) if moving else math.nan,
        all_correct=asked.get("all_correct", math.nan),
    )


def _sights(episode: Episode) -> tuple[Bools, Bools]:
    """Tell which objects show all of themselves, and which nothing, per frame: [T, N] each."""
    x, y, r = (np.asarray(a, dtype=np.float64) for a in screen_positions(episode))
    shapes = [SHAPES[int(s)] for s in episode.state[0, :, 6]]
    sides = [reach(s, float(a)) for s, a in zip(shapes, episode.state[0, :, 5], strict=True)]
    left, right, up, down = np.array(sides).T[:, None, :] * r
    whole = (x >= left) & (x <= episode.width - right) & (y >= up)
    whole &= (y <= episode.height - down) & (episode.opacity == 1.0)
    if episode.slab is not None:
        whole &= (x + right < episode.slab[0]) | (x - left > episode.slab[1])
    size = (episode.height, episode.width)
    for i in range(len(shapes)):
        for j in range(i):
            near = np.hypot(x[:, i] - x[:, j], y[:, i] - y[:, j]) < 1.6 * (r[:, i] + r[:, j])
            for f in np.flatnonzero(near):
                drawn = [
                    draw_templates(
                        shapes[k],
                        centres=np.array([(x[f, k], y[f, k])]),
                        radii=r[f, k : k + 1],
                        angles=episode.state[f, k : k + 1, 5],
                        size=size,
                    )
                    for k in (i, j)
                ]
                if np.maximum(drawn[0] + drawn[1] - 1.0, 0.0).sum() > _OVERLAP:
                    whole[f, [i, j]] = False
    return whole, episode.state[..., 8] * episode.opacity == 0.0


def _camera_errors(found: Tracking, episode: Episode) -> Floats:
    """Measure how far the screen's corners are misplaced from frame to frame, [F - 1]."""
    later = np.arange(1, episode.num_frames)
    got = steps_between(found.camera, later - 1, later=later)
    want = steps_between(episode.camera.astype(np.float64), later - 1, later=later)
    off = got - want
    corners = _CORNERS * (episode.width, episode.height)
    return np.asarray(np.linalg.norm(off[:, None, :2] + off[:, None, 2:] * corners, axis=2).max(1))


def _summary(scores: Sequence[_Score]) -> dict[str, Measurement]:
    """Sum up a row; scenes are drawn anew for the intervals, never single frames."""

    def mean(name: str, unit: str = "") -> Measurement:
        values = [np.atleast_1d(getattr(score, name)) for score in scores]
        groups = [str(i) for i, of_scene in enumerate(values) for _ in of_scene]
        return summarize(np.concatenate(values).tolist(), groups=groups, unit=unit)

    def most(name: str) -> Measurement:
        values = np.concatenate([getattr(score, name) for score in scores])
        if not len(values):
            return missing("no scene has anything of the kind")
        return Measurement(mean=float(values.max()), num=len(values), unit="px")

    return {
        "centroid_error": mean("centroid", "px"),
        "centroid_max": most("centroid"),
        "radius_error": mean("radius"),
        "count": mean("count"),
        "colour": mean("colour"),
        "shape": mean("shape"),
        "camera_error": mean("camera", "px"),
        "camera_max": most("camera"),
        "at_rest": mean("at_rest"),
        "camera_event": mean("camera_event"),
        "all_correct": mean("all_correct"),
    }
