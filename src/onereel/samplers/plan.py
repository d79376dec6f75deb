"""The chunk plan: which model calls make a video, as plain data.

A stage is a window's stay at one position; in each of its num_steps / window_size steps, all
chunks in flight are updated once, the oldest being the cleanest. Nothing here touches a tensor of
the video, so plans can be printed and tested.

Source: SandAI-org/MAGI-1 @6ff822e, inference/pipeline/video_generate.py.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onereel.core.errors import ConfigError
from onereel.samplers.schedule import check_shortcut_mode, step_intervals, step_size, time_grid

_PREFIX_RANGE = 8  # official range of prefix chunks when no other is set

Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSampleConfig:
    """Everything about MAGI sampling that changes pixels.

    Args:
        num_steps: updates per chunk; a multiple of window_size.
        window_size: chunks in flight at once.
        chunk_width: latent frames per chunk.
        noise2clean_kvrange: chunks visible (own included) per equal part of the way from noise to
            clean; empty means all, and memory then grows with the video's length.
        clean_chunk_kvrange: the same for finished chunks; -1 means the last of the list.
        clean_t: flow time fed for finished chunks.
        cfg_t_range: start times of the guidance intervals.
        prev_chunk_scales: guidance strength towards earlier chunks, per interval.
        text_scales: guidance strength towards the text, per interval.
        distilled: one pass with the step-size embedding instead of three-way guidance.
        shortcut_mode: uneven grid of 12 steps.
        shift: of the time grid; 3 spends most steps near the noise, as MAGI-1 does.
        near_clean_threshold: distilled: flow time above which the oldest chunk is also seen alone.
        near_clean_scale: distilled: weight of the prediction with history in that mix.
        official_compat: reproduce the official code where it differs from what is right: the
            given first frame of image-to-video drifts by one update.
    """

    num_steps: int = 64
    window_size: int = 4
    chunk_width: int = 6
    noise2clean_kvrange: tuple[int, ...] = (5, 4, 3, 2)
    clean_chunk_kvrange: int = 1
    clean_t: float = 0.9999
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    distilled: bool = False
    shortcut_mode: str = "8,16,16"
    shift: float = 3.0
    near_clean_threshold: float = 0.3
    near_clean_scale: float = 0.7
    official_compat: bool = False

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        for name in ("num_steps", "window_size", "chunk_width"):
            if getattr(self, name) < 1:
                raise ConfigError(name, expected="at least 1", got=getattr(self, name))
        if self.num_steps % self.window_size:
            near = math.ceil(self.num_steps / self.window_size) * self.window_size
            raise ConfigError(
                "num_steps",
                expected=f"a multiple of window_size {self.window_size}",
                got=self.num_steps,
                hint=f"use {near}",
            )
        parts = len(self.noise2clean_kvrange)
        if parts and self.num_steps % parts:
            raise ConfigError(
                "num_steps",
                expected=f"a multiple of the {parts} entries of noise2clean_kvrange",
                got=self.num_steps,
                hint=f"use {math.ceil(self.num_steps / parts) * parts}",
            )
        clean = self.clean_chunk_kvrange
        if any(r < 1 for r in self.noise2clean_kvrange) or (clean < 1 and clean != -1):
            raise ConfigError("kv ranges", expected="at least 1, the chunk itself included")
        if self.num_steps == 12 and (12 // self.window_size) % 3 and self.distilled:
            raise ConfigError(
                "window_size of 12 distilled steps", expected="1, 2 or 4", got=self.window_size
            )
        sizes = {len(self.cfg_t_range), len(self.prev_chunk_scales), len(self.text_scales)}
        if len(sizes) > 1 or 0 in sizes:
            raise ConfigError("guidance tables", expected="three tables of equal length")
        check_shortcut_mode(self.shortcut_mode)
        if self.shift <= 0:
            raise ConfigError("shift", expected="more than 0", got=self.shift)

    @property
    def steps_per_stage(self) -> int:
        """Model steps at one window position."""
        return self.num_steps // self.window_size

    def visible_chunks(self, grid_index: int) -> int | None:
        """Count the chunks visible at a grid index, own included; None means all."""
        if not self.noise2clean_kvrange:
            return None
        parts = len(self.noise2clean_kvrange)
        if grid_index >= self.num_steps:
            clean = self.clean_chunk_kvrange
            return clean if clean != -1 else self.noise2clean_kvrange[-1]
        return self.noise2clean_kvrange[grid_index // (self.num_steps // parts)]

    def prefix_chunks_visible(self) -> int:
        """Count the chunks that a whole given chunk sees, own included."""
        if self.clean_chunk_kvrange != -1:
            return self.clean_chunk_kvrange
        return self.noise2clean_kvrange[-1] if self.noise2clean_kvrange else _PREFIX_RANGE

    def guidance_weights(self, t: float) -> tuple[float, float]:
        """Look up (prev_chunk_scale, text_scale) at flow time t."""
        edges = np.asarray(self.cfg_t_range, np.float32) - np.float32(1e-7)
        index = max(bisect_left(edges.tolist(), float(np.float32(t))) - 1, 0)
        return self.prev_chunk_scales[index], self.text_scales[index]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkCall:
    """One step: one update of all chunks in flight.

    Args:
        step: index of the step in the video.
        stage: index of the window position.
        step_in_stage: index within the stage.
        chunks: absolute indices of the chunks in flight, oldest first.
        grid_indices: position of each on the time grid.
        times: flow time of each, now.
        next_times: flow time of each after the step.
        ranges: visible chunks [start, end) of each.
        clean_chunk: chunk that was finished in the stage before and is encoded in this call in
            front of the others, or None.
        clean_range: its visible chunks.
        weights: (prev_chunk_scale, text_scale) of each; empty when distilled.
        near_clean: whether the oldest chunk is also seen alone (distilled).
        step_size: scalar for distilled weights, or None.
        finished: chunk that is clean after this step, or None.
        keep_from: first chunk whose keys may still be read after this step.
    """

    step: int
    stage: int
    step_in_stage: int
    chunks: tuple[int, ...]
    grid_indices: tuple[int, ...]
    times: tuple[float, ...]
    next_times: tuple[float, ...]
    ranges: tuple[Range, ...]
    clean_chunk: int | None
    clean_range: Range | None
    weights: tuple[tuple[float, float], ...]
    near_clean: bool
    step_size: float | None
    finished: int | None
    keep_from: int

    @property
    def slice_point(self) -> int:
        """First chunk of the model call."""
        return self.chunks[0] if self.clean_chunk is None else self.clean_chunk


def stage_window(
    stage: int, config: ChunkSampleConfig, *, num_chunks: int, num_prefix_chunks: int
) -> tuple[range, range]:
    """Find the chunks in flight at a stage.

    Args:
        stage: index of the window position.
        config: the sampling settings.
        num_chunks: chunks of the video, prefix included.
        num_prefix_chunks: chunks that are given whole.

    Returns:
        The chunks, and their ages in stages from the newest (ages of the window's positions).
    """
    window = config.window_size
    newest = num_prefix_chunks + stage
    chunks = range(max(num_prefix_chunks, newest - window + 1), min(num_chunks, newest + 1))
    ages = range(max(0, newest - num_chunks + 1), min(window, stage + 1))
    return chunks, ages


def num_stages(config: ChunkSampleConfig, *, num_chunks: int, num_prefix_chunks: int) -> int:
    """Count the window positions of a video.

    Args:
        config: the sampling settings.
        num_chunks: chunks of the video, prefix included.
        num_prefix_chunks: chunks that are given whole.

    Returns:
        Number of stages; 0 when nothing is left to generate.
    """
    new_chunks = num_chunks - num_prefix_chunks
    return new_chunks + config.window_size - 1 if new_chunks > 0 else 0


def plan_calls(
    config: ChunkSampleConfig, *, num_chunks: int, num_prefix_chunks: int = 0, first_stage: int = 0
) -> Iterator[ChunkCall]:
    """List the steps of a video in order.

    Args:
        config: the sampling settings.
        num_chunks: chunks of the video, prefix included.
        num_prefix_chunks: chunks that are given whole.
        first_stage: stage to begin with, for resuming.

    Yields:
        One call per step.
    """
    times = time_grid(config.num_steps, shortcut_mode=config.shortcut_mode, shift=config.shift)
    grid = times.tolist()
    last = num_stages(config, num_chunks=num_chunks, num_prefix_chunks=num_prefix_chunks)
    for stage in range(first_stage, last):
        window = stage_window(
            stage, config, num_chunks=num_chunks, num_prefix_chunks=num_prefix_chunks
        )
        for step_in_stage in range(config.steps_per_stage):
            yield _plan_call(
                config, (stage, step_in_stage), window, grid, (num_chunks, num_prefix_chunks)
            )


def _plan_call(
    config: ChunkSampleConfig,
    at: tuple[int, int],
    window: tuple[range, range],
    grid: list[float],
    counts: tuple[int, int],
) -> ChunkCall:
    """Describe one step."""
    (stage, j), (chunks, ages), (num_chunks, num_prefix_chunks) = at, window, counts
    q = config.steps_per_stage
    indices = tuple(age * q + j for age in reversed(ages))
    times = tuple(grid[i] for i in indices)
    clean = chunks[0] - 1 if j == 0 and chunks[0] > num_prefix_chunks else None
    done = chunks[0] if indices[0] == config.num_steps - 1 else None
    size = None
    if config.distilled:
        size = step_size(
            config.num_steps, step_intervals(config.num_steps, config.shortcut_mode)[j]
        )
    return ChunkCall(
        step=stage * q + j,
        stage=stage,
        step_in_stage=j,
        chunks=tuple(chunks),
        grid_indices=indices,
        times=times,
        next_times=tuple(grid[i + 1] for i in indices),
        ranges=tuple(
            _range(c, config.visible_chunks(i)) for c, i in zip(chunks, indices, strict=True)
        ),
        clean_chunk=clean,
        clean_range=(
            None if clean is None else _range(clean, config.visible_chunks(config.num_steps))
        ),
        weights=() if config.distilled else tuple(config.guidance_weights(t) for t in times),
        near_clean=config.distilled and times[0] > config.near_clean_threshold,
        step_size=size,
        finished=done,
        keep_from=_keep_from(config, chunks, indices, num_chunks),
    )


def _range(chunk: int, visible: int | None) -> Range:
    return (0 if visible is None else max(0, chunk + 1 - visible), chunk + 1)


def _keep_from(
    config: ChunkSampleConfig, chunks: range, indices: tuple[int, ...], num_chunks: int
) -> int:
    """Find the first chunk that any later call can still look at."""
    ranges = config.noise2clean_kvrange
    if not ranges:
        return 0
    clean = config.visible_chunks(config.num_steps) or 1
    part = config.num_steps // len(ranges)
    starts = [
        c + 1 - max(clean, *ranges[min(i + 1, config.num_steps - 1) // part :])
        for c, i in zip(chunks, indices, strict=True)
    ]
    if chunks[-1] + 1 < num_chunks:
        starts.append(chunks[-1] + 2 - max(clean, *ranges))
    return max(0, min(starts))


def emitted_latents(
    num_frames: int,
    prefix_latents: int,
    *,
    chunk_width: int = 6,
    window_size: int = 4,
    temporal_factor: int = 4,
) -> list[tuple[int, int]]:
    """List how many latent frames the official code emits per chunk.

    Args:
        num_frames: frames asked for, as the official config counts them.
        prefix_latents: given latent frames.
        chunk_width: latent frames per chunk.
        window_size: chunks in flight; it does not change what is emitted.
        temporal_factor: frames per latent frame.

    Returns:
        (chunk index from the first generated one, latent frames emitted) per chunk.
    """
    del window_size
    num_chunks = math.ceil((num_frames // temporal_factor + prefix_latents) / chunk_width)
    offset = prefix_latents // chunk_width
    out = []
    for chunk in range(offset, num_chunks):
        given = 0 if prefix_latents == 1 else max(0, prefix_latents - chunk * chunk_width)
        if given < chunk_width:
            out.append((chunk - offset, chunk_width - given))
    return out
