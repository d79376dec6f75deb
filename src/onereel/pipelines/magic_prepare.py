"""A run of Magic 1-For-1 before anything is loaded: all choices made, all that can fail checked."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onereel.core.config import from_mapping
from onereel.core.device import parse_dtype, pick_device
from onereel.core.errors import ConfigError, MediaError
from onereel.media.image import read_image
from onereel.media.preflight import check_input_image, check_output, estimate_bytes
from onereel.media.scale import Pixels
from onereel.pipelines.families import check_family
from onereel.pipelines.files import describe_inputs
from onereel.pipelines.magic_parts import Place, Turns
from onereel.pipelines.magic_sampling import MagicSampleConfig, made_frames, usual_size
from onereel.pipelines.picture_index import SUFFIXES
from onereel.pipelines.prepare import check_lora
from onereel.pipelines.timeline import Timeline, parse_timeline
from onereel.pipelines.wishes import RunWishes, check_wishes, output_path
from onereel.runtime.magic_estimate import MagicEstimate, check_magic_fits, estimate_magic
from onereel.runtime.magic_shapes import MagicShapes, read_magic_shapes
from onereel.runtime.magic_source import MagicFiles, check_parts, default_dtype, magic_files
from onereel.runtime.quantize import DYNAMIC, check_level
from onereel.runtime.source import MAGIC141, ModelSource, resolve_model
from onereel.samplers.segments import Segment

SELF = "self"  # the model makes the first picture
_CLIP = "clip"  # folder inside a checkpoint with the network that searches pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicVideo:
    """The video of a run.

    Args:
        height: pixels.
        width: pixels.
        num_frames: frames that are written; the model may make up to three more.
        fps: frames per second.
        seed: of all draws.
        config: sampling settings; its own number of frames is what the model makes.
    """

    height: int
    width: int
    num_frames: int
    fps: int
    seed: int
    config: MagicSampleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicPlan:
    """One run, checked and complete.

    Args:
        settings: the wishes with every choice made, which repeat the run.
        output: the file to write, or "-".
        source: the checkpoint.
        files: its parts.
        request: the video.
        texts: prompt of every segment.
        pixels: the given picture, uint8 [H, W, 3], or None.
        place: how and where networks are loaded.
        keep_image: file for the first picture, or None.
        inputs: what is known of the input files, for the record.
    """

    settings: RunWishes
    output: str
    source: ModelSource
    files: MagicFiles
    request: MagicVideo
    texts: tuple[str, ...]
    pixels: Pixels | None
    place: Place
    keep_image: str | None = None
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """Of their weights."""
        return self.place.dtype

    @property
    def segments(self) -> list[Segment]:
        """The passes."""
        return self.request.config.segments()

    @property
    def first_text(self) -> str:
        """The prompt of the first picture; changes to a kept run leave that as it is."""
        return _timeline(self.settings).entries[0].prompt

    @property
    def num_steps(self) -> int:
        """Updates of the whole video."""
        return len(self.segments) * self.request.config.num_steps

    def estimate(self) -> MagicEstimate:
        """Estimate memory and work."""
        return estimate_video(self.request, read_magic_shapes(self.files), place=self.place)


def estimate_video(video: MagicVideo, shapes: MagicShapes, *, place: Place) -> MagicEstimate:
    """Estimate memory and work.

    Args:
        video: the video.
        shapes: the checkpoint's networks.
        place: where networks run.

    Returns:
        The estimate.
    """
    return estimate_magic(
        shapes,
        size=(video.height, video.width),
        segments=[segment.num_latents for segment in video.config.segments()],
        calls_per_segment=video.config.num_steps * (2 if video.config.guided else 1),
        place=(place.device, place.dtype, place.level),
    )


def prepare_magic(
    wishes: RunWishes,
    output: str | None = None,
    *,
    keep_image: str | None = None,
    given: Collection[str] = (),
    files: MagicFiles | None = None,
) -> MagicPlan:
    """Check a run and make every choice that was left open; nothing heavy is loaded.

    Args:
        wishes: what is wanted.
        output: the file to write; None takes `onereel-<seed>.mp4` in the working folder.
        keep_image: file for the first picture.
        given: names of the wishes that the user named.
        files: the checkpoint, where its parts are not in one folder.

    Returns:
        The plan.

    Raises:
        ConfigError: a setting is wrong, or means nothing to this family.
        MediaError: an input cannot be read, or the output not be written.
        CheckpointError: the checkpoint is incomplete or damaged.
        OutOfMemory: memory or disk does not suffice.
        BackendUnavailable: the device or an encoder is missing.
    """
    check_wishes(wishes)
    check_family(wishes, given, family=MAGIC141)
    if files is None:
        source = resolve_model(wishes.model)
        files = magic_files(source)
    else:
        source = ModelSource(kind="folder", path=files.places["transformer"], name=files.name)
    sampling = from_mapping(MagicSampleConfig, files.sampling, where=f"{source.name}: sampling")
    check_parts(files)
    pixels = None if wishes.image is None else read_picture(wishes.image)
    _check_picture(wishes, files, keep_image)
    video = plan_video(wishes, sampling, pixels=pixels)
    settings = _complete(wishes, video, source)
    output = output_path(settings, output, seed=video.seed)
    size = estimate_bytes(video.width, video.height, num_frames=video.num_frames)
    check_output(output, estimated_bytes=size)
    for path, _ in wishes.loras:
        check_lora(path)
    plan = MagicPlan(
        settings=settings,
        output=output,
        source=source,
        files=files,
        request=video,
        texts=segment_texts(settings, video),
        pixels=pixels,
        place=_place(wishes, files),
        keep_image=keep_image,
        inputs=describe_inputs(settings),
    )
    check_magic_fits(plan.estimate(), turns=plan.place.turns)
    return plan


def _place(wishes: RunWishes, files: MagicFiles) -> Place:
    if wishes.quantize is not None:
        check_level(wishes.quantize)
        if wishes.loras and wishes.quantize == DYNAMIC:
            raise ConfigError(f"--quantize {DYNAMIC} and --lora", hint="use --quantize int8")
    device = pick_device(wishes.device)
    dtype = parse_dtype(wishes.dtype) if wishes.dtype else default_dtype(files, device)
    turns: Turns = "reload" if wishes.low_memory else "move" if wishes.offload else "stay"
    return Place(device=device, dtype=dtype, level=wishes.quantize, turns=turns)


def read_picture(path: str) -> Pixels:
    """Read a given picture at its own size.

    Args:
        path: an image file of any mode.

    Returns:
        uint8 [H, W, 3].

    Raises:
        MediaError: it is missing, damaged, too large, or no image.
    """
    check_input_image(path)
    return read_image(path)


def _check_picture(wishes: RunWishes, files: MagicFiles, keep_image: str | None) -> None:
    """Look whether a first picture can be had, and kept."""
    source = SELF if wishes.image_source is None else wishes.image_source
    if wishes.image is None and source != SELF:
        picture_files(source)
        clip_folder(wishes, files)
    elif wishes.image is None and not files.makes_pictures:
        raise ConfigError(
            f"model '{files.name}' goes from a picture to a video", expected="a first picture",
            got="none", hint="give --image FILE, or a folder to search with --image-source",
        )  # fmt: skip
    if keep_image is None:
        return
    if wishes.image is not None:
        raise ConfigError("--keep-image and --image", hint="the picture is kept already")
    path = Path(keep_image)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(
            f"--keep-image {path}", expected="a name ending in .png, .jpg or .webp",
            got=path.suffix or "no suffix", hint=f"use {path.with_suffix('.png')}",
        )  # fmt: skip
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise MediaError(
            f"--keep-image {path} cannot be written", hint="name a file in a folder that exists"
        )


def picture_files(folder: str) -> list[Path]:
    """List the pictures of a folder that is to be searched.

    Args:
        folder: it and all below are looked at.

    Returns:
        At least one file.

    Raises:
        MediaError: there is no such folder, or no picture in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MediaError(
            f"--image-source {folder} is no folder",
            hint=f"name a folder of pictures, or '{SELF}' to let the model make one",
        )
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise MediaError(
            f"--image-source {folder} holds no picture",
            hint=f"put some there ({', '.join(sorted(SUFFIXES))})",
        )
    return sorted(found)


