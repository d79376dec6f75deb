"""Physics-IQ on files: the dataset's names, bad folders, stale masks, processes, notes."""

from __future__ import annotations

import csv
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onereel.core.errors import BackendUnavailable, ConfigError, MediaError
from onereel.evaluation.physics_iq import (
    PhysicsIqResult,
    ScenarioRow,
    evaluate_folder,
    make_clip,
    plan_generation,
    read_dataset,
    read_rows,
    score,
    view_metrics,
)
from onereel.evaluation.physics_iq import view as view_module
from onereel.evaluation.physics_iq.clips import (
    ClipFile,
    decode,
    frame_count,
    plain_rate,
    resample,
    stream_frames,
)
from onereel.evaluation.physics_iq.dataset import TAKES, VIEWS
from onereel.evaluation.physics_iq.folder import read_model_folder
from onereel.media import EncoderSettings, VideoWriter

FPS, SIZE = 8, (64, 96)
NAMES = ("trimmed-ball", "trimmed-calm")
FAST = EncoderSettings(crf=6, preset="ultrafast")


def write(path: Path, video: np.ndarray, *, fps: float = FPS) -> Path:
    with VideoWriter(
        path, width=video.shape[2], height=video.shape[1], fps=fps, settings=FAST
    ) as writer:
        writer.write(video)
    return path


def scene(name: str, seed: int, *, num_frames: int = 5 * FPS, speed: float = 1.5) -> np.ndarray:
    """Frames after the switch; seed and speed tell videos apart, and nothing moves in a calm."""
    ground = np.full((*SIZE, 3), 70 + 5 * (seed % 3), np.uint8)
    video = np.repeat(ground[None], num_frames, 0)
    for t, frame in enumerate(video):
        left = 4 if name == "trimmed-calm" else int(4 + speed * t)
        frame[16 + seed : 34 + seed, left : left + 16] = (230, 200, 180)
    return video


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two scenarios at 8 fps, with a model's videos beside it; tests copy it."""
    base = tmp_path_factory.mktemp("piq")
    root = base / "physics-IQ-benchmark"
    rows = []
    for t, take in enumerate(TAKES):
        for s, name in enumerate(NAMES):
            for v, view in enumerate(VIEWS):
                first, number = f"{3 * s + v + 1:04d}", f"{6 * t + 3 * s + v + 1:04d}"
                tail = f"{FPS}FPS_{view}_{take}_{name}.mp4"
                rows.append([f"{number}_{view}_{take}_{name}.mp4", f"A {name}, {view}. It stays.",
                             "Optics", f"{first}_{view}_{name}.mp4"])  # fmt: skip
                video = scene(name, v + 2 * t, speed=1.5 + 0.05 * t)
                split = root / "split-videos"
                write(split / f"testing/{FPS}FPS/{number}_testing-videos_{tail}", video)
                if t == 0:
                    still = np.repeat(video[:1], 3 * FPS, 0)
                    folder = split / f"conditioning/{FPS}FPS"
                    write(folder / f"{number}_conditioning-videos_{tail}", still)
                    (root / "switch-frames").mkdir(exist_ok=True)
                    picture = f"switch-frames/{number}_switch-frames_anyFPS_{view}_{name}.jpg"
                    Image.fromarray(video[0]).save(root / picture, quality=95)
                    made = scene(name, v, speed=1.2)
                    write(base / "model" / f"{first}_{view}_{name}.mp4", made)
    with (root / "descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["scenario", "description", "category", "generated_video_name"], *rows]
        )
    return base


@pytest.fixture(scope="module")
def ball(original: Path) -> PhysicsIqResult:
    """The score of the first scenario alone."""
    return evaluate_folder(read_dataset(original).only(["trimmed-ball"]), original / "model")


