"""Golden cases of PSNR, SSIM, distances between sets, FVD's preprocessing, and LPIPS."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from onereel.evaluation.distances import frechet_distance, polynomial_mmd
from onereel.evaluation.fvd import preprocess
from onereel.evaluation.networks.lpips import Lpips, Net
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.quality import psnr, psnr_frames, ssim_frames

Arrays = dict[str, npt.NDArray[Any]]

_QUALITY = 1e-6
_GLOBAL = 1e-4  # the recorded value was accumulated in float32
_DISTANCE = 1e-7  # relative
# Where the true distance is 0 only rounding is left: a few steps of float64 times the trace.
_ZERO = 1e-9
_PREPROCESSED = 1e-5
_SUBSAMPLED = 9
_LPIPS = 1e-5


def quality_cases(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of the set `quality`.

    Args:
        folder: holds `index.json` and `arrays.npz`.

    Yields:
        One result per recorded output.
    """
    index, arrays = _load(folder)
    if "quality" in index:
        yield from _picture_cases(index["quality"], arrays)
    for i, case in enumerate(index.get("frechet", [])):
        yield from _distance_cases(i, case, arrays)
    for name, want in arrays.items():
        if name.startswith("fvd_pre") and name.endswith("_sub"):
            middle = name.removeprefix("fvd_pre").removesuffix("_sub")
            yield _preprocessing_case(f"fvd_in{middle}", arrays[f"fvd_in{middle}"], want)


def lpips_cases(folder: Path) -> Iterator[CaseResult]:
    """Run the cases of the set `lpips`.

    Args:
        folder: holds `index.json` and `arrays.npz`.

    Yields:
        Two results per backbone: the value per picture, and the share of every layer.
    """
    index, arrays = _load(folder)
    first, second = (
        torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float() / 127.5 - 1 for name in "ab"
    )
    for net in get_args(Net):
        if net not in index:
            continue
        network = rule_network(net, index["keys"][net])
        with torch.inference_mode():
            layers = network.layers(first, second)
        want = np.array(index[net]["per_layer"]).T.reshape(len(layers), -1)
        yield compare(f"lpips.{net}.layers", layers, want=want, atol=_LPIPS)
        value = np.array(index[net]["value"])
        yield compare(f"lpips.{net}.value", layers.sum(dim=1), want=value, atol=_LPIPS)


def rule_network(net: Net, keys: dict[str, list[int]]) -> Lpips:
    """Build the network with the weights that the recordings were made with.

    Args:
        net: the backbone.
        keys: shapes by the names of the module that was recorded.

    Returns:
        The network.
    """
    state = {}
    for key, shape in keys.items():
        kind, *rest = key.split(".")
        if kind == "net":
            state[f"features.{rest[1]}.{rest[2]}"] = rule_tensor(key, shape)
        elif kind == "lins":
            state[f"heads.{rest[0]}.weight"] = rule_tensor(key, shape)
    network = Lpips(net)
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


def rule_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """Make a tensor from its name.

    Args:
        key: the name.
        shape: of the tensor.

    Returns:
        float32: heads are positive, convolutions keep the scale, biases are small.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode("ascii"))))
    uniform = generator.integers(0, 2**32, size=shape, dtype=np.uint64) / 2**32 * 2 - 1
    if key.startswith("lins."):
        values = np.abs(uniform)
    elif len(shape) == 4:
        values = uniform * 1.4 * np.sqrt(3 / np.prod(shape[1:]))
    else:
        values = 0.05 * uniform
    return torch.from_numpy(values.astype(np.float32))


def _load(folder: Path) -> tuple[dict[str, Any], Arrays]:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz", allow_pickle=False) as data:
        return index, {name: data[name] for name in data.files}


def _picture_cases(want: dict[str, Any], arrays: Arrays) -> Iterator[CaseResult]:
    a, b = arrays["a"], arrays["b"]
    frames = np.array(want["psnr_per_frame"])
    yield compare("quality.psnr_per_frame", psnr_frames(b, a), want=frames, atol=_QUALITY)
    mean = np.array(want["psnr_per_frame_mean"])
    yield compare("quality.psnr", np.array(psnr(b, a)), want=mean, atol=_QUALITY)
    overall = np.array(psnr(b, a, variant="global"))
    recorded = np.array(want["psnr_torchmetrics_global_mse"])
    yield compare("quality.psnr_global", overall, want=recorded, atol=_GLOBAL)
    similar = np.array(want["ssim_common_metrics"])
    yield compare("quality.ssim", ssim_frames(b, a), want=similar, atol=_QUALITY)


def _distance_cases(i: int, case: dict[str, Any], arrays: Arrays) -> Iterator[CaseResult]:
    x, y = arrays[f"feat|{i}|x"], arrays[f"feat|{i}|y"]
    name = f"distance.{i}.{case['kind']}"
    for function, key in (
        (frechet_distance, "symmetric_eigen_float64"),
        (polynomial_mmd, "poly3_mmd2_unbiased"),
    ):
        got, want = np.array(function(x, y)), np.array(case[key])
        yield compare(f"{name}.{function.__name__}", got, want=want, atol=_ZERO, rtol=_DISTANCE)


def _preprocessing_case(
    name: str, pixels: npt.NDArray[np.uint8], want: npt.NDArray[Any]
) -> CaseResult:
    """Recorded inputs are [C, F, H, W]."""
    got = preprocess(pixels.transpose(1, 2, 3, 0), convention="styleganv")[0]
    subsampled = got[:, :, ::_SUBSAMPLED, ::_SUBSAMPLED]
    return compare(f"quality.{name}", subsampled, want=want, atol=_PREPROCESSED)
