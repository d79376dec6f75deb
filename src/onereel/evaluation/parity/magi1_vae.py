"""Parity cases of the MAGI-1 VAE.

`index.json` names configs, files of weights and of inputs and outputs, and cases; a case has an
operation, arguments, inputs and outputs. Official behaviour is compared, its lost frames included;
outputs named `*_all_frames` are compared with what ours gives instead.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file

from onereel.core.device import parse_dtype
from onereel.core.errors import ConfigError, OneReelError
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.pixels import from_uint8, to_uint8
from onereel.models.magi_vae.posterior import LatentPosterior
from onereel.models.magi_vae.tiling import OfficialTiles
from onereel.models.magi_vae.weights import config_from_official, load_weights

Case = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]
Operation = Callable[[AutoencoderKLMagi1, Mapping[str, Any], Tensors], Tensors]

# Both sides run the same float32 formulas; other summation orders move values of about 1 by 1e-6.
_FLOAT32_ATOL = 1e-4
# Eight significant bits: other kernels round elsewhere, so averages are compared.
_BF16_COSINE = 0.999
_BF16_MEAN_ERROR = 2e-2
# Sums over many elements, and exponentials of up to exp(20), are not of size 1.
_RTOL = dict.fromkeys(("std", "var", "sample", "kl2", "kl2_other", "nll2", "nll2_12"), 1e-5)
# Truncation to a grey level flips where float32 values differ in their last bits.
_UINT8_SHARE = 0.01


def _official_tiles(args: Mapping[str, Any]) -> OfficialTiles:
    return OfficialTiles(
        height=args["tile_sample_min_height"],
        width=args["tile_sample_min_width"],
        length=args["tile_sample_min_length"],
        spatial_overlap=args["spatial_tile_overlap_factor"],
        temporal_overlap=args["temporal_tile_overlap_factor"],
        spatial=args["allow_spatial_tiling"],
    )


def _encode(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    del args  # temporal_expand says what a picture is repeated to; our encoder knows
    video = from_uint8(inputs["video_u8"])
    posterior = vae.encode(video).latent_dist
    outputs = {
        "moments": vae.encode_moments(video),
        "z_mode": posterior.mode(),
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "std": posterior.std,
        "var": posterior.var,
    }
    if "eps" in inputs:
        outputs["sample"] = posterior.mean + posterior.std * inputs["eps"]
    return outputs


def _decode(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    del args
    return {
        "video": vae.decode(inputs["z"]).sample,
        "decoder_all_frames": vae.decode(inputs["z"], as_image=False).sample,
    }


def _forward(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    video = from_uint8(inputs["video_u8"])
    if args.get("sample_posterior"):
        # A draw repeats only with its noise: take the recorded one.
        posterior = LatentPosterior(vae.encoder(video))
        latent = posterior.mean + posterior.std * inputs["eps"]
        sample = vae.decode(latent, as_image=False).sample
    else:
        sample = vae(video, sample_posterior=False).sample
    return {"video": sample, "moments": vae.encoder(video)}


def _tiled_encode(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    vae.enable_official_tiling(_official_tiles(args))
    return {"z": vae.encode(from_uint8(inputs["video_u8"])).latent_dist.mode()}


def _tiled_decode(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    tiles = _official_tiles(args)
    vae.enable_official_tiling(tiles)
    outputs = {"video": vae.decode(inputs["z"]).sample}
    vae.enable_official_tiling(replace(tiles, keep_frames=True))
    outputs["video_all_frames"] = vae.decode(inputs["z"], as_image=False).sample
    return outputs


def _encode_prefix(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    vae.register_to_config(scaling_factor=args["scale_factor"])
    tiles = OfficialTiles(
        height=args["tile_height"],
        width=args["tile_width"],
        length=args["fps"] // 2,
        spatial_overlap=args["overlap"],
    )
    video = rearrange(inputs["video_thwc_u8"], "f h w c -> 1 c f h w")
    return {"latents": vae.encode_frames(video, tiling=tiles)}


def _decode_chunk(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    vae.register_to_config(scaling_factor=args["scale_factor"])
    tiles = OfficialTiles(
        height=args["tile_height"],
        width=args["tile_width"],
        length=args["tile_sample_min_length"],
        spatial_overlap=args.get("overlap", 0.25),
    )
    video = vae.decode_chunk(inputs["latents"], tiling=tiles)
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    return {"video": video, "frames_u8": to_uint8(frames, official_compat=True)}


def _encode_decode(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    dtype = parse_dtype(args["dtype"])
    vae = torch.nn.Module.to(copy.deepcopy(vae), dtype)
    latent = vae.encode(from_uint8(inputs["video_u8"]).to(dtype)).latent_dist.mode()
    return {"z_mode": latent, "video": vae.decode(latent).sample}


def _posterior(vae: AutoencoderKLMagi1, args: Mapping[str, Any], inputs: Tensors) -> Tensors:
    del vae, args
    image_dims = (1, 2, 3)  # officially the last dim of videos is left out of the sums
    first = LatentPosterior(inputs["parameters"])
    second = LatentPosterior(inputs["parameters2"])
    other = LatentPosterior(inputs["other"])
    sample = inputs["sample"]
    return {
        "mean": first.mean,
        "logvar": first.logvar,
        "std": first.std,
        "var": first.var,
        "kl2": second.kl(dims=image_dims),
        "kl2_other": second.kl(other, dims=image_dims),
        "nll2": second.nll(sample, dims=image_dims),
        "nll2_12": second.nll(sample),  # all dims but the batch
    }


_OPERATIONS: dict[str, Operation] = {
    "encode": _encode,
    "decode": _decode,
    "forward": _forward,
    "tiled_encode": _tiled_encode,
    "tiled_decode": _tiled_decode,
    "encode_prefix_video": _encode_prefix,
    "decode_chunk": _decode_chunk,
    "encode+decode": _encode_decode,
    "posterior": _posterior,
}


def _compare_bf16(name: str, got: torch.Tensor, want: torch.Tensor) -> CaseResult:
    if got.shape != want.shape:
        return compare(name, got, want=want, atol=_BF16_MEAN_ERROR)
    ours, theirs = got.double().flatten(), want.double().flatten()
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
    error = float((ours - theirs).abs().mean())
    passed = cosine > _BF16_COSINE and error < _BF16_MEAN_ERROR
    return CaseResult(name, passed, error, _BF16_MEAN_ERROR, f"mean error; cosine {cosine:.6f}")


def _compare_bytes(name: str, got: torch.Tensor, want: torch.Tensor) -> CaseResult:
    result = compare(name, got, want=want, atol=1.0)
    if got.shape != want.shape:
        return result
    share = float((got != want).double().mean())
    passed = result.passed and share < _UINT8_SHARE
    return replace(result, passed=passed, note=f"{share:.3%} of bytes differ")


def _verdict(name: str, got: torch.Tensor | None, want: torch.Tensor, *, rtol: float) -> CaseResult:
    if got is None:
        return CaseResult(name, False, float("inf"), _FLOAT32_ATOL, "our code has no such output")
    if want.dtype == torch.uint8:
        return _compare_bytes(name, got, want)
    if want.dtype in (torch.bfloat16, torch.float16):
        return _compare_bf16(name, got, want)
    return compare(name, got, want=want, atol=_FLOAT32_ATOL, rtol=rtol)


def _tensors(files: Tensors, named: Mapping[str, Any]) -> Tensors:
    return {name: files[entry["key"]] for name, entry in named.items()}


class _Folder:
    """Configs, weights and recorded tensors of one folder, read once per config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._models: dict[str, AutoencoderKLMagi1] = {}
        self._files: dict[str, Tensors] = {}

    def cases(self, config: str) -> Tensors:
        """Read the tensors of a config's cases."""
        if config not in self._files:
            self._files[config] = load_file(self.folder / self.index["files"][config]["cases"])
        return self._files[config]

    def model(self, config: str) -> AutoencoderKLMagi1:
        """Build a config's model in float32, with tiling off."""
        if config not in self._models:
            vae = AutoencoderKLMagi1(**config_from_official(self.index["configs"][config])).eval()
            weights = load_file(self.folder / self.index["files"][config]["weights"])
            load_weights(vae, {name: tensor.float() for name, tensor in weights.items()})
            self._models[config] = vae
        self._models[config].disable_tiling()
        return self._models[config]