@pytest.fixture
def base(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_the_dataset_is_read_as_it_lies(original: Path) -> None:
    dataset = read_dataset(original)  # the folder above will do
    assert [scenario.name for scenario in dataset.scenarios] == list(NAMES)
    assert dataset.entries[4].ids == ("0005", "0011")
    assert dataset.entries[4].description == "A trimmed-calm, perspective-center. It stays."
    assert dataset.only(["trimmed-calm"]).entries[0].ids == ("0004", "0010")
    with pytest.raises(ConfigError, match="did you mean 'trimmed-calm'"):
        dataset.only(["trimmed-clam"])


def test_both_spellings_of_the_folders_are_read(base: Path) -> None:
    split = base / "physics-IQ-benchmark" / "split-videos"
    (split / "testing").rename(split / "testing-videos")
    (split / "conditioning").rename(split / "conditioning-videos")
    dataset = read_dataset(base)
    assert dataset.testing(dataset.entries[0], 1, rate=FPS).is_file()
    assert len(plan_generation(dataset, protocol="v2v", fps=FPS)) == 6


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("description,", "text,", "columns"),
        ("0001_perspective-left", "1_perspective-left", "line 2"),
        ("0002_perspective-center", "0001_perspective-center", "also in line 2"),
        ("0007_perspective-left_take-2", "0007_perspective-left_take-1", "both takes"),
    ],
)
def test_a_wrong_table_is_refused(base: Path, old: str, new: str, match: str) -> None:
    table = base / "physics-IQ-benchmark" / "descriptions.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=match):
        read_dataset(base)


def test_a_missing_table_or_folder_is_named(base: Path) -> None:
    (base / "physics-IQ-benchmark" / "descriptions.csv").rename(base / "table.csv")
    with pytest.raises(MediaError, match=r"no descriptions\.csv"):
        read_dataset(base)
    assert len(read_dataset(base, base / "table.csv").scenarios) == 2
    with pytest.raises(MediaError, match="no such folder"):
        read_dataset(base / "nowhere")


def _rows_on_arrays(base: Path) -> list[ScenarioRow]:
    dataset, rows = read_dataset(base), []
    for scenario in dataset.scenarios:
        views = {}
        for entry in scenario.views:
            paths = [dataset.testing(entry, take, rate=FPS) for take in (0, 1)]
            paths.append(base / "model" / entry.generated_name)
            takes = [make_clip(np.stack(list(decode(p))), size=(16, 24)) for p in paths]
            views[entry.view] = view_metrics(takes[0], takes[1], generated=takes[2])
        rows.append(ScenarioRow(scenario=scenario.name, views=views))
    return rows


def test_a_folder_scores_as_its_arrays_do(original: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    result = evaluate_folder(
        read_dataset(original),
        original / "model",
        output=tmp_path,
        progress=lambda *state: told.append(state),
    )
    rows = _rows_on_arrays(original)
    assert list(result.rows) == rows
    assert result.score == score(rows)
    assert told[-1] == (6, 6, "trimmed-calm perspective-right")
    assert result.csv == tmp_path / "results" / "model.csv"
    assert read_rows(result.csv) == rows
    # The freeze baseline is right where nothing moves, and wrong where something does.
    ball, calm = (row.views["perspective-left"].take1 for row in result.freeze_rows)
    assert ball.spatial == 0.0 and calm.spatial == 1.0
    assert result.freeze.score is not None and result.score.score is not None
    assert 0 < result.freeze.score < result.score.score < 100
    assert result.score.variance == result.freeze.variance
    _check_report(result)


def _check_report(result: PhysicsIqResult) -> None:
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["notes"] == ["2 of 66 scenarios: not the official score"]
    assert data["num_frames"] == 40 and data["sizes"] == [[64, 96]]
    assert len(data["sha256"]) == 18
    assert [s["category"] for s in data["scenarios"]] == ["Optics", "Optics"]
    assert data["metrics"]["physics_iq"]["mean"] == data["score"]["score"]
    for name in ("spatial", "variance_spatial", "freeze_physics_iq_unclipped"):
        number = data["metrics"][name]
        assert number["low"] <= number["mean"] <= number["high"] and number["num"] == 2


def test_more_processes_change_nothing(original: Path, ball: PhysicsIqResult) -> None:
    dataset = read_dataset(original).only(["trimmed-ball"])
    two = evaluate_folder(dataset, original / "model", workers=2)
    assert two.csv is None
    assert (two.rows, two.freeze_rows, two.sha256) == (ball.rows, ball.freeze_rows, ball.sha256)


def test_files_of_other_scenarios_are_ignored_and_said_so(base: Path) -> None:
    (base / "model" / "notes.txt").write_text("mine")
    dataset = read_dataset(base).only(["trimmed-ball"])
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (base / "model").iterdir())
    result = evaluate_folder(dataset, base / "model")
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (base / "model").iterdir()) == before
    assert len(result.ignored) == 4 and "notes.txt" in result.ignored
    assert any("4 files" in note for note in result.notes)


