"""Folders of videos through the whole path, with tiny networks that are not trained."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.vbench.adapters import ClipEmbedder, DinoEmbedder
from onereel.evaluation.vbench.detections import Detection
from onereel.evaluation.vbench.dimensions import DIMENSIONS
from onereel.evaluation.vbench.evaluate import (
    Problem,
    VBenchResult,
    VideoScore,
    average,
    collect,
    evaluate_folder,
    score_samples,
    select_still,
)
from onereel.evaluation.vbench.files import (
    official_results,
    per_type,
    write_official,
    write_submission,
)
from onereel.evaluation.vbench.networks import AestheticHead, Networks
from onereel.evaluation.vbench.suite import Sample, SampleSet, custom_samples
from onereel.evaluation.vbench.totals import MAGIC141_COLUMNS, magic141_row
from onereel.evaluation.videos import Video, load_video
from onereel.media import VideoWriter


def _moving(num: int = 6, seed: int = 0) -> np.ndarray:
    """A bright square that runs over a texture, [F, 48, 64, 3]."""
    texture = np.random.default_rng(seed).integers(0, 120, (48, 64, 3), dtype=np.uint8)
    frames = np.repeat(texture[None], num, axis=0)
    for t in range(num):
        frames[t, 16:32, 6 * t : 6 * t + 16] = (250, 240, 30)
    return frames


def _save(folder: Path, name: str, frames: np.ndarray, **more: object) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, **{"frames": frames, "fps": 8, **more})
    return path


class _Words(ClipEmbedder):
    """CLIP whose texts need no tokenizer."""

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[float(len(text)), *[1.0] * 7] for text in texts])


class _ViClip:
    def embed_video(self, frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape == (8, 3, 224, 224)
        return frames.mean((0, 2, 3))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.ones(len(texts), 3)


def _detect(frames: np.ndarray) -> list[list[Detection]]:
    car = Detection(label="car", caption="a red car", box=(0, 0, 10, 10))
    tree = Detection(label="tree", caption="a tree", box=(30, 0, 40, 10))
    return [[car, tree] if i % 4 else [car] for i in range(len(frames))]


def _track(frames: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(10.0) * 6, np.arange(10.0) * 4), -1)
    return np.stack([grid + (2.4 * t, 0) for t in range(len(frames))])


@pytest.fixture(scope="module")
def networks() -> Networks:
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["intermediate_size"] = 16
    vision = {**sizes, "patch_size": 32}
    text = {**sizes, "vocab_size": 8, "bos_token_id": 6, "eos_token_id": 7}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dino = ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval()
        clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        ).eval()
    return Networks(
        dino=DinoEmbedder(dino, description="tiny dino"),
        clip_b32=_Words(clip, description="tiny clip"),
        clip_l14=ClipEmbedder(clip),
        aesthetic_head=AestheticHead(weight=np.ones(8), bias=5.0),
        flow=lambda a, b: torch.full((1, 2, *a.shape[-2:]), 2.0),
        interpolator=lambda a, b: (a + b) / 2,
        imaging=lambda frames: 100 * frames.mean((1, 2, 3)),
        dreamsim=lambda images: images.mean((2, 3)),
        tracker=_track,
        viclip=_ViClip(),
        detector=_detect,
        captioner=lambda frames: ["a phone booth" if i % 2 else "" for i in range(len(frames))],
        actions=lambda frames: [("riding a bike", 0.9)],
    )


def test_every_dimension_runs_from_files(networks: Networks, tmp_path: Path) -> None:
    path = _save(tmp_path, "clip", _moving())
    image = tmp_path / "clip.png"
    Image.fromarray(_moving()[0]).save(image)
    auxiliary = {
        "object_class": {"object": "tree"},
        "multiple_objects": {"object": "car and tree"},
        "color": {"color": "red"},
        "scene": {"scene": {"scene": "phone booth"}},
        "appearance_style": {"appearance_style": "oil"},
        "spatial_relationship": {
            "spatial_relationship": {
                "object_a": "car",
                "object_b": "tree",
                "relationship": "on the left of",
            }
        },
    }
    one = Sample(path=path, prompt="a red car", auxiliary=auxiliary, image=image)
    moves = dataclasses.replace(
        one, prompt="a car, camera pans left", dimensions=("camera_motion",)
    )
    bike = dataclasses.replace(
        one, prompt="a person is riding a bike", dimensions=("human_action",)
    )
    names = [name for name in DIMENSIONS if name not in ("camera_motion", "human_action")]
    samples = (dataclasses.replace(one, dimensions=tuple(names)), moves, bike)
    found = evaluate_folder(
        SampleSet(samples=samples), dimensions=list(DIMENSIONS), networks=networks
    )
    assert found.problems == ()
    scores = found.overall()
    assert set(scores) == set(DIMENSIONS)
    assert scores["camera_motion"] == scores["human_action"] == scores["color"] == 1
    assert scores["object_class"] == scores["multiple_objects"] == 12 / 16
    assert scores["spatial_relationship"] == 12 / 16
    assert scores["scene"] == 0.5
    assert scores["dynamic_degree"] == 1
    mean = float(_moving().mean()) / 255
    assert scores["imaging_quality"] == pytest.approx(mean, abs=1e-6)
    for name in ("subject_consistency", "background_consistency", "i2v_subject"):
        assert 0.5 < scores[name] < 1
    assert found.networks["dino"] == "tiny dino"
    assert found.networks["tracker"] == "function"
    assert json.dumps(official_results(found), allow_nan=False)


def test_frozen_videos_are_consistent_and_reference_matters(
    networks: Networks, tmp_path: Path
) -> None:
    frames = np.repeat(_moving()[:1], 4, axis=0)
    _save(tmp_path, "same", frames)
    _save(tmp_path, "other", frames)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(frames[0]).save(images / "same.png")
    Image.fromarray(255 - frames[0]).save(images / "other.png")
    names = ["subject_consistency", "temporal_flickering", "motion_smoothness", "i2v_subject"]
    samples = custom_samples(tmp_path, images=images)
    found = evaluate_folder(samples, dimensions=names, networks=networks)
    values = {(s.dimension, s.prompt): s.value for s in found.scores}
    assert values["subject_consistency", "same"] == pytest.approx(1, abs=1e-6)
    assert values["temporal_flickering", "same"] == 1
    # the picture goes through Pillow, the frames through torch: equal up to rounding
    assert values["i2v_subject", "same"] == pytest.approx(1, abs=1e-3)
    assert values["i2v_subject", "other"] < values["i2v_subject", "same"] - 1e-3


def test_without_networks_the_weight_free_dimension_remains(tmp_path: Path) -> None:
    _save(tmp_path, "a", _moving())
    found = evaluate_folder(tmp_path, dimensions=MAGIC141_COLUMNS, networks=Networks())
    assert list(found.overall()) == ["temporal_flickering"]
    note = found.dimensions["subject_consistency"].note
    assert note.startswith("needs DINO v1 ViT-B/16 (86 M parameters, 343 MB; licence: Apache-2.0)")
    assert "LAION" in found.dimensions["aesthetic_quality"].note
    assert magic141_row(found.dimensions)["average"].mean is None
    assert found.networks == {}


def test_reference_pictures_that_lack_are_named(networks: Networks, tmp_path: Path) -> None:
    path = _save(tmp_path, "a", _moving())
    found = evaluate_folder(tmp_path, dimensions=["i2v_subject"], networks=networks)
    assert "needs the reference pictures" in found.dimensions["i2v_subject"].note
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    samples = (
        Sample(path=path, prompt="a", image=broken),
        Sample(path=path, prompt="b"),
    )
    found = evaluate_folder(
        SampleSet(samples=samples), dimensions=["i2v_subject"], networks=networks
    )
    assert found.dimensions["i2v_subject"].mean is None
    reasons = [p.reason for p in found.problems]
    assert "broken.png cannot be read" in reasons[0]
    assert "a reference picture, got none" in reasons[1]


def test_bad_inputs_are_named_and_never_scored(networks: Networks, tmp_path: Path) -> None:
    frames = _moving(24)
    _save(tmp_path, "good", frames)
    _save(tmp_path, "single", frames[:1])
    _save(tmp_path, "nan", np.full((2, 8, 8, 3), np.nan, np.float32))
    np.savez(tmp_path / "no-rate.npz", frames=frames)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, size in enumerate(((8, 8), (8, 10))):
        Image.new("RGB", size).save(mixed / f"{i}.png")
    with VideoWriter(tmp_path / "cut.mp4", width=64, height=48, fps=24) as writer:
        writer.write(frames)
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    names = ["temporal_flickering", "dynamic_degree"]
    found = evaluate_folder(tmp_path, dimensions=names, networks=networks)
    problems = {Path(p.video).stem: p for p in found.problems}
    assert set(problems) == {"single", "nan", "no-rate", "mixed", "cut"}
    assert problems["single"].dimension == "temporal_flickering"
    assert problems["single"].reason == "the score is nan (1 frames)"
    assert "NaN" in problems["nan"].reason
    assert "8x8, got 8x10" in problems["mixed"].reason
    assert problems["no-rate"].dimension == "dynamic_degree"
    assert "frame rate" in problems["no-rate"].reason
    scored = {(s.dimension, Path(s.path).stem) for s in found.scores}
    assert ("temporal_flickering", "good") in scored
    assert not {stem for _, stem in scored} & {"nan", "mixed", "cut"}
    assert "4 videos could not be scored" in found.dimensions["temporal_flickering"].note
    assert found.dimensions["temporal_flickering"].num == 2


def test_files_of_the_suite_that_are_not_there_are_problems(tmp_path: Path) -> None:
    sample = Sample(path=_save(tmp_path, "a", _moving()), prompt="a")
    videos = SampleSet(samples=(sample,), missing=("b-0.mp4",))
    found = evaluate_folder(videos, dimensions=["temporal_flickering"], networks=Networks())
    assert found.problems == (Problem(video="b-0.mp4", dimension="", reason="missing"),)
    assert "1 files are missing" in found.dimensions["temporal_flickering"].note


def test_a_run_resumes_and_parts_add_up(networks: Networks, tmp_path: Path) -> None:
    for name in ("a-0", "a-1", "b-0"):
        _save(tmp_path, name, _moving(4, seed=ord(name[0])))
    names = ["temporal_flickering", "imaging_quality"]
    kept: list[VideoScore] = []
    steps: list[tuple[int, int, str]] = []
    full = evaluate_folder(
        tmp_path,
        dimensions=names,
        networks=networks,
        on_score=kept.append,
        progress=lambda *step: steps.append(step),
    )
    assert tuple(kept) == full.scores
    assert [s[:2] for s in steps] == [(i, 6) for i in range(7)]
    assert steps[0][2] == "temporal_flickering: a-0.npz"

    saved = [VideoScore.from_json(json.loads(json.dumps(dataclasses.asdict(s)))) for s in kept[:4]]
    read: list[str] = []

    def reader(path: Path) -> Video:
        read.append(path.stem)
        return load_video(path)

    again = evaluate_folder(tmp_path, dimensions=names, networks=networks, known=saved, read=reader)
    assert read == ["b-0"]
    assert again == full

    samples = custom_samples(tmp_path).samples

    def score(video: Video, sample: Sample, name: str) -> object:
        return DIMENSIONS[name].score(video, sample, networks)

    parts = [score_samples(part, names, score=score)[0] for part in (samples[:1], samples[1:])]
    assert collect([*parts[0], *parts[1]], names, networks=networks) == full


def test_unknown_dimensions_and_custom_input_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'aesthetic_quality'"):
        evaluate_folder(tmp_path, dimensions=["aesthetic"], networks=Networks())
    with pytest.raises(ConfigError, match="expected some of"):
        evaluate_folder(tmp_path, dimensions=[], networks=Networks())
    with pytest.raises(ConfigError, match="official list"):
        evaluate_folder(tmp_path, dimensions=["color"], networks=Networks())
    with pytest.raises(MediaError, match="holds no videos"):
        evaluate_folder(tmp_path, dimensions=["dynamic_degree"], networks=Networks())


def test_an_official_dimension_without_its_words_is_a_problem(
    networks: Networks, tmp_path: Path
) -> None:
    sample = Sample(path=_save(tmp_path, "a", _moving()), prompt="a")
    found = evaluate_folder(SampleSet(samples=(sample,)), dimensions=["color"], networks=networks)
    assert "auxiliary_info for color" in found.problems[0].reason


def _scored(value: float, weight: float = 1.0, prompt: str = "a", **details: str) -> VideoScore:
    return VideoScore(
        dimension="camera_motion",
        path=prompt,
        prompt=prompt,
        value=value,
        weight=weight,
        details=details,
    )


def test_means_are_weighted_and_intervals_draw_prompts() -> None:
    scores = [_scored(0.0, 1.0, "a"), _scored(1.0, 3.0, "b"), _scored(9.0, 0.0, "c")]
    found = average(scores)
    assert (found.mean, found.low, found.high, found.num) == (0.75, 0, 1, 2)
    single = average([_scored(0.0, prompt="a"), _scored(1.0, prompt="a")], 0.01)
    assert (single.mean, single.low, single.high) == (0.005, 0.005, 0.005)
    assert average([_scored(1.0, 0.0)]).mean is None


def test_the_official_files(networks: Networks, tmp_path: Path) -> None:
    _save(tmp_path, "a, camera static", _moving())
    samples = custom_samples(tmp_path)
    names = ["dynamic_degree", "camera_motion", "i2v_subject"]
    found = evaluate_folder(samples, dimensions=names, networks=networks)
    paths = write_official(found, tmp_path / "out", name="run", samples=samples.samples)
    results, info = (json.loads(path.read_text()) for path in paths)
    assert [p.name for p in paths] == ["run_eval_results.json", "run_full_info.json"]
    assert set(results) == {"dynamic_degree", "camera_motion"}
    overall, videos = results["dynamic_degree"]
    assert (overall, videos[0]["video_results"]) == (1.0, True)
    assert videos[0]["video_path"].endswith("a, camera static.npz")
    overall, types, videos = results["camera_motion"]
    assert (overall, types) == (0.0, {"static": 0.0})
    assert videos[0]["found"] == ["pan_left"]
    assert info == [
        {
            "prompt_en": "a, camera static",
            "dimension": names,
            "video_list": [str(samples.samples[0].path)],
        }
    ]
    archive = write_submission([paths[0]], tmp_path / "upload.zip")
    assert zipfile.ZipFile(archive).namelist() == ["run_eval_results.json"]
    with pytest.raises(ConfigError, match="missing"):
        write_submission([tmp_path / "none.json"], tmp_path / "upload.zip")
    with pytest.raises(ConfigError, match="without folders"):
        write_official(found, tmp_path, name="a/b", samples=())


def test_camera_scores_per_type() -> None:
    scores = [
        _scored(1.0, type="static"),
        _scored(0.0, type="static"),
        _scored(1.0, type="zoom_in"),
    ]
    assert per_type(scores) == {"static": 0.5, "zoom_in": 1.0}
    result = VBenchResult(dimensions={"camera_motion": average(scores)}, scores=tuple(scores))
    assert official_results(result)["camera_motion"][1] == {"static": 0.5, "zoom_in": 1.0}


def test_still_videos_are_chosen_five_per_prompt(tmp_path: Path) -> None:
    still = np.zeros((16, 64, 64, 3), np.uint8)
    moving = still.copy()
    moving[::2] = 255
    for i in range(4):
        _save(tmp_path, f"a-{i}", moving if i == 1 else still)
    (tmp_path / "b-0.npz").write_bytes(b"broken")

    def flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean() * torch.ones(1, 2, 8, 8)

    samples = custom_samples(tmp_path).samples
    chosen, problems = select_still(samples, flow, keep=2)
    assert [s.path.stem for s in chosen] == ["a-0", "a-2"]
    assert [Path(p.video).stem for p in problems] == ["b-0"]
