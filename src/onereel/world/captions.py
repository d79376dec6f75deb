"""Captions: the plain English that people would type for a scene, canonical or paraphrased."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from onereel.world.spec import COLOURS, PATTERNS, TONES, ObjectSpec, SceneSpec, sample_spec

Rng = np.random.Generator | None

# in every list the first entry is the canonical one
_SHAPE_WORDS = {
    "disc": ("disc", "circle", "ball", "disc", "disk"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "diamond", "rhombus"),
}
_SIZE_WORDS = {
    "small": ("small", "small", "tiny", "little"),
    "medium": ("", "", "", "medium", "medium sized"),
    "large": ("large", "large", "big", "huge"),
}
_COLOUR_WORDS = {"purple": ("purple", "purple", "violet")}
_SPEED_WORDS = {
    "slow": ("slowly", "slowly", "gently"),
    "medium": ("", "", "", "steadily"),
    "fast": ("quickly", "quickly", "fast", "rapidly"),
}
_DIRECTION_WORDS = {
    "right": ("to the right", "right", "rightwards", "from left to right", "towards the right"),
    "left": ("to the left", "left", "leftwards", "from right to left", "towards the left"),
    "up": ("up", "upwards", "to the top", "upward"),
    "down": ("down", "downwards", "to the bottom", "downward"),
    "up_right": ("up and to the right", "diagonally up to the right", "towards the upper right"),
    "up_left": ("up and to the left", "diagonally up to the left", "towards the upper left"),
    "down_right": (
        "down and to the right",
        "diagonally down to the right",
        "towards the lower right",
    ),
    "down_left": ("down and to the left", "diagonally down to the left", "towards the lower left"),
}
_RELATION_WORDS = {
    "left_of": ("to the left of", "to the left of", "left of", "on the left of"),
    "right_of": ("to the right of", "to the right of", "right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "underneath"),
}
_PHRASES = {
    "linear": (
        "{a} moves {how} {way}",
        "{a} moves {way} {how}",
        "{a} drifts {how} {way}",
        "{a} glides {way} {how}",
        "{a} travels {how} {way}",
        "{a} is moving {how} {way}",
        "{a} slides {how} {way}",
        "{a} moving {how} {way}",
    ),
    "gravity_floor": (
        "{a} falls to the floor",
        "{a} falls",
        "{a} drops to the floor",
        "{a} falls down onto the floor",
        "{a} is falling to the ground",
    ),
    "gravity": ("{a} falls", "{a} falls down", "{a} drops", "{a} is falling", "{a} drops down"),
    "bounce": (
        "{a} bounces on the floor",
        "{a} bounces",
        "{a} bounces up and down",
        "{a} is bouncing on the floor",
        "{a} bouncing",
        "{a} bounces on the ground",
    ),
    "bounce_way": (
        "{a} bounces {way}",
        "{a} bounces along the floor {way}",
        "{a} bounces on the floor {way}",
    ),
    "slide_stop": (
        "{a} slides {how} {way} and stops",
        "{a} slides {way} {how} and comes to rest",
        "{a} slides {way} on the floor and stops",
        "{a} slides {how} {way} until it stops",
    ),
    "occlude": (
        "{a} moves {how} {way} behind a grey slab",
        "{a} passes behind a grey slab {way}",
        "{a} moves {way} {how} and passes behind a grey slab",
        "{a} disappears behind a grey pillar moving {way}",
    ),
    "appear": ("{a} appears", "{a} fades in", "{a} shows up", "suddenly {a} appears"),
    "vanish": ("{a} vanishes", "{a} disappears", "{a} fades out", "suddenly {a} vanishes"),
    "pan": (
        "the camera pans {side} over {a}",
        "{a} while the camera pans {side}",
        "the camera moves {way} over {a}",
        "the camera pans {way} past {a}",
    ),
    "zoom_in": (
        "the camera zooms in on {a}",
        "the camera zooms in to {a}",
        "{a} while the camera zooms in",
        "zoom in on {a}",
    ),
    "zoom_out": (
        "the camera zooms out from {a}",
        "{a} while the camera zooms out",
        "zoom out from {a}",
    ),
    "static": (
        "{a} rests",
        "{a} does not move",
        "{a} stands still",
        "a still picture of {a}",
        "{a}",
    ),
    "collide": (
        "{a} hits {b}",
        "{a} moves {how} {way} and hits {b}",
        "{a} collides with {b}",
        "{a} bumps into {b}",
        "{a} {how} hits {b}",
        "{a} and {b} collide",
        "{a} crashes into {b}",
    ),
}


def _choose(options: Sequence[str], rng: Rng) -> str:
    return options[0] if rng is None else options[int(rng.integers(len(options)))]


def _chance(share: float, rng: Rng) -> bool:
    return rng is not None and bool(rng.random() < share)


def _tidy(text: str) -> str:
    return " ".join(text.split())


def noun_phrase(thing: ObjectSpec, rng: Rng = None, *, article: str = "a") -> str:
    """Name an object.

    Args:
        thing: the object.
        rng: None for the canonical words, else paraphrases; the size may be left out.
        article: `a` or `the`.

    Returns:
        Such as "a large red disc".
    """
    size = _choose(_SIZE_WORDS[thing.size], rng)
    colour = _choose(_COLOUR_WORDS.get(thing.colour, (thing.colour,)), rng)
    shape = _choose(_SHAPE_WORDS[thing.shape], rng)
    if _chance(0.25, rng):
        size = ""
    if size and _chance(0.06, rng):
        text = f"{colour} {shape} that is {size}"
    elif size and _chance(0.08, rng):
        text = f"{colour} {size} {shape}"
    else:
        text = _tidy(f"{size} {colour} {shape}")
    if article == "a":
        article = "an" if text[0] in "aeiou" else "a"
    return f"{article} {text}"


def _main_clause(spec: SceneSpec, rng: Rng, *, article: str = "a") -> str:
    key = spec.motion
    if key == "gravity" and spec.floor:
        key = "gravity_floor"
    elif key == "bounce" and spec.direction:
        key = "bounce_way"
    elif key == "zoom":
        key = spec.camera
    how = ("",) if _chance(0.15, rng) else _SPEED_WORDS.get(spec.speed or "", ("",))
    words: Mapping[str, str] = {
        "a": noun_phrase(spec.objects[0], rng, article=article),
        "b": noun_phrase(spec.objects[1], rng) if len(spec.objects) > 1 else "",
        "how": _choose(how, rng),
        "way": _choose(_DIRECTION_WORDS[spec.direction], rng) if spec.direction else "",
        "side": spec.direction or "",
    }
    return _tidy(_choose(_PHRASES[key], rng).format_map(words))


def _with_others(spec: SceneSpec, clause: str, rng: Rng) -> str:
    """Add the resting objects to a clause."""
    first = 2 if spec.motion == "collide" else 1
    others = " and ".join(noun_phrase(o, rng) for o in spec.objects[first:])
    if not others:
        return clause
    if spec.relation is None or spec.motion == "collide":
        return f"{clause} next to {others}"
    relation = _choose(_RELATION_WORDS[spec.relation], rng)
    if spec.motion == "static" and _chance(0.5, rng):
        return f"{noun_phrase(spec.objects[0], rng)} {relation} {others}"
    # without the comma "moves down below a disc" would read as one phrase
    comma = "" if spec.motion == "static" or _chance(0.5, rng) else ","
    return f"{clause}{comma} {relation} {others}"


def background_phrase(background: int) -> str:
    """Name a background.

    Args:
        background: 0 to 15.

    Returns:
        Such as "on a light striped background".
    """
    tone, pattern = TONES[background // len(PATTERNS)], PATTERNS[background % len(PATTERNS)]
    return f"on a {tone} {pattern} background"


def caption(spec: SceneSpec, rng: Rng = None) -> str:
    """Describe a scene.

    Args:
        spec: the scene.
        rng: None gives the canonical caption; otherwise words and order vary, and size, speed and
            background may go unmentioned (the background mostly does).

    Returns:
        One line in lower case without a full stop.
    """
    text = _with_others(spec, _main_clause(spec, rng), rng)
    count = len(spec.objects)
    if count > 1 and _chance(0.12, rng):
        text = f"{'two' if count == 2 else 'three'} objects: {text}"
    if _chance(0.25, rng):
        text = f"{text} {background_phrase(spec.background)}"
    return text


def object_words(text: str, spec: SceneSpec) -> list[tuple[int, int]]:
    """Find where a caption names its objects.

    Args:
        text: a caption of the scene.
        spec: the scene.

    Returns:
        For every object where the word of its colour, and where that of its shape begins.
    """
    places = []
    for thing in spec.objects:
        colours = "|".join(_COLOUR_WORDS.get(thing.colour, (thing.colour,)))
        shapes = "|".join(_SHAPE_WORDS[thing.shape])
        found = re.search(rf"\b(?:{colours})\b.*?\b({shapes})\b", text)
        assert found is not None  # a caption names all of its objects
        places.append((found.start(), found.start(1)))
    return places


def change_caption(before: SceneSpec, after: SceneSpec, *, rng: Rng = None) -> str:
    """Describe the chunk in which one spec turns into another.

    Args:
        before: the scene until now.
        after: the scene from this chunk on.
        rng: None gives canonical words.

    Returns:
        One line; it says what changes.
    """
    old, new = before.objects[0], after.objects[0]
    article = "the" if _chance(0.5, rng) else "a"
    if old.colour != new.colour:
        name = noun_phrase(old, rng, article=article)
        colour = _choose(_COLOUR_WORDS.get(new.colour, (new.colour,)), rng)
        return f"{name} {_choose(('turns', 'turns', 'becomes'), rng)} {colour}"
    if len(after.objects) > len(before.objects):
        extra = noun_phrase(after.objects[-1], rng)
        verb = _choose(("appears", "appears", "fades in"), rng)
        if before.motion == "static" or _chance(0.5, rng):
            return f"{extra} {verb} next to {noun_phrase(new, rng, article='the')}"
        return f"{_main_clause(before, rng, article=article)} and {extra} {verb}"
    if after.motion == "static" and before.motion != "static":
        verb = _choose(("stops", "stops", "stands still", "stops moving"), rng)
        return f"{noun_phrase(new, rng, article=article)} {verb}"
    return _main_clause(after, rng, article=article)


def sample_captions(count: int, seed: int = 0) -> list[str]:
    """Draw captions to train a tokenizer on; a few thousand contain every word of `all_words`.

    Args:
        count: how many.
        seed: the same seed gives the same list.

    Returns:
        Paraphrased captions of scenes outside the held-out combinations; some tell of a change.
    """
    rng = np.random.default_rng((seed, 2))
    texts = []
    for _ in range(count):
        spec = sample_spec(rng)
        if rng.random() < 0.9:
            texts.append(caption(spec, rng))
            continue
        other = sample_spec(rng, num_objects=1)
        before = dataclasses.replace(spec, objects=other.objects, motion="linear")
        after = dataclasses.replace(before, motion=("linear", "static")[int(rng.integers(2))])
        if after.motion == "linear":
            after = dataclasses.replace(after, objects=spec.objects)
        texts.append(change_caption(before, after, rng=rng))
    return texts


def all_words() -> tuple[str, ...]:
    """List every word that captions can contain.

    Returns:
        Sorted words in lower case, without punctuation.
    """
    tables = (_SHAPE_WORDS, _SIZE_WORDS, _SPEED_WORDS, _DIRECTION_WORDS, _RELATION_WORDS, _PHRASES)
    texts = [text for table in tables for options in table.values() for text in options]
    texts += [*COLOURS, "violet", *TONES, *PATTERNS, "turns becomes stops moving stands still"]
    texts += ["on a background two three objects: next to and the an that is"]
    words = {w.strip(",:") for text in texts for w in text.split() if not w.startswith("{")}
    return tuple(sorted(words - {""}))
