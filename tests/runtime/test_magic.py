"""Files of Magic 1-For-1 weights, safe and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import save_file

from onereel.core.errors import CheckpointError
from onereel.models.magic_dit.presets import config_from_official
from onereel.models.magic_dit.weights import ours_to_official
from onereel.models.magic_vae.weights import config_from_official as vae_config_from_official
from onereel.runtime.magic import load_transformer, load_vae, read_tensors

DIT = config_from_official(
    {
        "hidden_size": 16,
        "heads_num": 1,
        "mm_double_blocks_depth": 1,
        "mm_single_blocks_depth": 1,
        "rope_dim_list": (4, 6, 6),
        "text_states_dim": 4,
        "text_states_dim_2": 4,
    }
)
VAE = {
    "block_out_channels": [4, 4, 4, 4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 2,
    "sample_size": 32,
}
STATE = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def same(state: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    return state.keys() == want.keys() and all(torch.equal(state[k], want[k]) for k in want)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nest", [(), ("state_dict",), ("module",), ("state_dict", "model")])
def test_nested_pytorch_files(tmp_path: Path, nest: tuple[str, ...], legacy: bool) -> None:
    content: Any = STATE
    for key in reversed(nest):
        content = {key: content, "epoch": 3}
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_tensors(path), STATE)


def test_safetensors_and_official_folders(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path / "model.safetensors"), STATE)
    assert same(read_tensors(tmp_path), STATE)
    official = tmp_path / "official"
    official.mkdir()
    torch.save({"module": STATE}, official / "mp_rank_00_model_states.pt")
    assert same(read_tensors(official), STATE)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    torch.save({"state_dict": STATE, "extra": Trap(touched)}, path)
    with pytest.raises(CheckpointError, match="could run code"):
        read_tensors(path)
    assert not touched.exists()


def test_files_without_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match=str(path)):
        read_tensors(path)
    for content, message in (([1, 2], "names and tensors"), ({"step": 3}, "'step': expected")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_tensors(path)
    whole = tmp_path / "whole.safetensors"
    save_file(STATE, whole)
    whole.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(whole)


@pytest.fixture
def transformer() -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(**DIT)


def test_a_diffusers_folder_and_an_official_file(
    transformer: HunyuanVideoTransformer3DModel, tmp_path: Path
) -> None:
    transformer.save_pretrained(tmp_path / "ours")
    loaded = load_transformer(tmp_path / "ours", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.config.in_channels == 33
    wanted = {k: v.bfloat16() for k, v in transformer.state_dict().items()}
    assert same(loaded.state_dict(), wanted)

    official = tmp_path / "official"
    official.mkdir()
    state = {f"model.{k}": v for k, v in ours_to_official(transformer.state_dict()).items()}
    torch.save({"state_dict": state}, official / "dmd_4_step_i2v.pth")
    with pytest.raises(CheckpointError, match="config that belongs to these weights"):
        load_transformer(official)  # without a config it must be the 13B model
    (official / "config.json").write_text((tmp_path / "ours" / "config.json").read_text())
    assert same(load_transformer(official).state_dict(), transformer.state_dict())


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_vae_folders(tmp_path: Path, layout: str) -> None:
    config, tiles = vae_config_from_official(VAE)
    vae = AutoencoderKLHunyuanVideo(**config)
    if layout == "diffusers":
        vae.save_pretrained(tmp_path)
    else:
        state = {f"vae.{k}": v for k, v in vae.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "pytorch_model.pt")
        stored = VAE | {"_class_name": "AutoencoderKLCausal3D", "time_compression_ratio": 4}
        (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = load_vae(tmp_path)
    assert same(loaded.state_dict(), vae.state_dict())
    # Tiles are not part of diffusers' config: there the official sizes hold.
    size = tiles.size if layout == "official" else 256
    assert loaded.use_tiling and loaded.tile_sample_min_height == size
