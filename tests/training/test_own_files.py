"""What is found in a folder of somebody's files, and what is said about each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import moving_gradient, write_counting_video, write_sound
from PIL import Image

from onereel.core.errors import ConfigError
from onereel.media import VideoWriter
from onereel.training.own_files import DataShape, Finding, scan_data

SHAPE = DataShape(width=32, height=32, fps=24, policy="crop")


def clip(path: Path, caption: str | None = "a grey square", frames: int = 26) -> Path:
    write_counting_video(path, frames)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def picture(path: Path, size: tuple[int, int] = (32, 32), caption: str = "a picture") -> Path:
    Image.new("RGB", size, (200, 30, 30)).save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def index(folder: Path, *lines: object) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_text_files_give_captions_also_in_folders_below(tmp_path: Path) -> None:
    clip(tmp_path / "b.mp4", "\ufeffa grey\n  square ")
    (tmp_path / "below").mkdir()
    picture(tmp_path / "below" / "A.PNG", caption="ein rötliches Bild")
    (tmp_path / ".hidden.mp4").touch()
    (tmp_path / "notes.md").touch()
    report = scan_data(tmp_path, SHAPE)
    assert [(f.name, f.kind, f.caption) for f in report.files] == [
        ("b.mp4", "video", "a grey square"),
        ("below/A.PNG", "picture", "ein rötliches Bild"),
    ]
    assert report.skipped == [] and report.ignored == ["notes.md"]
    assert report.summary() == (
        f"data {tmp_path}: 1 videos and 1 pictures can be used, 1 other files ignored"
    )


def test_what_cannot_be_used_is_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    clip(tmp_path / "good.mp4")
    clip(tmp_path / "cut.mp4")
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, content in (("empty.mp4", b""), ("text.mp4", b"hello"), ("text.png", b"hello")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    write_sound(tmp_path / "sound.mp4")
    (tmp_path / "sound.txt").write_text("a caption")
    clip(tmp_path / "lone.mp4", None)
    clip(tmp_path / "mute.mp4", " \n ")
    clip(tmp_path / "latin.mp4").with_suffix(".txt").write_bytes(b"caf\xe9")
    clip(tmp_path / "short.mp4", frames=23)
    picture(tmp_path / "dot.png", (8, 40))
    report = scan_data(tmp_path, SHAPE)
    assert [file.name for file in report.files] == ["good.mp4"]
    said = {finding.file: finding.text for finding in report.skipped}
    for name, words in {
        "cut.mp4": "hint",
        "empty.mp4": "empty (0 bytes)",
        "text.mp4": "not a video",
        "text.png": "not an image",
        "sound.mp4": "holds no video",
        "lone.mp4": "no caption: expected lone.txt beside it",
        "mute.mp4": "the caption is empty",
        "latin.mp4": "expected UTF-8 text",
        "short.mp4": "too short: expected 24 frames (1.00 s at 24 fps), got 23 frames",
        "dot.png": "too small: expected at least 16x16 pixels, got 8x40",
    }.items():
        assert words in said.pop(name)
    assert said == {}
    report.require_usable()


def test_an_index_names_files_and_captions(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", None)
    picture(tmp_path / "b.jpg")
    clip(tmp_path / "unnamed.mp4", None)
    index(
        tmp_path, "\ufeff" + json.dumps({"file": "a.mp4", "caption": "a grey square"}), "",
        {"file": "b.jpg", "caption": "red", "source": "camera"},
        {"file": "gone.mp4", "caption": "nothing"}, {"file": "b.jpg"},
        {"file": "b.jpg", "caption": " "}, {"file": "a.xyz", "caption": "what"},
    )  # fmt: skip
    for data in (tmp_path, tmp_path / "metadata.jsonl"):
        report = scan_data(data, SHAPE)
        assert [(f.name, f.caption) for f in report.files] == [
            ("a.mp4", "a grey square"),
            ("b.jpg", "red"),
        ]
        assert [finding.file for finding in report.skipped] == [
            "gone.mp4", "b.jpg", "b.jpg", "a.xyz",
        ]  # fmt: skip
        texts = [finding.text for finding in report.skipped]
        assert "does not exist" in texts[0] and "no caption" in texts[1]
        assert "empty" in texts[2] and "unknown kind of file" in texts[3]
        assert report.ignored == ["b.txt", "unnamed.mp4"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file": "a.mp4", "caption": "a', "expected one JSON object"),
        ('{"file": "a.mp4"} {}', "expected one JSON object"),
        ("[1]", "expected a JSON object, got list"),
        ('{"caption": "a"}', "expected the name of a file under 'file', got no 'file'"),
        ('{"file": 3, "caption": "a"}', "'file', got 3"),
        ('{"file": "a.mp4", "caption": 3}', "expected text under 'caption', got int"),
    ],
)
def test_a_broken_line_is_an_error_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    clip(tmp_path / "a.mp4", None)
    index(tmp_path, {"file": "a.mp4", "caption": "a"}, "", line)
    with pytest.raises(ConfigError, match=r"metadata.jsonl line 3: ") as caught:
        scan_data(tmp_path, SHAPE)
    assert words in str(caught.value) and "clip.mp4" in str(caught.value.hint)


def test_a_line_that_is_no_text_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(b"\n\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"line 2: expected one JSON object"):
        scan_data(tmp_path, SHAPE)


def test_places_without_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: expected a folder .*nothing of that name"):
        scan_data(tmp_path / "none", SHAPE)
    with pytest.raises(ConfigError, match=r"got an empty folder. hint: put clip.txt"):
        scan_data(tmp_path, SHAPE)
    (tmp_path / "a.md").touch()
    with pytest.raises(ConfigError, match="got 1 other files"):
        scan_data(tmp_path, SHAPE)
    with pytest.raises(ConfigError, match="a file of another kind"):
        scan_data(tmp_path / "a.md", SHAPE)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(ConfigError, match=r"b.jsonl: expected a line .* got an empty file"):
        scan_data(tmp_path, SHAPE)
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(ConfigError, match=r"expected one .jsonl file, got b.jsonl, c.jsonl"):
        scan_data(tmp_path, SHAPE)


def test_nothing_usable_is_an_error_that_tells_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"hello")
    clip(tmp_path / "b.mp4", "")
    report = scan_data(tmp_path, SHAPE)
    with pytest.raises(ConfigError, match=r"got 2 that cannot be used, such as a.mp4") as caught:
        report.require_usable()
    assert caught.value.hint == "data-report.json in the run's folder lists them all"
    report.save(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "data-report.json").read_text())
    assert [entry["file"] for entry in stored["skipped"]] == ["a.mp4", "b.mp4"]
    assert stored["videos"] == stored["pictures"] == 0


@pytest.mark.parametrize(
    ("policy", "note"),
    [
        ("crop", "64x32 is of another shape than 32x32: 50% of the picture is cut off"),
        ("fit", "64x32 is of another shape than 32x32: stretched by 2.00"),
        ("pad", "64x32 is of another shape than 32x32: 50% of the canvas stays black"),
    ],
)
def test_odd_sizes_are_told(tmp_path: Path, policy: str, note: str) -> None:
    picture(tmp_path / "wide.png", (64, 32))
    picture(tmp_path / "large.png", (320, 320))
    shape = DataShape(width=32, height=32, fps=24, policy=policy)  # type: ignore[arg-type]
    report = scan_data(tmp_path, shape)
    assert report.notes == [Finding(file="wide.png", text=note)] and len(report.files) == 2
    assert list(report.lines()) == [f"note: wide.png: {note}"]
    assert list(report.lines()) == []


def test_small_ones_and_turned_ones_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "small.png", (24, 24))
    frames = moving_gradient(24, 48, 64)
    with VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=24) as writer:
        writer.write(frames)
    (tmp_path / "clip.txt").write_text("a gradient")
    shape = DataShape(width=64, height=64, fps=24, policy="crop")
    notes = {finding.file: finding.text for finding in scan_data(tmp_path, shape).notes}
    assert notes == {
        "clip.mp4": "64x48 is of another shape than 64x64: 25% of the picture is cut off",
        "small.png": "24x24 is small: enlarged 2.7 times to 64x64",
    }


def test_long_lists_are_cut_on_the_screen(tmp_path: Path) -> None:
    index(tmp_path, *({"file": f"{i}.mp4", "caption": "a"} for i in range(23)))
    report = scan_data(tmp_path, SHAPE)
    lines = list(report.lines())
    assert len(lines) == 21 and lines[-1] == "left out: 3 more, listed in data-report.json"
    assert len(report.to_dict()["skipped"]) == 23


@pytest.mark.parametrize("size", [0, 40, -16])
def test_sizes_are_checked(size: int) -> None:
    with pytest.raises(ConfigError, match="width: expected a multiple of 16"):
        DataShape(width=size, height=32, fps=24, policy="crop")
    with pytest.raises(ConfigError, match="policy: expected crop, fit or pad"):
        DataShape(width=32, height=32, fps=24, policy="stretch")  # type: ignore[arg-type]
