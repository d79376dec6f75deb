"""The record of a run: what is kept in the video, and how it brings the run back."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onereel import __version__
from onereel.core.errors import ConfigError, MediaError
from onereel.media.metadata import read_metadata
from onereel.pipelines.wishes import RunWishes, flag

if TYPE_CHECKING:
    from onereel.pipelines.prepare import RunPlan
    from onereel.runtime.source import ModelSource

_PACKAGES = ("torch", "diffusers", "transformers", "av")
_FILES = ("image", "video", "special_tokens")


class Recorded(Protocol):
    """What a plan of any family tells of itself."""

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Name and hash of every input file, by kind."""

    @property
    def output(self) -> str:
        """The file, or "-"."""

    @property
    def source(self) -> ModelSource:
        """The checkpoint."""

    @property
    def request(self) -> Any:
        """The video; its `config` is a dataclass of the sampler's settings."""


def make_record(plan: RunPlan, *, model_hash: str) -> dict[str, Any]:
    """Write down everything about a run.

    Args:
        plan: the run.
        model_hash: of the loaded weights.

    Returns:
        JSON values.
    """
    request = plan.request
    prompts = plan.settings.prompts
    return {
        "prompt": plan.settings.prompt,
        **({} if prompts is None else {"timeline": prompts.splitlines()}),
        "negative": plan.settings.negative,
        "mode": plan.settings.mode,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "fps": request.fps,
        "num_frames": request.num_frames,
        "given_frames": plan.given_frames,
        "complete": False,
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "sampling": sampling_record(plan),
        "special_tokens": [
            field.name
            for field in dataclasses.fields(request.flags)
            if getattr(request.flags, field.name)
        ],
        "model": plan.source.name,
        "model_hash": model_hash,
        "versions": installed_versions(),
        "inputs": plan.inputs,
        "command": command_of(plan.settings, plan.output),
        "settings": plan.settings.to_settings(),
    }


def installed_versions() -> dict[str, str]:
    """Say which packages make the frames.

    Returns:
        Version by name.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"onereel": __version__, **versions}


def sampling_record(plan: Recorded) -> dict[str, Any]:
    """Write the sampler's settings as JSON values.

    Args:
        plan: the run.

    Returns:
        Every field of the config.
    """
    values = dataclasses.asdict(plan.request.config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def command_of(settings: RunWishes, output: str) -> str:
    """Write the command that makes the same video.

    Args:
        settings: complete wishes.
        output: the file.

    Returns:
        One line for a shell; a timeline stands there as the name of a file to be written.
    """
    values = settings.to_settings()
    words = ["onereel", "generate"]
    if "prompt" in values:
        words.append(str(values.pop("prompt")))
    values.pop("edits", None)  # no flags: made to a kept run
    if "width" in values and "height" in values:
        words += ["--size", f"{values.pop('width')}x{values.pop('height')}"]
    if "prompts" in values:
        values["prompts"] = "prompts.txt"
    for path, scale in values.pop("loras", ()):
        words += ["--lora", f"{path}:{scale:g}"]
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        else:
            words += [flag(name), str(value)]
    return shlex.join([*words, "-o", output])


@dataclass(frozen=True, slots=True)
class Repeat:
    """A run to be repeated.

    Args:
        path: the video that holds its record.
        record: the record.
        wishes: what was wanted, complete.
    """

    path: str
    record: Mapping[str, Any]
    wishes: RunWishes

    def check(self, plan: Recorded, changed: Collection[str]) -> None:
        """Refuse a repetition that would not be one.

        Args:
            plan: what would be run.
            changed: names of the wishes that the user changed.

        Raises:
            MediaError: an input file is another one now.
            ConfigError: the checkpoint's sampling settings are others now.
        """
        for kind, known in self.record["inputs"].items():
            now, name = plan.inputs.get(kind), "loras" if kind.startswith("lora") else kind
            if now is not None and name not in changed and now["sha256"] != known["sha256"]:
                raise MediaError(
                    f"{kind} {known['name']} has changed since {self.path} was made",
                    hint="bring the old file back, or name the new one with "
                    f"{flag(name).removesuffix('s') if name == 'loras' else flag(name)}",
                )
        if not changed and sampling_record(plan) != self.record["sampling"]:
            raise ConfigError(
                f"the sampling settings of model '{plan.source.name}' have changed since "
                f"{self.path} was made",
                hint="bring the old config back, or give --model",
            )

    def expected_hash(self, changed: Collection[str]) -> str | None:
        """Say which weights must be loaded.

        Args:
            changed: names of the wishes that the user changed.

        Returns:
            Their hash, or None when the user chose a model.
        """
        return None if "model" in changed else str(self.record["model_hash"])


def read_repeat(path: str) -> Repeat:
    """Read the run that made a video.

    Args:
        path: a video made by `onereel generate`.

    Returns:
        The run.

    Raises:
        MediaError: the file holds no such record, or an input file is gone.
        ConfigError: the record names unknown settings.
    """
    if not Path(path).is_file():
        raise MediaError(f"video {path} does not exist", hint="check the path's spelling")
    record = read_metadata(path)
    settings, inputs = record.get("settings"), record.get("inputs")
    if not isinstance(settings, dict) or not isinstance(inputs, dict):
        raise MediaError(
            f"{path} holds no settings of a run", hint="only videos of `onereel generate` do"
        )
    wishes = RunWishes.from_settings(settings, where=f"record of {path}")
    found: dict[str, Any] = {name: _find(getattr(wishes, name), path, name) for name in _FILES}
    return Repeat(path, record, dataclasses.replace(wishes, **found))


def _find(given: str | None, path: str, kind: str) -> str | None:
    """Find an input where it was, or beside the video."""
    if given is None:
        return None
    for candidate in (Path(given), Path(path).parent / Path(given).name):
        if candidate.is_file():
            return str(candidate)
    raise MediaError(
        f"{kind} {given}, from which {path} was made, is gone",
        hint=f"put it beside {path}, or name it with --{kind.replace('_', '-')}",
    )


def override(wishes: RunWishes, changes: Mapping[str, Any]) -> RunWishes:
    """Change wishes; what contradicts a change is dropped.

    Args:
        wishes: of the run to repeat.
        changes: fields and values.

    Returns:
        The changed wishes.
    """
    opposites = {
        "prompt": ("prompts",),
        "prompts": ("prompt",),
        "image": ("image_source", "clip", "video", "prefix_frames", "prefix_from", "keep_prefix"),
        "image_source": ("image",),
        "video": ("image",),
        "seconds": ("num_frames",),
    }
    dropped = {name: None for change in changes for name in opposites.get(change, ())}
    return dataclasses.replace(wishes, **{**dropped, **changes})
