"""The growing output: playable at any moment, exact in time, faithful in colour."""

from __future__ import annotations

import errno
import io
import resource
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import decode, moving_gradient

from onereel.core.errors import (
    BackendUnavailable,
    ConfigError,
    MediaError,
    OutOfMemory,
    ShapeError,
)
from onereel.media import EncoderSettings, VideoWriter, probe, read_metadata, writer

SIZE = {"width": 64, "height": 48}
FAST = EncoderSettings(preset="ultrafast")
COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 64, 200),
]


def _top_level(path: Path) -> list[bytes]:
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def test_every_chunk_plays_at_once_and_the_end_is_ordinary(tmp_path: Path) -> None:
    path, frames = tmp_path / "new" / "out.mp4", moving_gradient(60)
    with VideoWriter(path, **SIZE, fps=24) as out:
        assert not path.exists()
        for k, end in enumerate((24, 48, 60)):
            out.write(frames[24 * k : end])
            assert _top_level(path) == [b"ftyp", b"moov"] + [b"moof", b"mdat"] * (k + 1)
            assert np.abs(decode(path).astype(int) - frames[:end]).mean() < 3
            assert out.frames_written == end and out.seconds_written == end / 24
    assert _top_level(path)[:2] == [b"ftyp", b"moov"] and b"moof" not in _top_level(path)
    info = probe(path)
    assert (info.num_frames, info.fps, info.duration_s) == (60, 24, 2.5)
    assert np.abs(decode(path).astype(int) - frames).mean() < 3
    assert [p.name for p in path.parent.iterdir()] == ["out.mp4"]
    with av.open(str(path)) as container:
        keys = [i for i, f in enumerate(container.decode(video=0)) if f.key_frame]
    assert {0, 24, 48} <= set(keys)


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(24, Fraction(24)), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2)), (8, Fraction(8))],
)
def test_times_are_exact(tmp_path: Path, fps: float, exact: Fraction) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, **SIZE, fps=fps, settings=FAST) as out:
        out.write(moving_gradient(5))
        out.write(moving_gradient(2))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == exact and stream.frames == 7
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [k / exact for k in range(7)]


def test_colours_survive_and_are_tagged_bt709(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    bars = np.stack([np.full((48, 16, 3), c, np.uint8) for c in COLOURS]).swapaxes(0, 1)
    frames = bars.reshape(1, 48, 16 * len(COLOURS), 3).repeat(4, 0)
    with VideoWriter(path, width=16 * len(COLOURS), height=48, fps=24) as out:
        out.write(frames)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
    assert tuple(map(int, tags)) == (1, 1, 1, 1)
    inside = np.arange(16 * len(COLOURS)) % 16
    away_from_edges = (inside >= 4) & (inside < 12)
    error = np.abs(decode(path).astype(int) - frames)[:, :, away_from_edges]
    assert error.mean() < 1.5 and error.max() <= 6


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".gif"])
def test_other_containers(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"out{suffix}", moving_gradient(12)
    with VideoWriter(path, **SIZE, fps=25, metadata={"seed": 5}, settings=FAST) as out:
        out.write(frames[:6])
        out.write(frames[6:])
    assert np.abs(decode(path).astype(int) - frames).mean() < 4
    assert probe(path).fps == 25
    assert read_metadata(path) == {"seed": 5}


@pytest.mark.parametrize("encoder", ["libx265", "mpeg4"])
def test_other_encoders_by_choice(tmp_path: Path, encoder: str) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"{encoder} is not in this build")
    path, frames = tmp_path / "out.mp4", moving_gradient(8)
    settings = EncoderSettings(encoder=encoder, preset="ultrafast")
    with VideoWriter(path, **SIZE, fps=24, settings=settings) as out:
        out.write(frames[:4])
        out.write(frames[4:])
    assert np.abs(decode(path).astype(int) - frames).mean() < 4


def test_a_missing_encoder_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(BackendUnavailable, match="libx264.*mpeg4"):
        VideoWriter(tmp_path / "out.mp4", **SIZE, fps=24)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_a_finished_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(error), VideoWriter(path, **SIZE, fps=24, settings=FAST) as out:
        out.write(moving_gradient(6))
        raise error
    assert b"moof" not in _top_level(path) and len(decode(path)) == 6


KILLED = """
import sys, time
import numpy as np
from onereel.media import EncoderSettings, VideoWriter
writer = VideoWriter(sys.argv[1], width=64, height=48, fps=24, metadata={"seed": 9},
                     settings=EncoderSettings(preset="ultrafast"))
for chunk in range(3):
    writer.write(np.full((8, 48, 64, 3), 60 * chunk, np.uint8))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_run_leaves_a_file_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    frames = decode(path)
    assert len(frames) == 24
    assert [int(f.mean().round()) for f in frames[::8]] == pytest.approx([0, 60, 120], abs=2)
    assert read_metadata(path) == {"seed": 9}


FULL = """
import resource, sys
import numpy as np
from onereel.core.errors import OutOfMemory
from onereel.media import EncoderSettings, VideoWriter
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
try:
    with VideoWriter(sys.argv[1], width=64, height=48, fps=24,
                     settings=EncoderSettings(preset="ultrafast")) as writer:
        for _ in range(1000):
            writer.write(noise)
