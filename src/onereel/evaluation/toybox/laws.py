"""Laws of the world that a video keeps or breaks, without knowing what should have happened."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from onereel.evaluation.toybox.chains import MIN_FRAMES, Chain, build_chains, cut_out
from onereel.evaluation.toybox.events import Stage, stage_of, vanish_frame
from onereel.evaluation.toybox.paths import (
    MIN_FLIGHT,
    bottom,
    find_contact,
    flights,
    slope,
    wall_distance,
)
from onereel.evaluation.toybox.prompts import cast_of
from onereel.evaluation.toybox.tracks import Floats, Ints, Tracking, truth
from onereel.world import GRAVITY, SPEEDS, Episode, SceneSpec

LAW_SCORES = (
    *("g_err", "g_residual", "e_err", "momentum_err", "energy_gain", "penetration"),
    *("permanence", "teleport", "id_switches"),
)
RESTITUTIONS = (0.6, 0.8, 1.0)  # spec/evaluation.md 9.1
NAN = float("nan")
_FALLING = ("gravity", "bounce")
_OVERLAP = 0.05  # of the smaller object's area
_SAME_SIZE = 0.15
_RETURN_SECONDS = 1.5  # by when a hidden object is due again
_HANDOVER_SECONDS = 0.25
_ENERGY_SECONDS = 1.0  # at the start and at the end


def law_scores(
    tracking: Tracking, spec: SceneSpec, *, start: int = 0, episode: Episode | None = None
) -> dict[str, float]:
    """Measure how far a video breaks the world's laws.

    Args:
        tracking: of the whole video.
        spec: the scene asked for; it says which laws can be seen.
        start: first frame that is looked at, such as the first one made.
        episode: the true scene where there is one: its restitution and greatest speed are taken,
            else those that the world allows.

    Returns:
        `LAW_SCORES` by name, all 0 for the truth but `permanence`, which is 1. `g_residual` is in
        px; `id_switches` is a number per video; the others are shares or relative errors. NaN where
        the scene does not show the law.

    Source:
        spec/evaluation.md 9.4, laws.
    """
    part = cut_out(tracking, start, stop=tracking.num_frames)
    stage = stage_of(part, spec, cast=cast_of(spec, build_chains(part)))
    model = None
    if episode is not None:
        model = cut_out(truth(episode), start, stop=min(episode.num_frames, tracking.num_frames))
    scores = dict.fromkeys(LAW_SCORES, NAN)
    scores["g_err"], scores["g_residual"] = _gravity(stage)
    scores["e_err"] = _restitution(stage, model)
    scores["momentum_err"] = _momentum(stage)
    scores["energy_gain"] = _energy_gain(stage)
    scores["penetration"] = _penetration(stage)
    scores["permanence"] = _permanence(stage, part)
    scores["teleport"] = _teleport(stage, episode)
    scores["id_switches"] = float(_handovers(part))
    return scores


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else NAN


def _gravity(stage: Stage) -> tuple[float, float]:
    """Relative error of the measured gravity, and how far the paths are from parabolas."""
    mover = stage.cast[0]
    if mover is None or stage.spec.motion not in _FALLING:
        return NAN, NAN
    found = flights(mover.world, stage.touching(mover), radius=mover.radius)
    if not found:
        return NAN, NAN
    if stage.spec.motion == "gravity":
        # nothing rises there: what is aloft and does not come down does not fall at all
        found = [f for f in found if f.end_speed > 4 * stage.gravity]
        if not found:
            return 1.0, NAN
    weights = [len(f.frames) for f in found]
    errors = [abs(f.acceleration / stage.gravity - 1.0) for f in found]
    misses = [f.residual for f in found]
    return float(np.average(errors, weights=weights)), float(np.average(misses, weights=weights))


def _restitution(stage: Stage, model: Tracking | None) -> float:
    mover = stage.cast[0]
    if mover is None or stage.spec.motion != "bounce":
        return NAN
    found = _rebounds(stage, mover)
    if model is None:
        return _mean(min(abs(e - lawful) for lawful in RESTITUTIONS) for e in found)
    true_stage = stage_of(model, stage.spec, cast=cast_of(stage.spec, build_chains(model)))
    true_mover = true_stage.cast[0]
    true = _mean(_rebounds(true_stage, true_mover)) if true_mover is not None else NAN
    return _mean(abs(e - true) for e in found)


def _rebounds(stage: Stage, mover: Chain) -> list[float]:
    """Speed after over speed before, at the ground, for every bounce between two flights."""
    down = bottom(mover, stage.spec.objects[0].shape) - mover.world[:, 1]
    level = stage.ground - float(np.nanmedian(down))
    found = flights(mover.world, stage.touching(mover), radius=mover.radius)
    ratios = []
    for one, other in itertools.pairwise(found):
        close = other.frames[0] - one.frames[-1] <= MIN_FLIGHT
        if not close or one.end_speed <= 0 or other.start_speed >= 0:
            continue
        before, after = mover.world[[one.frames[-1], other.frames[0]], 1]
        fell = one.end_speed**2 + 2 * one.acceleration * (level - before)
        rose = other.start_speed**2 + 2 * other.acceleration * (level - after)
        if fell > 0:
            ratios.append(math.sqrt(max(rose, 0.0) / fell))
    return ratios


def _momentum(stage: Stage) -> float:
    if stage.spec.motion != "collide":
        return NAN
    mover, target = stage.cast[:2]
    if mover is None or target is None:
        return NAN
    contact = find_contact(mover, target, slack=stage.slack)
    if contact is None:
        return NAN
    around = slice(max(contact.frame - 6, 0), contact.frame + 6)
    for chain in (mover, target):
        # the canvas' edge takes momentum too
        near = wall_distance(chain, width=stage.width, ground=stage.ground)[around]
        if np.nanmin(near) <= stage.slack:
            return NAN
    lost = contact.after.sum(axis=0) - contact.before.sum(axis=0)
    return float(np.hypot(*lost) / np.hypot(*contact.before.T).sum())


def _energy_gain(stage: Stage) -> float:
    """Energy gained from the first second to the last, equal masses."""
    total = np.zeros(len(stage.camera))
    for chain in stage.cast:
        if chain is None or stage.spec.motion in ("appear", "vanish"):
            return NAN
        path = np.where(chain.cut[:, None], np.nan, chain.world)
        speed = np.full(path.shape, np.nan)
        speed[2:-2] = (path[4:] - path[:-4]) / 4
        total += 0.5 * (speed**2).sum(axis=1)
    mover = stage.cast[0]
    if mover is not None and stage.spec.motion in _FALLING:
        total += stage.gravity * np.maximum(stage.ground - bottom(mover), 0.0)
    span = min(round(_ENERGY_SECONDS * stage.fps), len(total) // 2)
    first, last = total[:span], total[-span:]
    # the median passes over the frames of a rebound
    if min(np.sum(~np.isnan(first)), np.sum(~np.isnan(last))) < span // 2:
        return NAN
    # a scene at rest has no energy of its own: a tremble is measured against a slow object's
    least = 0.5 * (0.5 * SPEEDS["slow"] * stage.width / stage.fps) ** 2
    return max(0.0, float(np.nanmedian(last)) / max(float(np.nanmedian(first)), least) - 1.0)


def _penetration(stage: Stage) -> float:
    """Share of frames in which two objects overlap, as discs of their areas."""
    chains = [chain for chain in stage.cast if chain is not None]
    both = np.zeros(len(stage.camera), dtype=bool)
    inside = both.copy()
    for one, other in itertools.combinations(chains, 2):
        seen = one.seen & other.seen
        gap = (one.world - other.world)[seen]
        area = _lens(np.hypot(gap[:, 0], gap[:, 1]), one.radius, other.radius)
        both |= seen
        inside[seen] |= area > _OVERLAP * math.pi * min(one.radius, other.radius) ** 2
    return float(inside[both].mean()) if both.any() else NAN


def _lens(distance: Floats, one: float, other: float) -> Floats:
    """Area common to two discs."""
    d = np.clip(distance, abs(one - other) + 1e-9, one + other)
    alpha = np.arccos(np.clip((d * d + one**2 - other**2) / (2 * d * one), -1.0, 1.0))
    beta = np.arccos(np.clip((d * d + other**2 - one**2) / (2 * d * other), -1.0, 1.0))
    return np.asarray(
        one**2 * (alpha - np.sin(2 * alpha) / 2) + other**2 * (beta - np.sin(2 * beta) / 2)
    )


def _permanence(stage: Stage, part: Tracking) -> float:
    """Share of the times out of sight after which the same object comes back where it should."""
    results: list[float] = []
    for i, chain in enumerate(stage.cast):
        if chain is None or (stage.spec.motion == "vanish" and i == 0):
            continue
        frames = np.flatnonzero(chain.seen)
        for k in np.flatnonzero(np.diff(frames) > 3):
            if not chain.leaving[max(frames[k] - 1, 0) : frames[k] + 1].any():
                results.append(
                    _came_back(chain, part, last=int(frames[k]), first=int(frames[k + 1]))
                )
        gone = vanish_frame(chain)
        if gone is not None and len(chain.seen) - gone >= _RETURN_SECONDS * part.fps:
            results.append(0.0)
    return _mean(results)


def _came_back(chain: Chain, part: Tracking, *, last: int, first: int) -> float:
    before = _same_way(chain.world, _whole_near(chain, slice(max(last - 11, 0), last + 1)))
    after = _whole_near(chain, slice(first, first + 24))[:6]
    if len(before) < 2 or not len(after):
        return NAN
    # no wall is near a slab, so what is hidden keeps its velocity
    frames = np.arange(first, after[0] + 1)
    steps = (frames - before.mean())[:, None]
    expected = chain.world[before].mean(axis=0) + steps * slope(chain.world, before)
    # a part that looks out of the slab already tells where the object is, if less exactly
    near = np.nanmin(np.hypot(*(chain.world[frames] - expected).T)) < chain.radius
    old, new = np.median(chain.r[before]), np.median(chain.r[after])
    shapes = {part.tracks[int(chain.track[frame])].shape for frame in (last, first)}
    return float(near and abs(new / old - 1.0) <= _SAME_SIZE and len(shapes) == 1)


def _whole_near(chain: Chain, span: slice) -> Ints:
    """Frames of a short time in which the object looks whole, by its size at that time."""
    uncut = chain.seen[span] & ~chain.cut[span]
    if not uncut.any():
        return np.zeros(0, dtype=int)
    large = np.quantile(chain.r[span][uncut], 0.8)
    with np.errstate(invalid="ignore"):
        whole = uncut & (chain.r[span] >= 0.92 * large)
    return np.asarray(np.flatnonzero(whole) + span.start)


def _same_way(path: Floats, frames: Ints) -> Ints:
    """Keep the last frames that follow the last turn."""
    if len(frames) < 3:
        return frames
    steps = np.diff(path[frames], axis=0)
    along = steps[:, int(np.argmax(np.abs(steps[-1])))]
    turned = np.flatnonzero(np.sign(along) != np.sign(along[-1]))
    # the step beside the turn goes partly back and partly forth
    return frames[turned[-1] + 2 :] if len(turned) else frames


def _teleport(stage: Stage, episode: Episode | None) -> float:
    """Share of steps faster than four times the greatest lawful speed."""
    limit = 4.0 * _top_speed(stage, episode)
    steps = []
    for chain in stage.cast:
        if chain is None:
            continue
        frames = np.flatnonzero(chain.seen & ~chain.leaving)
        time = np.diff(frames)
        jump = np.hypot(*np.diff(chain.world[frames], axis=0).T) / np.maximum(time, 1)
        steps.append(jump[time <= _HANDOVER_SECONDS * stage.fps])
    moved = np.concatenate(steps) if steps else np.zeros(0)
    return float(np.mean(moved > limit)) if len(moved) else NAN


def _top_speed(stage: Stage, episode: Episode | None) -> float:
    """Greatest lawful speed in px per frame."""
    slow = SPEEDS["slow"] * stage.width / stage.fps
    if episode is not None:
        speed = np.hypot(episode.state[..., 2], episode.state[..., 3]).max() / episode.fps
        return max(float(speed), slow)
    if stage.spec.motion in _FALLING:
        return math.sqrt(2 * GRAVITY) * stage.height / stage.fps
    return SPEEDS[stage.spec.speed or "fast"] * stage.width / stage.fps


def _handovers(part: Tracking) -> int:
    """Count the tracks that begin where and when another one ended."""
    tracks = [track for track in part.tracks if len(track.frames) >= MIN_FRAMES]
    patience = round(_HANDOVER_SECONDS * part.fps)
    count = 0
    for new in tracks:
        for old in tracks:
            wait = int(new.frames[0] - old.frames[-1])
            away = math.hypot(new.x[0] - old.x[-1], new.y[0] - old.y[-1])
            if 0 < wait <= patience and away <= 2 * float(np.median(old.r)):
                count += 1
                break
    return count
