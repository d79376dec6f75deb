"""The official YAML of Magic 1-For-1, read as data: nothing in it is evaluated.

Source: Open-Magic-Video/Magic-1-For-1 @7e4c12d, configs/test and test_t2v.py (names of keys).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onereel.core.config import nearest_name
from onereel.core.errors import CheckpointError, ConfigError
from onereel.pipelines.wishes import RunWishes
from onereel.runtime.magic_source import MagicFiles, magic_files
from onereel.runtime.source import MAGIC141, MODEL_INDEX, resolve_model

_LENGTH: Final = "a whole number of latent frames, at least 1"
_ENTRY: Final = "[image, latent_frames, mask_scale, prompt]"
# Keys that are followed; all others are named once.
_USED: Final = frozenset(
    {
        *("seed", "resume_ckpt", "noise_scheduler", "model.base_model_path", "model.dtype"),
        *("model.vae_model_path", "model.text_encoder_vlm_path", "model.text_encoder2_path"),
        *("scheduler.flow_shift", "scheduler.flow_reverse", "scheduler.flow_solver"),
        *("test_data.image_paths_and_scales", "inference.inversion", "inference.output_dir"),
        *("inference.num_inference_steps", "inference.guidance_scale", "inference.repeat_times"),
        *("inference.quantization", "inference.quantization_level", "inference.low_memory"),
    }
)
_PART_KEYS: Final = {
    "transformer": "resume_ckpt",
    "vae": "model.vae_model_path",
    "text_encoder": "model.text_encoder_vlm_path",
    "text_encoder_2": "model.text_encoder2_path",
}
# What reads texts and pictures for an encoder lies beside its weights.
_BESIDE: Final = {
    "text_encoder": ("tokenizer", "image_processor"),
    "text_encoder_2": ("tokenizer_2",),
}
# Keys of the official code that mean nothing here: its classes, its training, what it ignores.
_DEVELOPERS: Final = frozenset(
    {
        *("debug", "exp_name", "mode", "stage", "n_epochs", "cache_dir", "ckpt_dir", "logger"),
        *("resume_state_dict", "activation_checkpointing_models", "trainable_params", "callbacks"),
        *("is_inference", "model.module_name", "model.class_name", "model.denoising_model"),
        *("model.model_additional_kwargs", "model.vae_dtype", "model.clip_name"),
        *("model.text_encoder_path", "model.text_encoder_dtype", "model.text_encoder2_dtype"),
        *("model.text_encoder_vlm_dtype", "scheduler.num_train_timesteps", "scheduler.mode_scale"),
        *("scheduler.weighting_scheme", "scheduler.logit_mean", "scheduler.logit_std"),
        *("test_data.height", "test_data.width", "inference.cli"),
    }
)
_SECTIONS: Final = ("model", "scheduler", "test_data", "inference")


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialVideo:
    """One video of a config.

    Args:
        image: its first picture, or None.
        num_frames: frames.
        prompt: what it shows.
        name: of the file, without number or suffix.
    """

    image: str | None
    num_frames: int
    prompt: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialYaml:
    """What a config asks for.

    Args:
        files: the checkpoint, with the config's sampling settings.
        model: what the config calls it.
        videos: to be made.
        seed: of the first repetition; the next ones count on.
        repeats: of every video.
        output_dir: folder for them.
        dtype: of the weights, or None.
        switches: `quantization`, `quantization_level` and `low_memory`, where the file has them.
        notes: keys that are not followed, in words.
    """

    files: MagicFiles
    model: str
    videos: tuple[OfficialVideo, ...]
    seed: int
    repeats: int
    output_dir: Path
    dtype: str | None
    switches: Mapping[str, Any]
    notes: tuple[str, ...]

    def jobs(self) -> Iterator[tuple[RunWishes, str]]:
        """List all videos.

        Yields:
            Wishes, and a name for the file that none of the others has.
        """
        names = [video.name for video in self.videos]
        for number, video in enumerate(self.videos):
            earlier = names[:number].count(video.name)
            stem = f"{video.name}-{earlier + 1}" if earlier else video.name
            for repeat in range(self.repeats):
                name = f"{stem}_repeat-{repeat}"
                wishes = dataclasses.replace(
                    self.wishes(), prompt=video.prompt, image=video.image,
                    num_frames=video.num_frames, seed=self.seed + repeat,
                )  # fmt: skip
                yield wishes, name

    def wishes(self) -> RunWishes:
        """Return what all videos share."""
        return RunWishes(model=self.model, dtype=self.dtype)


def read_official_yaml(path: str | Path) -> OfficialYaml:
    """Read a config.

    Args:
        path: a YAML file.

    Returns:
        What it asks for.

    Raises:
        ConfigError: it cannot be read, or a value is wrong.
        CheckpointError: the model is incomplete.
    """
    path = Path(path)
    flat, notes = _flatten(_load(path), path)
    for key, wanted in (
        ("noise_scheduler", "flow"),
        ("scheduler.flow_solver", "euler"),
        ("scheduler.flow_reverse", True),
    ):
        if flat.get(key, wanted) != wanted:
            raise ConfigError(f"{path}: {key}", expected=str(wanted), got=flat[key])
    sampling: dict[str, Any] = {}
    for key, name, kind in (
        ("inference.num_inference_steps", "num_steps", int),
        ("inference.guidance_scale", "guidance_scale", float),
        ("scheduler.flow_shift", "shift", float),
        ("inference.inversion", "inversion", bool),
    ):
        if flat.get(key) is not None:
            sampling[name] = _typed(flat[key], kind, f"{path}: {key}")
    files, model, missing = _files(flat, path)
    dtype = flat.get("model.dtype")
    return OfficialYaml(
        files=dataclasses.replace(files, sampling={**files.sampling, **sampling}),
        model=model,
        videos=tuple(_videos(flat.get("test_data.image_paths_and_scales") or [], path)),
        seed=_typed(flat.get("seed", 39), int, f"{path}: seed"),
        repeats=_typed(flat.get("inference.repeat_times", 1), int, f"{path}: repeat_times"),
        output_dir=Path(flat.get("inference.output_dir") or Path("outputs/inference") / path.stem),
        dtype=None if dtype is None else str(dtype),
        switches={
            name: flat[f"inference.{name}"]
            for name in ("quantization", "quantization_level", "low_memory")
            if flat.get(f"inference.{name}") is not None
        },
        notes=(*notes, *missing),
    )


def _load(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}", got=error.strerror, hint="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config {path}", expected="YAML of plain values", got=reason) from error
    if not isinstance(data, Mapping):
        got = type(data).__name__
        raise ConfigError(f"config {path}", expected="names and values", got=got)
    return data


def _flatten(data: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Write sections as dotted names; says which are not followed."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": entry for name, entry in value.items()})
        elif key in _SECTIONS and value is not None:
            raise ConfigError(f"{path}: {key}", expected="a section", got=value)
        else:
            flat[str(key)] = value
    roots = {name.split(".")[0] for name in _DEVELOPERS if "." not in name}
    silent = [key for key in flat if key in _DEVELOPERS or key.split(".")[0] in roots]
    unknown = [key for key in flat if key not in _USED and key not in silent]
    notes = []
    if silent:
        notes.append(f"{path.name}: not needed here: {', '.join(silent)}")
    for key in unknown:
        near = nearest_name(key, _USED)
        hint = f"; did you mean '{near}'?" if near else ""
        notes.append(f"{path.name}: unknown key '{key}' is not followed{hint}")
    return flat, notes


def _typed(value: Any, kind: type, where: str) -> Any:
    """Take a number or a switch as what it is; never a text that looks like one."""
    is_switch = isinstance(value, bool)
    good = is_switch if kind is bool else isinstance(value, int | float) and not is_switch
    if not good or (kind is int and value != int(value)):
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(where, expected=names[kind], got=repr(value))
    return kind(value)


def _videos(entries: Any, path: Path) -> Iterator[OfficialVideo]:
    where = f"{path}: test_data.image_paths_and_scales"
    if not isinstance(entries, list):
        raise ConfigError(where, expected=f"a list of {_ENTRY}", got=type(entries).__name__)
    for number, entry in enumerate(entries, start=1):
        here = f"{where}: entry {number}"
        if not isinstance(entry, list) or len(entry) != 4:
            raise ConfigError(here, expected=_ENTRY, got=repr(entry)[:60])
        image, length, _mask_scale, prompt = entry  # the third is a leftover of another model
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ConfigError(here, expected=_LENGTH, got=repr(length))
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(here, expected="a prompt", got=repr(prompt)[:60])
        file = None if image in (None, "") else str(_find(str(image), path) or image)
        yield OfficialVideo(
            image=file,
            num_frames=4 * (length - 1) + 1,
            prompt=prompt.strip(),
            name=f"video-{number}" if file is None else Path(file).stem,
        )


def _find(text: str, config: Path) -> Path | None:
    """Find a path from the working folder, the config's, or one above it."""
    wanted = Path(text).expanduser()
    folder = config.absolute().parent
    places = (Path.cwd(), folder, *folder.parents)
    return next((place / wanted for place in places if (place / wanted).exists()), None)


