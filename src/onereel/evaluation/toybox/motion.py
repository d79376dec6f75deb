"""Does the video go on as the simulator does? Errors of positions after given frames.

Positions are screen pixels, so a camera that does not follow counts as an error too. A frame and
object are judged where the true object is whole: not hidden, faded or cut by the frame's edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onereel.core.errors import ConfigError
from onereel.evaluation.toybox.chains import Chain, assign, build_chains
from onereel.evaluation.toybox.tracks import Bools, Floats, Tracking
from onereel.world import COLOURS, SHAPES, SPEEDS, Episode, reach, screen_positions

HORIZONS_S = (1, 2, 5)
SECONDS = (1, 2, 3, 4, 5)
MOTION_SCORES = (
    *("ade", "fde", *(f"ade@{s}s" for s in HORIZONS_S), "ade_position", "miss_rate"),
    *("ade_freeze", "nade", *(f"nade@{s}s" for s in HORIZONS_S)),
    *("ade_cv", "skill", "horizon", "seam_jump"),
    *(f"v_err@{s}s" for s in SECONDS),
    *(f"dir_err@{s}s" for s in SECONDS),
)
_WHOLE = 0.98  # share of the true object that must be in sight
_EDGE_PX = 0.25
_TURNS = ("wall", "bounce", "land", "stop", "collide")
_LOST_FRAMES = 3
_STEP = 2  # frames to either side over which a velocity is taken
_LEAST_PX = 0.5  # a baseline that errs by less is right: there is nothing to be better at
NAN = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A video beside the truth, from the last given frame on; K frames, N objects.

    Args:
        true: true positions, [K, N, 2].
        radius: true radii, [K, N].
        judged: where the true object is whole, [K, N]; False in the given frame.
        found: detected positions, NaN where there are none, [K, N, 2].
        followed: the same with the last known position in the gaps, [K, N, 2].
        freeze: the positions of the last given frame, [K, N, 2].
        coast: what constant velocity gives, [K, N, 2].
        turned: whether the truth has an event after which constant velocity is wrong.
        seam: second difference of the position at the seam minus the truth's, px per frame squared.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.
    """

    true: Floats
    radius: Floats
    judged: Bools
    found: Floats
    followed: Floats
    freeze: Floats
    coast: Floats
    turned: bool
    seam: float
    height: int
    width: int
    fps: int


def motion_scores(tracking: Tracking, episode: Episode, *, start: int) -> dict[str, float]:
    """Score a continuation against the simulator.

    Args:
        tracking: of the whole video, given frames in front.
        episode: the true scene, frame by frame beside the video.
        start: first frame that was made, at least 1.

    Returns:
        `MOTION_SCORES` by name. Objects are matched by colour and shape; for `ade_position` by
        their positions alone. Distances are in canvas heights, `horizon` in seconds, `dir_err` in
        degrees, `seam_jump` in px per frame squared. `nade` is 0 for the truth and 1 for a still,
        `nade@1s` the same of the first second; `skill` is 1 for the truth and 0 for constant
        velocity. NaN where a score does not apply.

    Raises:
        ConfigError: the video is longer than the episode, or no frame was made.

    Source:
        spec/evaluation.md 9.4.
    """
    side = compare(tracking, episode, start=start)
    errors = _errors(side, side.followed)
    scores = dict.fromkeys(MOTION_SCORES, NAN)
    frames = len(errors) - 1
    still = _errors(side, side.freeze)
    least = _LEAST_PX / side.height
    scores["ade"], scores["ade_freeze"] = _mean(errors), _mean(still)
    scores["fde"] = _mean(errors[-1])
    if scores["ade_freeze"] >= least:
        scores["nade"] = scores["ade"] / scores["ade_freeze"]
    for seconds in HORIZONS_S:
        if frames < seconds * side.fps:
            continue
        span = slice(seconds * side.fps + 1)
        scores[f"ade@{seconds}s"] = _mean(errors[span])
        if _mean(still[span]) >= least:
            scores[f"nade@{seconds}s"] = scores[f"ade@{seconds}s"] / _mean(still[span])
    blind = compare(tracking, episode, start=start, by_position=True)
    scores["ade_position"] = _mean(_errors(blind, blind.followed))
    scores["miss_rate"] = _mean(np.where(side.judged, np.isnan(side.found[..., 0]), np.nan))
    scores["ade_cv"] = _mean(_errors(side, side.coast)) if side.turned else NAN
    if scores["ade_cv"] >= least:
        scores["skill"] = 1.0 - scores["ade"] / scores["ade_cv"]
    scores["horizon"] = _horizon(side, errors * side.height)
    scores["seam_jump"] = side.seam
    return scores | _velocity_scores(side)


