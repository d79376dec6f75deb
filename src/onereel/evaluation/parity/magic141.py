"""Parity cases of Magic 1-For-1: transformer, VAE, schedules, texts, pictures.

`index.json` holds the configs of the tiny networks and describes every case; tensors are named
CASE/NAME in the files it lists. `magic141_sampling.py` runs whole sampling loops.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed

from onereel.core.errors import ConfigError
from onereel.evaluation.parity.case import CaseResult, compare
from onereel.evaluation.parity.magic141_folder import (
    ANGLE_ATOL,
    NETWORK_ATOL,
    VAE_ATOL,
    MagicFolder,
    forward,
    numbers,
)
from onereel.evaluation.parity.magic141_sampling import inversion, official_seed, sampling
from onereel.media.buckets import fit_bucket, pick_bucket
from onereel.models.magic_dit.model import text_lengths
from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS
from onereel.models.magic_dit.weights import official_to_ours, ours_to_official
from onereel.models.magic_vae.model import set_tiles, to_uint8
from onereel.models.magic_vae.weights import config_from_official as vae_config_from_official
from onereel.models.text.llava import crop_states, expand_image, select_image_tokens
from onereel.runtime.quantize import QuantizedLinear, quantize
from onereel.samplers.flow_match import loss_weight, sample_euler, sample_sigmas, sigma_grid

Results = Iterator[CaseResult]
Runner = Callable[[MagicFolder, str], Results]

# The same float32 formulas, summed in another order.
_ATOL = 1e-5
_GRID_ATOL = 1e-6
_BF16_ATOL = 0.1
_MEAN_ATOL = 1e-3  # of a whole picture, whose windows are within one level of 255


def _rope(folder: MagicFolder, name: str) -> Results:
    if name == "rope_tiny":
        config = folder.transformer.config
        dims, theta, patch = config.rope_axes_dim, config.rope_theta, config.patch_size
        grid = numbers(r"latent (\d+)x(\d+)x(\d+)", folder.words(name)["what"])
    else:
        what = folder.words(name)["what"]
        dims = [int(n) for n in numbers(r"dims \[(\d+),\s*(\d+),\s*(\d+)\]", what)]
        theta, patch = numbers(r"theta (\d+)", what)[0], 1
        grid = numbers(r"grid (\d+)x(\d+)x(\d+)", what)
    tables = HunyuanVideoRotaryPosEmbed(patch, 1, dims, theta)(
        torch.empty(1, 1, *(int(n) for n in grid))
    )
    tensors = folder.case(name)
    for key, table in zip(("cos", "sin"), tables, strict=True):
        yield compare(f"{name}.{key}", table, want=tensors[key], atol=_GRID_ATOL)


def _rope_apply(folder: MagicFolder, name: str) -> Results:
    tensors, tables = folder.case(name), folder.case("rope_tiny")
    for key in ("q", "k"):
        got = apply_rotary_emb(tensors[key], (tables["cos"], tables["sin"]), sequence_dim=1)
        yield compare(f"{name}.{key}", got, want=tensors[f"{key}_out"], atol=_ATOL)


def _time_embedding(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    got = folder.transformer.time_text_embed.time_proj(tensors["t"])
    yield compare(name, got, want=tensors["out"], atol=ANGLE_ATOL)


def _segments(folder: MagicFolder, name: str) -> Results:
    """Where visible and padded text end in a packed batch: our trimming drops the second parts."""
    tensors = folder.case(name)
    image = int(numbers(r"image length (\d+)", folder.words(name)["what"])[0])
    row = image + tensors["mask"].shape[1]
    bounds = [0]
    for number, length in enumerate(text_lengths(tensors["mask"])):
        bounds += [number * row + image + length, (number + 1) * row]
    yield compare(name, torch.tensor(bounds), want=tensors["out"], atol=0)


def _refiner(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    refine = folder.transformer.context_embedder
    got = refine(tensors["txt"], tensors["t"], tensors["mask"])
    yield compare(name, got, want=tensors["out"], atol=NETWORK_ATOL)


def _stages(folder: MagicFolder, name: str) -> Results:
    """Outputs inside the network; hidden text is not computed by ours, so not compared."""
    model, tensors = folder.transformer, folder.case(name)
    modules = {
        "time_in": model.time_text_embed.timestep_embedder,
        "vector_in": model.time_text_embed.text_embedder,
        "img_in": model.x_embedder,
        "txt_in": model.context_embedder,
        "final_layer": model.proj_out,
        **{f"double{i}": block for i, block in enumerate(model.transformer_blocks)},
        **{f"single{i}": block for i, block in enumerate(model.single_transformer_blocks)},
    }
    seen: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out))
        for key, module in modules.items()
    ]
    out = forward(model, tensors)
    for hook in hooks:
        hook.remove()
    yield compare(name, out, want=tensors["out"], atol=NETWORK_ATOL)
    length = max(text_lengths(tensors["mask"]))
    for key, want in tensors.items():
        if key.startswith("stage."):
            got, want = _stage(seen, key.removeprefix("stage."), want, length)
            yield compare(f"{name}.{key}", got, want=want, atol=NETWORK_ATOL)


def _stage(
    seen: dict[str, Any], key: str, want: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give our output and the recorded one without hidden text."""
    if key in ("img_in", "time_in", "vector_in", "final_layer"):
        return seen[key], want
    if key == "txt_in":
        return seen[key], want[:, :length]
    block, _, stream = key.partition("_")
    image, text = seen[block]
    if stream:
        return (image, want) if stream == "img" else (text, want[:, :length])
    return torch.cat((image, text), dim=1), want[:, : image.shape[1] + length]


