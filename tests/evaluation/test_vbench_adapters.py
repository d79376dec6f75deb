"""Networks from disk: tiny DINO and CLIP of the real classes, RAFT, plug-ins, what fails."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from onereel.core.errors import BackendUnavailable, CheckpointError, ConfigError
from onereel.evaluation.networks.raft import Raft
from onereel.evaluation.vbench.adapters import (
    ClipEmbedder,
    dino_positions,
    load_aesthetic_head,
    load_clip,
    load_dino,
    load_flow,
    load_imaging_scorer,
    load_networks,
)
from onereel.evaluation.vbench.networks import NETWORKS, Networks


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(97, 123)]
    names = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {
        "vocab_size": len(names),
        "bos_token_id": len(names) - 2,
        "eos_token_id": len(names) - 1,
    }
    config = CLIPConfig(
        text_config={**sizes, **ends, "intermediate_size": 16},
        vision_config={**sizes, "intermediate_size": 16, "patch_size": 32},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder


def test_dino_gives_class_tokens_for_any_aspect_ratio(dino_folder: Path) -> None:
    dino = load_dino(dino_folder)
    images = torch.randn(2, 3, 224, 288)
    found = dino(images)
    assert found.shape == (2, 16)
    torch.testing.assert_close(found[1:], dino(images[1:]))
    assert "Apache-2.0" in dino.description
    assert "patch 16, width 16, 1 layers" in dino.description
    assert "sha256" in dino.description


def test_dino_resizes_positions_as_the_official_network_does(dino_folder: Path) -> None:
    from transformers import ViTModel

    images = torch.randn(1, 3, 224, 288)
    with torch.inference_mode():
        plain = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
        theirs = plain(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        ours = load_dino(dino_folder)(images)
        square = plain(images[..., :224]).last_hidden_state[:, 0]
    assert 1e-6 < float((ours - theirs).abs().max()) < 0.1
    torch.testing.assert_close(load_dino(dino_folder)(images[..., :224]), square)
    table = torch.randn(1, 1 + 14 * 14, 3)
    found = dino_positions(table, (224, 288), patch=16)
    assert torch.equal(found[:, 0], table[:, 0])
    # patch i of 18 reads at (i + 0.5) * 14 / 18.1 - 0.5: a tenth of a patch is added to 18
    y = (torch.arange(14.0) + 0.5) / 14.1 * 2 - 1
    x = (torch.arange(18.0) + 0.5) / 18.1 * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    image = table[:, 1:].reshape(1, 14, 14, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.grid_sample(
        image, grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    got = found[:, 1:].reshape(1, 14, 18, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_clip_embeds_pictures_and_texts_in_one_space(clip_folder: Path) -> None:
    clip = load_clip(clip_folder)
    assert clip(torch.randn(3, 3, 224, 224)).shape == (3, 8)
    both = clip.embed_text(["a cat", "a dog"])
    torch.testing.assert_close(both[1:], clip.embed_text(["a dog"]))
    assert float((both[0] - both[1]).abs().max()) > 1e-4
    assert clip.embed_text(["x" * 200]).shape == (1, 8)
    silent = ClipEmbedder(None, description="mine")
    with pytest.raises(CheckpointError, match="mine: no tokenizer"):
        silent.embed_text(["a cat"])


def test_the_aesthetic_head_is_a_row_and_a_bias(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    torch.save({"weight": torch.arange(4.0)[None], "bias": torch.tensor([2.0])}, path)
    head = load_aesthetic_head(path)
    assert (head.weight.tolist(), head.bias) == ([0, 1, 2, 3], 2)
    torch.save({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"weight \[1, D\] and bias \[1\], got \[2, 4\]"):
        load_aesthetic_head(path)
    torch.save({"w": torch.ones(1, 4)}, path)
    with pytest.raises(CheckpointError, match="'weight' and 'bias'"):
        load_aesthetic_head(path)
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        load_aesthetic_head(tmp_path / "none.safetensors")
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="not readable weights"):
        load_aesthetic_head(path)


def test_raft_estimates_the_full_flow(tmp_path: Path) -> None:
    path = tmp_path / "raft-things.pth"
    torch.save(Raft().state_dict(), path)
    flow = load_flow(path)
    frames = torch.rand(2, 3, 64, 64) * 255
    assert flow(frames[:1], frames[1:]).shape == (1, 2, 64, 64)
    assert "BSD-3" in flow.description


def test_pyiqa_is_used_only_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(BackendUnavailable, match="pip install pyiqa"):
        load_imaging_scorer()
    package = types.ModuleType("pyiqa")
    asked = []

    def create_metric(name: str, device: torch.device) -> object:
        asked.append((name, device))
        return lambda frames: frames.mean((1, 2, 3))[:, None]

    package.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    scorer = load_imaging_scorer()
    assert asked == [("musiq-spaq", torch.device("cpu"))]
    assert scorer(torch.full((2, 3, 4, 4), 0.5)).tolist() == [0.5, 0.5]
    assert "pyiqa of unknown version" in scorer.description


def test_networks_load_by_name(
    dino_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = types.ModuleType("my_networks")
    plugin.make = lambda: "tracks"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_networks", plugin)
    sources = {
        "dino": str(dino_folder),
        "clip_l14": str(clip_folder),
        "tracker": "my_networks:make",
    }
    networks = load_networks(sources)
    assert set(networks.descriptions()) == {"dino", "clip_l14", "tracker"}
    assert networks.tracker == "tracks"  # type: ignore[comparison-overlap]
    assert networks.descriptions()["tracker"] == "str"


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ({"dion": "x"}, ConfigError, "did you mean 'dino'"),
        ({"interpolator": "amt.pth"}, ConfigError, "expected a plug-in of yours, got amt.pth"),
        ({"tracker": "no_such_module:make"}, ConfigError, "plug-in 'no_such_module:make'"),
        ({"tracker": "math:make"}, ConfigError, "can be imported"),
        ({"dino": "/no/such/folder"}, CheckpointError, "86 M parameters, 343 MB.*Apache-2.0"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    sources: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_networks(sources)


def test_every_network_states_size_licence_and_source() -> None:
    assert set(NETWORKS) == set(Networks.__slots__)
    for info in NETWORKS.values():
        assert all((info.name, info.size, info.licence, info.source))
    assert "CC BY-NC" in Networks().lacking(["interpolator"])
    assert Networks().lacking([]) == ""
