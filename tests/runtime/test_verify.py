from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.text import SpecialTokens
from onereel.runtime import shards
from onereel.runtime.convert import convert
from onereel.runtime.load import load_components
from onereel.runtime.source import ModelSource, resolve_model
from onereel.runtime.text_files import text_part
from onereel.runtime.verify import preflight, verify

Make = Callable[..., Path]


@pytest.fixture
def ours(make_official: Make, tmp_path: Path) -> ModelSource:
    return resolve_model(convert(resolve_model(make_official()), tmp_path / "ours"))


def change_state(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = next(folder.glob("*.safetensors"))
    state = load_file(path)
    change(state)
    save_file(state, path)


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_good_checkpoint(make_official: Make) -> None:
    report = verify(resolve_model(make_official(distill=True, fp8=True)), deep=True)
    assert report.ok and len(report.model_hash or "") == 64
    transformer = report.parts["transformer"]
    assert transformer.dtypes["float8_e4m3fn"] == 7 and transformer.num_parameters > 100_000
    assert set(report.parts) == {"transformer", "vae", "text_encoder"}
    assert report.parts["text_encoder"].num_files == 2
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_preflight_reads_headers_only(make_official: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve_model(make_official(shards=2))
    monkeypatch.setattr(shards, "safe_open", None)
    monkeypatch.setattr(torch, "load", None)
    preflight(source)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert preflight(source).model_hash is None
        times.append(time.perf_counter() - start)
    # 0.03 s measured; the bound leaves room for a busy machine.
    assert min(times) < 0.2


def test_the_hash_depends_on_weights_alone(ours: ModelSource, tmp_path: Path) -> None:
    before = verify(ours).model_hash
    again = resolve_model(convert(ours, tmp_path / "again", max_shard_gb=1e-4))
    assert verify(again).model_hash == before
    assert load_components(ours, device="cpu").model_hash == before
    change_state(ours.path / "vae", lambda s: s["decoder.conv_out.bias"].add_(1))
    assert verify(ours).model_hash not in (None, before)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_tensors_are_accounted_for(ours: ModelSource, part: str) -> None:
    name = {"transformer": "blocks.1.norm1.bias", "vae": "encoder.norm_out.bias"}[part]
    change_state(ours.path / part, lambda s: s.update({"extra.weight": s.pop(name)}))
    with pytest.raises(CheckpointError, match=f"1 missing \\({name}\\); 1 unexpected"):
        preflight(ours)
    with pytest.raises(CheckpointError, match="do not fit the config"):
        load_components(ours, device="cpu")
    report = verify(ours)
    assert not report.ok and report.model_hash is None and len(report.problems) == 1


def test_all_problems_are_listed(ours: ModelSource) -> None:
    change_state(ours.path / "transformer", lambda s: s.pop("norm_out.bias"))
    change_state(ours.path / "vae", lambda s: s.update({"encoder.pos_embed": torch.zeros(1, 2)}))
    (ours.path / "tokenizer" / "tokenizer.json").unlink()
    change_json(ours.path / "model_index.json", lambda d: d["sampling"].update(num_steps=7))
    problems = "\n".join(verify(ours).problems)
    assert "norm_out.bias" in problems and "of wrong shape (encoder.pos_embed" in problems
    assert "no tokenizer" in problems and "num_steps" in problems


def test_shapes_of_official_weights_are_checked(make_official: Make) -> None:
    path = make_official()
    change_json(path, lambda d: d["model_config"].update(ffn_hidden_size=80))
    with pytest.raises(CheckpointError, match=r"of wrong shape \(blocks.0.ffn"):
        preflight(resolve_model(path))


def test_the_unmerged_diffusers_conversion_is_refused(ours: ModelSource) -> None:
    config = ours.path / "transformer" / "config.json"
    change_json(config, lambda d: d.pop("layout_version"))
    with pytest.raises(CheckpointError, match="without layout_version: norm gains lack the 1"):
        preflight(ours)
    name = "condition_embedder.text_embedder.null_caption_embedding"
    change_state(ours.path / "transformer", lambda s: s.pop(name))
    with pytest.raises(CheckpointError, match=r"layout_version.*null_caption_embedding.*hint"):
        preflight(ours)
    change_json(config, lambda d: d.update(layout_version=2))
    with pytest.raises(CheckpointError, match="layout_version: expected 1, got 2"):
        preflight(ours)


def test_guidance_must_fit_the_weights(ours: ModelSource, make_official: Make) -> None:
    index = ours.path / "model_index.json"
    change_json(index, lambda d: d["sampling"].update(distilled=True))
    with pytest.raises(ConfigError, match="distilled: expected False for base weights"):
        preflight(ours)
    change_json(index, lambda d: d.pop("sampling"))
    assert preflight(ours).sampling == {"distilled": False}
    change_json(index, lambda d: d.update(sampling={"num_step": 8}))
    with pytest.raises(ConfigError, match="did you mean 'num_steps'"):
        preflight(ours)
    path = make_official(fp8=True, distill=True, name="quant")
    change_json(path, lambda d: d["engine_config"].update(distill=False))
    weights = path.parent.parent / "downloads" / "magi" / "inference_weight.fp8.distill"
    weights.rename(weights.with_name("inference_weight.fp8"))
    with pytest.raises(ConfigError, match="distill of fp8 weights: expected true"):
        preflight(resolve_model(path))


def test_components_must_belong_together(ours: ModelSource, make_official: Make) -> None:
    change_json(ours.path / "text_encoder" / "config.json", lambda d: d.update(d_model=64))
    with pytest.raises(CheckpointError, match="caption channels .* expected 128, got 64"):
        preflight(ours)
    path = make_official(name="other")
    vae = path.parent.parent / "downloads" / "vae"
    change_json(vae / "config.json", lambda d: d["ddconfig"].update(z_chans=4))
    with pytest.raises(CheckpointError, match="tensors do not fit"):
        preflight(resolve_model(path))


def test_nan_is_found_on_request(ours: ModelSource) -> None:
    change_state(ours.path / "vae", lambda s: s["decoder.conv_out.bias"].fill_(float("nan")))
    assert verify(ours).ok
    report = verify(ours, deep=True)
    assert "1 tensors hold NaN or infinity (vae: decoder.conv_out.bias)" in report.problems[0]


def test_the_token_table_is_checked(ours: ModelSource, tmp_path: Path) -> None:
    def table(width: int) -> SpecialTokens:
        rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 20}
        return SpecialTokens.from_tensors({k: torch.ones(n, width) for k, n in rows.items()})

    table(128).save(ours.path / "special_tokens.safetensors")
    assert preflight(ours).special_tokens is not None
    tokens = load_components(ours, device="cpu").special_tokens
    assert tokens is not None and tokens.width == 128
    back = convert(ours, tmp_path / "back", to="official")
    assert resolve_model(back).special_tokens_file() == back.parent / "special_tokens.safetensors"
    table(64).save(ours.path / "special_tokens.safetensors")
    with pytest.raises(CheckpointError, match="token width: expected 128, got 64"):
        preflight(ours)


def test_text_encoder_files(text_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    for path in text_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    bins = sorted(folder.glob("*.bin"))
    assert text_part(folder).bins == tuple(bins)
    whole = bins[0].read_bytes()
    bins[0].write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin: size: expected a whole file"):
        text_part(folder)
    bins[0].unlink()
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin: no such file"):
        text_part(folder)
    bins[0].write_bytes(b"\x80\x02")  # not a zip archive: only the sum of sizes tells
    with pytest.raises(CheckpointError, match="expected at least"):
        text_part(folder)


def test_text_encoder_tensors_are_accounted_for(make_official: Make, tmp_path: Path) -> None:
    ours = convert(resolve_model(make_official()), tmp_path / "ours")
    folder = ours / "text_encoder"
    state: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.bin"):
        state.update(torch.load(path, weights_only=True))
        path.unlink()
    state.pop("encoder.embed_tokens.weight")
    (folder / "pytorch_model.bin.index.json").unlink()
    save_file(state, folder / "model.safetensors")
    source = resolve_model(ours)
    assert preflight(source).parts["text_encoder"].num_tensors == len(state)
    name = "encoder.final_layer_norm.weight"
    save_file({k: v for k, v in state.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 missing \\({name}\\)"):
        preflight(source)
