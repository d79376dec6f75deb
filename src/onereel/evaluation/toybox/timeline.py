"""Prompts that change at chunk boundaries: the scores of `prompts.py` on the frames of each."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onereel.evaluation.toybox.chains import Chain, build_chains, cut_out
from onereel.evaluation.toybox.events import STILL_PX, Stage, stage_of
from onereel.evaluation.toybox.paths import slope
from onereel.evaluation.toybox.prompts import (
    NAN,
    PROMPT_SCORES,
    SETTLE_SECONDS,
    cast_of,
    has_room,
    motion_of,
    nearest_speed,
    prompt_scores,
)
from onereel.evaluation.toybox.tracks import Ints, Tracking
from onereel.world import CHUNK_FRAMES, DIRECTIONS, SceneSpec

_HOLD = 6  # frames for which what is new must hold
_HALF_ANGLE = math.cos(math.radians(45.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reign:
    """The frames that one prompt governs.

    Args:
        start: first frame.
        stop: one past the last frame.
        spec: what is asked for.
        before: what was asked for until then, None at the start of the video.
    """

    start: int
    stop: int
    spec: SceneSpec
    before: SceneSpec | None


def reigns(
    specs: Sequence[SceneSpec], num_frames: int, *, chunk_frames: int = CHUNK_FRAMES
) -> tuple[Reign, ...]:
    """Join chunks with equal specs.

    Args:
        specs: one per chunk; the last one holds to the end of the video.
        num_frames: of the video.
        chunk_frames: frames per chunk.

    Returns:
        The spans of frames with one spec, in order.
    """
    found: list[Reign] = []
    starts = range(0, len(specs) * chunk_frames, chunk_frames)
    for spec, run in itertools.groupby(zip(starts, specs, strict=True), key=lambda pair: pair[1]):
        start = next(run)[0]
        if start >= num_frames:
            break
        if found:
            found[-1] = dataclasses.replace(found[-1], stop=start)
        before = found[-1].spec if found else None
        found.append(Reign(start=start, stop=num_frames, spec=spec, before=before))
    return tuple(found)


def timeline_scores(
    tracking: Tracking,
    specs: Sequence[SceneSpec],
    *,
    unsaid: bool = False,
    chunk_frames: int = CHUNK_FRAMES,
) -> dict[str, float]:
    """Score one video against prompts that change at chunk boundaries.

    Args:
        tracking: what is seen in the video.
        specs: the scene asked for in every chunk.
        unsaid: judge also what canonical captions leave unsaid.
        chunk_frames: frames per chunk.

    Returns:
        `PROMPT_SCORES` by name, each the mean over the prompts to which it applies; `all_correct`
        is 1 when every prompt was followed. `switch_latency` is the mean over changes in frames,
        NaN without a change that could be seen; a change that never comes counts as long as its
        prompt governs. `switch_done` is the share of changes that came.

    Source:
        spec/evaluation.md 9.3, chunk-wise prompting.
    """
    spans = reigns(specs, tracking.num_frames, chunk_frames=chunk_frames)
    parts = []
    for span in spans:
        part = cut_out(tracking, span.start, stop=span.stop)
        parts.append(prompt_scores(part, span.spec, unsaid=unsaid, before=span.before))
    scores = {name: _mean(part[name] for part in parts) for name in PROMPT_SCORES}
    if not math.isnan(scores["all_correct"]):
        scores["all_correct"] = float(scores["all_correct"] == 1.0)
    delays = [(switch_latency(tracking, span), span) for span in spans if span.before is not None]
    judged = [(delay, span) for delay, span in delays if not math.isnan(delay)]
    scores["switch_latency"] = _mean(delay for delay, _ in judged)
    scores["switch_done"] = _mean(delay < span.stop - span.start for delay, span in judged)
    return scores


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else NAN


def switch_latency(tracking: Tracking, reign: Reign) -> float:
    """Measure how long a change of prompt takes to show.

    Args:
        tracking: what is seen in the whole video.
        reign: the prompt that brings the change.

    Returns:
        Frames from the prompt's first to the first from which what is new holds for 6 frames; the
        length of the reign when it never does; NaN when the change cannot be seen: no change, too
        short a reign, no room to move, a motion that is never begun in mid-video.

    Source:
        spec/evaluation.md 9.3.
    """
    spec, before = reign.spec, reign.before
    length = reign.stop - reign.start
    if before is None or length < _HOLD + SETTLE_SECONDS * tracking.fps:
        return NAN
    part = cut_out(tracking, reign.start, stop=reign.stop)
    new_cast = before.objects != spec.objects
    new_motion = motion_of(before) != motion_of(spec)
    stage = stage_of(part, spec, cast=cast_of(spec, build_chains(part)))
    mover = stage.cast[0]
    if new_motion and spec.motion in ("linear", "gravity"):
        if mover is not None and not has_room(stage, mover):
            return NAN
    elif new_motion and spec.motion not in ("static", "vanish"):
        return NAN
    if not (new_cast or new_motion):
        return NAN
    for start in range(length - _HOLD + 1):
        frames = np.arange(start, start + _HOLD)
        shown = not new_cast or _cast_shown(stage, frames)
        if shown and (not new_motion or _moves_as_asked(stage, frames)):
            return float(start)
    return float(length)


def _shows(chain: Chain | None, colour: str, frames: Ints) -> bool:
    return chain is not None and chain.colour == colour and bool(chain.seen[frames].all())


def _cast_shown(stage: Stage, frames: Ints) -> bool:
    """Every object asked for is there, in its colour."""
    pairs = zip(stage.cast, stage.spec.objects, strict=True)
    return all(_shows(chain, thing.colour, frames) for chain, thing in pairs)


def _moves_as_asked(stage: Stage, frames: Ints) -> bool:
    spec, mover = stage.spec, stage.cast[0]
    if spec.motion == "vanish":
        gone = mover is None or mover.colour != spec.objects[0].colour
        return gone or (mover is not None and not mover.seen[frames].any())
    if mover is None or not mover.seen[frames].all():
        return False
    speed = slope(mover.world, frames)
    size = float(np.hypot(*speed))
    if spec.motion == "static":
        return size < STILL_PX
    if spec.motion == "gravity":
        curve = float(np.polyfit(np.arange(_HOLD), mover.world[frames, 1], 2)[0])
        return 2 * curve >= 0.5 * stage.gravity
    along = float(speed @ np.array(DIRECTIONS[spec.direction or "right"]))
    right_speed = nearest_speed(size * stage.fps / stage.width) == spec.speed
    return along > _HALF_ANGLE * size and (spec.speed is None or right_speed)