def clip_folder(wishes: RunWishes, files: MagicFiles) -> Path:
    """Find the network that searches pictures: the one that is named, or the checkpoint's.

    Args:
        wishes: may name it.
        files: the checkpoint.

    Returns:
        A folder of transformers' `CLIPModel` and its processor.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(wishes.clip) if wishes.clip else files.places["transformer"].parent / _CLIP
    if not (folder / "config.json").is_file():
        got = str(folder) if wishes.clip else "none in the checkpoint"
        raise ConfigError(
            "--image-source needs a CLIP model to compare texts and pictures",
            expected="a folder with its config.json", got=got,
            hint="give it with --clip DIR, such as a download of openai/clip-vit-large-patch14",
        )  # fmt: skip
    return folder


def plan_video(
    wishes: RunWishes, sampling: MagicSampleConfig, *, pixels: Pixels | None = None
) -> MagicVideo:
    """Choose what is open of a video.

    Args:
        wishes: what is wanted.
        sampling: the checkpoint's settings.
        pixels: the given picture.

    Returns:
        The video.

    Raises:
        ConfigError: a setting is wrong.
    """
    fps = wishes.fps or sampling.fps
    num_frames = wishes.num_frames or sampling.num_frames
    if wishes.seconds is not None:
        num_frames = round(wishes.seconds * fps)
        if num_frames < 1:
            raise ConfigError(
                "seconds", expected=f"at least one frame at {fps} fps", got=wishes.seconds,
                hint=f"use {1 / fps:.3f} or more",
            )  # fmt: skip
    height, width = wishes.height, wishes.width
    if height is None or width is None:
        shape = () if pixels is None else ((pixels.shape[1], pixels.shape[0]),)
        height, width = usual_size(sampling, *shape)
    changes: dict[str, Any] = {
        "num_steps": wishes.steps,
        "guidance_scale": wishes.guidance,
        "negative_prompt": wishes.negative,
        "continuation": wishes.continuation,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    config = dataclasses.replace(
        sampling, num_frames=made_frames(num_frames), fps=fps,
        height=height, width=width, **changes,
    )  # fmt: skip
    if wishes.negative is not None and not config.guided:
        raise ConfigError(
            "--negative", expected="guidance above 1", got=config.guidance_scale,
            hint="leave it out, or give --guidance 3: without guidance there is a single pass",
        )  # fmt: skip
    if wishes.official_compat and wishes.seed is not None and wishes.seed >= 2**32:
        raise ConfigError("seed", expected="below 2^32, as officially", got=wishes.seed)
    return MagicVideo(
        height=height,
        width=width,
        num_frames=num_frames,
        fps=fps,
        seed=secrets.randbelow(2**32) if wishes.seed is None else wishes.seed,
        config=config,
    )


def _complete(wishes: RunWishes, video: MagicVideo, source: ModelSource) -> RunWishes:
    """Write all choices down."""
    return dataclasses.replace(
        wishes,
        model=wishes.model or source.name,
        seconds=None,
        num_frames=video.num_frames,
        fps=video.fps,
        height=video.height,
        width=video.width,
        seed=video.seed,
    )


def segment_texts(wishes: RunWishes, video: MagicVideo) -> tuple[str, ...]:
    """Give every segment its prompt.

    A prompt of a timeline holds from the first segment on whose new frames start at or after its
    second; changes to a kept run come after it.

    Args:
        wishes: with a prompt or a timeline.
        video: gives the segments.

    Returns:
        One prompt per segment.
    """
    timeline = _timeline(wishes)
    starts = [segment.first_frame() / video.fps for segment in video.config.segments()]
    texts = [timeline.prompt_at(start) for start in starts]
    unused = [entry for entry in timeline.entries if entry.prompt not in texts]
    if unused:
        begins = ", ".join(f"{entry.start_s:g} s" for entry in unused)
        warnings.warn(
            f"timeline: the prompts from {begins} are never shown; the video has {len(starts)} "
            f"segments, which begin at {', '.join(f'{start:.2f}' for start in starts)} s, each "
            "with one prompt. hint: make the video longer, or put prompts further apart",
            stacklevel=2,
        )
    for segment, text in sorted(wishes.edited("prompt").items()):
        texts[segment:] = [text] * len(texts[segment:])
    return tuple(texts)


def _timeline(wishes: RunWishes) -> Timeline:
    if wishes.prompts is not None:
        return parse_timeline(wishes.prompts)
    assert wishes.prompt is not None
    return Timeline.single(wishes.prompt)