def test_any_name_that_starts_with_the_id_will_do(base: Path) -> None:
    video = next((base / "model").glob("0001_*"))
    video.rename(video.with_name("0001_my own name.mp4"))
    assert read_model_folder(read_dataset(base), base / "model").problems == ()


def test_every_missing_file_is_named_and_nothing_scored(base: Path, tmp_path: Path) -> None:
    dataset = read_dataset(base)
    gone = [
        base / "model" / dataset.entries[1].generated_name,
        dataset.testing(dataset.entries[2], 1, rate=FPS),
        dataset.switch_frame(dataset.entries[3]),
    ]
    for path in gone:
        path.unlink()
    with pytest.raises(MediaError) as error:
        evaluate_folder(dataset, base / "model", output=tmp_path / "out")
    assert "3 problems" in str(error.value)
    assert all(path.name in str(error.value) for path in gone)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MediaError, match="no such folder"):
        evaluate_folder(dataset, base / "nowhere")


def _spoil(folder: Path, kind: str) -> None:
    path = next(folder.glob("0003_*"))
    if kind == "short":
        write(path, scene("trimmed-ball", 0, num_frames=39))
    elif kind == "long":
        write(path, scene("trimmed-ball", 0, num_frames=41))
    elif kind == "rate":
        write(path, scene("trimmed-ball", 0, num_frames=40), fps=16)
    elif kind == "twice":
        shutil.copy(path, path.with_name("0003_again.mp4"))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no video " * 99)
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - int(kind)])


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("short", "39 frames, expected 40"),
        ("long", "41 frames, expected 40"),
        ("rate", "16 fps, while most have 8"),
        ("twice", r"id 0003: several videos, 0003_again\.mp4, 0003_perspective"),
        ("empty", "empty"),
        ("text", "0003_.*not a video"),
        ("1", "0003_.*(cut off|damaged|too short)"),
        ("500", "0003_.*(cut off|damaged|too short)"),
    ],
)
def test_a_bad_video_is_named(base: Path, kind: str, match: str) -> None:
    _spoil(base / "model", kind)
    dataset = read_dataset(base).only(["trimmed-ball"])
    with pytest.raises(MediaError, match=match) as error:
        evaluate_folder(dataset, base / "model")
    assert "1 problems" in str(error.value)


