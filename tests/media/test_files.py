"""Metadata, preflight checks and contact sheets."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from clips import GOLDENS, moving_gradient
from PIL import Image

from onereel.core.errors import ConfigError, MediaError, OutOfMemory, ShapeError
from onereel.media import (
    VideoWriter,
    check_output,
    frame_sheet,
    preflight,
    read_metadata,
    write_metadata,
)
from onereel.media.metadata import sidecar_path

RECORD = {
    "seed": 7,
    "prompts": [{"start_s": 0.0, "prompt": 'ein „rotes" Rad 🎬\nrollt'}],
    "note": "x" * 100_000,
}


def _video(path: Path) -> Path:
    with VideoWriter(path, width=64, height=48, fps=24, metadata=RECORD) as out:
        out.write(moving_gradient(4))
        assert read_metadata(path) == RECORD
        assert out.metadata is not None
        out.metadata["seconds_of_compute"] = 1.5
    return path


def test_the_record_survives_in_file_and_sidecar(tmp_path: Path) -> None:
    path, full = _video(tmp_path / "out.mp4"), RECORD | {"seconds_of_compute": 1.5}
    assert json.loads(sidecar_path(path).read_text(encoding="utf-8")) == full
    sidecar_path(path).unlink()
    assert read_metadata(path) == full


def test_the_sidecar_serves_files_without_a_tag(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((GOLDENS / "vid1.mp4").read_bytes())
    with pytest.raises(MediaError, match="no record"):
        read_metadata(clip)
    write_metadata(clip, {"seed": 1})
    write_metadata(clip, {"seed": 2})
    assert read_metadata(clip) == {"seed": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "clip.mp4.json"]
    sidecar_path(clip).write_text("{broken")
    with pytest.raises(MediaError, match="damaged"):
        read_metadata(clip)
    with pytest.raises(MediaError, match="no record"):
        read_metadata(tmp_path / "missing.mp4")


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_values_without_json_form_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        write_metadata(tmp_path / "out.mp4", {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_check_output_accepts_new_folders_and_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "out.mp4", estimated_bytes=1000)
    check_output("-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.avi", "out.mp3"])
def test_unknown_suffixes_list_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.mp4, \.mov, \.mkv, \.gif"):
        check_output(tmp_path / name)


def test_a_near_suffix_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean out\.mp4"):
        check_output(tmp_path / "out.mp44")


def test_unwritable_places_are_found_early(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(MediaError, match="is a folder"):
        check_output(tmp_path / "out.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot write"):
        check_output(tmp_path / "file" / "out.mp4")
    with pytest.raises(MediaError, match="cannot write"):
        VideoWriter(tmp_path / "file" / "out.mp4", width=16, height=16, fps=24)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_read_only_folder_is_found_early(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(MediaError, match="cannot write"):
        check_output(tmp_path / "out.mp4")


def test_a_full_disk_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage(100, 0, 5_000_000))
    check_output(tmp_path / "out.mp4", estimated_bytes=2_500_000)
    with pytest.raises(OutOfMemory, match=r"about 6 MB free.*5 MB"):
        check_output(tmp_path / "out.mp4", estimated_bytes=3_000_000)


def test_a_sheet_shows_first_and_last_frames_in_rows(tmp_path: Path) -> None:
    videos = [moving_gradient(9, 8, 12), 255 - moving_gradient(5, 8, 12)]
    path = frame_sheet(videos, columns=3, scale=2, path=tmp_path / "new" / "sheet.png")
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (16 + 2) - 2, 3 * (24 + 2) - 2, 3)
    for row, (video, middle) in enumerate(zip(videos, (4, 2), strict=True)):
        for column, index in enumerate((0, middle, len(video) - 1)):
            tile = sheet[18 * row : 18 * row + 16, 26 * column : 26 * column + 24]
            np.testing.assert_array_equal(tile[::2, ::2], video[index])


def test_sheet_labels_add_a_line_of_text(tmp_path: Path) -> None:
    video = moving_gradient(2, 32, 64)
    frame_sheet([video], columns=2, labels=["a red disc"], path=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape[0] == 32 + 18 and sheet[:18].min() < 128 < sheet[:18].mean()


@pytest.mark.parametrize("bad", [{"columns": 0}, {"labels": ["a", "b"]}, {"videos": []}])
def test_sheets_that_make_no_sense_are_refused(tmp_path: Path, bad: dict[str, object]) -> None:
    arguments = {"videos": [moving_gradient(2)], "columns": 2, "path": tmp_path / "s.png"} | bad
    with pytest.raises(ShapeError):
        frame_sheet(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="frames of"):
        frame_sheet([moving_gradient(2), moving_gradient(2, 8, 8)], columns=1, path=tmp_path / "s")
