"""Saving and loading of whole pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel import (
    AutoencoderKLMagi1,
    AutoModel,
    Magi1ImageToVideoPipeline,
    Magi1Pipeline,
    Magi1VideoToVideoPipeline,
)
from onereel.core.errors import CheckpointError, ConfigError
from onereel.models.text import SpecialTokens
from onereel.models.text.special_tokens import OTHER_ROWS
from onereel.runtime.convert import convert
from onereel.runtime.source import resolve_model

PROMPT = "a red disc bounces"


def latent(pipeline: Any, **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, generator=generator, output_type="latent", **options).frames


def make_tokens() -> SpecialTokens:
    generator = torch.Generator().manual_seed(0)
    rows = max(OTHER_ROWS.values()) + 1
    shapes = {"caption_token": 1, "logo_token": 1, "other_tokens": rows}
    arrays = {name: torch.randn(n, 128, generator=generator) for name, n in shapes.items()}
    return SpecialTokens.from_tensors(arrays)


@pytest.mark.parametrize(
    "kind", [Magi1Pipeline, Magi1ImageToVideoPipeline, Magi1VideoToVideoPipeline]
)
def test_the_round_trip(kind: type[Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = kind.from_pretrained(tiny_checkpoint)
    first.save_pretrained(tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert index["_class_name"] == kind.__name__
    assert index["vae"] == ["onereel.models.magi_vae.model", "AutoencoderKLMagi1"]
    second = kind.from_pretrained(tmp_path / "copy")
    assert dict(second.sampling) == dict(first.sampling) == index["sampling"]
    for name in ("transformer", "vae", "text_encoder"):
        old, new = (getattr(p, name).state_dict() for p in (first, second))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)
    as_text_pipeline = Magi1Pipeline.from_pretrained(tmp_path / "copy")
    assert torch.equal(latent(as_text_pipeline), latent(Magi1Pipeline(**parts_of(first))))


def parts_of(pipeline: Any) -> dict[str, Any]:
    return {**pipeline.components, "sampling": dict(pipeline.sampling)}


def test_special_tokens_travel_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    plain = latent(first)
    first.special_tokens = make_tokens()
    with_tokens = latent(first, use_hq_token=True, use_3d_style=True)
    assert not torch.equal(plain, with_tokens)
    first.save_pretrained(tmp_path / "copy")
    second = Magi1Pipeline.from_pretrained(tmp_path / "copy")
    assert torch.equal(latent(second, use_hq_token=True, use_3d_style=True), with_tokens)
    assert torch.equal(latent(second, use_duration_token=False), plain)
    third = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    third.load_special_tokens_from_file(str(tmp_path / "copy" / "special_tokens.safetensors"))
    assert torch.equal(latent(third, use_hq_token=True, use_3d_style=True), with_tokens)


def test_given_components_replace_stored_ones(tiny_checkpoint: Path) -> None:
    vae = AutoencoderKLMagi1.from_pretrained(tiny_checkpoint, subfolder="vae")
    transformer = AutoModel.from_pretrained(
        str(tiny_checkpoint), subfolder="transformer", dtype=torch.bfloat16
    )
    pipeline = Magi1Pipeline.from_pretrained(
        tiny_checkpoint, vae=vae, transformer=transformer, dtype=torch.bfloat16
    )
    assert pipeline.vae is vae and pipeline.transformer is transformer
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.text_encoder.dtype == torch.bfloat16
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert transformer.proj_out.weight.dtype == torch.float32
    assert torch.isfinite(latent(pipeline)).all()


def test_shipped_names_are_folders(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.runtime import source

    monkeypatch.setattr(source, "shipped_models", lambda: {"toybox-magi": tiny_checkpoint})
    named = Magi1Pipeline.from_pretrained("toybox-magi")
    assert torch.equal(latent(named), latent(Magi1Pipeline.from_pretrained(tiny_checkpoint)))
    with pytest.raises(ConfigError, match="did you mean 'toybox-magi'"):
        Magi1Pipeline.from_pretrained("toybox-mgi")


def test_official_layout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    json_path = convert(resolve_model(tiny_checkpoint), tmp_path / "official", to="official")
    official = Magi1Pipeline.from_pretrained(json_path, dtype=torch.float32)
    ours = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    # Norm gains are stored less one, which rounds.
    assert torch.allclose(latent(official), latent(ours), atol=1e-3)
    vae = ours.vae
    mixed = Magi1Pipeline.from_pretrained(json_path, vae=vae, dtype=torch.float32)
    assert mixed.vae is vae and mixed.sampling["num_steps"] == 4
    with pytest.raises(ConfigError, match="arguments variant"):
        Magi1Pipeline.from_pretrained(json_path, variant="fp16")


def test_damage_is_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    Magi1Pipeline.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "copy")
    weights = next((tmp_path / "copy" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        Magi1Pipeline.from_pretrained(tmp_path / "copy")
