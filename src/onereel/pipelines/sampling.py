"""From a checkpoint's stored sampling settings and a user's wishes to what the sampler takes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onereel.core.config import check_keys
from onereel.core.errors import ConfigError
from onereel.samplers.plan import ChunkSampleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingWishes:
    """What a user changes of a checkpoint's sampling; None keeps what is stored.

    Args:
        num_steps: updates per chunk.
        guidance_scale: strength towards the text; at most 1 means a single pass.
        prev_chunk_scale: strength towards earlier chunks.
        near_clean_threshold: see `ChunkSampleConfig`.
        official_compat: reproduce the official code where it differs from what is right.
    """

    num_steps: int | None = None
    guidance_scale: float | None = None
    prev_chunk_scale: float | None = None
    near_clean_threshold: float | None = None
    official_compat: bool = False


def make_config(
    sampling: Mapping[str, Any], wishes: SamplingWishes, *, distilled: bool
) -> ChunkSampleConfig:
    """Make the sampler's settings.

    Args:
        sampling: stored settings.
        wishes: what the user changes.
        distilled: whether to sample as distilled weights want it.

    Returns:
        The settings; the number of steps must fit the window.

    Raises:
        ConfigError: the values do not fit together.
    """
    config = sample_config(
        sampling,
        distilled=distilled,
        num_steps=wishes.num_steps,
        near_clean_threshold=wishes.near_clean_threshold,
        official_compat=wishes.official_compat,
    )
    return with_guidance(config, wishes.guidance_scale, prev_chunk_scale=wishes.prev_chunk_scale)


def sample_config(sampling: Mapping[str, Any] | None, **changes: Any) -> ChunkSampleConfig:
    """Make the sampling settings of a checkpoint, changed where asked.

    Args:
        sampling: stored settings; keys that are not sampling settings (sizes, fps) are ignored.
        changes: values that replace stored ones; None keeps the stored one.

    Returns:
        The settings.

    Raises:
        ConfigError: a change is not a setting, or the values do not fit.
    """
    known = {f.name for f in dataclasses.fields(ChunkSampleConfig)}
    check_keys(changes, known, where="sampling")
    values = {k: v for k, v in (sampling or {}).items() if k in known}
    values.update({k: v for k, v in changes.items() if v is not None})
    hashable: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    return ChunkSampleConfig(**hashable)


def with_guidance(
    config: ChunkSampleConfig,
    guidance_scale: float | None,
    *,
    prev_chunk_scale: float | None = None,
) -> ChunkSampleConfig:
    """Set the guidance strengths where the checkpoint's tables use guidance.

    Args:
        config: settings with the checkpoint's tables.
        guidance_scale: strength towards the text; at most 1 means a single pass.
        prev_chunk_scale: strength towards earlier chunks.

    Returns:
        The changed settings; distilled ones are returned as they are.
    """
    if config.distilled:
        return config
    prev, text = config.prev_chunk_scales, config.text_scales
    if guidance_scale is not None and guidance_scale <= 1:
        return dataclasses.replace(
            config, prev_chunk_scales=(1.0,) * len(prev), text_scales=(1.0,) * len(text)
        )
    if guidance_scale is not None:
        guided = [w not in (0, 1) for w in text]  # 0 and 1 are intervals without guidance
        if not any(guided):
            guided = [w != 0 for w in text]
        text = tuple(guidance_scale if g else w for g, w in zip(guided, text, strict=True))
    if prev_chunk_scale is not None:
        prev = tuple(prev_chunk_scale if w != 1 else 1.0 for w in prev)
    return dataclasses.replace(config, prev_chunk_scales=prev, text_scales=text)


def round_steps(num_steps: int, sampling: Mapping[str, Any]) -> int:
    """Round a step count up to what window and kv ranges allow, warning when it changes.

    Args:
        num_steps: what was asked for.
        sampling: stored settings.

    Returns:
        The number of steps to run.

    Raises:
        ConfigError: it is not positive.
    """
    if num_steps < 1:
        raise ConfigError("num_inference_steps", expected="at least 1", got=num_steps)
    unit = step_unit(sampling)
    rounded = math.ceil(num_steps / unit) * unit
    if rounded != num_steps:
        warnings.warn(
            f"num_inference_steps: {num_steps} is not a multiple of {unit}; using {rounded}",
            stacklevel=2,
        )
    return rounded


def step_unit(sampling: Mapping[str, Any]) -> int:
    """Find what the number of steps must be a multiple of.

    Args:
        sampling: stored settings.

    Returns:
        The least common multiple of the window and the number of kv ranges.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(ChunkSampleConfig)}
    ranges = sampling.get("noise2clean_kvrange", defaults["noise2clean_kvrange"])
    window = int(sampling.get("window_size", defaults["window_size"]))
    return math.lcm(window, max(1, len(ranges)))
