"""Reading videos: frame rates, ends, rotation, and every kind of bad input."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import GOLDENS, moving_gradient, write_counting_video, write_sound

from onereel.core.errors import ConfigError, MediaError, OutOfMemory
from onereel.media import (
    VideoWriter,
    check_input_video,
    probe,
    read_video,
    resample_indices,
    video,
)
from onereel.media.rate import exact_fps


def _shown(frames: np.ndarray) -> list[int]:
    """Which frames of a counting video these are."""
    return (frames[:, 8, 8, 0] // 5).tolist()


@pytest.mark.parametrize("rates", [(24, 24), (30, 24), (16, 24), (24, 8), (60, 24), (29.97, 24)])
def test_frames_follow_the_index_rule(tmp_path: Path, rates: tuple[float, float]) -> None:
    source, target = rates
    path = tmp_path / "count.mp4"
    write_counting_video(path, 30, exact_fps(source))
    want = resample_indices(30, source, fps_out=target)
    assert _shown(read_video(path, height=16, width=16, fps=target)) == want
    first = read_video(path, height=16, width=16, fps=target, num_frames=5)
    assert _shown(first) == want[:5]
    last = read_video(path, height=16, width=16, fps=target, num_frames=5, take="end")
    assert _shown(last) == want[-5:]


def test_the_end_of_a_long_video_is_reached_by_a_jump(tmp_path: Path) -> None:
    path = tmp_path / "count.mp4"
    write_counting_video(path, 50, 10)
    want = resample_indices(50, 10, fps_out=24)[-12:]
    assert _shown(read_video(path, height=16, width=16, num_frames=12, take="end")) == want


def test_sparse_timestamps_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "sparse.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=24, options={"qp": "0", "bf": "0"})
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        for number, slot in enumerate([0, 1, 5, 6]):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 5 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = slot, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    got = _shown(read_video(path, height=16, width=16, num_frames=7))
    assert got == [0, 1, 1, 1, 1, 2, 3]


def test_probe_tells_what_a_file_holds() -> None:
    info = probe(GOLDENS / "vid0.mp4")
    assert (info.width, info.height, info.fps, info.num_frames) == (80, 48, Fraction(30), 45)
    assert (info.duration_s, info.codec, info.has_video, info.rotation) == (1.5, "h264", True, 0)
    assert check_input_video(GOLDENS / "vid0.mp4", min_seconds=1.5) == info
    with pytest.raises(MediaError, match="too short"):
        check_input_video(GOLDENS / "vid0.mp4", min_seconds=1.6)


def test_rotation_is_applied(tmp_path: Path) -> None:
    """A phone writes landscape frames and a quarter turn in the track header."""
    path = tmp_path / "phone.mp4"
    write_corner_video(path)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # full box with 32-bit times: the matrix is at byte 40
    one = 1 << 16
    assert struct.unpack_from(">9i", data, at) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, 0, one, 0, -one, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (32, 64, 90)
    turned = read_video(path, height=64, width=32)[0]
    assert turned.shape == (64, 32, 3)
    assert turned[4, 28].min() > 200 and turned[4, 4].max() < 50  # top left went to top right


def write_corner_video(path: Path) -> None:
    """A 64x32 video whose top left corner is white."""
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :12, :12] = 255
    with VideoWriter(path, width=64, height=32, fps=24) as writer:
        writer.write(frames)


def test_too_short_is_an_error_unless_allowed() -> None:
    clip = GOLDENS / "vid2.mp4"  # 20 frames at 16 fps are 30 at 24 fps
    with pytest.raises(MediaError, match=r"too short.*32 frames.*30 frames"):
        read_video(clip, height=16, width=16, num_frames=32)
    got = read_video(clip, height=16, width=16, num_frames=32, take="end", allow_short=True)
    assert got.shape == (30, 16, 16, 3)


def _bad_video(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a video " * 100)
    elif kind == "sound":
        write_sound(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "no-index":
        path.write_bytes((GOLDENS / "vid0.mp4").read_bytes()[:2500])
    elif kind == "cut":
        with VideoWriter(path, width=64, height=48, fps=24) as writer:
            writer.write(moving_gradient(24))
            writer.write(moving_gradient(48)[24:])
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "0 bytes"),
        ("text", "not a video"),
        ("sound", "no video, only audio"),
        ("folder", "is a folder"),
        ("no-index", "index is missing"),
        ("cut", "damaged after|cut off"),
    ],
)
def test_bad_videos_are_named_with_a_way_out(tmp_path: Path, kind: str, message: str) -> None:
    path = _bad_video(kind, tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        read_video(path, height=16, width=16)
    assert kind in str(caught.value) and caught.value.hint
    if kind != "cut":
        with pytest.raises(MediaError):
            check_input_video(path)


def test_a_cut_video_gives_its_sound_start(tmp_path: Path) -> None:
    frames = read_video(_bad_video("cut", tmp_path), height=48, width=64, num_frames=12)
    assert np.abs(frames.astype(int) - moving_gradient(12)).mean() < 3


def test_probe_describes_a_sound_file(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4")
    assert not probe(tmp_path / "sound.mp4").has_video


def test_all_of_a_huge_video_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_BYTES", 36 * 16 * 16 * 3 - 1)
    with pytest.raises(OutOfMemory, match="num_frames"):
        read_video(GOLDENS / "vid0.mp4", height=16, width=16)
    assert len(read_video(GOLDENS / "vid0.mp4", height=16, width=16, num_frames=36)) == 36


@pytest.mark.parametrize("bad", [{"take": "middle"}, {"num_frames": 0}, {"fps": 0}, {"width": 0}])
def test_wrong_arguments_are_refused(bad: dict[str, object]) -> None:
    arguments = {"height": 16, "width": 16} | bad
    with pytest.raises(ConfigError, match=next(iter(bad)) if "width" not in bad else "size"):
        read_video(GOLDENS / "vid0.mp4", **arguments)  # type: ignore[arg-type]
