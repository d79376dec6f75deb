"""Everything about a run that can be known, and can go wrong, before a model is loaded."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onereel.core.device import parse_dtype, pick_device
from onereel.core.errors import CheckpointError, ConfigError
from onereel.media import check_output
from onereel.media.preflight import estimate_bytes
from onereel.media.scale import Pixels
from onereel.models.text.special_tokens import ConditioningFlags, SpecialTokens
from onereel.pipelines.files import PREFIX_FRAMES, check_files, describe_inputs, read_given
from onereel.pipelines.sampling import SamplingWishes, make_config, step_unit
from onereel.pipelines.stream import VideoRequest, count_chunks
from onereel.pipelines.timeline import Timeline, parse_timeline
from onereel.pipelines.wishes import RunWishes, check_wishes, flag, output_path
from onereel.runtime.estimate import Estimate, Job, Turns, check_fits, estimate_job
from onereel.runtime.layout import read_sampling, vae_part
from onereel.runtime.load import default_dtype
from onereel.runtime.quantize import DYNAMIC, check_level
from onereel.runtime.shards import read_header
from onereel.runtime.source import ModelSource, resolve_model
from onereel.runtime.verify import Parts, model_parts
from onereel.samplers.plan import num_stages

_FALLBACK = {"height": 720, "width": 720, "num_frames": 96, "fps": 24}
_OFFICIAL_PREFIX_FRAMES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """One run, checked and complete.

    Args:
        settings: the wishes with every choice made, which repeat the run.
        output: the file to write, or "-".
        source: the checkpoint.
        request: the video.
        texts: prompt of every generated chunk.
        num_chunks: chunks, given ones included.
        num_given_chunks: those given whole.
        given: the given frames, uint8 [F, H, W, 3], or None.
        tokens: table of special tokens, or None.
        device: where to run.
        dtype: of the weights.
        frames_per_chunk: frames of a whole chunk.
        inputs: what is known of the input files, for the record.
    """

    settings: RunWishes
    output: str
    source: ModelSource
    request: VideoRequest
    texts: tuple[str, ...]
    num_chunks: int
    num_given_chunks: int
    given: Pixels | None
    tokens: SpecialTokens | None
    device: torch.device
    dtype: torch.dtype
    frames_per_chunk: int
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def new_frames(self) -> int:
        """Frames that are made."""
        return self.request.num_frames - self.given_frames

    @property
    def given_frames(self) -> int:
        """Given frames that come first in the output."""
        if self.given is None or not self.settings.video or not self.request.counts_prefix:
            return 0
        return len(self.given)

    @property
    def hidden_frames(self) -> int:
        """Frames of a given video that do not come in the output."""
        if self.given is None or not self.settings.video:
            return 0
        return len(self.given) - self.given_frames

    @property
    def num_steps(self) -> int:
        """Model steps of the whole video."""
        config = self.request.config
        stages = num_stages(
            config, num_chunks=self.num_chunks, num_prefix_chunks=self.num_given_chunks
        )
        return stages * config.steps_per_stage

    def estimate(self) -> Estimate:
        """Estimate memory and time."""
        request = self.request
        job = Job(
            height=request.height,
            width=request.width,
            num_frames=request.num_frames if self.settings.official_compat is False else None,
            num_steps=request.config.num_steps,
            prefix_frames=self.given_frames,
        )
        level = self.settings.quantize
        return estimate_job(self.source, job, dtype=self.dtype, device=self.device, level=level)


def prepare(wishes: RunWishes, output: str | None = None) -> RunPlan:
    """Check a run and make every choice that was left open; nothing heavy is loaded.

    Args:
        wishes: what is wanted.
        output: the file to write; None takes `onereel-<seed>.mp4` in the working folder.

    Returns:
        The plan.

    Raises:
        ConfigError: a setting is wrong.
        MediaError: an input cannot be read, or the output not be written.
        CheckpointError: the checkpoint is incomplete or damaged.
        OutOfMemory: memory or disk does not suffice.
        BackendUnavailable: the device or an encoder is missing.
    """
    check_wishes(wishes)
    check_files(wishes, output)
    source = resolve_model(wishes.model)
    parts = model_parts(source)
    if wishes.quantize is not None:
        check_quantize(wishes, parts)
    wishes = fill_wishes(wishes, {**_FALLBACK, **parts.sampling})
    output = output_path(wishes, output, seed=_known(wishes.seed))
    size = estimate_bytes(
        _known(wishes.width), _known(wishes.height), num_frames=_known(wishes.num_frames)
    )
    check_output(output, estimated_bytes=size)
    device = pick_device(wishes.device)
    dtype = (
        parse_dtype(wishes.dtype) if wishes.dtype else default_dtype(source, parts, device=device)
    )
    tokens = _tokens(wishes, parts)
    for path, _ in wishes.loras:
        check_lora(path)
    plan = _plan(wishes, output, parts=parts, source=source, tokens=tokens, place=(device, dtype))
    turns: Turns = "block" if wishes.low_memory else "move" if wishes.offload else "stay"
    check_fits(plan.estimate(), turns=turns)
    return plan


def prepare_decoding(
    wishes: RunWishes, output: str, *, device: torch.device, dtype: torch.dtype, distilled: bool
) -> RunPlan:
    """Check what decoding a kept run needs; of the checkpoint, nothing but the VAE.

    Args:
        wishes: complete, of the run.
        output: the file to write.
        device: where to decode.
        dtype: of the VAE's weights.
        distilled: whether the run was made with distilled weights.

    Returns:
        The plan; it cannot be sampled.

    Raises:
        ConfigError: a setting is wrong.
        MediaError: the output cannot be written, or an input not be read.
        CheckpointError: the VAE is missing, damaged or does not fit.
        OutOfMemory: the disk is too full.
    """
    check_files(wishes, output)
    source = resolve_model(wishes.model)
    parts = Parts(vae=vae_part(source), sampling=read_sampling(source) | {"distilled": distilled})
    assert parts.vae is not None
    parts.vae.account()
    output = output_path(wishes, output, seed=_known(wishes.seed))
    size = (_known(wishes.width), _known(wishes.height))
    frames = _known(wishes.num_frames)
    check_output(output, estimated_bytes=estimate_bytes(*size, num_frames=frames))
    bare = dataclasses.replace(  # what has no effect on decoding, and may not be there
        wishes, hq=False, duration=False, style=None, first_frames=None, special_tokens=None,
        loras=(),
    )  # fmt: skip
    plan = _plan(bare, output, parts=parts, source=source, tokens=None, place=(device, dtype))
    return dataclasses.replace(plan, settings=wishes)


def _plan(
    wishes: RunWishes,
    output: str,
    *,
    parts: Parts,
    source: ModelSource,
    tokens: SpecialTokens | None,
    place: tuple[torch.device, torch.dtype],
) -> RunPlan:
    """Count chunks, and give each its prompt."""
    given = read_given(wishes, factor=_factor(parts))
    request = make_request(wishes, parts, given=0 if given is None else len(given), tokens=tokens)
    latents = 0 if given is None else 1 if wishes.image else len(given) // _factor(parts)
    num_chunks = count_chunks(
        request, latents, is_image=wishes.image is not None, temporal_factor=_factor(parts)
    )
    frames = request.config.chunk_width * _factor(parts)  # of a chunk
    given_chunks = latents // request.config.chunk_width
    seeds = {given_chunks + chunk: seed for chunk, seed in wishes.edited("seed").items()}
    return RunPlan(
        settings=dataclasses.replace(wishes, model=wishes.model or source.name),
        output=output,
        source=source,
        request=dataclasses.replace(request, later_seeds=seeds),
        texts=tuple(_texts(wishes, num_chunks - given_chunks, frames / request.fps)),
        num_chunks=num_chunks,
        num_given_chunks=given_chunks,
        given=given,
        tokens=tokens,
        device=place[0],
        dtype=place[1],
        frames_per_chunk=frames,
        inputs=describe_inputs(wishes),
    )


def check_quantize(wishes: RunWishes, parts: Parts) -> None:
    """Refuse a level that is unknown, or that the weights or other wishes do not allow.

    Args:
        wishes: with a level.
        parts: headers of the checkpoint.

    Raises:
        ConfigError: the level does not fit.
        BackendUnavailable: it needs a package that is not installed.
    """
    assert wishes.quantize is not None and parts.transformer is not None
    check_level(wishes.quantize)
    stored = parts.transformer.quantization
    if stored not in (None, wishes.quantize):
        raise ConfigError(
            f"--quantize {wishes.quantize}", expected=f"{stored}, in which the weights are stored",
            hint="leave it out, or take the checkpoint with whole weights",
        )  # fmt: skip
    if wishes.loras and wishes.quantize == DYNAMIC:
        raise ConfigError(f"--quantize {DYNAMIC} and --lora", hint="use --quantize int8")


def _known(value: int | None) -> int:
    assert value is not None
    return value


def _factor(parts: Parts) -> int:
    """Frames per latent frame."""
    assert parts.vae is not None
    return int(parts.vae.config["patch_size"][0])


def fill_wishes(wishes: RunWishes, defaults: dict[str, Any]) -> RunWishes:
    """Make the choices that were left open.

    Args:
        wishes: what is wanted.
        defaults: the checkpoint's settings.

    Returns:
        The wishes, complete but for what the checkpoint's own tables say.

    Raises:
        ConfigError: the length is not a frame.
    """
    fps = wishes.fps or int(defaults["fps"])
    num_frames = wishes.num_frames or int(defaults["num_frames"])
    if wishes.seconds is not None:
        num_frames = round(wishes.seconds * fps)
        if num_frames < 1:
            raise ConfigError(
                "seconds", expected=f"at least one frame at {fps} fps", got=wishes.seconds,
                hint=f"use {1 / fps:.3f} or more",
            )  # fmt: skip
    seed = wishes.seed
    if seed is None:
        seed = int(defaults.get("seed", secrets.randbelow(2**32)))
    official = wishes.official_compat
    prefix: dict[str, Any] = {}
    if wishes.video is not None:
        frames = _OFFICIAL_PREFIX_FRAMES if official else PREFIX_FRAMES
        prefix["prefix_frames"] = wishes.prefix_frames or frames
        prefix["prefix_from"] = wishes.prefix_from or ("start" if official else "end")
        prefix["keep_prefix"] = wishes.keep_prefix
        if wishes.keep_prefix is None:
            prefix["keep_prefix"] = not official
        if official and prefix["keep_prefix"]:
            raise ConfigError("--keep-prefix", hint="official output never holds the given frames")
    return dataclasses.replace(
        wishes,
        fps=fps,
        seconds=None,
        num_frames=num_frames,
        width=wishes.width or int(defaults["width"]),
        height=wishes.height or int(defaults["height"]),
        seed=seed,
        **prefix,
    )


def make_request(
    wishes: RunWishes, parts: Parts, *, given: int, tokens: SpecialTokens | None
) -> VideoRequest:
    """Turn complete wishes into a request.

    Args:
        wishes: from `fill_wishes`.
        parts: headers of the checkpoint.
        given: given frames.
        tokens: table of special tokens, or None.

    Returns:
        The request.

    Raises:
        ConfigError: something does not fit the checkpoint.
    """
    distilled = bool(parts.sampling["distilled"])
    _check_guidance(wishes, distilled)
    unit = step_unit(parts.sampling)
    if wishes.steps is not None and wishes.steps % unit:
        below = max(unit, wishes.steps // unit * unit)
        near = sorted({below, below + unit} if below < wishes.steps else {below})
        raise ConfigError(
            "steps", expected=f"a multiple of {unit}, as this checkpoint's window needs",
            got=wishes.steps, hint=f"use {' or '.join(map(str, near))}",
        )  # fmt: skip
    sampling = SamplingWishes(
        num_steps=wishes.steps,
        guidance_scale=wishes.guidance,
        prev_chunk_scale=wishes.prev_scale,
        official_compat=wishes.official_compat,
    )
    keep = bool(wishes.keep_prefix)
    return VideoRequest(
        height=_known(wishes.height),
        width=_known(wishes.width),
        num_frames=_known(wishes.num_frames) + (given if keep else 0),
        fps=_known(wishes.fps),
        config=make_config(parts.sampling, sampling, distilled=distilled),
        seed=_known(wishes.seed),
        flags=_flags(wishes, tokens),
        keep_prefix=keep,
    )


def _check_guidance(wishes: RunWishes, distilled: bool) -> None:
    """Refuse wishes that a single pass would silently ignore."""
    single = wishes.guidance is not None and wishes.guidance <= 1
    if not distilled and not single:
        return
    names = ["negative", "prev_scale"]
    if distilled and wishes.guidance not in (None, 1):
        names.append("guidance")
    why = "this checkpoint is distilled: one pass without guidance"
    for name in names:
        if getattr(wishes, name) is not None:
            reason = why if distilled else "--guidance of at most 1 is a single pass"
            raise ConfigError(flag(name), hint=f"leave it out, for {reason}")


def _flags(wishes: RunWishes, tokens: SpecialTokens | None) -> ConditioningFlags:
    """Choose the special tokens: quality and duration whenever there is a table."""
    there = tokens is not None
    flags = ConditioningFlags(
        hq=there if wishes.hq is None else wishes.hq,
        duration=there if wishes.duration is None else wishes.duration,
        static_first_frames=wishes.first_frames == "static",
        dynamic_first_frames=wishes.first_frames == "dynamic",
        three_d_model=wishes.style == "3d",
        two_d_anime=wishes.style == "anime",
    )
    if flags.needs_tokens and not there:
        raise ConfigError(
            "--hq, --duration, --style and --first-frames",
            expected="a checkpoint with special tokens",
            hint="leave them out, or give --special-tokens FILE",
        )
    return flags


def _tokens(wishes: RunWishes, parts: Parts) -> SpecialTokens | None:
    path = wishes.special_tokens or parts.special_tokens
    if path is None:
        return None
    tokens = SpecialTokens.load(path)
    assert parts.transformer is not None
    wanted = parts.transformer.config["cross_attention_dim"]
    if tokens.width != wanted:
        raise CheckpointError(
            f"special tokens {path}", expected=f"rows of {wanted} numbers", got=tokens.width,
            hint="the table belongs to another checkpoint",
        )  # fmt: skip
    return tokens


def _texts(wishes: RunWishes, num_chunks: int, seconds_per_chunk: float) -> list[str]:
    """Give every generated chunk its prompt."""
    timeline = (
        Timeline.single(_text(wishes)) if wishes.prompts is None else parse_timeline(wishes.prompts)
    )
    texts = timeline.prompts_per_chunk(num_chunks, seconds_per_chunk)
    for chunk, text in sorted(wishes.edited("prompt").items()):
        texts[chunk:] = [text] * len(texts[chunk:])
    return texts


def _text(wishes: RunWishes) -> str:
    assert wishes.prompt is not None
    return wishes.prompt


def check_lora(path: str) -> None:
    """Check an adapter by its header.

    Args:
        path: a safetensors file.

    Raises:
        CheckpointError: it is missing, damaged, or no LoRA.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"lora {path}: no such file", hint="give a .safetensors file")
    names = list(read_header(file))
    others = [name for name in names if "lora" not in name]
    if others or not names:
        raise CheckpointError(
            f"lora {path}", expected="tensors with 'lora' in their names",
            got=others[0] if others else "none", hint="give a file of save_lora_weights",
        )  # fmt: skip
