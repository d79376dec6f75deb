from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel.core.errors import CheckpointError, ConfigError, OutOfMemory
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import parse_official
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.weights import config_from_official
from onereel.runtime.convert import convert, to_official
from onereel.runtime.layout import complete, official_kwargs, transformer_part
from onereel.runtime.official_config import official_json, official_vae_json
from onereel.runtime.shard_writing import write_shards
from onereel.runtime.source import resolve_model

Make = Callable[..., Path]


def test_where_it_writes(make_official: Make, tmp_path: Path) -> None:
    source = resolve_model(make_official())
    (tmp_path / "empty").mkdir()
    assert convert(source, tmp_path / "empty") == tmp_path / "empty"
    with pytest.raises(ConfigError, match="exists already"):
        convert(source, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        convert(source, tmp_path / "file")


def test_nothing_is_left_when_it_fails(
    make_official: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model(make_official())
    usage = namedtuple("usage", "total used free")(1, 1, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutOfMemory, match=r"expected 0\.0 GB free"):
        convert(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_shard_is_as_large_as_allowed(tmp_path: Path) -> None:
    state = {name: torch.zeros(100) for name in "abcde"}
    planned = [(name, 400) for name in state]
    write_shards(state.items(), tmp_path, stem="model", planned=planned, max_bytes=900)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "model-00001-of-00003.safetensors"
    assert names[-1] == "model.safetensors.index.json" and len(names) == 4


def test_fused_tensors_wait_for_each_other(make_official: Make, tmp_path: Path) -> None:
    ours = resolve_model(convert(resolve_model(make_official()), tmp_path / "ours"))
    part = transformer_part(ours)
    items = dict(part.our_tensors())
    first = dict(to_official(part, items.items()))
    last = dict(to_official(part, reversed(items.items())))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    items.pop("blocks.0.attn2.to_v.weight")
    with pytest.raises(CheckpointError, match=r"without their companions: blocks\.0\.attn2\.to_k"):
        dict(to_official(part, items.items()))


def our_configs() -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        complete(Magi1Transformer3DModel, {}, where="test"),
        complete(AutoencoderKLMagi1, {}, where="test"),
    )


def test_the_official_config_is_read_back() -> None:
    transformer, vae = our_configs()
    sampling = {"num_steps": 16, "height": 480, "seed": 7, "distilled": False}
    data = official_json(transformer, vae=vae, sampling=sampling, dtype=torch.bfloat16, name="x")
    config = parse_official(data)
    assert complete(Magi1Transformer3DModel, official_kwargs(config), where="test") == transformer
    assert (config.runtime.num_steps, config.runtime.video_size_h, config.runtime.seed) == (
        16, 480, 7,
    )  # fmt: skip
    back = complete(AutoencoderKLMagi1, config_from_official(official_vae_json(vae)), where="test")
    ratios = ("temporal_compression_ratio", "spatial_compression_ratio")
    assert {k: v for k, v in back.items() if k not in ratios} == {
        k: v for k, v in vae.items() if k not in ratios
    }


@pytest.mark.parametrize(
    "change", [{"patch_size": (1, 2, 4)}, {"freq_dim": 128}], ids=["patch", "freq"]
)
def test_what_the_official_layout_cannot_say(change: dict[str, Any]) -> None:
    transformer, vae = our_configs()
    with pytest.raises(ConfigError, match="official layout says nothing else"):
        official_json(
            {**transformer, **change}, vae=vae, sampling={}, dtype=torch.bfloat16, name="x"
        )
    with pytest.raises(ConfigError, match="shift: expected 3.0, for the official layout"):
        official_json(transformer, vae=vae, sampling={"shift": 1.0}, dtype=torch.bfloat16, name="x")


@pytest.mark.parametrize("change", [{"latents_mean": [0.0] * 16}, {"width": 128}])
def test_what_the_official_vae_cannot_say(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="official layout says nothing else"):
        official_vae_json({**our_configs()[1], **change})


def test_odd_mlp_widths_survive() -> None:
    config = official_vae_json({**our_configs()[1], "ffn_dim": 4097})
    assert config_from_official(config)["ffn_dim"] == 4097
