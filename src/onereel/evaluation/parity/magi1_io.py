"""Golden cases of MAGI-1's media input and of its chunk-to-frame bookkeeping.

A folder holds `index.json` (images and videos, with the outputs in `preprocess.safetensors`),
`fps_resample.json` and `frame_bookkeeping.json`; any of the three may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from onereel.evaluation.parity.case import CaseResult, compare
from onereel.media import load_image, read_video, resample_indices
from onereel.samplers.plan import emitted_latents

_LEVELS = 2.0  # builds of swscale for other processors differ by a level or two
_TEMPORAL_FACTOR = 4


def run(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of a folder.

    Args:
        folder: where the index files and the media lie.

    Yields:
        One result per case.
    """
    if (folder / "index.json").is_file():
        index = json.loads((folder / "index.json").read_text())
        outputs = load_file(folder / "preprocess.safetensors")
        for case in index["images"]:
            yield _image(folder, case, outputs[case["output"]])
        for case in index["videos"]:
            yield _video(folder, case, outputs[case["output"]])
    for case in _rows(folder / "fps_resample.json"):
        yield _resample(case)
    for case in _rows(folder / "frame_bookkeeping.json", "rows"):
        yield _bookkeeping(case)


def official_frames(num_latents: int, *, fps: int = 24) -> int:
    """Frames that the official decoder returns for one emitted piece.

    It decodes in temporal tiles of fps // 2 frames, and a tile of a single latent frame gives one
    frame instead of four.

    Args:
        num_latents: latent frames in the piece.
        fps: the official config's rate, at least 8.

    Returns:
        Frames.

    Source: SandAI-org/MAGI-1 @6ff822e, inference/infra/parallelism/tile_parallel.py.
    """
    tile = fps // 2 // _TEMPORAL_FACTOR
    sizes = [min(tile, num_latents - start) for start in range(0, num_latents, tile)]
    return sum(1 if size == 1 else size * _TEMPORAL_FACTOR for size in sizes)


def _rows(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    data = json.loads(path.read_text())
    rows: list[dict[str, Any]] = data if key is None else data[key]
    return rows


def _image(folder: Path, case: dict[str, Any], want: np.ndarray) -> CaseResult:
    height, width = case["target_hw"]
    # The official code ignores EXIF turns and alpha.
    got = load_image(
        folder / case["file"],
        height=height,
        width=width,
        policy=case["policy"],
        apply_orientation=False,
        alpha="drop",
    )
    return compare(f"image {case['output']}", got[None], want=want, atol=_LEVELS)


def _video(folder: Path, case: dict[str, Any], want: np.ndarray) -> CaseResult:
    height, width = case["target_hw"]
    got = read_video(
        folder / case["file"],
        height=height,
        width=width,
        fps=case["target_fps"],
        num_frames=case["prefix_frame"],
        allow_short=True,
    )
    return compare(f"video {case['output']}", got, want=want, atol=_LEVELS)


def _resample(case: dict[str, Any]) -> CaseResult:
    got = resample_indices(case["src_frames"], case["src_fps"], fps_out=case["dst_fps"])
    name = f"fps {case['src_frames']} frames {case['src_fps']} to {case['dst_fps']}"
    return compare(name, np.array(got), want=np.array(case["mapping"]), atol=0)


def _bookkeeping(case: dict[str, Any]) -> CaseResult:
    pieces = emitted_latents(
        case["num_frames"], case["prefix_latents"], temporal_factor=_TEMPORAL_FACTOR
    )
    latents = [count for _, count in pieces]
    got = [
        *(chunk for chunk, _ in pieces),
        *latents,
        sum(latents),
        sum(latents) * _TEMPORAL_FACTOR,
        sum(official_frames(count) for count in latents),
    ]
    want = [
        *case["emitted_chunk_idx"],
        *case["emitted_latents"],
        case["total_latents"],
        case["ideal_frames"],
        case["official_frames_fps24"],
    ]
    name = f"bookkeeping {case['num_frames']} frames, prefix {case['prefix_latents']}"
    return compare(name, np.array(got), want=np.array(want), atol=0)