def _files(flat: Mapping[str, Any], path: Path) -> tuple[MagicFiles, str, list[str]]:
    """Find the model: one folder of ours, a file or folder per part, or both; and what lacks."""
    base = str(flat.get("model.base_model_path") or "")
    found = _find(base, path) if base else None
    if base and (found is None or (found / MODEL_INDEX).is_file()):
        try:
            source = resolve_model(found or base)
        except (ConfigError, CheckpointError):
            source = None
        if source is not None and source.family == MAGIC141:
            files, missing = _with_parts(magic_files(source), flat, path)
            return files, str(found or base), missing
    places: dict[str, Path] = {}
    for part, key in _PART_KEYS.items():
        place = _find(str(flat[key]), path) if flat.get(key) else None
        place = found if place is None and part == "transformer" else place
        if place is None:
            raise ConfigError(
                f"{path}: {key}", expected="a path that exists", got=flat.get(key) or "none",
                hint="or set model.base_model_path to a checkpoint's name, or to a folder that "
                "onereel saved; it holds all parts",
            )  # fmt: skip
        places[part] = place
    places |= {name: places[part] for part, names in _BESIDE.items() for name in names}
    files = MagicFiles(name=path.stem, places=places, makes_pictures=False)
    return files, str(places["transformer"]), []


def _with_parts(
    files: MagicFiles, flat: Mapping[str, Any], path: Path
) -> tuple[MagicFiles, list[str]]:
    """Take the parts that a config names rather than the base's; say which are not there."""
    places, missing = dict(files.places), []
    for part, key in _PART_KEYS.items():
        place = _find(str(flat[key]), path) if flat.get(key) else None
        if place is not None:
            places |= dict.fromkeys((part, *_BESIDE.get(part, ())), place)
        elif flat.get(key):
            missing.append(f"{path}: {key}: {flat[key]} is not there; {files.name} has its own")
    return dataclasses.replace(files, places=places), missing
