"""VBench-Long: cutting, naming, averaging over clips, and the official mapping tables."""

from __future__ import annotations

import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from onereel.core.errors import ConfigError
from onereel.evaluation.vbench.long import (
    LongSettings,
    clip_names,
    evaluate_long,
    fuse,
    installed_cut_finder,
    no_cuts,
    read_mapping,
    split,
)
from onereel.evaluation.vbench.networks import Networks
from onereel.evaluation.vbench.suite import Sample, SampleSet
from onereel.evaluation.videos import Video


@pytest.mark.parametrize(
    ("num", "cuts", "spans"),
    [
        (8, (), [(0, 4), (4, 8)]),
        (10, (), [(0, 4), (4, 8), (6, 10)]),
        (4, (), [(0, 4)]),
        (3, (), [(0, 3)]),
        (12, (6,), [(0, 4), (2, 6), (6, 10), (8, 12)]),
        (9, (2, 9, 0), [(0, 2), (2, 6), (5, 9)]),
    ],
)
def test_a_rest_goes_back_to_be_whole(
    num: int, cuts: tuple[int, ...], spans: list[tuple[int, int]]
) -> None:
    assert split(num, 4, cuts=cuts) == spans


def test_names_and_numbers() -> None:
    assert clip_names("x", 1, is_whole=True) == ["x_full.mp4"]
    assert clip_names("x", 2, is_whole=False) == ["x_000.mp4", "x_001.mp4"]
    assert clip_names("x", 1, is_whole=False) == ["x_000.mp4"]
    with pytest.raises(ConfigError, match="at least 1"):
        split(3, 0)


def _video(levels: list[int]) -> Video:
    frames = np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])
    return Video(name="x", path=Path("x.mp4"), frames=frames, fps=Fraction(2))


def _evaluate(videos: dict[str, list[int]], **options: object) -> object:
    samples = tuple(Sample(path=Path(f"{name}.mp4"), prompt=name) for name in videos)
    return evaluate_long(
        SampleSet(samples=samples),
        read=lambda path: _video(videos[path.stem]),
        **{"dimensions": ["temporal_flickering"], "networks": Networks(), **options},
    )


def test_clips_are_averaged_per_video_and_videos_count_once() -> None:
    # four frames per clip; the second clip of `a` flickers by 51 levels, a fifth
    videos = {"a": [0] * 4 + [0, 51, 0, 51], "b": [7] * 4}
    found = _evaluate(videos, settings=LongSettings(find_cuts=no_cuts))
    first, second = found.scores
    assert first.value == pytest.approx((1 + 0.8) / 2)
    assert [c["name"] for c in first.details["clips"]] == ["x_000.mp4", "x_001.mp4"]
    assert first.details["clips"][1]["frames"] == [4, 8]
    assert (second.value, second.weight) == (1, 1)
    assert found.dimensions["temporal_flickering"].mean == pytest.approx(0.95)


def test_scene_cuts_are_looked_for_once_per_video() -> None:
    asked = []

    def find(path: Path) -> list[int]:
        asked.append(path.name)
        return [3]

    videos = {"a": [0, 0, 0, 255, 255, 255, 255]}
    networks = Networks(imaging=lambda frames: frames.mean((1, 2, 3)) * 100)
    found = _evaluate(
        videos,
        settings=LongSettings(find_cuts=find),
        dimensions=["temporal_flickering", "imaging_quality"],
        networks=networks,
    )
    assert asked == ["a.mp4"]
    assert found.scores[0].value == 1
    assert found.dimensions["imaging_quality"].mean == pytest.approx(0.5)
    assert [c["frames"] for c in found.scores[0].details["clips"]] == [[0, 3], [3, 7]]
    assert found.scores[0].details["cuts"] == [3]


def test_without_scenedetect_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert installed_cut_finder() is None
    found = _evaluate({"a": [0] * 8})
    assert "fixed clips: scenedetect is not installed" in (
        found.dimensions["temporal_flickering"].note
    )


def test_scenedetect_is_used_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("scenedetect")
    package.ContentDetector = lambda threshold: threshold  # type: ignore[attr-defined]

    def detect(path: str, threshold: float) -> list[tuple[object, object]]:
        assert (path, threshold) == ("a.mp4", 27.0)
        frames = [types.SimpleNamespace(frame_num=n) for n in (0, 5, 9)]
        return list(zip(frames, frames[1:], strict=False))

    package.detect = detect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scenedetect", package)
    find = installed_cut_finder()
    assert find is not None
    assert find(Path("a.mp4")) == [0, 5]


def test_texts_get_longer_clips() -> None:
    class ViClip:
        def embed_video(self, frames: torch.Tensor) -> torch.Tensor:
            return torch.ones(3)

        def embed_text(self, texts: object) -> torch.Tensor:
            return torch.ones(1, 3)

    found = _evaluate(
        {"a": list(range(40))},
        dimensions=["overall_consistency"],
        networks=Networks(viclip=ViClip()),
        settings=LongSettings(find_cuts=no_cuts),
    )
    assert [c["frames"] for c in found.scores[0].details["clips"]] == [[0, 20], [20, 40]]


def test_clips_of_one_frame_do_not_count() -> None:
    found = _evaluate({"a": [0, 9, 9, 9, 9]}, settings=LongSettings(find_cuts=lambda path: [1]))
    assert found.scores[0].value == 1
    assert found.scores[0].details["clips"][0]["value"] is None
    found = _evaluate({"a": [0]}, settings=LongSettings(find_cuts=no_cuts))
    assert found.problems[0].reason == "the score is nan (1 frames)"


def test_tables_map_what_happens_between_clips(tmp_path: Path) -> None:
    path = tmp_path / "subject_mapping_table.yaml"
    path.write_text("\n".join(f"{i / 100:.2f}: {max(0.0, i / 50 - 1):.3f}" for i in range(101)))
    table = read_mapping(path)
    assert table.shape == (101, 2)
    assert fuse(0.8, 0.755, table=table) == pytest.approx(0.4 + 0.5 * 0.51)
    assert fuse(0.8, 0.4, table=table) == 0.8  # mapped to exactly 0

    def embed(images: torch.Tensor) -> torch.Tensor:
        level = images.mean((1, 2, 3))
        return torch.stack((torch.ones_like(level), level), dim=1)

    settings = LongSettings(find_cuts=no_cuts, tables={"subject_consistency": table})
    options = {"dimensions": ["subject_consistency"], "settings": settings}
    found = _evaluate({"a": [0] * 4 + [90] * 4}, networks=Networks(dino=embed), **options)
    details = found.scores[0].details
    assert details["in_clip"] == pytest.approx(1)
    assert found.scores[0].value == fuse(details["in_clip"], details["between_clips"], table=table)
    assert found.scores[0].value < 1


@pytest.mark.parametrize("text", ["", "0.5: 1.0\n", "0.5: 1\n0.4: 2\n"])
def test_other_tables_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="ascending pairs"):
        read_mapping(path)
    with pytest.raises(ConfigError, match="not a readable table"):
        read_mapping(tmp_path / "none.yaml")


def test_a_table_needs_its_network() -> None:
    table = np.array([[0.0, 0.0], [1.0, 1.0]])
    networks = Networks(clip_b32=_Constant())
    settings = LongSettings(find_cuts=no_cuts, tables={"background_consistency": table})
    options = {"dimensions": ["background_consistency"], "settings": settings}
    found = _evaluate({"a": [0] * 8}, networks=networks, **options)
    assert "needs DINO" in found.problems[0].reason


class _Constant:
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 2)

    def embed_text(self, texts: object) -> torch.Tensor:
        return torch.ones(1, 2)
