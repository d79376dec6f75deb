"""Official lists, file names, folders of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.vbench.suite import (
    category_entries,
    crop_folder,
    custom_samples,
    read_suite,
    refuse_not_custom,
    suite_samples,
)

ROWS: list[dict[str, Any]] = [
    {
        "prompt_en": "a red car",
        "dimension": ["color"],
        "auxiliary_info": {"color": {"color": "red"}},
    },
    {"prompt_en": "a red car", "dimension": ["overall_consistency", "color"]},
    {"prompt_en": "a lake", "dimension": ["temporal_flickering"]},
]


def _suite(folder: Path, rows: Any) -> Path:
    path = folder / "full_info.json"
    path.write_text(json.dumps(rows))
    return path


def _video(path: Path) -> None:
    np.savez(path, frames=np.zeros((2, 8, 8, 3), np.uint8))


def test_what_a_list_says_twice_is_joined(tmp_path: Path) -> None:
    car, lake = read_suite(_suite(tmp_path, ROWS))
    assert car.dimensions == ("color", "overall_consistency")
    assert car.auxiliary == {"color": {"color": "red"}}
    assert (lake.prompt, lake.image_name) == ("a lake", "")


def test_videos_are_found_by_name_and_missing_ones_named(tmp_path: Path) -> None:
    entries = read_suite(_suite(tmp_path, ROWS))
    for name in ("a red car-0.mp4", "a red car-1.gif", "a lake-0.mp4", "else.mp4"):
        (tmp_path / name).touch()
    found = suite_samples(tmp_path, entries, dimensions=["color"], num_samples=3)
    assert [s.path.name for s in found.samples] == ["a red car-0.mp4", "a red car-1.gif"]
    assert found.missing == ("a red car-2.mp4",)
    assert {s.dimensions for s in found.samples} == {("color",)}
    with pytest.raises(MediaError, match="is not a folder"):
        suite_samples(tmp_path / "no", entries, dimensions=["color"])


def test_reference_pictures_belong_to_their_prompt(tmp_path: Path) -> None:
    rows = [{**ROWS[2], "image_name": n, "image_type": "scenery"} for n in ("a.jpg", "b.jpg")]
    entries = read_suite(_suite(tmp_path, rows))
    (tmp_path / "a lake-0.mp4").touch()
    found = suite_samples(
        tmp_path,
        entries,
        dimensions=["temporal_flickering"],
        num_samples=1,
        images=tmp_path / "crop",
    )
    assert [s.image for s in found.samples] == [tmp_path / "crop" / n for n in ("a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "a list of prompts, got dict"),
        ([{"prompt": "x"}], "entry 0: expected an object with prompt_en"),
        ([{"prompt_en": "x", "dimension": "color"}], "entry 0: dimension: expected a list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_suite(_suite(tmp_path, rows))


def test_an_absent_list_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a readable prompt list.*official repository"):
        read_suite(tmp_path / "none.json")


def test_a_folder_gives_prompts_by_name(tmp_path: Path) -> None:
    for name in ("a cat-0", "a cat-1", "3-4 people"):
        _video(tmp_path / f"{name}.npz")
    found = custom_samples(tmp_path, prompts={"3-4 people.npz": "three or four people"})
    assert [s.prompt for s in found.samples] == ["three or four people", "a cat", "a cat"]
    assert found.missing == ()


def test_pictures_go_by_the_videos_name_or_the_prompt(tmp_path: Path) -> None:
    videos, images = tmp_path / "videos", tmp_path / "images"
    videos.mkdir(), images.mkdir()
    for name in ("a cat-0", "a dog-0", "a fish-0"):
        _video(videos / f"{name}.npz")
    for name in ("a cat-0.png", "a cat.png", "a dog.jpg"):
        (images / name).touch()
    found = custom_samples(videos, images=images)
    assert [s.image and s.image.name for s in found.samples] == ["a cat-0.png", "a dog.jpg", None]
    assert found.missing == ("a fish.jpg (picture of a fish-0.npz)",)


def test_categories_are_plain_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "animal.txt"
    path.write_text("a cat\n\na dog\na cat\n")
    entries = category_entries(path, ["subject_consistency"])
    assert [e.prompt for e in entries] == ["a cat", "a dog"]
    with pytest.raises(ConfigError, match="color"):
        category_entries(path, ["color"])
    path.write_text("\n")
    with pytest.raises(ConfigError, match="an empty file"):
        category_entries(path, ["subject_consistency"])


def test_some_dimensions_need_the_official_list() -> None:
    refuse_not_custom(["temporal_flickering", "human_action"])
    with pytest.raises(ConfigError, match="dimensions color, scene.*VBench_full_info.json"):
        refuse_not_custom(["color", "aesthetic_quality", "scene"])


@pytest.mark.parametrize(
    ("size", "crop"),
    [((720, 720), "1-1"), ((832, 480), "7-4"), ((1280, 720), "16-9"), ((1024, 640), "8-5")],
)
def test_the_nearest_crop_is_chosen(size: tuple[int, int], crop: str) -> None:
    assert crop_folder(*size) == crop
