"""Checkpoints of Magic 1-For-1 in fewer bits: written, read again, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.core.errors import CheckpointError, ConfigError, OutOfMemory
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.runtime.convert import convert
from onereel.runtime.magic_shapes import read_magic_shapes
from onereel.runtime.magic_source import MagicFiles, check_parts, load_part, magic_files
from onereel.runtime.quantize import quantize, quantized_layers
from onereel.runtime.source import resolve_model

CPU = torch.device("cpu")
PARTS = ("text_encoder", "text_encoder_2", "transformer", "vae")


def files_of(folder: Path) -> MagicFiles:
    return magic_files(resolve_model(folder))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("level", ["int8", "int4", "fp8"])
def test_stored_weights_are_those_that_loading_rounds(
    tiny_magic: Path, tmp_path: Path, level: str
) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / level, level=level)
    assert size_of(out / "transformer") < 0.8 * size_of(tiny_magic / "transformer")
    check_parts(files_of(out))
    for part in ("transformer", "text_encoder"):
        stored = load_part(files_of(out), part, dtype=torch.float32, device=CPU)
        rounded = load_part(files_of(tiny_magic), part, dtype=torch.float32, device=CPU)
        quantize(rounded, level)
        # Widths below a group stay whole in int4.
        assert quantized_layers(stored).keys() == quantized_layers(rounded).keys()
        assert quantized_layers(stored) or (part, level) == ("text_encoder", "int4")
        assert stored.state_dict().keys() == rounded.state_dict().keys()
        for name, tensor in rounded.state_dict().items():
            assert torch.equal(stored.state_dict()[name], tensor), name


def test_rounded_while_read_is_rounded_after(tiny_magic: Path) -> None:
    files = files_of(tiny_magic)
    streamed = load_part(files, "transformer", dtype=torch.float32, device=CPU, level="int8")
    whole = load_part(files, "transformer", dtype=torch.float32, device=CPU)
    quantize(whole, "int8")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(streamed.state_dict()[name], tensor), name
    assert not any(p.requires_grad for p in streamed.parameters())


def test_a_pipeline_of_stored_weights(tiny_magic: Path, tmp_path: Path) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / "q", level="int8")
    pipe = Magic141Pipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    assert quantized_layers(pipe.transformer) and quantized_layers(pipe.text_encoder)
    made = pipe("a disc", num_frames=5, num_inference_steps=1, output_type="pt").frames
    assert torch.isfinite(made).all()


def test_everything_else_is_kept(tiny_magic: Path, tmp_path: Path) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / "copy", max_shard_gb=1e-5)
    assert len(list((out / "transformer").glob("*.safetensors"))) > 1
    for part in PARTS:
        ours, theirs = files_of(out).tensors(part), files_of(tiny_magic).tensors(part)
        assert ours is not None and theirs is not None
        want = dict(theirs.tensors())
        for name, tensor in ours.tensors():
            assert torch.equal(tensor, want.pop(name))
        assert not want
    for name in ("model_index.json", "tokenizer/tokenizer.json", "vae/config.json"):
        assert (out / name).read_bytes() == (tiny_magic / name).read_bytes()


def test_another_dtype(tiny_magic: Path, tmp_path: Path) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / "h", dtype=torch.float16, level="int8")
    for part in PARTS:
        found = files_of(out).tensors(part)
        assert found is not None
        for name, info in found.infos.items():
            if info.dtype.is_floating_point and not name.endswith(".scale"):
                assert info.dtype == torch.float16, name


def test_what_is_refused(tiny_magic: Path, tmp_path: Path) -> None:
    source = resolve_model(tiny_magic)
    with pytest.raises(ConfigError, match="--to"):
        convert(source, tmp_path / "o", to="official")
    with pytest.raises(ConfigError, match="give this one to"):
        convert(source, tmp_path / "d", level="int8-dynamic")
    out = convert(source, tmp_path / "q", level="int8")
    with pytest.raises(ConfigError, match="int8, in which the weights are stored"):
        convert(resolve_model(out), tmp_path / "again", level="int4")
    with pytest.raises(ConfigError, match="int8, in which the weights are stored"):
        load_part(files_of(out), "transformer", dtype=torch.float32, device=CPU, level="int4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q"]


def test_stored_weights_of_another_model(tiny_magic: Path, tmp_path: Path) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / "q", level="int8")
    file = next((out / "transformer").glob("*.safetensors"))
    state = load_file(file)
    name = next(name for name in state if name.endswith(".packed"))
    save_file({**state, name: state[name][:, :-1].contiguous()}, file)
    with pytest.raises(CheckpointError, match="of wrong shape"):
        check_parts(files_of(out))
    config = out / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization": "int3"}))
    with pytest.raises(CheckpointError, match="one of int8, int4, fp8, got int3"):
        check_parts(files_of(out))


def test_a_full_disk(tiny_magic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(OutOfMemory, match="disk"):
        convert(resolve_model(tiny_magic), tmp_path / "q", level="int8")
    assert not list(tmp_path.iterdir())


def test_estimates_count_what_is_stored(tiny_magic: Path, tmp_path: Path) -> None:
    out = convert(resolve_model(tiny_magic), tmp_path / "q", level="int8")
    found = files_of(out).tensors("transformer")
    assert found is not None
    size = read_magic_shapes(files_of(out)).sizes["transformer"]
    rounded = sum(i.num_bytes for n, i in found.infos.items() if n.endswith((".packed", ".scale")))
    assert size.rounded_bytes == rounded > 0
