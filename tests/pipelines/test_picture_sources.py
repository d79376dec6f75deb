"""Pictures to start videos with: retrieved, made, or given."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import BatchFeature, CLIPConfig, CLIPModel, CLIPProcessor

from onereel.core.errors import ConfigError, MediaError, ShapeError
from onereel.pipelines.picture_index import INDEX_NAME, PictureIndex
from onereel.pipelines.picture_sources import FolderPicture, GivenPicture, ModelPicture

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZE = {"height": 32, "width": 48, "seed": 3}


class ColourModel(torch.nn.Module):
    """Knows three words and mean colours; counts the pictures it has seen."""

    device = torch.device("cpu")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.seen = 0

    def get_text_features(self, text: list[str]) -> torch.Tensor:
        return torch.tensor([[float(c in text[0]) for c in COLOURS]])

    def get_image_features(self, images: list[torch.Tensor]) -> torch.Tensor:
        self.seen += len(images)
        return torch.stack([image.float().mean((0, 1)) for image in images])


def read_colours(text: Any = None, images: Any = None, **_: Any) -> BatchFeature:
    """What a processor does."""
    if text is not None:
        return BatchFeature({"text": text})
    return BatchFeature({"images": [torch.tensor(image) for image in images]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one colour each, one of them in a folder below."""
    for name, colour in COLOURS.items():
        path = tmp_path / ("below" if name == "blue" else "") / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (20, 10), colour).save(path)
    (tmp_path / "notes.txt").write_text("red")
    return tmp_path


def index(folder: Path, model: Any = None, **options: Any) -> PictureIndex:
    return PictureIndex(folder, model or ColourModel(), processor=read_colours, **options)


def test_the_picture_that_fits_is_found(folder: Path) -> None:
    found = index(folder).search("a blue disc", count=5)
    assert [f.path.stem for f in found][0] == "blue" and len(found) == 3
    assert found[0].similarity == pytest.approx(1) and found[1].similarity == pytest.approx(0)
    picture = FolderPicture(index(folder))("a green square", **SIZE)
    assert picture.pixels.shape == (10, 20, 3) and tuple(picture.pixels[0, 0]) == COLOURS["green"]
    assert "green.png (similarity 1.000)" in picture.origin
    with pytest.raises(ConfigError, match="no picture in .* fits"):
        FolderPicture(index(folder), least_similarity=0.5)("a grey ring", **SIZE)
    with pytest.raises(ConfigError, match="a text"):
        index(folder).search("  ")


def test_the_index_is_built_once(folder: Path) -> None:
    model = ColourModel()
    index(folder, model)
    assert model.seen == 3 and (folder / INDEX_NAME).is_file()
    index(folder, model)
    assert model.seen == 3
    PIL.Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "red.png")  # changed
    os.utime(folder / "red.png", ns=(1, 1))
    (folder / "green.png").unlink()
    again = index(folder, model)
    assert model.seen == 4 and again.paths == ["below/blue.png", "red.png"]
    other = ColourModel(2.0)  # embeddings of another model say nothing
    assert len(index(folder, other).paths) == 2 and other.seen == 2
    (folder / INDEX_NAME).write_bytes(b"no index")
    assert len(index(folder, model).paths) == 2 and model.seen == 6
    index(folder, model, path=folder / "elsewhere.safetensors")
    assert (folder / "elsewhere.safetensors").is_file()


def test_broken_pictures_are_named_and_empty_folders_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "red.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 pictures cannot be read: red\.png"):
        assert len(index(folder).paths) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MediaError, match="holds no picture"):
        index(empty)
    with pytest.raises(MediaError, match="is no folder"):
        index(tmp_path / "nowhere")


def test_clip_of_transformers_fits(folder: Path, llava_parts: dict[str, Any]) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    tokenizer = llava_parts["tokenizer_2"]
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, **sizes}
    vision = {"num_hidden_layers": 1, "image_size": 16, "patch_size": 4, **sizes}
    text |= {"max_position_embeddings": 12, "eos_token_id": 1, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))
    processor = CLIPProcessor(image_processor=llava_parts["image_processor"], tokenizer=tokenizer)
    found = PictureIndex(folder, model, processor=processor).search("red", count=3)
    assert len(found) == 3 and all(-1 <= f.similarity <= 1 for f in found)


def test_a_given_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    for image in (pixels, PIL.Image.fromarray(pixels), tmp_path / "a.png", pixels / 255.0):
        assert np.array_equal(GivenPicture(image)("a disc", **SIZE).pixels, pixels)
    with pytest.raises(ShapeError):
        GivenPicture(pixels[..., :2])("a disc", **SIZE)


def test_any_text_to_image_pipeline() -> None:
    calls = []

    def pipeline(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(images=[PIL.Image.new("RGB", (64, 32), (1, 2, 3))])

    source = ModelPicture(pipeline, {"num_inference_steps": 2}, multiple=32)
    picture = source("a disc", **SIZE)
    assert tuple(picture.pixels[0, 0]) == (1, 2, 3) and "seed 3" in picture.origin
    (call,) = calls
    assert (call["height"], call["width"], call["num_inference_steps"]) == (32, 64, 2)
    assert call["generator"].initial_seed() == 3
    with pytest.raises(ShapeError, match="an output with `images`"):
        ModelPicture(lambda **_: (1, 2))("a disc", **SIZE)
