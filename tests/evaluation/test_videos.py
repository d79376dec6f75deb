"""Reading folders of videos: every format, order, pairs, hashes, and each kind of broken input."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.videos import (
    as_pixels,
    choose_frames,
    hash_input,
    hash_videos,
    iterate_videos,
    list_videos,
    load_video,
    pair_videos,
)
from onereel.media import VideoWriter


def _frames(num: int = 5, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    colours = np.random.default_rng(seed).integers(0, 256, (num, 1, 1, 3))
    return np.broadcast_to(colours, (num, height, width, 3)).astype(np.uint8)


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def _write(path: Path, frames: np.ndarray, fps: int | Fraction = 24) -> None:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        writer.write(frames)


def _write_images(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{i}.png")


def test_every_format_gives_its_frames_and_rate(tmp_path: Path) -> None:
    frames = _frames(12)
    _write(tmp_path / "a.mp4", frames, Fraction(24000, 1001))
    _write(tmp_path / "b.gif", frames)
    _write_images(tmp_path / "c", frames)
    np.savez(tmp_path / "d.npz", frames=frames, fps=np.array([30000, 1001]))
    np.savez(tmp_path / "e.npz", video=frames.astype(np.float32) / 255)
    videos = [load_video(file) for file in list_videos(tmp_path)]
    assert [video.name for video in videos] == ["a", "b", "c", "d", "e"]
    rates = [Fraction(24000, 1001), 24, None, Fraction(30000, 1001), None]
    assert [video.fps for video in videos] == rates
    for video in videos[2:]:
        np.testing.assert_array_equal(video.frames, frames)
    assert _difference(videos[1].frames, frames) <= 1  # its palette is rounded
    assert videos[0].frames.shape == frames.shape
    assert np.abs(videos[0].frames.astype(int) - frames).mean() < 8
    assert videos[0].resolution == "24x16"


def test_a_webm_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
        for frame in _frames(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), "rgb24")))
        container.mux(stream.encode(None))
    video = load_video(path)
    assert len(video.frames) == 6 and video.fps == 25


@pytest.mark.parametrize("fps", [8, 24, 30])
def test_a_gif_keeps_each_frame_once_whatever_its_rate(tmp_path: Path, fps: int) -> None:
    frames = _frames(fps)
    _write(tmp_path / "a.gif", frames, fps)
    video = load_video(tmp_path / "a.gif")
    assert _difference(video.frames, frames) <= 1
    assert video.fps is not None and abs(video.fps - fps) < Fraction(fps, 50)


def test_names_are_in_counting_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("v10.npz", "v9.npz", "v1.npz", ".hidden.npz"):
        np.savez(tmp_path / name, frames=_frames(1))
    np.savez(tmp_path / "v1-episode.npz", state=np.zeros(1), meta=np.array("{}"))
    (tmp_path / "v1.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert [file.name for file in list_videos(tmp_path)] == ["v1", "v9", "v10"]


def test_images_are_in_counting_order(tmp_path: Path) -> None:
    _write_images(tmp_path / "a", _frames(12))
    np.testing.assert_array_equal(load_video(tmp_path / "a").frames, _frames(12))


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no videos"):
        list_videos(tmp_path)
    with pytest.raises(MediaError, match="not a folder"):
        list_videos(tmp_path / "none")
    np.savez(tmp_path / "a.npz", frames=_frames(1))
    _write_images(tmp_path / "a", _frames(1))
    with pytest.raises(MediaError, match="one name.*a"):
        list_videos(tmp_path)


def test_pairs_go_by_name_and_missing_partners_are_named(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
    np.savez(a / "x.npz", frames=_frames(1))
    _write_images(b / "x", _frames(1))
    ((first, second),) = pair_videos(a, b)
    assert (first.path, second.path) == (a / "x.npz", b / "x")
    np.savez(a / "y.npz", frames=_frames(1))
    np.savez(b / "z.npz", frames=_frames(1))
    with pytest.raises(MediaError, match=r"1 missing in .*b: y; 1 missing in .*a: z"):
        pair_videos(a, b)


def test_all_broken_files_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "c", "e"):
        np.savez(tmp_path / f"{name}.npz", frames=_frames(1))
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    (tmp_path / "d.mp4").write_bytes(b"")
    seen, steps = [], []
    with pytest.raises(MediaError) as caught:
        for video in iterate_videos(
            list_videos(tmp_path), progress=lambda done, total: steps.append((done, total))
        ):
            seen.append(video.name)
    assert seen == ["a"]
    assert steps == [(i, 5) for i in range(1, 6)]
    message = str(caught.value)
    assert "2 of 5 videos" in message and "b.mp4" in message and "d.mp4" in message
    assert "c.npz" not in message


def _nan() -> np.ndarray:
    frames = _frames(4).astype(np.float32) / 255
    frames[2, 0, 0, 0] = np.nan
    return frames


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (_nan(), "NaN or infinity in 1 of 4 frames, first 2"),
        (_frames(2).astype(np.float32), r"\[0, 1\]"),
        (_frames(2).astype(np.int64), "int64"),
        (_frames(2)[..., :1], "3"),
        (_frames(2)[:0], r"\[0, "),
    ],
    ids=["nan", "range", "dtype", "channels", "no frames"],
)
def test_arrays_that_are_no_video_are_refused(
    tmp_path: Path, frames: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "a.npz", frames=frames)
    with pytest.raises(MediaError, match=message) as caught:
        load_video(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    _write(tmp_path / "a.gif", frames)
    _write(tmp_path / "b.mp4", frames)
    np.savez(tmp_path / "c.npz", frames=frames)
    for path in list(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(MediaError, match=path.name):
            load_video(path)


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
        sound = container.add_stream("aac", rate=8000)
        for frame in _frames(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), "rgb24")))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert len(load_video(path).frames) == 6


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    _write_images(tmp_path / "a", _frames(3))
    Image.fromarray(_frames(1, height=8)[0]).save(tmp_path / "a" / "frame_1.png")
    with pytest.raises(MediaError, match="24x16, got 24x8 in frame_1.png"):
        load_video(tmp_path / "a")


@pytest.mark.parametrize("name", ["missing.mp4", "missing"])
def test_a_missing_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="missing"):
        load_video(tmp_path / name)


def test_an_archive_without_frames_or_with_a_bad_rate_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=_frames(1))
    with pytest.raises(MediaError, match="expected one of frames, video, arr_0, got other"):
        load_video(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", frames=_frames(1), fps=np.array([1, 2, 3]))
    with pytest.raises(MediaError, match="fps"):
        load_video(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", frames=_frames(1), fps=np.nan)
    with pytest.raises(MediaError, match="fps"):
        load_video(tmp_path / "c.npz")


def test_hashes_follow_contents_and_names(tmp_path: Path) -> None:
    _write_images(tmp_path / "a", _frames(3))
    np.savez(tmp_path / "b.npz", frames=_frames(1))
    before = hash_videos(list_videos(tmp_path)), hash_input(tmp_path / "a")
    assert before == (hash_videos(list_videos(tmp_path)), hash_input(tmp_path / "a"))
    Image.fromarray(_frames(1, seed=3)[0]).save(tmp_path / "a" / "frame_2.png")
    after = hash_videos(list_videos(tmp_path)), hash_input(tmp_path / "a")
    assert before[0] != after[0] and before[1] != after[1]
    (tmp_path / "b.npz").rename(tmp_path / "c.npz")
    assert hash_videos(list_videos(tmp_path)) != after[0]


def test_frames_are_chosen_from_the_start(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", frames=_frames(9))
    video = load_video(tmp_path / "a.npz")
    np.testing.assert_array_equal(
        choose_frames(video, num_frames=3, stride=2), video.frames[[0, 2, 4]]
    )
    assert len(choose_frames(video, num_frames=None, stride=4)) == 3
    with pytest.raises(MediaError, match="too short"):
        choose_frames(video, num_frames=6, stride=2)
    with pytest.raises(ConfigError, match="at least 1"):
        choose_frames(video, num_frames=0)


def test_floats_are_rounded_to_the_nearest_of_255_steps() -> None:
    values = np.arange(256, dtype=np.float32).reshape(1, 1, 256, 1) / 255
    frames = np.repeat(values, 3, axis=3)
    np.testing.assert_array_equal(as_pixels(frames)[0, 0, :, 0], np.arange(256))