def spread_scores(
    trackings: Sequence[Tracking], episode: Episode, *, start: int
) -> dict[str, float]:
    """Score several samples of one continuation together.

    Args:
        trackings: one per sample.
        episode: the true scene.
        start: first frame that was made.

    Returns:
        `ade_best` and `ade_mean` over the samples, and `diversity`, the mean distance between two
        samples; all in canvas heights. The world is deterministic, so `diversity` should be the
        tracker's error.

    Raises:
        ConfigError: as `motion_scores`; or there is no sample.

    Source:
        spec/evaluation.md 9.4.
    """
    if not trackings:
        raise ConfigError("trackings", expected="at least one sample", got=0)
    sides = [compare(tracking, episode, start=start) for tracking in trackings]
    shortest = min(len(side.true) for side in sides)
    ade = [_mean(_errors(side, side.followed)) for side in sides]
    apart = []
    for one, other in itertools.combinations(sides, 2):
        gap = one.followed[:shortest] - other.followed[:shortest]
        judged = one.judged[:shortest]
        apart.append(_mean(np.where(judged, np.hypot(gap[..., 0], gap[..., 1]), np.nan)))
    known = [value for value in ade if not math.isnan(value)]
    return {
        "ade_best": min(known) if known else NAN,
        "ade_mean": float(np.mean(known)) if known else NAN,
        "diversity": _mean(np.array(apart)) / episode.height,
    }


def compare(
    tracking: Tracking, episode: Episode, *, start: int, by_position: bool = False
) -> Comparison:
    """Lay a video beside the truth.

    Args:
        tracking: of the whole video, given frames in front.
        episode: the true scene.
        start: first frame that was made, at least 1.
        by_position: match objects by where they are, whatever they look like.

    Returns:
        Positions from frame `start - 1` on.

    Raises:
        ConfigError: the video is longer than the episode, or no frame was made.
    """
    stop = tracking.num_frames
    if not 1 <= start < stop:
        raise ConfigError("start", expected=f"1 to {stop - 1} for {stop} frames", got=start)
    if stop > episode.num_frames:
        raise ConfigError("video", expected=f"at most {episode.num_frames} frames", got=stop)
    x, y, r = (np.asarray(a, dtype=np.float64)[:stop] for a in screen_positions(episode))
    true = np.stack([x, y], axis=-1)
    whole = _whole(episode, true=true, radius=r)
    clear = np.where(whole[..., None], true, np.nan)
    found = _match(tracking, episode, true=clear, by_position=by_position)
    part = slice(start - 1, stop)
    judged = whole[part].copy()
    judged[0] = False
    return Comparison(
        true=true[part],
        radius=r[part],
        judged=judged,
        found=found[part],
        followed=_follow(found[part], first=true[start - 1]),
        freeze=np.broadcast_to(true[start - 1], true[part].shape),
        coast=_coast(episode, true=true[part], start=start),
        turned=any(
            kind in _TURNS and start <= frame < stop for frame, kind, _, _ in episode.events
        ),
        seam=_seam(found, clear, start=start),
        height=episode.height,
        width=episode.width,
        fps=episode.fps,
    )


def _whole(episode: Episode, *, true: Floats, radius: Floats) -> Bools:
    whole = np.zeros(radius.shape, dtype=bool)
    for i in range(radius.shape[1]):
        shape, angle = SHAPES[int(episode.state[0, i, 6])], float(episode.state[0, i, 5])
        left, right, up, down = (d * radius[:, i] - _EDGE_PX for d in reach(shape, angle))
        x, y = true[:, i, 0], true[:, i, 1]
        inside = (x >= left) & (x <= episode.width - right)
        inside &= (y >= up) & (y <= episode.height - down)
        whole[:, i] = inside & (episode.state[: len(x), i, 8] >= _WHOLE)
    return whole


