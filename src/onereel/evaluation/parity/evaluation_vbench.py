"""Golden cases of VBench: `index.json` and `arrays.npz` of one folder.

Scores go through the same code as a user's videos; only networks are replaced by the rules that
the recordings state. A folder may leave out any section. The sizes of clips are its own business.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onereel.evaluation.networks.raft import Raft, official_weights, pad_frames
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.vbench import camera, detections, features, motion, preprocess, totals
from onereel.evaluation.vbench.dimensions import DIMENSIONS, Scored
from onereel.evaluation.vbench.evaluate import VideoScore, average
from onereel.evaluation.vbench.networks import AestheticHead, Networks
from onereel.evaluation.vbench.suite import Sample, prompt_of
from onereel.evaluation.videos import Video

Arrays = Mapping[str, np.ndarray]
Index = dict[str, Any]

_GREY_LEVEL = 1 / (255 * min(preprocess.IMAGENET_STD))
_FRAMES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "clip_t": preprocess.clip_frames,
    "dino_t": preprocess.dino_frames,
    "i2v_dino_t": lambda x, n: preprocess.i2v_dino_frames(x, n, side=_before_crop(n)),
    "i2v_clip_t": lambda x, n: preprocess.clip_frames(x, n, antialias=True),
    "dreamsim_t": preprocess.dreamsim_frames,
}
_IMAGES: dict[str, Callable[[Image.Image, int], Tensor]] = {
    "clip_pil": preprocess.clip_image,
    "dino_pil": preprocess.dino_image,
    "i2v_dino_pil": lambda x, n: preprocess.i2v_dino_image(x, n, side=_before_crop(n)),
    "dreamsim_pil": preprocess.dreamsim_image,
}


def vbench_cases(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of a folder.

    Args:
        folder: holds `index.json` and `arrays.npz`.

    Yields:
        One result per case.
    """
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    yield from _sampling(index)
    yield from _preprocessing(arrays)
    yield from _musiq(index, arrays)
    yield from _scores(index, arrays)
    yield from _image_scores(index, arrays)
    yield from _dynamic_degree(index, arrays)
    yield from _detections(index)
    yield from _camera(index)
    yield from _totals(index)
    if "raft" in index:
        yield from _raft_weights(index["raft"])
        yield from _raft_flow(index["raft"], arrays)