def _run_error_case(source: _Folder, case: Case) -> CaseResult:
    """Where the official code fails, ours must say why or give a finite result."""
    inputs = _tensors(source.cases(case["config"]), case["inputs"])
    try:
        outputs = _OPERATIONS[case["op"]](source.model(case["config"]), case["args"], inputs)
    except OneReelError as error:
        return CaseResult(case["name"], True, 0.0, 0.0, f"refused as officially: {error}")
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in outputs.values())
    return CaseResult(case["name"], finite, 0.0, 0.0, "officially an error, ours gives a result")


def _run_case(source: _Folder, case: Case) -> Iterator[CaseResult]:
    if case["op"] not in _OPERATIONS:
        raise ConfigError(
            f"case '{case['name']}': op", expected=f"one of {list(_OPERATIONS)}", got=case["op"]
        )
    if "official_error" in case:
        yield _run_error_case(source, case)
        return
    files = source.cases(case["config"])
    inputs, wanted = _tensors(files, case["inputs"]), _tensors(files, case["outputs"])
    got = _OPERATIONS[case["op"]](source.model(case["config"]), case["args"], inputs)
    for name, want in wanted.items():
        yield _verdict(f"{case['name']}.{name}", got.get(name), want, rtol=_RTOL.get(name, 0.0))


@torch.no_grad()
def run(folder: Path) -> Iterator[CaseResult]:
    """Run every case of a folder.

    Args:
        folder: holds `index.json`, weights and recorded tensors.

    Yields:
        One result per recorded output, and one per case that fails officially.

    Raises:
        ConfigError: a case has an operation that is not known.
        CheckpointError: recorded weights do not fit their config.
    """
    source = _Folder(folder)
    for case in source.index["cases"]:
        yield from _run_case(source, case)
