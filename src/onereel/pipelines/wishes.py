"""What a user wants of one run, checked as far as it goes without a model (and without torch)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onereel.core.config import from_mapping
from onereel.core.errors import ConfigError

MAX_SIZE = 8192
MAX_SECONDS = 24 * 3600
MAX_FPS = 240
MAX_WORDS = 2000  # the text encoder reads about 500
STYLES = ("3d", "anime")
FIRST_FRAMES = ("static", "dynamic")
POLICIES = ("fit", "crop", "pad")
ENDS = ("start", "end")
CONTINUATIONS = ("picture", "latent")

Lora = tuple[str, float]
Edit = tuple[int, str, str | int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunWishes:
    """What a user wants; None leaves the choice to the checkpoint.

    Args:
        prompt: what the video shows.
        prompts: text of a timeline (see `timeline.py`) instead of one prompt.
        negative: what it shall not show, instead of the model's learned null caption.
        image: picture that the video starts with.
        video: video whose continuation is made.
        model: shipped name, folder or official JSON config.
        seconds: length of the new video.
        num_frames: the same in frames.
        width: pixels.
        height: pixels.
        fps: frames per second.
        steps: updates per chunk.
        seed: of the noise; None draws one.
        guidance: strength towards the text; 1 is a single pass.
        prev_scale: strength towards earlier chunks.
        hq: the token that asks for high quality.
        duration: the token that tells each chunk how many follow.
        style: `3d` or `anime`.
        first_frames: `static` or `dynamic`.
        special_tokens: file of the token table, instead of the checkpoint's.
        loras: files of LoRA adapters, with their strengths.
        device: where to run.
        dtype: of the weights.
        policy: how inputs of another aspect ratio are made to fit: `fit`, `crop`, `pad`.
        prefix_frames: frames of the given video that are continued.
        prefix_from: the end of the given video that they are taken from.
        keep_prefix: put them in front of the new frames.
        official_compat: reproduce the official code's lengths, tiles and roundings.
        offload: keep on the device only what is working.
        quantize: level to which weights are rounded as they are loaded, see `runtime/quantize.py`.
        image_source: where the first picture of a Magic 1-For-1 video comes from without `image`:
            `self`, the model at one frame, or a folder that is searched for the prompt.
        clip: folder of the CLIP model that searches it.
        continuation: what a segment of Magic 1-For-1 begins with, `picture` or `latent`.
        low_memory: as `offload`, and the blocks of the transformer take turns on a GPU; networks of
            Magic 1-For-1 are loaded when their turn comes, and let go before the next.
        edits: changes made to a kept run: the generated chunk, counted from 0, from which on one
            holds, `prompt` or `seed`, and its value.
    """

    prompt: str | None = None
    prompts: str | None = None
    negative: str | None = None
    image: str | None = None
    video: str | None = None
    model: str | None = None
    seconds: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: int | None = None
    steps: int | None = None
    seed: int | None = None
    guidance: float | None = None
    prev_scale: float | None = None
    hq: bool | None = None
    duration: bool | None = None
    style: str | None = None
    first_frames: str | None = None
    special_tokens: str | None = None
    loras: tuple[Lora, ...] = ()
    device: str | None = None
    dtype: str | None = None
    policy: str = "fit"
    prefix_frames: int | None = None
    prefix_from: str | None = None
    keep_prefix: bool | None = None
    official_compat: bool = False
    offload: bool = False
    quantize: str | None = None
    image_source: str | None = None
    clip: str | None = None
    continuation: str | None = None
    low_memory: bool = False
    edits: tuple[Edit, ...] = ()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], *, where: str) -> RunWishes:
        """Read what `to_settings` wrote.

        Args:
            settings: plain values.
            where: what error messages call them.

        Returns:
            The wishes.

        Raises:
            ConfigError: a name is unknown.
        """
        wishes = from_mapping(cls, settings, where=where)
        loras = tuple((str(path), float(scale)) for path, scale in wishes.loras)
        edits = tuple((int(chunk), str(name), value) for chunk, name, value in wishes.edits)
        return dataclasses.replace(wishes, loras=loras, edits=edits)

    def edited(self, name: str) -> dict[int, Any]:
        """Collect edits.

        Args:
            name: `prompt` or `seed`.

        Returns:
            Value by the generated chunk from which on it holds.
        """
        return {chunk: value for chunk, kind, value in self.edits if kind == name}

    def with_prompt_from(self, chunk: int, prompt: str) -> RunWishes:
        """Show something else from a chunk on, instead of what was asked for before; seeds stay.

        Args:
            chunk: generated chunk, counted from 0.
            prompt: what is shown.

        Returns:
            The wishes.
        """
        others = (edit for edit in self.edits if edit[1] != "prompt" or edit[0] < chunk)
        return dataclasses.replace(self, edits=(*others, (chunk, "prompt", prompt)))

    def to_settings(self) -> dict[str, Any]:
        """Write the wishes that differ from the default as plain values for JSON."""
        values = dataclasses.asdict(self)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}

    @property
    def mode(self) -> str:
        """Return `t2v`, `i2v` or `v2v`, by the inputs."""
        return "i2v" if self.image else "v2v" if self.video else "t2v"


def check_wishes(wishes: RunWishes) -> None:
    """Refuse what no checkpoint could do.

    Args:
        wishes: what is wanted.

    Raises:
        ConfigError: a value is wrong, or two contradict each other.
    """
    _check_text(wishes)
    _check_together(wishes)
    _check_size(wishes)
    _check_length(wishes)
    _check_numbers(wishes)
    for name, known in (
        ("style", STYLES),
        ("first_frames", FIRST_FRAMES),
        ("policy", POLICIES),
        ("prefix_from", ENDS),
        ("continuation", CONTINUATIONS),
    ):
        value = getattr(wishes, name)
        if value is not None and value not in known:
            raise ConfigError(name, expected=" or ".join(known), got=value)


def _check_text(wishes: RunWishes) -> None:
    if wishes.prompt is None and wishes.prompts is None:
        raise ConfigError(
            "prompt", expected="a text", got="none",
            hint="say what the video shows: onereel generate 'a red disc bounces'",
        )  # fmt: skip
    for name, text in (("prompt", wishes.prompt), ("negative", wishes.negative)):
        if text is None:
            continue
        if not text.strip():
            raise ConfigError(
                name, expected="a text", got=repr(text),
                hint="say what the video shows, such as 'a red disc bounces'"
                if name == "prompt" else "leave --negative out for the learned null caption",
            )  # fmt: skip
        words = len(text.split())
        if words > MAX_WORDS:
            raise ConfigError(
                name, expected=f"at most {MAX_WORDS} words", got=f"{words} words",
                hint="the text encoder reads about 500; shorten it, or give scenes their own "
                "times with --prompts FILE",
            )  # fmt: skip


def _check_together(wishes: RunWishes) -> None:
    pairs = (
        ("prompt", "prompts", "give one text, or a timeline"),
        ("image", "image_source", "the picture is given, or it is made or found"),
        ("offload", "low_memory", "both let networks take turns; --low-memory needs the least"),
        ("image", "video", "a video starts with a picture or continues a video"),
        ("seconds", "num_frames", "both are the length of the new video"),
    )
    for first, second, hint in pairs:
        if all(getattr(wishes, name) not in (None, False) for name in (first, second)):
            raise ConfigError(
                f"{flag(first)} and {flag(second)}", expected="one of them", got="both", hint=hint
            )
    if wishes.clip is not None and wishes.image_source in (None, "self"):
        raise ConfigError("--clip", hint="it needs --image-source FOLDER to search")
    if wishes.video is None:
        for name in ("prefix_frames", "prefix_from", "keep_prefix"):
            if getattr(wishes, name) is not None:
                raise ConfigError(flag(name), hint="it needs --video FILE to continue")


def _check_size(wishes: RunWishes) -> None:
    for name, size in (("width", wishes.width), ("height", wishes.height)):
        if size is None:
            continue
        if size > MAX_SIZE:
            raise ConfigError(
                f"size: {name}", expected=f"at most {MAX_SIZE}", got=size, hint="use 1280x720"
            )
        if size < 16 or size % 16:
            below, above = max(16, size // 16 * 16), max(16, math.ceil(size / 16) * 16)
            raise ConfigError(
                f"size: {name}", expected="a multiple of 16, at least 16", got=size,
                hint=f"use {below}" + (f" or {above}" if above != below else ""),
            )  # fmt: skip


def _check_length(wishes: RunWishes) -> None:
    if wishes.fps is not None and not 1 <= wishes.fps <= MAX_FPS:
        raise ConfigError("fps", expected=f"1 to {MAX_FPS}", got=wishes.fps, hint="use 24")
    if wishes.official_compat and wishes.fps is not None and wishes.fps < 8:
        raise ConfigError(
            "fps", expected="at least 8 with --official-compat, whose tiles are half a second",
            got=wishes.fps, hint="use 24",
        )  # fmt: skip
    seconds = wishes.seconds
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
        raise ConfigError(
            "seconds", expected="more than 0 and at most 24 hours", got=seconds, hint="use 4"
        )
    most = MAX_SECONDS * (wishes.fps or 24)
    if wishes.num_frames is not None and not 1 <= wishes.num_frames <= most:
        raise ConfigError(
            "num_frames", expected="at least 1 and at most 24 hours", got=wishes.num_frames,
            hint="use 96",
        )  # fmt: skip


def _check_numbers(wishes: RunWishes) -> None:
    for name in ("guidance", "prev_scale"):
        value = getattr(wishes, name)
        if value is not None and not (math.isfinite(value) and 0 <= value <= 100):
            raise ConfigError(flag(name), expected="0 to 100", got=value, hint="use 7.5")
    if wishes.steps is not None and not 1 <= wishes.steps <= 1000:
        raise ConfigError("steps", expected="1 to 1000", got=wishes.steps, hint="use 64")
    if wishes.seed is not None and not 0 <= wishes.seed < 2**63:
        raise ConfigError("seed", expected="0 to 2^63 - 1", got=wishes.seed, hint="use 1234")
    if wishes.prefix_frames is not None and wishes.prefix_frames < 1:
        raise ConfigError("prefix_frames", expected="at least 1", got=wishes.prefix_frames)
    for path, scale in wishes.loras:
        if not math.isfinite(scale):
            raise ConfigError(f"lora {path}", expected="a strength such as 0.8", got=scale)


def flag(name: str) -> str:
    """Name the command line's flag of a wish.

    Args:
        name: of the field.

    Returns:
        The flag; the prompt is called by its name.
    """
    return "the prompt" if name == "prompt" else f"--{name.replace('_', '-')}"


def output_path(wishes: RunWishes, output: str | None, *, seed: int) -> str:
    """Choose the output file.

    Args:
        wishes: give the inputs, which must not be overwritten.
        output: what the user asked for.
        seed: goes into the default name.

    Returns:
        The path, or "-" for standard output.

    Raises:
        ConfigError: the output would overwrite an input.
    """
    path = output or f"onereel-{seed}.mp4"
    for given in (wishes.image, wishes.video):
        if given is not None and path != "-" and Path(given).resolve() == Path(path).resolve():
            raise ConfigError(f"output {path}", hint="it is the input; choose another name with -o")
    return path
