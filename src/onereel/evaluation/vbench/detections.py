"""VBench's formulas on what a detector, a captioner or an action classifier says about frames.

The networks themselves are the user's; the functions here are pure.

Source:
    spec/evaluation.md 2.2; the twelve colour words from general knowledge of
    Vchitect/VBench vbench/color.py, checked on the recorded cases only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from onereel.core.errors import ConfigError

Box = tuple[float, float, float, float]

COLOUR_WORDS = (
    *("white", "red", "pink", "blue", "silver", "purple"),
    *("orange", "green", "gray", "yellow", "black", "grey"),
)
_LEVEL = ("on the left of", "on the right of")
_UPRIGHT = ("on the top of", "on the bottom of")
_OVERLAP = 0.1
_ARTICLES = {"a", "an"}
_SURE = 0.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """One object in one frame.

    Args:
        label: class of the object.
        caption: a dense caption of the box; empty when the detector gives none.
        box: (x0, y0, x1, y1) in pixels.
    """

    label: str
    caption: str = ""
    box: Box = (0.0, 0.0, 0.0, 0.0)


Frames = Sequence[Sequence[Detection]]


def object_frames(frames: Frames, wanted: Sequence[str]) -> int:
    """Count the frames in which all objects were found (object_class, multiple_objects).

    Args:
        frames: detections per frame.
        wanted: labels.

    Returns:
        Frames.
    """
    return sum(set(wanted) <= {d.label for d in found} for found in frames)


def colour_frames(frames: Frames, label: str, *, colour: str) -> tuple[int, int]:
    """Count the frames in which an object was captioned with a colour, and with the right one.

    Args:
        frames: detections per frame.
        label: the object.
        colour: asked for.

    Returns:
        (frames with any colour word, frames with the right one). An object whose captions name no
        colour does not count at all, and a video without any is left out of the mean.
    """
    seen = right = 0
    for found in frames:
        captions = [d.caption for d in found if d.label == label]
        seen += any(word in caption for caption in captions for word in COLOUR_WORDS)
        right += any(colour in caption for caption in captions)
    return seen, right


def coloured_object(prompt: str, colour: str) -> str:
    """Read the object out of a colour prompt such as "a red car".

    Only whole words are taken out. The official code removes the letters "a " wherever they are.

    Args:
        prompt: of the suite.
        colour: asked for.

    Returns:
        The prompt without articles and without the colour.
    """
    words = prompt.split()
    return " ".join(w for w in words if w.lower() not in _ARTICLES and w.lower() != colour.lower())


def spatial_score(first: Box, second: Box, *, relation: str) -> float:
    """Rate how two boxes lie to each other.

    Neither the sign nor the order of the boxes matters: left counts as right. The reports say so.

    Args:
        first: (x0, y0, x1, y1).
        second: like `first`.
        relation: "on the left of", "on the right of", "on the top of" or "on the bottom of".

    Returns:
        1 when the centres are apart along the relation's axis and the boxes hardly overlap, less
        with more overlap, 0 otherwise.

    Raises:
        ConfigError: the relation is not known.
    """
    if relation not in _LEVEL + _UPRIGHT:
        raise ConfigError("relation", expected=f"one of {_LEVEL + _UPRIGHT}", got=relation)
    across = abs(second[0] + second[2] - first[0] - first[2]) / 2
    down = abs(second[1] + second[3] - first[1] - first[3]) / 2
    along, beside = (across, down) if relation in _LEVEL else (down, across)
    if along <= beside:
        return 0.0
    overlap = box_iou(first, second)
    return 1.0 if overlap < _OVERLAP else _OVERLAP / overlap


def box_iou(first: Box, second: Box) -> float:
    """Compute the overlap of two boxes.

    Args:
        first: (x0, y0, x1, y1).
        second: like `first`.

    Returns:
        Intersection over union; 0 when both are empty.
    """
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def best_spatial_score(found: Sequence[Detection], labels: tuple[str, str], *, relation: str) -> (
    float
):  # fmt: skip
    """Rate one frame by its best pair of boxes.

    Args:
        found: detections of the frame.
        labels: the two objects; boxes of either class form pairs, of the same class too.
        relation: see `spatial_score`.

    Returns:
        The best score, 0 without a pair.
    """
    boxes = [d.box for d in found if d.label in labels]
    scores = (spatial_score(a, b, relation=relation) for a, b in combinations(boxes, 2))
    return max(scores, default=0.0)


def scene_frames(captions: Sequence[str], scene: str) -> int:
    """Count the frames whose caption has all words of a scene's name.

    Args:
        captions: one per frame.
        scene: name of the scene.

    Returns:
        Frames.
    """
    words = scene.split()
    return sum(all(word in caption for word in words) for caption in captions)


def action_hit(prompt: str, ranked: Sequence[tuple[str, float]]) -> bool:
    """Decide whether the action asked for was recognised.

    Args:
        prompt: such as "A person is riding a bike".
        ranked: (action, probability), the most likely first.

    Returns:
        Whether it is among the first five with at least 85 %.
    """
    wanted = re.split(r"[-_]", prompt.lower().split("person is ")[-1])[0].strip()
    return any(name.lower() == wanted and p >= _SURE for name, p in ranked[:5])
