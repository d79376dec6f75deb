"""Generating the videos of a Physics-IQ protocol: what is made, resumed, and left alone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.generate import Made, Order
from onereel.evaluation.physics_iq import (
    GenerationJob,
    PhysicsIqDataset,
    generate_videos,
    plan_generation,
    read_dataset,
)
from onereel.evaluation.physics_iq.dataset import TAKES, VIEWS
from onereel.evaluation.physics_iq.folder import read_model_folder
from onereel.evaluation.physics_iq.making import MakerGenerate
from onereel.media import VideoWriter, probe, read_metadata, read_video

FPS, NAME = 8, "trimmed-drop"


def write(path: Path, num_frames: int, *, fps: int = FPS, level: int = 0) -> None:
    """Write grey frames that get lighter by four levels each, from `level`."""
    with VideoWriter(path, width=32, height=16, fps=fps) as writer:
        writer.write(
            np.stack([np.full((16, 32, 3), level + 4 * t, np.uint8) for t in range(num_frames)])
        )


@pytest.fixture
def dataset(tmp_path: Path) -> PhysicsIqDataset:
    root = tmp_path / "physics-IQ-benchmark"
    lines = ["scenario,description,category,generated_video_name"]
    for t, take in enumerate(TAKES):
        for v, view in enumerate(VIEWS):
            made = f"{v + 1:04d}_{view}_{NAME}.mp4"
            name = f"{3 * t + v + 1:04d}_{view}_{take}_{NAME}.mp4"
            lines.append(f"{name},A drop from the {view}.,Fluid Dynamics,{made}")
    (root / "switch-frames").mkdir(parents=True)
    (root / "descriptions.csv").write_text("\n".join(lines))
    dataset = read_dataset(root)
    for entry in dataset.entries:
        Image.new("RGB", (32, 16), (90, 90, 90)).save(dataset.switch_frame(entry))
        conditioning = root / "split-videos" / "conditioning" / f"{FPS}FPS"
        conditioning.mkdir(parents=True, exist_ok=True)
        write(dataset.conditioning(entry, rate=FPS), 3 * FPS)
    return dataset


class Recorder:
    """A generator that writes what it should, or breaks as told, and remembers its jobs."""

    def __init__(self, *, num_frames: int | None = None, stop_at: str = "") -> None:
        self.num_frames, self.stop_at = num_frames, stop_at
        self.jobs: list[GenerationJob] = []

    def __call__(self, job: GenerationJob, path: Path) -> None:
        if job.id == self.stop_at:
            path.write_bytes(b"half a video")
            raise KeyboardInterrupt
        self.jobs.append(job)
        write(path, self.num_frames or job.num_frames, fps=job.fps)


def test_what_is_to_be_generated(dataset: PhysicsIqDataset) -> None:
    jobs = plan_generation(dataset, protocol="i2v", fps=24)
    assert [job.id for job in jobs] == ["0001", "0002", "0003"]
    assert jobs[1].file_name == f"0002_perspective-center_{NAME}.mp4"
    assert jobs[1].prompt == "A drop from the perspective-center."
    assert jobs[1].image is not None and jobs[1].video is None
    assert (jobs[1].num_frames, jobs[1].conditioning_frames) == (120, 72)
    job = plan_generation(dataset, protocol="v2v", fps=FPS)[0]
    assert job.image is None and job.video is not None
    assert (job.num_frames, job.video_fps, probe(job.video).num_frames) == (40, 8, 24)


def test_missing_inputs_are_all_named(dataset: PhysicsIqDataset) -> None:
    with pytest.raises(MediaError, match="3 problems(.|\n)*30FPS"):
        plan_generation(dataset, protocol="v2v", fps=24)
    dataset.switch_frame(dataset.entries[2]).unlink()
    with pytest.raises(MediaError, match="0003_switch-frames"):
        plan_generation(dataset, protocol="i2v", fps=24)
    with pytest.raises(ConfigError, match="protocol"):
        plan_generation(dataset, protocol="t2v", fps=24)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fps"):
        plan_generation(dataset, protocol="i2v", fps=23.976)  # type: ignore[arg-type]


def test_an_interrupted_run_goes_on(dataset: PhysicsIqDataset, tmp_path: Path) -> None:
    out, first = tmp_path / "model", Recorder(stop_at="0002")
    with pytest.raises(KeyboardInterrupt):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=first, out=out)
    assert [path.name for path in out.iterdir()] == [f"0001_perspective-left_{NAME}.mp4"]
    stamp = next(out.iterdir()).stat().st_mtime_ns
    told: list[tuple[int, int, str]] = []
    second = Recorder()
    report = generate_videos(
        dataset, protocol="i2v", fps=FPS, generate=second, out=out,
        progress=lambda *state: told.append(state),
    )  # fmt: skip
    assert [job.id for job in second.jobs] == ["0002", "0003"]
    assert (len(report.made), len(report.kept)) == (2, 1)
    assert (out / report.kept[0]).stat().st_mtime_ns == stamp
    assert [state[:2] for state in told] == [(1, 3), (2, 3), (3, 3)]
    # The folder holds videos and nothing else, and they can be scored.
    found = read_model_folder(dataset, out)
    assert (found.problems, found.ignored, found.fps) == ((), (), Fraction(FPS))
    assert (
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out).made == ()
    )


def test_videos_of_other_settings_or_makers_are_left_alone(
    dataset: PhysicsIqDataset, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out,
                    settings={"steps": 8})  # fmt: skip
    with pytest.raises(ConfigError, match="another steps: expected steps 8, got 16"):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out,
                        settings={"steps": 16})  # fmt: skip
    with pytest.raises(ConfigError, match="another protocol, steps"):
        generate_videos(dataset, protocol="v2v", fps=FPS, generate=Recorder(), out=out)
    with pytest.raises(ConfigError, match="JSON"):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out,
                        settings={"steps": float("nan")})  # fmt: skip
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine / f"0002_perspective-center_{NAME}.mp4", 40)
    with pytest.raises(ConfigError, match="1 videos that this command did not make"):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=mine)
    assert len(list(mine.iterdir())) == 1


def test_a_spoilt_video_is_named_and_not_replaced(
    dataset: PhysicsIqDataset, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    report = generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out)
    path = out / report.made[1]
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(MediaError, match="0002_perspective-center"):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=Recorder(), out=out)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("frames", "match"), [(39, "39 frames, expected 40"), (41, "41 frames")])
def test_a_generator_must_keep_to_the_length(
    dataset: PhysicsIqDataset, tmp_path: Path, frames: int, match: str
) -> None:
    with pytest.raises(MediaError, match=match):
        generate_videos(dataset, protocol="v2v", fps=FPS, generate=Recorder(num_frames=frames),
                        out=tmp_path / "model")  # fmt: skip
    assert list((tmp_path / "model").iterdir()) == []


class Maker:
    """Goes on from the last given frame; a picture comes first, as MAGI gives it back."""

    def __init__(self, problem: str = "") -> None:
        self.orders: list[Order] = []
        self.problem = problem

    def make(self, order: Order) -> Made:
        self.orders.append(order)
        assert order.given is not None
        frames = np.repeat(order.given[-1:], order.num_frames, 0)
        new = 4 if order.is_image else 0
        frames[new:] //= 2
        return Made(frames=frames, seconds=0.0, problem=self.problem)


@pytest.mark.parametrize("protocol", ["i2v", "v2v"])
def test_a_maker_makes_only_what_is_new(
    dataset: PhysicsIqDataset, tmp_path: Path, protocol: str
) -> None:
    maker, out = Maker(), tmp_path / "model"
    generate = MakerGenerate(maker=maker, height=16, width=32, seed=100)
    generate_videos(dataset, protocol=protocol, fps=FPS, generate=generate, out=out)  # type: ignore[arg-type]
    order = maker.orders[1]
    assert order.texts == ("A drop from the perspective-center.",) and order.seed == 102
    assert order.given is not None
    assert len(order.given) == (1 if protocol == "i2v" else 24)
    path = out / f"0002_perspective-center_{NAME}.mp4"
    frames = read_video(path, height=16, width=32, fps=FPS)
    # The picture is level 90, the video's last frame 4 * 23; what is new is half as bright.
    assert len(frames) == 40
    assert abs(int(frames[0, 8, 8, 0]) - (45 if protocol == "i2v" else 46)) <= 2
    assert read_metadata(path)["seed"] == 102


def test_a_maker_that_fails_is_heard(dataset: PhysicsIqDataset, tmp_path: Path) -> None:
    generate = MakerGenerate(maker=Maker("NaN in frame 3"), height=16, width=32)
    with pytest.raises(MediaError, match="0001_perspective-left.*NaN in frame 3"):
        generate_videos(dataset, protocol="i2v", fps=FPS, generate=generate, out=tmp_path / "model")