def _match(tracking: Tracking, episode: Episode, *, true: Floats, by_position: bool) -> Floats:
    """Give every true object the detections of its colour, its shape first, then the nearest."""
    chains = build_chains(tracking)
    num_frames, num_objects = true.shape[:2]
    pairs = [
        (i, colour)
        for i in range(num_objects)
        for colour in dict.fromkeys(episode.state[:num_frames, i, 7].astype(int).tolist())
    ]
    cost = np.full((len(pairs), len(chains)), np.inf)
    for row, (i, colour) in enumerate(pairs):
        for k, chain in enumerate(chains):
            if by_position or chain.colour == COLOURS[colour]:
                other = chain.shape != SHAPES[int(episode.state[0, i, 6])] and not by_position
                cost[row, k] = float(other) + _apart(chain, true[:, i]) / tracking.height
    found = np.full(true.shape, np.nan)
    for (i, _), choice in zip(pairs, assign(cost), strict=True):
        if choice is not None:
            seen = chains[choice].seen
            found[seen, i] = chains[choice].screen[seen]
    return found


def _apart(chain: Chain, true: Floats) -> float:
    gap = _mean(np.hypot(*(chain.screen - true).T))
    return float(len(true)) if math.isnan(gap) else gap


def _follow(found: Floats, *, first: Floats) -> Floats:
    """Fill gaps with the last known position; the first frame is known."""
    followed = found.copy()
    followed[0] = np.where(np.isnan(found[0]), first, found[0])
    for k in range(1, len(followed)):
        followed[k] = np.where(np.isnan(found[k]), followed[k - 1], found[k])
    return followed


def _coast(episode: Episode, *, true: Floats, start: int) -> Floats:
    """Positions if every object kept its velocity from the last given frame on."""
    half = np.array([episode.width / 2, episode.height / 2])
    camera = episode.camera[start - 1 : start - 1 + len(true), None].astype(np.float64)
    place, zoom = camera[..., :2] + half, camera[..., 2:]
    seconds = np.arange(len(true))[:, None, None] / episode.fps
    first = (true[0] - half) / zoom[0] + place[0]
    world = first + episode.state[start - 1, :, 2:4] * seconds
    return np.asarray((world - place) * zoom + half)


def _seam(found: Floats, true: Floats, *, start: int) -> float:
    if start < 2:
        return NAN

    def bend(path: Floats) -> Floats:
        second = path[start] - 2 * path[start - 1] + path[start - 2]
        return np.asarray(np.hypot(second[:, 0], second[:, 1]))

    return _mean(bend(found) - bend(true))


def _errors(side: Comparison, places: Floats) -> Floats:
    """Distances from the truth in canvas heights, NaN where not judged."""
    gap = places - side.true
    distance = np.hypot(gap[..., 0], gap[..., 1]) / side.height
    return np.asarray(np.where(side.judged, distance, np.nan))


def _mean(values: Floats) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else NAN


def _horizon(side: Comparison, errors_px: Floats) -> float:
    """Seconds until any object is off by more than its radius for three judged frames running."""
    first = len(errors_px) - 1
    for i in range(errors_px.shape[1]):
        frames = np.flatnonzero(side.judged[:, i])
        run = 0
        for frame in frames:
            run = run + 1 if errors_px[frame, i] > side.radius[frame, i] else 0
            if run == _LOST_FRAMES:
                first = min(first, int(frame) - _LOST_FRAMES)
                break
    return first / side.fps


def _velocity_scores(side: Comparison) -> dict[str, float]:
    """Relative error of speed and error of direction in each second after the seam."""

    def velocity(path: Floats) -> Floats:
        return np.asarray(path[2 * _STEP :] - path[: -2 * _STEP]) / (2 * _STEP)

    scores: dict[str, float] = {}
    if len(side.true) <= 2 * _STEP + 1:
        return scores
    known = np.where(side.judged[..., None], side.true, np.nan)[1:]
    true, found = velocity(known), velocity(side.found[1:])
    size, made = np.hypot(*np.moveaxis(true, -1, 0)), np.hypot(*np.moveaxis(found, -1, 0))
    slowest = 0.5 * SPEEDS["slow"] * side.width / side.fps
    size = np.where(size >= slowest, size, np.nan)
    speed_error = np.abs(made - size) / size
    made = np.where(made >= 0.1 * slowest, made, np.nan)
    cosine = np.clip((true * found).sum(axis=-1) / (size * made), -1.0, 1.0)
    angle = np.degrees(np.arccos(cosine))
    for second in SECONDS:
        span = slice(max((second - 1) * side.fps - _STEP, 0), second * side.fps - _STEP)
        scores[f"v_err@{second}s"] = _mean(speed_error[span])
        scores[f"dir_err@{second}s"] = _mean(angle[span])
    return scores