def rule_weights(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Make the weights that the recordings of RAFT were made with.

    Args:
        shapes: of the checkpoint's tensors, by name.

    Returns:
        The tensors: uniform numbers seeded by the name and scaled by the kind.
    """
    return {name: _rule_tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _rule_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("ascii"))))
    drawn = generator.integers(0, 2**32, size=shape, dtype=np.uint64)
    u = drawn.astype(np.float64) / 2**32 * 2 - 1
    if len(shape) == 4:
        gain = 0.05 if name == "update_block.flow_head.conv2.weight" else 1.4
        values = u * gain * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 1 + 0.5 * np.abs(u)
    elif name.endswith("running_mean"):
        values = 0.1 * u
    elif name.endswith("weight"):
        values = 1 + 0.2 * u
    else:
        values = 0.05 * u
    return torch.from_numpy(values.astype(np.float32))


def _same(name: str, got: object, want: object) -> CaseResult:
    note = "" if got == want else f"got {got} instead of {want}"
    return CaseResult(name, got == want, 0.0 if got == want else float("inf"), 0.0, note)


def _number(name: str, got: float, want: float, *, atol: float, rtol: float = 0.0) -> CaseResult:
    return compare(name, np.array(got), want=np.array(want), atol=atol, rtol=rtol)


def _sampling(index: Index) -> Iterator[CaseResult]:
    for case in index.get("get_frame_indices_middle", ()):
        got = features.middle_indices(case["vlen"], case["num_frames"])
        yield _same(f"indices {case['num_frames']} of {case['vlen']}", got, case["indices"])
    for name, prompt in index.get("prompt_from_filename", {}).items():
        yield _same(f"prompt of {name}", prompt_of(name), prompt)


def _before_crop(size: int) -> int:
    return round(size * 256 / 224)


def _preprocessing(arrays: Arrays) -> Iterator[CaseResult]:
    for name, want in arrays.items():
        kind, *rest = name.split("|")
        if kind != "pre":
            continue
        transform, source = rest[0], arrays[f"pre_in|{rest[-1]}"]
        size = min(want.shape[-2:])
        atol = 1e-6
        if transform in _IMAGES:
            picture = Image.fromarray(np.ascontiguousarray(source[0].transpose(1, 2, 0)))
            got = _IMAGES[transform](picture, size)
        else:
            frames = torch.from_numpy(source)
            got = _FRAMES[transform](frames.float() if rest[1] == "float" else frames, size)
            atol += _GREY_LEVEL if rest[:2] == ["dino_t", "uint8"] else 0
        yield compare(name, got, want=want, atol=atol)


def _musiq(index: Index, arrays: Arrays) -> Iterator[CaseResult]:
    names = [name for name in arrays if name.startswith("musiq|")]
    if not names:
        return
    rows, columns, step = _musiq_rule(index["musiq_in"])
    enlarged = arrays["musiq_in_small"].repeat(rows, axis=2).repeat(columns, axis=3)
    for name in names:
        mode: Any = name.split("|")[1]
        got = preprocess.musiq_frames(torch.from_numpy(enlarged).float(), mode)
        yield _same(f"{name} shape", list(got.shape), index[f"musiq_shape|{mode}"])
        yield compare(name, got[:, :, ::step, ::step], want=arrays[name], atol=1e-6)


def _musiq_rule(text: str) -> tuple[int, int, int]:
    """Read the enlargement of rows and columns, and the step of what was kept."""
    numbers = re.search(r"by (\d+) \(H\) x (\d+) \(W\).*::(\d+)", text)
    if numbers is None:
        raise ValueError(f"musiq_in says no enlargement: {text}")
    rows, columns, step = (int(number) for number in numbers.groups())
    return rows, columns, step


def _clip(index: Index, arrays: Arrays, name: str) -> Video:
    fps = Fraction(index["fps"][name]).limit_denominator(10**6)
    return Video(name=name, path=Path(name), frames=arrays[f"clip|{name}"], fps=fps)


class _Replay:
    """A network that gives recorded rows, however many frames it is asked about at a time."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = torch.from_numpy(rows)
        self._next = 0

    def __call__(self, frames: Tensor) -> Tensor:
        start, self._next = self._next, self._next + len(frames)
        return self._rows[start : self._next]

    def embed_text(self, texts: object) -> Tensor:
        raise NotImplementedError("no recorded text")


def _midpoint(first: Tensor, second: Tensor) -> Tensor:
    return (first + second) / 2


def _scores(index: Index, arrays: Arrays) -> Iterator[CaseResult]:
    """Dimensions whose overall score is made from scores per clip."""
    calls = count(31)

    def rate(frames: Tensor) -> Tensor:
        return torch.tensor([float(next(calls)) for _ in frames])

    def replay(name: str) -> _Replay:
        return _Replay(arrays[f"feat|{name}"])

    def aesthetic(name: str) -> Networks:
        head = AestheticHead(weight=arrays["aes|w"][0], bias=float(arrays["aes|b"][0]))
        return Networks(clip_l14=replay(name), aesthetic_head=head)

    sections: dict[str, tuple[str, float, Callable[[str], Networks]]] = {
        "temporal_flickering": ("", 1e-7, lambda name: Networks()),
        "subject_consistency": ("", 1e-6, lambda name: Networks(dino=replay(name))),
        "background_consistency": ("", 1e-6, lambda name: Networks(clip_b32=replay(name))),
        "aesthetic_quality": ("", 1e-6, aesthetic),
        "imaging_quality": (
            "_with_score_30_plus_call_index", 1e-6, lambda name: Networks(imaging=rate)
        ),
        "motion_smoothness": (
            "_with_average_interpolator", 1e-9, lambda name: Networks(interpolator=_midpoint)
        ),
    }  # fmt: skip
    for dimension, (suffix, atol, networks) in sections.items():
        section = index.get(dimension + suffix, {})
        wanted = section.get("per_video", {})
        scored: list[VideoScore] = []
        for name in (name for name in index.get("fps", {}) if name in wanted):
            found = _score(dimension, _clip(index, arrays, name), networks(name))
            scored.append(_as_score(dimension, name, found))
            yield _number(f"{dimension} {name}", found.value, wanted[name], atol=atol)
        for key in ("overall", "mean"):
            if key in section:
                got = average(scored, DIMENSIONS[dimension].scale).mean
                assert got is not None
                yield _number(f"{dimension} {key}", got, section[key], atol=atol)


def _score(dimension: str, video: Video, networks: Networks) -> Scored:
    sample = Sample(path=video.path, prompt=video.name)
    return DIMENSIONS[dimension].score(video, sample, networks)


def _as_score(dimension: str, name: str, found: Scored) -> VideoScore:
    return VideoScore(
        dimension=dimension, path=name, prompt=name, value=found.value, weight=found.weight
    )


def _image_scores(index: Index, arrays: Arrays) -> Iterator[CaseResult]:
    section = index.get("i2v_subject", {})
    values = []
    for name, want in section.get("per_video", {}).items():
        got = features.image_consistency(arrays["i2v|image_feature"], arrays[f"feat|{name}"])
        values.append(got)
        yield _number(f"i2v_subject {name}", got, want, atol=1e-6)
    if "overall" in section:
        mean = float(np.mean(values))
        yield _number("i2v_subject overall", mean, section["overall"], atol=1e-6)


def _dynamic_degree(index: Index, arrays: Arrays) -> Iterator[CaseResult]:
    for number, case in enumerate(index.get("dynamic_degree_logic", {}).get("cases", ())):
        name = f"dynamic_degree {number} {case['clip']}"
        clip = _clip(index, arrays, case["clip"])
        frames = motion.sampled(clip.frames, float(clip.fps or 0))
        threshold = motion.moving_threshold(*clip.frames.shape[1:3])
        strengths = list(motion.pair_strengths(frames, _analytic_flow(case["mag_cycle"])))
        yield compare(
            f"{name} pairs", np.array(strengths), want=np.array(case["pair_scores"]), atol=1e-5
        )
        yield _number(f"{name} threshold", threshold, case["thres"], atol=1e-9)
        yield _same(f"{name} count", motion.moving_count(len(frames)), case["count_num"])
        networks = Networks(flow=_analytic_flow(case["mag_cycle"]))
        moved = bool(_score("dynamic_degree", clip, networks).value)
        yield _same(f"{name} verdict", moved, case["moved"])


def _analytic_flow(cycle: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """The field of the recordings: grows to the right and downwards, its strength cycles."""
    calls = count()

    def flow(first: Tensor, second: Tensor) -> Tensor:
        k = cycle[next(calls) % len(cycle)]
        height, width = first.shape[-2:]
        y, x = np.mgrid[:height, :width].astype(np.float64)
        field = np.stack((k * x / width, 0.5 * k * y / height))
        return torch.from_numpy(field.astype(np.float32))[None]

    return flow


def _detections(index: Index) -> Iterator[CaseResult]:
    for number, case in enumerate(index.get("spatial_relationship", ())):
        got = detections.spatial_score(tuple(case["a"]), tuple(case["b"]), relation=case["rel"])
        yield _number(f"spatial {number} {case['rel']}", got, case["score"], atol=1e-9)
    for number, case in enumerate(index.get("color", ())):
        frames = [
            [detections.Detection(label=label, caption=text) for text, label in frame]
            for frame in case["pred"]
        ]
        counts = detections.colour_frames(frames, case["object"], colour=case["color"])
        name = f"color {number} {case['color']} {case['object']}"
        yield _same(name, list(counts), case["object_frames_color_frames"])


def _camera(index: Index) -> Iterator[CaseResult]:
    section = index.get("camera_motion", {})
    for number, case in enumerate(section.get("cases", ())):
        side = section["min_side"]
        got = camera.camera_moves(
            np.array(case["t1"]),
            np.array(case["t2"]),
            size=(side, side),
            edge_points=section["number_points"],
        )
        yield _same(f"camera_motion {number}", sorted(got), sorted(case["classes"]))


def _totals(index: Index) -> Iterator[CaseResult]:
    labels = {label: name for name, label in totals.I2V_LABELS.items()}
    for number, row in enumerate(index.get("total_score", ())):
        if "t2v" in row:
            scores = {name.replace(" ", "_"): value for name, value in row["t2v"].items()}
            got = totals.t2v_totals(scores)
            for key in ("quality", "semantic", "total"):
                value = got[key].mean
                assert value is not None
                yield _number(f"total {number} t2v {key}", value, row[key], atol=1e-9)
        if "i2v" in row:
            got = totals.i2v_totals({labels[name]: value for name, value in row["i2v"].items()})
            for key, recorded in (("quality", "quality"), ("i2v", "score"), ("total", "total")):
                value = got[key].mean
                assert value is not None
                want = row[f"i2v_{recorded}"]
                yield _number(f"total {number} i2v {key}", value, want, atol=1e-9)


def _raft_weights(section: Index) -> Iterator[CaseResult]:
    network = Raft()
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    listed = official_weights({name: torch.empty(s) for name, s in section["keys"].items()})
    theirs = {name: list(value.shape) for name, value in listed.items()}
    wrong = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    yield _same("raft keys and shapes", wrong, [])
    if "params" in section:
        params = sum(value.numel() for value in network.parameters())
        yield _same("raft parameters", params, section["params"])
    for name, want in section.get("probe", {}).items():
        got = _rule_tensor(name, tuple(section["keys"][name])).flatten()[: len(want)]
        yield compare(f"raft probe {name}", got, want=np.array(want, np.float32), atol=1e-7)


def _raft_flow(section: Index, arrays: Arrays) -> Iterator[CaseResult]:
    if "raft|frames" not in arrays:
        return
    padded, _ = pad_frames(preprocess.to_tensor(arrays["raft|frames"]))
    if "padded" in section:
        yield _same("raft padded", [1, *padded.shape[1:]], section["padded"])
    network = Raft().eval().requires_grad_(False)
    try:
        network.load_state_dict(official_weights(rule_weights(section["keys"])), strict=True)
    except RuntimeError as error:
        note = " ".join(str(error).split())
        yield CaseResult("raft flow", False, float("inf"), 0.0, note)
        return
    steps = sorted({int(k.split("_")[1]) for k in arrays if re.fullmatch(r"raft\|\w+_\d+", k)})
    for num in steps:
        low, up = network(padded[:1], padded[1:], num)
        atol = 1e-4 if num == 1 else 1e-3
        if f"raft|low_{num}" in arrays:
            yield compare(f"raft low {num}", low, want=arrays[f"raft|low_{num}"], atol=atol)
        if f"raft|up_{num}" in arrays:
            want = arrays[f"raft|up_{num}"]
            # The recordings keep every fourth pixel of the padded size.
            yield compare(f"raft up {num}", up[:, :, ::4, ::4], want=want, atol=atol)
        if f"up_abs_mean_{num}" in section:
            mean = float(up.abs().mean())
            yield _number(f"raft up mean {num}", mean, section[f"up_abs_mean_{num}"], atol=atol)
