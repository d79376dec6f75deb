"""Does the video show what its prompt asks for? One number per thing asked, and all in one.

What a scene's canonical caption says is what is asked. It leaves some things unsaid: medium size,
medium speed, and where a collision comes from. Those are judged only when `unsaid` is set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onereel.evaluation.toybox.chains import (
    Chain,
    assign,
    build_chains,
    in_existence,
)
from onereel.evaluation.toybox.events import (
    EVENT_SECONDS,
    Stage,
    appear_frame,
    happened,
    stage_of,
    vanish_frame,
)
from onereel.evaluation.toybox.paths import bottom, find_contact, first_leg
from onereel.evaluation.toybox.tracks import Bools, Floats, Ints, Tracking
from onereel.world import DIRECTIONS, SIZES, SPEEDS, SceneSpec

_EVENT_NAMES = {motion: motion for motion in EVENT_SECONDS} | {"gravity": "fall"}
PROMPT_SCORES = (
    *("count_acc", "count_frames", "binding_f1", "colour_f1", "shape_f1", "size_acc"),
    *("direction_acc", "angle_error", "speed_ratio", "speed_error", "speed_acc", "relation_acc"),
    *("event_acc", *(f"event_{name}" for name in _EVENT_NAMES.values()), "all_correct"),
)
_ASKED = (
    *("count_acc", "binding_f1", "size_acc", "direction_acc", "speed_acc"),
    *("relation_acc", "event_acc"),
)
_SHORT_SHARE = 0.25  # of the frames; what is seen for less is not counted as an object
_MIN_SEEN = 4  # frames, however short the time in which it could be seen
_MIN_JUDGED = 6  # frames; what is shorter is not scored at all
_HIDDEN_SECONDS = 2.0  # longest time behind the slab
_START_SECONDS = 0.25  # within which both objects of a relation must be seen
SETTLE_SECONDS = 0.5  # after a change of prompt
_LEG_SECONDS = 0.5
_LIMIT_OF_8 = 22.5  # degrees; `linear` has eight directions
_LIMIT_OF_2 = 45.0  # the other motions go left or right
_LASTING = ("pan", "zoom", "static")  # what can be judged in every part of it
_SAID_SPEED = ("linear", "slide_stop", "occlude")
_SAID_DIRECTION = (*_SAID_SPEED, "bounce")
NAN = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """One tracking read as one scene. `kept` are the chains that count as objects."""

    stage: Stage
    kept: tuple[Chain, ...]
    present: Bools  # [chains, F]: exists, in sight or not
    expected: Ints  # [F]: how many objects there should be


def prompt_scores(
    tracking: Tracking,
    spec: SceneSpec,
    *,
    unsaid: bool = False,
    before: SceneSpec | None = None,
) -> dict[str, float]:
    """Score one video against the scene that its prompt describes.

    Args:
        tracking: what is seen in the video.
        spec: the scene asked for by its canonical caption.
        unsaid: judge also what the canonical caption leaves unsaid.
        before: the scene asked for until this clip begins, None at the start of a video. What is
            in the clip must then change within half a second. A motion that goes on is not judged
            again, but a camera's and rest are; nor is one that begins too near the canvas' edge.

    Returns:
        `PROMPT_SCORES` by name. Shares are 0 to 1, `angle_error` is in degrees, `speed_ratio` is
        measured over asked, `speed_error` its |log2|. NaN where the prompt does not ask or the
        clip is too short. `all_correct` is 1 when nothing that was asked and judged is wrong.

    Source:
        spec/evaluation.md 9.3.
    """
    scores = dict.fromkeys(PROMPT_SCORES, NAN)
    changed = before is not None and before.objects != spec.objects
    settle = round(SETTLE_SECONDS * tracking.fps) if changed else 0
    if tracking.num_frames - settle < _MIN_JUDGED:
        return scores
    scene = _read(tracking, spec, settle=settle)
    miss = (scene.present.sum(axis=0) - scene.expected)[settle:]
    scores["count_acc"] = float(np.median(miss) == 0)
    scores["count_frames"] = float(np.mean(miss == 0))
    asked = [(o.colour, o.shape) for o in spec.objects]
    found = [(c.colour, c.shape) for c in scene.kept]
    scores["binding_f1"] = _f1(asked, found)
    scores["colour_f1"] = _f1([c for c, _ in asked], [c for c, _ in found])
    scores["shape_f1"] = _f1([s for _, s in asked], [s for _, s in found])
    scores["size_acc"] = _size(scene, unsaid=unsaid)
    scores |= _what_happens(scene, before, unsaid=unsaid)
    judged = [scores[name] for name in _ASKED if not math.isnan(scores[name])]
    scores["all_correct"] = float(all(value == 1.0 for value in judged))
    return scores


def _what_happens(scene: _Scene, before: SceneSpec | None, *, unsaid: bool) -> dict[str, float]:
    """Score the motion, the relation at its start and the event, where they are to be judged."""
    stage, spec = scene.stage, scene.stage.spec
    restarts = before is None or motion_of(before) != motion_of(spec)
    mover = stage.cast[0]
    # a video puts its mover where its motion fits; in mid-video it starts where it happens to be
    fits = before is None or mover is None or has_room(stage, mover)
    scores: dict[str, float] = {}
    if restarts:
        scores["relation_acc"] = _relation(scene, unsaid=unsaid)
    if restarts and fits:
        scores |= _motion(scene, unsaid=unsaid)
    if (restarts and (fits or spec.motion != "gravity")) or spec.motion in _LASTING:
        # until then a motion may come to rest, or an object appear
        comes_to_rest = before not in (None, spec) and spec.motion == "static"
        late = round(SETTLE_SECONDS * stage.fps) if comes_to_rest else 0
        scores["event_acc"] = happened(stage, late=late)
        if spec.motion in _EVENT_NAMES:
            scores[f"event_{_EVENT_NAMES[spec.motion]}"] = scores["event_acc"]
    return scores


def motion_of(spec: SceneSpec) -> tuple[str, str | None, str | None]:
    """Give what makes up a scene's motion; it goes on as long as this stays the same.

    Args:
        spec: the scene.

    Returns:
        Motion, direction and speed.
    """
    return (spec.motion, spec.direction, spec.speed)


def _f1(asked: Iterable[object], found: Iterable[object]) -> float:
    """Overlap of two multisets."""
    one, other = Counter(asked), Counter(found)
    both = (one & other).total()
    return 2.0 * both / (one.total() + other.total())


def _read(tracking: Tracking, spec: SceneSpec, *, settle: int) -> _Scene:
    chains = build_chains(tracking)
    moving = spec.camera != "still"
    hidden = round(_HIDDEN_SECONDS * tracking.fps) if spec.motion == "occlude" else 0
    present = np.zeros((len(chains), tracking.num_frames), dtype=bool)
    for i, chain in enumerate(chains):
        present[i] = in_existence(chain, moving_camera=moving, hidden=hidden)
    cast = cast_of(spec, chains)
    expected = np.full(tracking.num_frames, len(spec.objects))
    due = np.ones((len(chains), tracking.num_frames), dtype=bool)
    due[:, :settle] = False
    turn = _turn(spec, cast[0])
    if turn is not None:
        gone = np.arange(len(expected)) >= turn
        gone = gone if spec.motion == "vanish" else ~gone
        expected -= gone
        due[[chain is cast[0] for chain in chains]] &= ~gone
    if moving:
        seen = np.array([chain.seen for chain in chains], dtype=bool)
        due &= seen.reshape(due.shape) | ~present
    kept = tuple(chain for chain, when in zip(chains, due, strict=True) if _counts(chain, when))
    stage = stage_of(tracking, spec, cast=cast_of(spec, kept))
    return _Scene(stage=stage, kept=kept, present=present, expected=expected)


def _counts(chain: Chain, due: Bools) -> bool:
    """Tell whether a chain is an object: seen for long enough of the time it could be seen."""
    seen = int((chain.seen & due).sum())
    return seen >= max(_MIN_SEEN, _SHORT_SHARE * due.sum())


def _turn(spec: SceneSpec, mover: Chain | None) -> int | None:
    """Frame at which the mover fades in or out, when it does."""
    if mover is None or spec.motion not in ("appear", "vanish"):
        return None
    return vanish_frame(mover) if spec.motion == "vanish" else appear_frame(mover)


def cast_of(spec: SceneSpec, chains: Sequence[Chain]) -> tuple[Chain | None, ...]:
    """Find which object is which of those asked for.

    Args:
        spec: the scene asked for.
        chains: the objects found.

    Returns:
        One per object of the spec, by colour first, then by shape, then by how long it is seen;
        None where there are too few.
    """
    cost = np.zeros((len(spec.objects), len(chains)))
    for i, thing in enumerate(spec.objects):
        for k, chain in enumerate(chains):
            cost[i, k] = 2.0 * (chain.colour != thing.colour) + (chain.shape != thing.shape)
            cost[i, k] -= 0.9 * chain.num_seen / len(chain.seen)
    return tuple(None if k is None else chains[k] for k in assign(cost))


def _size(scene: _Scene, *, unsaid: bool) -> float:
    names = list(SIZES)
    right = []
    for thing, chain in zip(scene.stage.spec.objects, scene.stage.cast, strict=True):
        if thing.size == "medium" and not unsaid:
            continue
        share = chain.radius / scene.stage.height if chain is not None else NAN
        nearest = min(names, key=lambda name: abs(SIZES[name] - share))  # noqa: B023
        right.append(chain is not None and nearest == thing.size)
    return float(np.mean(right)) if right else NAN


def _relation(scene: _Scene, *, unsaid: bool) -> float:
    """Sign and identity at the start, seen from every other object."""
    spec, cast = scene.stage.spec, scene.stage.cast
    if spec.relation is None or (spec.motion == "collide" and not unsaid):
        return NAN
    axis = 0 if spec.relation in ("left_of", "right_of") else 1
    sign = 1.0 if spec.relation in ("left_of", "above") else -1.0
    for thing, chain in zip(spec.objects, cast, strict=True):
        if chain is None or chain.colour != thing.colour:
            return 0.0
    mover, *others = (chain for chain in cast if chain is not None)
    start = (appear_frame(mover) or 0) if spec.motion == "appear" else 0
    stop = start + round(_START_SECONDS * scene.stage.fps)
    for other in others:
        both = np.flatnonzero((mover.seen & other.seen)[start:stop]) + start
        if not len(both):
            return 0.0
        if not sign * (other.world - mover.world)[both[0], axis] > 0:
            return 0.0
    return 1.0


def _motion(scene: _Scene, *, unsaid: bool) -> dict[str, float]:
    """Direction and speed of the mover on its first leg."""
    stage, spec = scene.stage, scene.stage.spec
    ask_way = spec.direction is not None and (
        spec.motion in _SAID_DIRECTION or (unsaid and spec.motion == "collide")
    )
    if not ask_way or len(stage.camera) < _LEG_SECONDS * stage.fps:
        return {}
    mover = stage.cast[0]
    leg = _leg(stage, mover) if mover is not None else np.zeros(0, dtype=int)
    # a pair may meet, and a slab begin to hide the mover, sooner than half a second
    soon = spec.motion in ("collide", "occlude")
    shortest = (0.5 if soon else 1.0) * _LEG_SECONDS * stage.fps
    if mover is None or len(leg) < min(shortest, len(stage.camera)):
        return {"direction_acc": 0.0} | ({"speed_acc": 0.0} if _says_speed(spec, unsaid) else {})
    way = mover.world[leg[-1]] - mover.world[leg[0]]
    asked = np.array(DIRECTIONS[spec.direction or "right"])
    if spec.motion == "bounce":  # it falls too: the direction asked for is sideways
        way = way * np.array([1.0, 0.0])
    length = float(np.hypot(*way))
    angle = math.degrees(math.acos(np.clip(way @ asked / max(length, 1e-6), -1.0, 1.0)))
    limit = _LIMIT_OF_8 if spec.motion == "linear" else _LIMIT_OF_2
    scores = {
        "angle_error": angle,
        "direction_acc": float(angle < limit and length >= mover.radius),
    }
    if spec.speed is not None and spec.motion != "bounce":
        along = mover.world[leg] @ (way / max(length, 1e-6))
        speed = _speed(along, leg, slows=spec.motion == "slide_stop")
        ratio = speed * stage.fps / (SPEEDS[spec.speed] * stage.width)
        scores["speed_ratio"] = ratio
        scores["speed_error"] = abs(math.log2(max(ratio, 2.0**-8)))
        if _says_speed(spec, unsaid):
            near = nearest_speed(ratio * SPEEDS[spec.speed]) == spec.speed
            scores["speed_acc"] = float(near and scores["speed_error"] < 1.0)
    return scores


def has_room(stage: Stage, mover: Chain) -> bool:
    """Tell whether a motion that begins where the mover is can be seen before the canvas ends.

    Args:
        stage: the scene asked for.
        mover: the object that is to move.

    Returns:
        True when half a second of the motion and one radius fit in the canvas and in the clip.
    """
    spec, first = stage.spec, int(np.argmax(mover.seen))
    radius, speed = mover.radius, SPEEDS[spec.speed or "slow"] * stage.width / stage.fps
    if spec.motion == "gravity":
        return bool(bottom(mover)[first] < stage.ground - 2 * radius - 2 * stage.slack)
    room = np.inf
    for axis, size in enumerate((stage.width, stage.height)):
        way, place = DIRECTIONS[spec.direction or "right"][axis], mover.world[first, axis]
        if way:
            # no shape reaches further than 1.6 radii
            ahead = (size - place if way > 0 else place) - 1.6 * radius
            room = min(room, ahead / abs(way))
    room = min(room, speed * (len(stage.camera) - 1))
    return bool(room >= 1.1 * max(_LEG_SECONDS * stage.fps * speed, radius))


def _says_speed(spec: SceneSpec, unsaid: bool) -> bool:
    said = spec.motion in _SAID_SPEED and spec.speed in ("slow", "fast")
    return spec.speed is not None and (said or unsaid)


def nearest_speed(speed: float) -> str:
    """Name the speed class that is nearest in ratio.

    Args:
        speed: canvas widths per second.

    Returns:
        `slow`, `medium` or `fast`.
    """
    return min(SPEEDS, key=lambda name: abs(math.log(max(speed, 1e-6) / SPEEDS[name])))


def _leg(stage: Stage, mover: Chain) -> Ints:
    """Frames of the mover's first leg in which it is whole."""
    stop = None
    if stage.spec.motion == "collide" and stage.cast[1] is not None:
        contact = find_contact(mover, stage.cast[1], slack=stage.slack)
        stop = contact.frame if contact is not None else None
    path = mover.world
    if stage.spec.motion == "bounce":
        path = np.stack([path[:, 0], np.where(np.isnan(path[:, 0]), np.nan, 0.0)], axis=1)
    # what passes behind the slab is on the same leg before and after
    gap = _HIDDEN_SECONDS if stage.spec.motion == "occlude" else _START_SECONDS
    leg = first_leg(path, radius=mover.radius, stop=stop, gap=round(gap * stage.fps))
    whole = leg[mover.whole()[leg]]
    return whole if len(whole) >= 0.5 * len(leg) else leg


def _speed(along: Floats, frames: Ints, *, slows: bool) -> float:
    """Speed on a leg in px per frame, from positions along it; that at its start if it `slows`."""
    moving = along - along[0] < 0.95 * (along[-1] - along[0])
    if slows and moving.sum() >= _MIN_JUDGED:
        time = (frames - frames[0])[moving].astype(np.float64)
        return float(np.polyfit(time, along[moving], 2)[1])
    step = min(_MIN_JUDGED, len(frames) - 1)
    return float(np.median((along[step:] - along[:-step]) / (frames[step:] - frames[:-step])))
