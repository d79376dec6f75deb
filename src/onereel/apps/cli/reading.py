"""What `onereel generate` was asked for: from flags to wishes, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereel.core.errors import ConfigError
from onereel.pipelines.timeline import read_timeline
from onereel.pipelines.wishes import RunWishes

if TYPE_CHECKING:
    from onereel.pipelines.record import Recorded, Repeat

_OFFICIAL = {  # official name: ours
    "config_file": "model",
    "image_path": "image",
    "prefix_video_path": "video",
    "output_path": "output",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Whether and where a run is kept.

    Args:
        folder: that is named, or None.
        off: keep nothing.
        latents_only: decode nothing.
    """

    folder: str | None
    off: bool
    latents_only: bool

    def __post_init__(self) -> None:
        if self.off and self.folder is not None:
            raise ConfigError("--run and --no-run", expected="one of them", got="both")
        if self.off and self.latents_only:
            raise ConfigError("--latents-only and --no-run", hint="nothing would be left")

    def choose(self, output: str) -> Path | None:
        """Choose the folder.

        Args:
            output: the video.

        Returns:
            The folder; None keeps nothing.

        Raises:
            ConfigError: only latents are wanted, and no place is known for them.
        """
        from onereel.runs.keeper import default_folder

        if self.off or (self.folder is None and output == "-"):
            if self.latents_only:
                raise ConfigError("--latents-only and -o -", hint="name the folder with --run")
            return None
        return default_folder(output) if self.folder is None else Path(self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command was asked for.

    Args:
        changes: wishes that were named.
        output: the file.
        like: a video whose run is repeated.
        mode: official name of what is given.
        keep: whether and where the run is kept.
        interactive: read prompts from the input.
        keep_image: file for the first picture.
    """

    changes: dict[str, Any]
    output: str | None
    like: str | None
    mode: str | None
    keep: Keep
    interactive: bool
    keep_image: str | None


def translate(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the official argument names into ours.

    Args:
        flags: what was given, by the names of the command's parameters.

    Returns:
        The same under our names.

    Raises:
        ConfigError: both names were given, with different values.
    """
    ours = dict(flags)
    kept = ours.pop("from_image", None)
    if kept is not None and ours.setdefault("image", kept) != kept:
        raise ConfigError("--image and --from-image", hint="both name the first picture; give one")
    pairs = [(official, name, f"--{name}") for official, name in _OFFICIAL.items()]
    for official, name, shown in [*pairs, ("prompt_", "prompt", "the prompt")]:
        if official not in ours:
            continue
        value = ours.pop(official)
        if ours.setdefault(name, value) != value:
            other = "--prompt" if official == "prompt_" else f"--{official}"
            raise ConfigError(
                f"{shown} and {other}", expected="the same value or one of them",
                got=f"'{ours[name]}' and '{value}'", hint="leave one out",
            )  # fmt: skip
    return ours


def read_changes(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn flags into wishes.

    Args:
        flags: under our names, without those that are no wishes.

    Returns:
        Fields of `RunWishes` that were asked for.

    Raises:
        ConfigError: a flag is malformed, or the timeline is wrong.
    """
    changes = dict(flags)
    if "size" in changes:
        changes["width"], changes["height"] = parse_size(changes.pop("size"))
    if "lora" in changes:
        changes["loras"] = tuple(parse_lora(text) for text in changes.pop("lora"))
    if "prompts" in changes:
        changes["prompts"] = read_timeline(changes["prompts"]).as_text()
    return changes


def parse_size(text: str) -> tuple[int, int]:
    """Read a size.

    Args:
        text: such as `1280x720`.

    Returns:
        Width and height.

    Raises:
        ConfigError: it is not of this form.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ConfigError("--size", expected="WxH", got=text, hint="write it as 1280x720")
    return int(width), int(height)


def parse_lora(text: str) -> tuple[str, float]:
    """Read an adapter's file and strength.

    Args:
        text: such as `style.safetensors` or `style.safetensors:0.8`.

    Returns:
        Path and strength, 1 where none is given.
    """
    path, _, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0  # the colon belongs to the path


def read_wishes(changes: dict[str, Any], like: str | None) -> tuple[RunWishes, Repeat | None]:
    """Put together what is wanted.

    Args:
        changes: wishes that were named.
        like: a video whose run is repeated with these changes.

    Returns:
        The wishes, and the run to repeat.

    Raises:
        MediaError: the video holds no record, or an input of its run is gone.
    """
    if like is None:
        return RunWishes(**changes), None
    from onereel.pipelines.record import override, read_repeat

    repeat = read_repeat(like)
    return override(repeat.wishes, changes), repeat


def check_repeat(repeat: Repeat, plan: Recorded, *, changes: Mapping[str, Any]) -> None:
    """Refuse a repetition that would not be one, or would overwrite what it repeats.

    Args:
        repeat: the run to repeat.
        plan: what would be run, of any family.
        changes: wishes that were named.

    Raises:
        ConfigError: the output is the repeated video, or the sampling settings are others.
        MediaError: an input file is another one now.
    """
    if plan.output != "-" and Path(plan.output).resolve() == Path(repeat.path).resolve():
        raise ConfigError(f"output {plan.output}", hint="it is the --like video; set -o")
    repeat.check(plan, changes)
