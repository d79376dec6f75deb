"""Every dimension: which networks it needs, how one video is scored, how videos are averaged.

Read `DIMENSIONS` at the end first. The official overall score of a dimension is the weighted mean
of its videos' scores times `scale`; where frames are pooled over videos, a video's weight is its
number of frames.

Source:
    spec/evaluation.md 2.2, 3 and 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.vbench import camera, detections, features, motion, preprocess
from onereel.evaluation.vbench.features import Pixels
from onereel.evaluation.vbench.networks import Networks
from onereel.evaluation.vbench.suite import Sample
from onereel.evaluation.videos import Video

_BATCH = 16
_OBJECT_FRAMES = 16
_TEXT_FRAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What a formula says about one video.

    Args:
        value: the score; NaN when the dimension does not apply.
        weight: in the mean over videos.
        details: what else the result file shall hold.
    """

    value: float
    weight: float = 1.0
    details: Mapping[str, Any] = field(default_factory=dict)


Scorer = Callable[[Video, Sample, Networks], Scored]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One column of the benchmark.

    Args:
        score: scores one video.
        needs: fields of `Networks` that must be there.
        scale: of the overall score against the videos' scores.
        needs_image: whether a sample needs its reference picture.
        note: what a reader of the score must know.
    """

    score: Scorer
    needs: tuple[str, ...] = ()
    scale: float = 1.0
    needs_image: bool = False
    note: str = ""


def embed(
    frames: Pixels, network: Callable[[Tensor], Tensor], *, prepare: preprocess.Transform
) -> features.Floats:
    """Turn frames into features, a few at a time.

    Args:
        frames: uint8 [F, H, W, 3].
        network: takes prepared frames [N, 3, h, w], gives N rows.
        prepare: takes float frames [N, 3, H, W] in 0..255.

    Returns:
        float64, one row per frame.
    """
    rows = []
    for start in range(0, len(frames), _BATCH):
        batch = prepare(preprocess.to_tensor(frames[start : start + _BATCH]))
        with torch.inference_mode():
            rows.append(network(batch).detach().to("cpu", torch.float64).numpy())
    return np.concatenate(rows)


def _temporal_flickering(video: Video, sample: Sample, networks: Networks) -> Scored:
    return Scored(value=features.temporal_flickering(video.frames))


def _consistency(found: features.Floats) -> Scored:
    if len(found) < 2:
        return Scored(value=float("nan"))
    values = features.consistency(found)
    return Scored(value=float(values.mean()), weight=len(values))


def _subject_consistency(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.dino is not None
    return _consistency(embed(video.frames, networks.dino, prepare=preprocess.dino_frames))


def _background_consistency(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.clip_b32 is not None
    return _consistency(embed(video.frames, networks.clip_b32, prepare=preprocess.clip_frames))


def _motion_smoothness(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.interpolator is not None
    return Scored(value=motion.motion_smoothness(video.frames, networks.interpolator))


def _dynamic_degree(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.flow is not None
    if video.fps is None:
        hint = "give a video file, or an .npz with fps"
        raise MediaError(f"{video.path}", expected="a known frame rate", got="none", hint=hint)
    moves, strengths = motion.is_dynamic(video.frames, float(video.fps), flow=networks.flow)
    return Scored(value=float(moves), details={"pair_strengths": strengths})


def _aesthetic_quality(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.clip_l14 is not None
    assert networks.aesthetic_head is not None
    found = embed(video.frames, networks.clip_l14, prepare=preprocess.clip_frames)
    head = networks.aesthetic_head
    return Scored(value=float(features.aesthetic(found, head.weight, bias=head.bias).mean()))


def _imaging_quality(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.imaging is not None
    scores = embed(video.frames, networks.imaging, prepare=preprocess.musiq_frames)
    return Scored(value=float(scores.reshape(len(video.frames)).mean()))


def _appearance_style(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.clip_b32 is not None
    style = str(_auxiliary(sample, "appearance_style")["appearance_style"])

    def prepare(frames: Tensor) -> Tensor:
        pictures = frames.permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return torch.stack([preprocess.clip_image(Image.fromarray(p)) for p in pictures])

    found = embed(video.frames, networks.clip_b32, prepare=prepare)
    with torch.inference_mode():
        text = networks.clip_b32.embed_text([style]).to("cpu", torch.float64).numpy()
    cosines = features.normalized(found) @ features.normalized(text)[0]
    return Scored(value=float(cosines.mean()), weight=len(video.frames))


def _video_text(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.viclip is not None
    chosen = video.frames[features.middle_indices(len(video.frames), _TEXT_FRAMES)]
    frames = preprocess.clip_frames(preprocess.to_tensor(chosen).to(torch.uint8))
    with torch.inference_mode():
        seen = networks.viclip.embed_video(frames).to("cpu", torch.float64).numpy()
        text = networks.viclip.embed_text([sample.prompt]).to("cpu", torch.float64).numpy()
    return Scored(value=float(features.normalized(seen) @ features.normalized(text)[0]))


def _object_frames(video: Video) -> Pixels:
    return video.frames[features.middle_indices(len(video.frames), _OBJECT_FRAMES)]


def _object_class(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.detector is not None
    wanted = str(_auxiliary(sample, "object_class")["object"])
    frames = networks.detector(_object_frames(video))
    hits = detections.object_frames(frames, [wanted])
    return Scored(value=hits / len(frames), weight=len(frames))


def _multiple_objects(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.detector is not None
    wanted = str(_auxiliary(sample, "multiple_objects")["object"]).split(" and ")
    frames = networks.detector(_object_frames(video))
    hits = detections.object_frames(frames, wanted)
    return Scored(value=hits / len(frames), weight=len(frames))


def _color(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.detector is not None
    colour = str(_auxiliary(sample, "color")["color"])
    label = detections.coloured_object(sample.prompt, colour)
    frames = networks.detector(_object_frames(video))
    seen, right = detections.colour_frames(frames, label, colour=colour)
    details = {"object_frames": seen, "color_frames": right}
    # A video whose captions name no colour is left out of the mean: it weighs nothing.
    return Scored(value=right / seen if seen else 0.0, weight=min(seen, 1), details=details)


def _spatial_relationship(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.detector is not None
    wanted = _auxiliary(sample, "spatial_relationship")["spatial_relationship"]
    labels = (str(wanted["object_a"]), str(wanted["object_b"]))
    relation = str(wanted["relationship"])
    frames = networks.detector(_object_frames(video))
    scores = [detections.best_spatial_score(f, labels, relation=relation) for f in frames]
    return Scored(value=float(np.mean(scores)), weight=len(scores))


def _scene(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.captioner is not None
    wanted = str(_auxiliary(sample, "scene")["scene"]["scene"])
    captions = networks.captioner(_object_frames(video))
    hits = detections.scene_frames(captions, wanted)
    return Scored(value=hits / len(captions), weight=len(captions))


def _human_action(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.actions is not None
    ranked = networks.actions(_object_frames(video))
    hit = detections.action_hit(sample.prompt, ranked)
    return Scored(value=float(hit), details={"top": [list(pair) for pair in ranked[:5]]})


def _i2v_subject(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.dino is not None
    reference = preprocess.i2v_dino_image(_picture(sample))[None]
    return _i2v(video, reference, networks.dino, preprocess.i2v_dino_frames)


def _i2v_background(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.dreamsim is not None
    reference = preprocess.dreamsim_image(_picture(sample))[None]
    return _i2v(video, reference, networks.dreamsim, preprocess.dreamsim_frames)


def _i2v(
    video: Video,
    reference: Tensor,
    network: Callable[[Tensor], Tensor],
    prepare: preprocess.Transform,
) -> Scored:
    with torch.inference_mode():
        picture = network(reference)[0].to("cpu", torch.float64).numpy()
    found = embed(video.frames, network, prepare=prepare)
    return Scored(value=features.image_consistency(picture, found))


def _camera_motion(video: Video, sample: Sample, networks: Networks) -> Scored:
    assert networks.tracker is not None
    wanted = camera.wanted_move(sample.prompt)
    points = np.asarray(networks.tracker(video.frames)).astype(int)
    moves = camera.camera_moves(points[0], points[-1], size=video.frames.shape[1:3])
    details = {"type": wanted, "found": sorted(moves)}
    return Scored(value=float(wanted in moves), details=details)


def _auxiliary(sample: Sample, dimension: str) -> Mapping[str, Any]:
    found = sample.auxiliary.get(dimension)
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"prompt '{sample.prompt}'",
            expected=f"auxiliary_info for {dimension}",
            got=str(dict(sample.auxiliary)),
            hint="score this dimension on videos of the official list",
        )
    return found


def _picture(sample: Sample) -> Image.Image:
    if sample.image is None:
        hint = "give a folder of pictures named like the videos"
        raise MediaError(f"{sample.path}", expected="a reference picture", got="none", hint=hint)
    try:
        with Image.open(sample.image) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"picture {sample.image} cannot be read ({error})") from error


_FROZEN = "a frozen video gets 1: read it beside dynamic_degree"
_POOLED = "mean over the frames of all videos, as the official tool does on one process"

DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension(score=_subject_consistency, needs=("dino",), note=_POOLED),
    "background_consistency": Dimension(
        score=_background_consistency, needs=("clip_b32",), note=_POOLED
    ),
    "temporal_flickering": Dimension(
        score=_temporal_flickering, note=f"{_FROZEN}; meant for prompts of still scenes"
    ),
    "motion_smoothness": Dimension(score=_motion_smoothness, needs=("interpolator",), note=_FROZEN),
    "dynamic_degree": Dimension(
        score=_dynamic_degree,
        needs=("flow",),
        note="a video with one or two sampled frames always counts as moving",
    ),
    "aesthetic_quality": Dimension(score=_aesthetic_quality, needs=("clip_l14", "aesthetic_head")),
    "imaging_quality": Dimension(
        score=_imaging_quality, needs=("imaging",), scale=0.01, note="videos' scores are 0..100"
    ),
    "object_class": Dimension(score=_object_class, needs=("detector",)),
    "multiple_objects": Dimension(score=_multiple_objects, needs=("detector",)),
    "human_action": Dimension(score=_human_action, needs=("actions",)),
    "color": Dimension(
        score=_color, needs=("detector",), note="videos whose captions name no colour are left out"
    ),
    "spatial_relationship": Dimension(
        score=_spatial_relationship,
        needs=("detector",),
        note="left counts as right, above as below, and the objects may be exchanged",
    ),
    "scene": Dimension(score=_scene, needs=("captioner",)),
    "appearance_style": Dimension(score=_appearance_style, needs=("clip_b32",), note=_POOLED),
    "temporal_style": Dimension(score=_video_text, needs=("viclip",)),
    "overall_consistency": Dimension(score=_video_text, needs=("viclip",)),
    "i2v_subject": Dimension(score=_i2v_subject, needs=("dino",), needs_image=True),
    "i2v_background": Dimension(score=_i2v_background, needs=("dreamsim",), needs_image=True),
    "camera_motion": Dimension(score=_camera_motion, needs=("tracker",)),
}
