"""Making all videos of a protocol: resumable, and never at the cost of a file that is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onereel.core.errors import ConfigError, MediaError
from onereel.evaluation.physics_iq.clips import ClipFile, plain_rate, stream_frames
from onereel.evaluation.physics_iq.dataset import PhysicsIqDataset, refuse
from onereel.evaluation.physics_iq.protocol import GenerationJob, Protocol, plan_generation
from onereel.media.metadata import sidecar_path
from onereel.media.video import probe

Generate = Callable[[GenerationJob, Path], None]
Progress = Callable[[int, int, str], None]

_SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationReport:
    """What was made.

    Args:
        folder: holds one video per job.
        made: file names made now.
        kept: file names that were finished before.
    """

    folder: Path
    made: tuple[str, ...] = field(default=())
    kept: tuple[str, ...] = field(default=())


def generate_videos(
    dataset: PhysicsIqDataset,
    *,
    protocol: Protocol,
    fps: int,
    generate: Generate,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> GenerationReport:
    """Make every video of a protocol that is not there yet.

    A video is made under another name, checked, and only then moved to its place. Drafts and the
    settings lie in `{out}.generation` beside the folder, so that `out` holds nothing but videos, as
    the official tool wants it.

    Args:
        dataset: the scenarios.
        protocol: "i2v" or "v2v".
        fps: of the model, a whole number.
        generate: takes a job and a path that ends in .mp4, and writes the video there: exactly
            `num_frames` frames, none of those given.
        out: folder of the model's videos.
        settings: JSON values that change the videos, such as model, steps and seed; going on with
            others is refused.
        progress: is told (videos done, videos in all, file name) before each video and at the end.

    Returns:
        What was made and what was kept.

    Raises:
        ConfigError: the folder was made with other settings, or by something else.
        MediaError: inputs are missing, a video that is there is not valid, or one that was made is
            not; nothing that is there is ever replaced.
    """
    jobs = plan_generation(dataset, protocol=protocol, fps=fps)
    out = Path(out)
    work = out.with_name(f"{out.name}.generation")
    present = [job for job in jobs if (out / job.file_name).exists()]
    _check_settings(work, {"protocol": protocol, "fps": fps, **(settings or {})}, out, present)
    found = {job.file_name: _problem(out / job.file_name, job) for job in present}
    refuse([text for text in found.values() if text], f"{out}, made earlier")
    made: list[str] = []
    for job in jobs:
        if job.file_name in found:
            continue
        if progress is not None:
            progress(len(found) + len(made), len(jobs), job.file_name)
        _make(job, generate, work / f"{job.id}.mp4", out / job.file_name)
        made.append(job.file_name)
    if progress is not None:
        progress(len(jobs), len(jobs), "")
    return GenerationReport(folder=out, made=tuple(made), kept=tuple(found))


def _check_settings(
    work: Path, settings: dict[str, Any], out: Path, present: list[GenerationJob]
) -> None:
    """Let only one kind of video into a folder."""
    path = work / _SETTINGS
    try:
        text = json.dumps(settings, sort_keys=True, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError("settings", expected="JSON values", got=error) from error
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(text)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed and present:
            name = changed[0]
            raise ConfigError(
                f"{out} holds videos of another {', '.join(changed)}",
                expected=f"{name} {before.get(name)}", got=now.get(name),
                hint="choose another folder for these settings",
            )  # fmt: skip
    elif present:
        raise ConfigError(
            f"{out} holds {len(present)} videos that this command did not make, such as "
            f"{present[0].file_name}",
            hint="choose another folder, or score these without generating",
        )
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _make(job: GenerationJob, generate: Generate, draft: Path, target: Path) -> None:
    draft.unlink(missing_ok=True)
    generate(job, draft)
    problem = _problem(draft, job)
    if problem:
        raise MediaError(f"the video made for {job.file_name} is not valid: {problem}")
    if target.exists():
        raise MediaError(f"{target} appeared meanwhile", hint=f"the new video is in {draft}")
    try:
        os.rename(draft, target)
    except OSError as error:
        raise MediaError(f"cannot move {draft} to {target} ({error.strerror})") from error
    # What the record beside the draft says is in the video, too.
    sidecar_path(draft).unlink(missing_ok=True)


def _problem(path: Path, job: GenerationJob) -> str:
    """Say what is wrong with a video, by decoding it whole; nothing when it is right."""
    try:
        info = probe(path)
        if plain_rate(info.fps) != job.fps:
            return f"{path}: {float(info.fps):g} fps, expected {job.fps}"
        count = sum(1 for _ in stream_frames(ClipFile(path=path, num_frames=info.num_frames)))
    except MediaError as error:
        return str(error)
    if count != job.num_frames:
        return f"{path}: {count} frames, expected {job.num_frames} (5 s at {job.fps} fps)"
    return ""
