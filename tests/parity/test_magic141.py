"""Magic 1-For-1 against outputs of the official code.

`magic141/` is a part of the full goldens. Of the transformer the first double and the first single
block are stored, with what went in and came out; the rest is filled in at random to build a model.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError, ConfigError
from onereel.evaluation.parity import run_folder
from onereel.evaluation.parity.case import CaseResult
from onereel.evaluation.parity.magic141_folder import MagicFolder
from onereel.models.magic_dit.model import image_prior
from onereel.models.magic_dit.presets import config_from_official
from onereel.models.magic_dit.weights import ours_to_official

GOLDENS = Path(__file__).parent / "magic141"
INDEX = json.loads((GOLDENS / "index.json").read_text())
ATOL = 1e-5  # stated by the goldens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The goldens, with a transformer of one block of each kind."""
    from diffusers import HunyuanVideoTransformer3DModel

    path = tmp_path_factory.mktemp("goldens") / "magic141"
    shutil.copytree(GOLDENS, path)
    index = json.loads((path / "index.json").read_text())
    index["dit_config"] |= {"mm_double_blocks_depth": 1, "mm_single_blocks_depth": 1}
    (path / "index.json").write_text(json.dumps(index))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideoTransformer3DModel(**config_from_official(index["dit_config"]))
    state = ours_to_official(model.state_dict()) | load_file(path / "dit_weights.safetensors")
    save_file({k: v.contiguous() for k, v in state.items()}, path / "dit_weights.safetensors")
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[CaseResult]:
    return list(run_folder(folder))


@pytest.mark.parametrize("case", list(INDEX["cases"]))
def test_case_equals_the_official_code(results: list[CaseResult], case: str) -> None:
    own = [r for r in results if r.name.split(".")[0] == case]
    assert own
    assert [r for r in own if not r.passed] == []


def test_every_part_of_the_goldens_was_compared(results: list[CaseResult]) -> None:
    counts = Counter(result.name.split(".")[0] for result in results)
    several = {
        "rope_full": 2, "rope_tiny": 2, "rope_apply": 2, "density": 3, "weighting": 3,
        "sigmas": 5, "timesteps": 5, "euler": 4, "preproc_97x61": 6, "llm_crop": 2,
        "vlm_select": 2, "noise_seed39": 2, "qint8": 8,
    }  # fmt: skip
    assert counts == {case: several.get(case, 1) for case in INDEX["cases"]}


def test_wrong_goldens_fail(folder: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    changes = {
        "dit_cases": "density/mode",
        "scheduler": "euler/x3",
        "preproc": "preproc_97x61/end",
        "text_cases": "vlm_select/out",
        "quant": "qint8/single_blocks.0.linear1.data",
    }
    for file, name in changes.items():
        tensors = load_file(wrong / f"{file}.safetensors")
        tensors[name].view(-1)[0] += 1
        save_file(tensors, wrong / f"{file}.safetensors")
    failed = {r.name for r in run_folder(wrong) if not r.passed}
    assert failed == {name.replace("/", ".") for name in changes.values()}


def test_a_case_without_tensors_or_of_no_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    lost = shutil.copytree(folder, tmp_path / "lost")
    index = json.loads((lost / "index.json").read_text())
    for name, error in (("dit_other", CheckpointError), ("audio", ConfigError)):
        (lost / "index.json").write_text(json.dumps(index | {"cases": {name: {"what": ""}}}))
        with pytest.raises(error, match=name):
            list(run_folder(lost))


@pytest.fixture(scope="module")
def source(folder: Path) -> MagicFolder:
    return MagicFolder(folder)


@torch.no_grad()
def test_the_inputs_are_embedded_as_officially(source: MagicFolder) -> None:
    tensors, model = source.case("dit_i2v"), source.transformer
    prior = image_prior(tensors["ref"], tensors["latent"].shape[2])
    got = model.x_embedder(torch.cat((tensors["latent"], prior), dim=1))
    torch.testing.assert_close(got, tensors["stage.img_in"], atol=ATOL, rtol=0)
    embed = model.time_text_embed
    features = embed.time_proj(tensors["t"])
    for name, got in (
        ("time_in", embed.timestep_embedder(features)),
        ("vector_in", embed.text_embedder(tensors["pooled"])),
    ):
        torch.testing.assert_close(got, tensors[f"stage.{name}"], atol=ATOL, rtol=0)


@torch.no_grad()
def test_one_block_of_each_kind_and_the_last_layer(source: MagicFolder) -> None:
    """The text's hidden tokens are left out, as in a call, and no mask is given."""
    tensors, model = source.case("dit_i2v"), source.transformer
    condition = tensors["stage.time_in"] + tensors["stage.vector_in"]
    rope, length = model.rope(tensors["latent"]), int(tensors["mask"].sum())
    assert length < tensors["mask"].shape[1]

    image, text = model.transformer_blocks[0](
        tensors["stage.img_in"], tensors["stage.txt_in"][:, :length], condition, None, rope
    )
    for got, name in ((image, "double0_img"), (text, "double0_txt")):
        want = tensors[f"stage.{name}"][:, : got.shape[1]]
        torch.testing.assert_close(got, want, atol=ATOL, rtol=0)

    last = len([name for name in tensors if name.endswith("_img")]) - 1
    both = model.single_transformer_blocks[0](
        tensors[f"stage.double{last}_img"],
        tensors[f"stage.double{last}_txt"][:, :length],
        condition,
        None,
        rope,
    )
    got = torch.cat(both, dim=1)
    torch.testing.assert_close(got, tensors["stage.single0"][:, : got.shape[1]], atol=ATOL, rtol=0)

    last = len([name for name in tensors if name.startswith("stage.single")]) - 1
    image = tensors[f"stage.single{last}"][:, : image.shape[1]]
    got = model.proj_out(model.norm_out(image, condition))
    torch.testing.assert_close(got, tensors["stage.final_layer"], atol=ATOL, rtol=0)