def _forward(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    if any(key.startswith("stage.") for key in tensors):
        yield from _stages(folder, name)
        return
    got = forward(folder.transformer, tensors)
    yield compare(name, got, want=tensors["out"], atol=NETWORK_ATOL)


def _bfloat16(folder: MagicFolder, name: str) -> Results:
    """Ours computes in bfloat16, the official code under autocast: both round, elsewhere."""
    inputs = folder.case(folder.inputs(name))
    model = torch.nn.Module.to(copy.deepcopy(folder.transformer), torch.bfloat16)
    tolerance = float(folder.words(name).get("suggested_atol", _BF16_ATOL))
    yield compare(name, forward(model, inputs), want=folder.case(name)["out"], atol=tolerance)


def _quantized(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    official = {
        key: tensor
        for key, tensor in ours_to_official(folder.transformer.state_dict()).items()
        if f"{key.removesuffix('.weight')}.data" in tensors
    }
    for key, weight in official.items():
        stem = key.removesuffix(".weight")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        rounded = QuantizedLinear.of(layer, "int8")
        yield compare(f"{name}.{stem}.data", rounded.packed, want=tensors[f"{stem}.data"], atol=0)
        scale = tensors[f"{stem}.scale"]
        yield compare(f"{name}.{stem}.scale", rounded.scale, want=scale, atol=_GRID_ATOL)
    if "dit_out" in tensors:
        model = copy.deepcopy(folder.transformer)
        quantize(model, "int8")
        got = forward(model, folder.case(folder.inputs(name)))
        yield compare(f"{name}.dit_out", got, want=tensors["dit_out"], atol=NETWORK_ATOL)


def _density(folder: MagicFolder, name: str) -> Results:
    pattern = r"mean (\S+) std (\S+) mode_scale ([\d.]+)"
    mean, std, scale = numbers(pattern, folder.words(name)["what"])
    for density, want in folder.case(name).items():
        generator = torch.Generator().manual_seed(folder.seed(name))
        got = sample_sigmas(
            len(want),
            density=density,  # type: ignore[arg-type]
            mean=mean,
            std=std,
            mode_scale=scale,
            generator=generator,
        )
        yield compare(f"{name}.{density}", got, want=want, atol=_GRID_ATOL)


def _weighting(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    sigmas = tensors.pop("sigmas")
    for weighting, want in tensors.items():
        got = loss_weight(sigmas, weighting)  # type: ignore[arg-type]
        yield compare(f"{name}.{weighting}", got, want=want, atol=_GRID_ATOL, rtol=_GRID_ATOL)


def _grid(folder: MagicFolder, name: str) -> Results:
    for key, want in folder.case(name).items():
        match = re.fullmatch(r"shift([\d.]+)_steps(\d+)_(rev|fwd)", key)
        if match is None:
            raise ConfigError(f"{name}: {key}", expected="shift<S>_steps<N>_<rev or fwd>")
        got = sigma_grid(int(match[2]), shift=float(match[1]), reverse=match[3] == "rev")
        if name == "timesteps":
            # Thousandths: the tolerance scales with the values.
            yield compare(f"{name}.{key}", got[:-1] * 1000, want=want, atol=1000 * _GRID_ATOL)
        else:
            yield compare(f"{name}.{key}", got, want=want, atol=_GRID_ATOL)


def _euler(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    steps, shift = numbers(r"(\d+) Euler steps shift (\d+)", folder.words(name)["what"])
    velocities = iter([tensors[f"v{i}"] for i in range(int(steps))])
    trace = [tensors["x0"]]
    sample_euler(
        lambda _x, _sigma: next(velocities),
        tensors["x0"],
        sigmas=sigma_grid(int(steps), shift=shift),
        on_step=lambda _step, x, _v: trace.append(x),
    )
    for i, got in enumerate(trace[1:], start=1):
        yield compare(f"{name}.x{i}", got, want=tensors[f"x{i}"], atol=_ATOL)


def _vae(folder: MagicFolder, name: str) -> Results:
    tensors, kind = folder.case(name), name.rpartition("_")[2]
    set_tiles(
        folder.vae,
        replace(
            folder.tiles,
            spatial=kind in ("spatial", "tiled"),
            temporal=kind in ("temporal", "tiled"),
        ),
    )
    if "x" in tensors:
        got = folder.vae.encode(tensors["x"]).latent_dist.parameters
    else:
        got = folder.vae.decode(tensors["z"]).sample
    want = tensors["moments"] if "x" in tensors else tensors["out"]
    yield compare(name, got, want=want, atol=VAE_ATOL)


def _vae_sample(folder: MagicFolder, name: str) -> Results:
    (source,) = re.findall(r"sample of (\w+)", folder.words(name)["what"])
    posterior = folder.vae.encode(folder.case(source)["x"]).latent_dist
    got = posterior.sample(torch.Generator().manual_seed(folder.seed(name)))
    yield compare(name, got, want=folder.case(name)["z"], atol=VAE_ATOL)


def _picture(folder: MagicFolder, name: str) -> Results:
    tensors, words = folder.case(name), folder.words(name)
    pixels = tensors["image"].numpy()
    bucket = pick_bucket(pixels.shape[1], pixels.shape[0])
    chosen = f"RATIO_{bucket.ratio[0]}_{bucket.ratio[1]}"
    right = chosen == words["bucket"]
    yield CaseResult(f"{name}.bucket", right, float(not right), 0.0, chosen)
    got = torch.from_numpy(fit_bucket(pixels, bucket)).permute(2, 0, 1).float() / 255
    shape = torch.tensor(got.shape)
    yield compare(f"{name}.shape", shape, want=torch.tensor(words["out_shape"]), atol=0)
    top, bottom, left, right_edge = (
        int(n) for n in numbers(r"rows (\d+):(\d+) cols (\d+):(\d+)", words["crop"])
    )
    corner, end = tensors["corner"].shape[1:], tensors["end"].shape[1:]
    windows = {
        "crop": got[:, top:bottom, left:right_edge],
        "corner": got[:, : corner[0], : corner[1]],
        "end": got[:, -end[0] :, -end[1] :],
    }
    for key, window in windows.items():
        yield compare(f"{name}.{key}", window, want=tensors[key], atol=1 / 255 + _GRID_ATOL)
    mean = got.double().mean()
    yield compare(f"{name}.mean", mean, want=torch.tensor(words["mean"]), atol=_MEAN_ATOL)


def _bytes(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    got = to_uint8(tensors["x"], official_compat=True).permute(1, 2, 0)
    yield compare(name, got, want=tensors["out"], atol=0)


def _prompt_states(folder: MagicFolder, name: str) -> Results:
    tensors = folder.case(name)
    skip, crop = numbers(r"skip (\d+), crop_start (\d+)", folder.words(name)["what"])
    layers = [tensors[f"hs{i}"] for i in range(sum(key.startswith("hs") for key in tensors))]
    got = crop_states(layers, tensors["mask"], skip=int(skip), crop=int(crop))
    yield compare(f"{name}.out", got.embeds, want=tensors["out"], atol=0)
    yield compare(f"{name}.mask", got.mask, want=tensors["out_mask"], atol=0)


def _image_tokens(folder: MagicFolder, name: str) -> Results:
    tensors, words = folder.case(name), folder.words(name)
    (header,) = re.findall(r"header ids \[([\d,\s]+)\]", words["what"])
    image_id = int(numbers(r"image id (\d+)", words["what"])[0])
    ids = tensors["ids_unexpanded"][0]
    ids = expand_image(ids, image_id, num_patches=words["n_image_tokens"])
    got = select_image_tokens(
        ids,
        tensors["last_hidden"][0],
        header=[int(n) for n in header.split(",")],
        image_id=image_id,
        stride=words["stride"],
    )[None]
    yield compare(f"{name}.out", got, want=tensors["out"], atol=0)
    mask = torch.ones(got.shape[:2])
    yield compare(f"{name}.mask", mask, want=tensors["out_mask"], atol=0)


_RUNNERS: dict[str, Runner] = {
    r"rope_full|rope_tiny": _rope,
    r"rope_apply": _rope_apply,
    r"t_embed": _time_embedding,
    r"cu_seqlens": _segments,
    r"refiner": _refiner,
    r"dit_\w+_bf16": _bfloat16,
    r"dit_\w+": _forward,
    r"qint8": _quantized,
    r"density": _density,
    r"weighting": _weighting,
    r"sigmas|timesteps": _grid,
    r"euler": _euler,
    r"vae_sample": _vae_sample,
    r"vae_(enc|dec)_\w+": _vae,
    r"preproc_\w+": _picture,
    r"to_uint8": _bytes,
    r"llm_crop": _prompt_states,
    r"vlm_select": _image_tokens,
    r"sample_\w+": sampling,
    r"inversion": inversion,
    r"noise_seed\d+": official_seed,
}


@torch.no_grad()
def run(folder: Path) -> Results:
    """Run every case of a folder, and compare names and shapes at full size where they are listed.

    Args:
        folder: holds `index.json` and the files it names.

    Yields:
        One or more results per case.

    Raises:
        ConfigError: a case is of no known kind.
        CheckpointError: tensors are missing, or the weights do not fit their config.
    """
    source = MagicFolder(folder)
    for name in source.index["cases"]:
        runner = next((run for kind, run in _RUNNERS.items() if re.fullmatch(kind, name)), None)
        if runner is None:
            raise ConfigError(f"{folder}: case '{name}'", expected=" or ".join(_RUNNERS))
        yield from runner(source, name)
    if (folder / "full_size_keys.json").is_file():
        yield from _full_size(folder / "full_size_keys.json")


def _full_size(path: Path) -> Results:
    """Compare names and shapes of the released sizes in every layout, on the meta device."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    config = MAGIC_DIT_PRESETS["magic141"]
    with torch.device("meta"):
        ours = HunyuanVideoTransformer3DModel(**config).state_dict()
        vae = AutoencoderKLHunyuanVideo(**vae_config_from_official({})[0]).state_dict()
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    official = ours_to_official(ours)
    layouts = {
        "dit_official": official,
        "dit_diffusers": official_to_ours(official, dim=dim),
        "vae": vae,
    }
    for layout, state in layouts.items():
        want = {name: tuple(shape) for name, shape in manifest[layout].items()}
        got = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = {name for name in want.keys() | got.keys() if want.get(name) != got.get(name)}
        count = sum(tensor.numel() for tensor in state.values())
        note = f"{len(got)} tensors, {count} parameters, {len(wrong)} differ"
        yield CaseResult(f"full_size.{layout}", not wrong, float(len(wrong)), 0.0, note)