except OutOfMemory as error:
    print(writer.frames_written, error)
"""


def test_a_full_disk_loses_no_finished_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), "100000"],
        capture_output=True,
        text=True,
        check=True,
    )
    safe, message = done.stdout.split(" ", 1)
    assert int(safe) >= 4 and f"{safe} frames" in message and "disk full" in message
    assert len(decode(path)) == int(safe)


def test_a_full_device_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb", buffering=0) as full:
        out = VideoWriter(full, **SIZE, fps=24, settings=FAST)
        with pytest.raises(OutOfMemory, match="0 frames"):
            out.write(moving_gradient(2))
        with pytest.raises(MediaError, match="closed"):
            out.write(moving_gradient(2))


def test_failing_to_finalise_keeps_the_growing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(source: Path, target: Path, *, comment: str | None) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "remux", no_space)
    path = tmp_path / "out.mp4"
    out = VideoWriter(path, **SIZE, fps=24, settings=FAST)
    out.write(moving_gradient(4))
    with pytest.raises(OutOfMemory, match="all 4 frames"):
        out.close()
    assert len(decode(path)) == 4 and list(tmp_path.iterdir()) == [path]


def test_streams_and_pipes_get_fragments(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with VideoWriter(sink, **SIZE, fps=24, settings=FAST) as out:
        out.write(moving_gradient(4))
        grown = len(sink.getvalue())
        out.write(moving_gradient(4))
        assert len(sink.getvalue()) > grown
    (tmp_path / "copy.mp4").write_bytes(sink.getvalue())
    assert len(decode(tmp_path / "copy.mp4")) == 8
    script = (
        "import numpy as np; from onereel.media import VideoWriter\n"
        "with VideoWriter('-', width=16, height=16, fps=24) as w:\n"
        "    w.write(np.zeros((3, 16, 16, 3), np.uint8))"
    )
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    (tmp_path / "pipe.mp4").write_bytes(piped.stdout)
    assert len(decode(tmp_path / "pipe.mp4")) == 3


def test_a_reader_that_leaves_is_reported() -> None:
    class Gone(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    out = VideoWriter(Gone(), **SIZE, fps=24, settings=FAST)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="went away"):
        out.write(moving_gradient(2))


@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_small_frames_always_give_the_same_bytes(size: tuple[int, int]) -> None:
    """With x264's macroblock tree, 1 in 30 such files had other bytes."""
    rng = np.random.default_rng(0)
    drift = rng.normal(0, 6, (24, size[1], size[0], 3)).cumsum(0)
    frames = np.clip(120 + drift, 0, 255).astype(np.uint8)
    files = set()
    for turn in range(60):
        # Other contents of freed memory, which is what must not matter.
        del [rng.bytes(1000 * (turn + 1)) for _ in range(5)][:]
        buffer = io.BytesIO()
        with VideoWriter(buffer, width=size[0], height=size[1], fps=24) as writing:
            writing.write(frames)
        files.add(buffer.getvalue())
    assert len(files) == 1


def test_memory_stays_flat(tmp_path: Path) -> None:
    frames = moving_gradient(40, 32, 32)
    with VideoWriter(tmp_path / "out.mp4", width=32, height=32, fps=24, settings=FAST) as out:
        for k in range(50):
            out.write(frames)
            if k == 9:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 12 * 1024  # KiB; the frames written since would take 4.7 MB raw
    assert probe(tmp_path / "out.mp4").num_frames == 2000


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (0, 48)])
def test_odd_sizes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        VideoWriter(tmp_path / "out.mp4", width=width, height=height, fps=24)


def test_an_earlier_file_survives_until_the_first_chunk(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"earlier")
    with VideoWriter(path, **SIZE, fps=24) as out:
        out.write(moving_gradient(1)[:0])
    assert path.read_bytes() == b"earlier"


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", **SIZE, fps=24) as out:
        with pytest.raises(ShapeError, match="48, 64"):
            out.write(moving_gradient(1, 32, 32))
        with pytest.raises(ShapeError, match="uint8"):
            out.write(moving_gradient(1).astype(np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"encoder": "libx2644"}, "did you mean 'libx264'"),
        ({"preset": "quick"}, "preset"),
        ({"crf": 52}, "crf"),
    ],
)
def test_wrong_settings_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderSettings(**bad)  # type: ignore[arg-type]
