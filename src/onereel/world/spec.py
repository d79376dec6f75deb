"""Scene specs: what a Toybox scene is, how one is drawn, and which combinations are held out."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from onereel.core.config import check_keys, from_mapping
from onereel.core.errors import ConfigError

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (210, 20, 30),
    "orange": (250, 140, 0),
    "yellow": (240, 240, 70),
    "green": (20, 150, 50),
    "cyan": (40, 210, 230),
    "blue": (30, 60, 220),
    "purple": (150, 20, 180),
    "pink": (255, 110, 190),
}
COLOURS = tuple(PALETTE)
SHAPES = ("disc", "square", "triangle", "diamond")
SIZES = {"small": 0.07, "medium": 0.10, "large": 0.13}  # radius in canvas heights
SPEEDS = {"slow": 0.15, "medium": 0.35, "fast": 0.7}  # canvas widths per second
_D = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up_right": (_D, -_D),
    "up_left": (-_D, -_D),
    "down_right": (_D, _D),
    "down_left": (-_D, _D),
}
RELATIONS = ("left_of", "right_of", "above", "below")
CAMERAS = ("still", "pan_left", "pan_right", "zoom_in", "zoom_out")
TONES = ("light", "dark", "warm", "cool")
PATTERNS = ("plain", "striped", "checkered", "cloudy")
NUM_BACKGROUNDS = len(TONES) * len(PATTERNS)

# motion -> (weight, object counts it can be drawn with)
_MOTIONS: dict[str, tuple[float, tuple[int, ...]]] = {
    "linear": (3.0, (1, 2, 3)),
    "gravity": (1.2, (1, 2, 3)),
    "bounce": (1.8, (1, 2, 3)),
    "collide": (2.5, (2,)),
    "slide_stop": (1.0, (1,)),
    "occlude": (1.0, (1,)),
    "appear": (0.5, (1, 2)),
    "vanish": (0.4, (1, 2)),
    "pan": (0.9, (1, 2, 3)),
    "zoom": (0.8, (1, 2, 3)),
    "static": (0.9, (1, 2, 3)),
}
MOTIONS = tuple(_MOTIONS)
_COUNT_SHARE = {1: 0.6, 2: 0.3, 3: 0.1}
_SPEED_CHOICES: dict[str, tuple[str, ...]] = {
    "linear": ("slow", "medium", "fast"),
    "collide": ("medium", "fast"),
    "slide_stop": ("medium", "fast"),
    "occlude": ("medium", "medium", "fast"),
}
_FLOOR_SHARE = {
    "gravity": 0.8,
    "bounce": 1.0,
    "slide_stop": 1.0,
    "static": 0.3,
    "appear": 0.3,
    "vanish": 0.3,
    "pan": 0.3,
}


def _check(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ConfigError(name, expected=f"one of {', '.join(map(str, allowed))}", got=value)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSpec:
    """One object: what it looks like."""

    shape: str
    colour: str
    size: str = "medium"

    def __post_init__(self) -> None:
        """Check the names."""
        _check("shape", self.shape, SHAPES)
        _check("colour", self.colour, COLOURS)
        _check("size", self.size, tuple(SIZES))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SceneSpec:
    """One scene: what a caption says about it, plus the background.

    The motion belongs to the first object; the others rest (in `collide` the second is hit).
    `relation` says where the first object is at frame 0, seen from all the others.
    """

    objects: tuple[ObjectSpec, ...]
    motion: str
    direction: str | None = None
    speed: str | None = None
    relation: str | None = None
    camera: str = "still"
    floor: bool = False
    background: int = 0

    def __post_init__(self) -> None:
        """Check the names and the counts."""
        if not 1 <= len(self.objects) <= 3:
            raise ConfigError("objects", expected="1 to 3 objects", got=len(self.objects))
        if self.motion == "collide" and len(self.objects) < 2:
            raise ConfigError("objects", expected="two objects for motion 'collide'", got=1)
        _check("motion", self.motion, MOTIONS)
        _check("direction", self.direction, (None, *DIRECTIONS))
        _check("speed", self.speed, (None, *SPEEDS))
        _check("relation", self.relation, (None, *RELATIONS))
        _check("camera", self.camera, CAMERAS)
        _check("background", self.background, range(NUM_BACKGROUNDS))

    def canonical_json(self) -> str:
        """Write the spec as JSON with sorted keys and no spaces.

        Returns:
            The text, equal for equal specs.
        """
        return _canonical(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SceneSpec:
        """Read what `canonical_json` wrote.

        Args:
            text: a JSON object; unknown keys are refused.

        Returns:
            The spec.

        Raises:
            ConfigError: a key or value is not known.
        """
        data = json.loads(text)
        check_keys(data, [f.name for f in dataclasses.fields(cls)], where="SceneSpec")
        data["objects"] = tuple(
            from_mapping(ObjectSpec, o, where="ObjectSpec") for o in data["objects"]
        )
        return from_mapping(cls, data, where="SceneSpec")

    def is_held_out(self) -> bool:
        """Tell whether the first object's colour, shape and motion are kept out of training.

        Returns:
            True when the combination is reserved for evaluation.

        Source:
            spec/evaluation.md 9.1.
        """
        first = self.objects[0]
        return combination_held_out(first.colour, first.shape, motion=self.motion)


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


@cache
def combination_held_out(colour: str, shape: str, *, motion: str) -> bool:
    """Apply the held-out rule to one combination.

    Args:
        colour: palette name.
        shape: shape name.
        motion: motion name.

    Returns:
        True when crc32 of the canonical JSON is divisible by 10.

    Source:
        spec/evaluation.md 9.1.
    """
    text = _canonical({"colour": colour, "shape": shape, "motion": motion})
    return zlib.crc32(text.encode()) % 10 == 0


@cache
def _combinations(motion: str, held_out: bool) -> tuple[tuple[str, str], ...]:
    pairs = ((c, s) for c in COLOURS for s in SHAPES)
    return tuple(p for p in pairs if combination_held_out(*p, motion=motion) == held_out)


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _count_shares(several: float) -> dict[int, float]:
    one = _COUNT_SHARE[1]
    return {n: 1 - several if n == 1 else several * share / (1 - one)
            for n, share in _COUNT_SHARE.items()}  # fmt: skip


def _draw_motion(
    rng: np.random.Generator, pool: Sequence[str], shares: Mapping[int, float]
) -> tuple[str, int]:
    wanted = [n for n, share in shares.items() if share > 0]
    counts = [n for n in wanted if any(n in _MOTIONS[m][1] for m in pool)]
    if not counts:
        got = " or ".join(map(str, wanted))
        expected = f"a count that fits motions {', '.join(pool)}"
        raise ConfigError("num_objects", expected=expected, got=got)
    share = np.array([shares[n] for n in counts])
    count = counts[int(rng.choice(len(counts), p=share / share.sum()))]
    fitting = [m for m in pool if count in _MOTIONS[m][1]]
    weight = np.array([_MOTIONS[m][0] for m in fitting])
    return fitting[int(rng.choice(len(fitting), p=weight / weight.sum()))], count


def _draw_objects(
    rng: np.random.Generator, motion: str, count: int, held_out: bool
) -> tuple[ObjectSpec, ...]:
    pairs = _combinations(motion, held_out)
    colour, shape = pairs[int(rng.integers(len(pairs)))]
    others = [c for c in COLOURS if c != colour]
    colours = [colour, *(others[i] for i in rng.permutation(len(others))[: count - 1])]
    shapes = [shape, *(_pick(rng, SHAPES) for _ in range(count - 1))]
    crowded = count == 3 or motion == "occlude"  # a large object would not fit beside the rest
    sizes = ("small", "medium") if crowded else tuple(SIZES)
    return tuple(
        ObjectSpec(shape=s, colour=c, size=_pick(rng, sizes))
        for s, c in zip(shapes, colours, strict=True)
    )


def _draw_direction(rng: np.random.Generator, motion: str, count: int) -> str | None:
    if motion == "linear":
        names = tuple(DIRECTIONS)
        return _pick(rng, names if count == 1 else names[:4])
    if motion == "bounce":
        return _pick(rng, ("left", "right")) if count == 1 and rng.random() < 0.25 else None
    if motion in ("collide", "slide_stop", "occlude", "pan"):
        return _pick(rng, ("left", "right"))
    return None


def _draw_relation(
    rng: np.random.Generator, motion: str, direction: str | None, floor: bool
) -> str | None:
    if motion == "collide":
        return "left_of" if direction == "right" else "right_of"
    if motion == "linear":
        return _pick(rng, RELATIONS[2:] if direction in ("left", "right") else RELATIONS[:2])
    sideways = floor or motion in ("gravity", "bounce")
    return _pick(rng, RELATIONS[:2] if sideways else RELATIONS)


def sample_spec(
    rng: np.random.Generator,
    *,
    held_out: bool = False,
    motions: Sequence[str] | None = None,
    num_objects: int | None = None,
    several_share: float | None = None,
) -> SceneSpec:
    """Draw a scene.

    Args:
        rng: the source of randomness.
        held_out: draw only held-out combinations; otherwise only those that are not.
        motions: the motions to choose from; None means all.
        num_objects: 1 to 3; None draws 60, 30 and 10 %.
        several_share: share of scenes with two or three objects, 0 to 1, instead of those 40 %.

    Returns:
        The spec; the objects' colours differ from each other.

    Raises:
        ConfigError: no motion of that kind takes that many objects, or has a held-out combination.
    """
    for name in motions or ():
        _check("motions", name, MOTIONS)
    pool = [m for m in (motions or MOTIONS) if _combinations(m, held_out)]
    if not pool:
        raise ConfigError("motions", expected="one with a held-out combination", got=motions)
    shares = _COUNT_SHARE if several_share is None else _count_shares(several_share)
    if num_objects is not None:
        shares = {num_objects: 1.0}
    motion, count = _draw_motion(rng, pool, shares)
    direction = _draw_direction(rng, motion, count)
    floor = bool(rng.random() < _FLOOR_SHARE.get(motion, 0.0))
    camera = "still"
    if motion == "pan":
        camera = f"pan_{direction}"
    elif motion == "zoom":
        camera = _pick(rng, ("zoom_in", "zoom_out"))
    speeds = _SPEED_CHOICES.get(motion)
    # a camera over a plain background would not be seen to move
    patterns = range(1 if camera != "still" else 0, len(PATTERNS))
    pattern = patterns[int(rng.integers(len(patterns)))]
    return SceneSpec(
        objects=_draw_objects(rng, motion, count, held_out),
        motion=motion,
        direction=direction,
        speed=_pick(rng, speeds) if speeds else None,
        relation=_draw_relation(rng, motion, direction, floor) if count > 1 else None,
        camera=camera,
        floor=floor,
        background=int(rng.integers(len(TONES))) * len(PATTERNS) + pattern,
    )