def test_masks_are_never_stale(
    base: Path, ball: PhysicsIqResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(base).only(["trimmed-ball"])
    cache = base / "cache"
    first = evaluate_folder(dataset, base / "model", cache=cache)
    assert first.rows == ball.rows
    assert len(list(cache.iterdir())) == 9

    class Forbidden:
        def __init__(self) -> None:
            raise AssertionError("masks were to come from the cache")

    with monkeypatch.context() as patch:
        patch.setattr(view_module, "MaskStream", Forbidden)
        assert evaluate_folder(dataset, base / "model", cache=cache).rows == first.rows
    write(next((base / "model").glob("0002_*")), scene("trimmed-ball", 4, speed=0.6))
    plain = evaluate_folder(dataset, base / "model")
    again = evaluate_folder(dataset, base / "model", cache=cache)
    assert again.rows == plain.rows != first.rows
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert evaluate_folder(dataset, base / "model", cache=cache).rows == plain.rows


def test_masks_through_the_codec(
    original: Path, ball: PhysicsIqResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_dataset(original).only(["trimmed-ball"])
    lossy = evaluate_folder(dataset, original / "model", mask_codec="mp4v")
    assert ball.rows != lossy.rows
    assert abs(ball.score.means.spatial - lossy.score.means.spatial) < 0.1
    assert any("lossy" in note for note in lossy.notes)
    monkeypatch.setattr("av.codecs_available", {"h264"})
    with pytest.raises(BackendUnavailable, match="mpeg4"):
        evaluate_folder(dataset, original / "model", mask_codec="mp4v")


def test_published_masks_of_the_real_videos(base: Path, ball: PhysicsIqResult) -> None:
    dataset = read_dataset(base).only(["trimmed-ball"])
    with pytest.raises(MediaError, match="6 problems(.|\n)*video-masks"):
        evaluate_folder(dataset, base / "model", real_masks="files")
    for entry in dataset.entries:
        for take in (0, 1):
            video = np.zeros((5 * FPS, *SIZE, 3), np.uint8)
            video[1:, :32] = 255
            write(dataset.real_mask(entry, take, rate=FPS), video)
    result = evaluate_folder(dataset, base / "model", real_masks="files")
    assert result.real_masks == "files"
    assert result.score.variance.spatial == 1.0
    assert result.score.means != ball.score.means


@pytest.mark.parametrize("wrong", [{"mask_codec": "h264"}, {"real_masks": "maybe"}, {"workers": 0}])
def test_wrong_arguments_are_refused(original: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        evaluate_folder(read_dataset(original), original / "model", **wrong)  # type: ignore[arg-type]


def test_other_rates_are_blended_from_30() -> None:
    frames = [np.full((4, 7, 3), i, np.uint8) for i in range(150)]
    same = list(resample(iter(frames), 150, fps=Fraction(30)))
    assert [int(f[0, 0, 0]) for f in same] == list(range(150))
    ten = list(resample(iter(frames), 150, fps=Fraction(10)))
    assert len(ten) == 50 and ten[0].shape == (4, 6, 3)
    # Position 149/49 * j, cut to a whole level.
    assert [int(f[0, 0, 0]) for f in ten] == [149 * j // 49 for j in range(50)]
    assert len(list(resample(iter(frames), 150, fps=Fraction(30000, 1001)))) == 149
    assert len(list(resample(iter(frames), 150, fps=Fraction(60)))) == 300


def test_a_rate_without_folder_is_resampled_and_said_so(base: Path) -> None:
    dataset = read_dataset(base).only(["trimmed-ball"])
    fast = dataset.root / "split-videos" / "testing" / "30FPS"
    shutil.rmtree(dataset.root / "split-videos" / "testing" / f"{FPS}FPS")
    with pytest.raises(MediaError, match="6 problems(.|\n)*30FPS"):
        evaluate_folder(dataset, base / "model")
    for entry in dataset.entries:
        for take in (0, 1):
            video = scene("trimmed-ball", take, num_frames=150, speed=0.4)
            write(fast / dataset.testing(entry, take, rate=30).name, video, fps=30)
    result = evaluate_folder(dataset, base / "model")
    assert "the real videos were resampled from 30 to 8 fps, without a codec" in result.notes
    assert len(result.rows[0].views["perspective-left"].take1.mse) == 40


def test_rates_that_are_no_whole_number() -> None:
    assert plain_rate(Fraction(12287, 512)) == 24
    assert plain_rate(Fraction(30000, 1001)) == Fraction(30000, 1001)
    assert frame_count(Fraction(30000, 1001)) == 149
    with pytest.raises(ConfigError, match="at least 1"):
        frame_count(Fraction(1, 2))


def test_a_clip_never_gives_fewer_frames_than_asked(original: Path) -> None:
    path = next((original / "model").glob("0001_*"))
    assert len(list(stream_frames(ClipFile(path=path, num_frames=7)))) == 7
    with pytest.raises(MediaError, match="expected 41 frames, got 40"):
        list(stream_frames(ClipFile(path=path, num_frames=41)))
