"""The chunk engine: a generator of finished latent chunks with flat memory and a savable state.

State between stages = latents in flight + keys and values of the few clean chunks that can still
be seen + the stage number. Noise of chunk k depends on (seed, k) alone, so nothing else is needed
to go on exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from onereel.core.errors import ConfigError, ShapeError
from onereel.core.seeds import chunk_noise
from onereel.samplers.guidance import (
    CallInputs,
    GuidanceRuntime,
    KeyValues,
    VelocityModel,
    distilled_velocity,
    guided_velocity,
    run_pass,
)
from onereel.samplers.plan import ChunkCall, ChunkSampleConfig, num_stages, plan_calls

StepCallback = Callable[[ChunkCall, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkTask:
    """What to generate.

    Args:
        num_chunks: chunks of the video, prefix included.
        latent_shape: (C, H, W) of the latent.
        condition: text tokens [S, K] of an absolute chunk index; asked once per step, so a prompt
            may change while the video is made.
        null_caption: visible null caption tokens [S0, K].
        seed: of the noise.
        prefix: given clean latents [1, C, T, H, W], already normalised, or None.
        noise: noise [1, C, chunk_width, H, W] of an absolute chunk index; None draws it by seed.
    """

    num_chunks: int
    latent_shape: tuple[int, int, int]
    condition: Callable[[int], torch.Tensor]
    null_caption: torch.Tensor
    seed: int = 0
    prefix: torch.Tensor | None = None
    noise: Callable[[int], torch.Tensor] | None = None

    @property
    def prefix_frames(self) -> int:
        """Given latent frames."""
        return 0 if self.prefix is None else self.prefix.shape[2]


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """A clean chunk.

    Args:
        index: absolute chunk index, prefix chunks counted.
        latent: float32 [1, C, chunk_width, H, W], given frames included.
        num_given: leading latent frames that come from the prefix.
    """

    index: int
    latent: torch.Tensor
    num_given: int


def finish_chunk(
    chunk: int, latent: torch.Tensor, *, prefix: torch.Tensor | None, config: ChunkSampleConfig
) -> FinishedChunk:
    """Hand out a clean chunk; given frames are exact again unless the official drift is wanted.

    Args:
        chunk: absolute chunk index.
        latent: as sampled, [1, C, chunk_width, H, W].
        prefix: given clean latents [1, C, T, H, W], or None.
        config: sampling settings.

    Returns:
        The chunk.
    """
    width = config.chunk_width
    if not config.official_compat:
        latent = _paste_prefix(chunk, latent, prefix=prefix)
    frames = 0 if prefix is None else prefix.shape[2]
    return FinishedChunk(chunk, latent, min(max(0, frames - chunk * width), width))


def _paste_prefix(chunk: int, latent: torch.Tensor, *, prefix: torch.Tensor | None) -> torch.Tensor:
    """Overwrite the frames of a chunk that are given."""
    width = latent.shape[2]
    if prefix is None or chunk * width >= prefix.shape[2]:
        return latent
    given = prefix[:, :, chunk * width : (chunk + 1) * width].to(latent.device, latent.dtype)
    return torch.cat((given, latent[:, :, given.shape[2] :]), dim=2)


class ChunkEngine:
    """Generate a video chunk by chunk.

    Args:
        model: velocity network.
        config: what changes pixels.
        task: what to generate.
        runtime: how guidance passes are run.
        device: where latents are held and updated.
        on_step: called after every step with the call and the updated window; a tensor that it
            returns takes the window's place.
        on_velocity: called before every update with the call and the velocity, for tests.

    Raises:
        ConfigError: there is nothing to generate.
        ShapeError: the prefix does not fit the latent's shape.
    """

    def __init__(
        self,
        model: VelocityModel,
        config: ChunkSampleConfig,
        *,
        task: ChunkTask,
        runtime: GuidanceRuntime | None = None,
        device: torch.device | str = "cpu",
        on_step: StepCallback | None = None,
        on_velocity: StepCallback | None = None,
    ) -> None:
        self.model, self.config, self.task = model, config, task
        self.runtime = runtime or GuidanceRuntime()
        self.device = torch.device(device)
        self.on_step, self.on_velocity = on_step, on_velocity
        if task.prefix is not None:
            channels, height, width = task.latent_shape
            wanted = (1, channels, height, width)
            shape = tuple(task.prefix.shape)
            if len(shape) != 5 or shape[:2] + shape[3:] != wanted:
                raise ShapeError(
                    "prefix", expected=f"[1, {channels}, T, {height}, {width}]", got=shape
                )
        self.num_prefix_chunks = task.prefix_frames // config.chunk_width
        if task.num_chunks <= self.num_prefix_chunks:
            raise ConfigError(
                "num_chunks",
                expected=f"more than {self.num_prefix_chunks} given chunks",
                got=task.num_chunks,
            )
        self.stopped = False
        self.stage = 0
        self.latents: dict[int, torch.Tensor] = {}
        self.cache: KeyValues | None = None
        self.cache_start = 0
        self._cached_chunks = 0
        self._within_stage = False

    @property
    def num_stages(self) -> int:
        """Stages of the whole video."""
        return num_stages(
            self.config, num_chunks=self.task.num_chunks, num_prefix_chunks=self.num_prefix_chunks
        )

    @property
    def num_steps(self) -> int:
        """Model steps of the whole video."""
        return self.num_stages * self.config.steps_per_stage

    @torch.no_grad()
    def run(self) -> Iterator[FinishedChunk]:
        """Go on from the current state to the end.

        Yields:
            Chunks in order, as soon as they are clean.

        Raises:
            ConfigError: an earlier run was broken off within a stage.
        """
        self._check_between_stages()
        if self.stage == 0 and self.num_prefix_chunks and self.cache is None:
            self._within_stage = True
            self._encode_prefix()
            self._within_stage = False
        calls = plan_calls(
            self.config,
            num_chunks=self.task.num_chunks,
            num_prefix_chunks=self.num_prefix_chunks,
            first_stage=self.stage,
        )
        for call in calls:
            if self.stopped:
                return
            self._within_stage = True
            self._step(call)
            if call.step_in_stage == self.config.steps_per_stage - 1:
                self.stage = call.stage + 1
                self.latents = {c: x for c, x in self.latents.items() if c >= call.chunks[0]}
                self._within_stage = False
            if call.finished is not None:
                yield self._finish(call.finished, self.latents[call.finished])

    def stop(self) -> None:
        """End `run` after the step in progress; chunks that are not clean by then are lost."""
        self.stopped = True

    def _check_between_stages(self) -> None:
        """Refuse to go on from, or save, latents of which some have made a step and others not."""
        if self._within_stage:
            raise ConfigError(
                "engine",
                expected="a run that ended with a finished chunk",
                got="one broken off within a stage",
                hint="make a new engine and load the state saved after the last chunk",
            )

    def _step(self, call: ChunkCall) -> None:
        """Run one step and update the latents in flight."""
        inputs = self._inputs(call)
        velocity, kept = self._predict(call, inputs)
        if kept is not None:
            self._remember(kept)
        if self.on_velocity is not None:
            self.on_velocity(call, velocity)
        width = self.config.chunk_width
        now, after = (torch.tensor(t, device=self.device) for t in (call.times, call.next_times))
        for slot, chunk in enumerate(call.chunks):
            part = velocity[:, :, slot * width : (slot + 1) * width]
            # Start from the pasted input: the official code integrates given frames as well.
            start = inputs.latent[:, :, (slot - len(call.chunks)) * width :][:, :, :width]
            self.latents[chunk] = start + part * (after[slot] - now[slot])
        self._forget(call.keep_from)
        if self.on_step is not None:
            window = torch.cat([self.latents[c] for c in call.chunks], dim=2)
            changed = self.on_step(call, window)
            if changed is not None:
                parts = changed.to(self.device, torch.float32).split(width, dim=2)
                self.latents.update(zip(call.chunks, parts, strict=True))

    def _predict(
        self, call: ChunkCall, inputs: CallInputs
    ) -> tuple[torch.Tensor, KeyValues | None]:
        """Run the model's passes; returns the velocity, and keys and values of the clean chunk."""
        model, config = self.model, self.config
        if config.distilled:
            return distilled_velocity(
                model, call, inputs=inputs, near_clean_scale=config.near_clean_scale
            )
        return guided_velocity(model, call, inputs=inputs, runtime=self.runtime)

    def _inputs(self, call: ChunkCall) -> CallInputs:
        """Gather the tensors of a step; new chunks start from their noise."""
        chunks, ranges = call.chunks, call.ranges
        times: tuple[float, ...] = call.times
        conditions = tuple(self.task.condition(c) for c in chunks)
        if call.clean_chunk is not None and call.clean_range is not None:
            chunks, ranges = (call.clean_chunk, *chunks), (call.clean_range, *ranges)
            times = (self.config.clean_t, *times)
            conditions = (self.task.null_caption, *conditions)
        for chunk in chunks:
            if chunk not in self.latents:
                self.latents[chunk] = self._noise(chunk)
        latents = (_paste_prefix(c, self.latents[c], prefix=self.task.prefix) for c in chunks)
        latent = torch.cat(list(latents), dim=2)
        return CallInputs(
            latent,
            torch.tensor([times], device=self.device),
            ranges,
            conditions,
            self.task.null_caption,
            self._past(call.slice_point),
        )

    def _noise(self, chunk: int) -> torch.Tensor:
        channels, height, width = self.task.latent_shape
        shape = (1, channels, self.config.chunk_width, height, width)
        if self.task.noise is None:
            return chunk_noise(self.task.seed, chunk, shape=shape).to(self.device)
        noise = self.task.noise(chunk)
        if tuple(noise.shape) != shape:
            raise ShapeError("noise", expected=str(shape), got=tuple(noise.shape))
        return noise.to(self.device, torch.float32)

    def restored(self, chunk: int, saved: dict[str, torch.Tensor]) -> FinishedChunk:
        """Return a finished chunk from what was saved.

        Args:
            chunk: absolute chunk index.
            saved: what `latents_dict` returned when it was finished.

        Returns:
            The chunk, as `run` yielded it.
        """
        return self._finish(chunk, saved[f"latent.{chunk}"].to(self.device))

    def _finish(self, chunk: int, latent: torch.Tensor) -> FinishedChunk:
        return finish_chunk(chunk, latent, prefix=self.task.prefix, config=self.config)

    def _encode_prefix(self) -> None:
        """Fill the cache from whole given chunks, one at a time.

        Only the pass that writes the cache is made: null caption, and for base weights the
        modulation row of a dropped caption.
        """
        visible = self.config.prefix_chunks_visible()
        ranges = self.config.noise2clean_kvrange
        if visible == 1 and ranges:  # each chunk stands alone: those never looked at are left out
            self.cache_start = max(0, self.num_prefix_chunks + 1 - max(ranges))
        first_call = next(
            plan_calls(
                self.config,
                num_chunks=self.task.num_chunks,
                num_prefix_chunks=self.num_prefix_chunks,
            )
        )
        for chunk in range(self.cache_start, self.num_prefix_chunks):
            inputs = CallInputs(
                self._given_chunk(chunk),
                torch.full((1, 1), self.config.clean_t, device=self.device),
                ((max(0, chunk + 1 - visible), chunk + 1),),
                (self.task.null_caption,),
                self.task.null_caption,
                self._past(chunk),
            )
            call = dataclasses.replace(first_call, chunks=(chunk,), clean_chunk=chunk)
            dropped = [not self.config.distilled]
            _, kept = run_pass(
                self.model, call, inputs=inputs, texts=[inputs.cond], dropped=dropped
            )
            assert kept is not None
            self._remember(kept)
            if ranges:  # what neither the next given chunk nor the first new one looks at
                self._forget(chunk + 2 - max(visible, *ranges))

    def _given_chunk(self, chunk: int) -> torch.Tensor:
        """Return a chunk of the prefix that is given whole."""
        assert self.task.prefix is not None
        start = chunk * self.config.chunk_width
        given = self.task.prefix[:, :, start : start + self.config.chunk_width]
        return given.to(self.device, torch.float32)

    def _past(self, slice_point: int) -> KeyValues | None:
        """Return the cached keys of the chunks right before a call."""
        if self.cache is None or slice_point == 0:
            return None
        return self.cache

    def _tokens_per_chunk(self) -> int:
        assert self.cache is not None
        return self.cache[0][0].shape[2] // self._cached_chunks

    def _remember(self, kept: KeyValues) -> None:
        """Append one clean chunk's keys and values."""
        if self.cache is None:
            # A copy, because these are views of the keys of the whole call.
            self.cache = tuple((key.clone(), value.clone()) for key, value in kept)
        else:
            self.cache = tuple(
                (torch.cat((old[0], new[0]), dim=2), torch.cat((old[1], new[1]), dim=2))
                for old, new in zip(self.cache, kept, strict=True)
            )
        self._cached_chunks += 1

    def _forget(self, keep_from: int) -> None:
        """Drop cached chunks that nothing will look at again."""
        drop = min(keep_from - self.cache_start, self._cached_chunks)
        if self.cache is None or drop <= 0:
            return
        rows = drop * self._tokens_per_chunk()
        self.cache = tuple((k[:, :, rows:].clone(), v[:, :, rows:].clone()) for k, v in self.cache)
        self.cache_start += drop
        self._cached_chunks -= drop

    def latents_dict(self) -> dict[str, torch.Tensor]:
        """Save the small part of the state, from which `rebuild` makes the rest.

        Returns:
            The latents in flight, the chunk that was just finished among them, and the position.

        Raises:
            ConfigError: the last run was broken off within a stage.
        """
        self._check_between_stages()
        state = {f"latent.{c}": x.contiguous() for c, x in self.latents.items()}
        numbers = (self.stage, self.cache_start, self._cached_chunks)
        state["position"] = torch.tensor(numbers, dtype=torch.int64)
        return state

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Save the state between two chunks; valid whenever `run` has just yielded.

        Returns:
            Tensors by name, ready for safetensors.

        Raises:
            ConfigError: the last run was broken off within a stage.
        """
        state = self.latents_dict()
        for layer, (key, value) in enumerate(self.cache or ()):
            state[f"key.{layer}"], state[f"value.{layer}"] = key.contiguous(), value.contiguous()
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a saved state; the config and the task must be those of the saving engine.

        Args:
            state: what `state_dict` returned.
        """
        self.stage, self.cache_start, self._cached_chunks = state["position"].tolist()
        self.latents = self._latents_of(state)
        layers = sum(name.startswith("key.") for name in state)
        self.cache = (
            tuple(
                (state[f"key.{i}"].to(self.device), state[f"value.{i}"].to(self.device))
                for i in range(layers)
            )
            or None
        )
        self._within_stage = False

    def pin(self, chunk: int, saved: dict[str, torch.Tensor]) -> None:
        """Put a finished chunk's earlier latent in the place of the one just computed.

        Args:
            chunk: what `run` has just yielded.
            saved: what `latents_dict` returned when it was first finished.
        """
        self.latents[chunk] = saved[f"latent.{chunk}"].to(self.device)

    @torch.no_grad()
    def rebuild(self, last: int, saved: Callable[[int], dict[str, torch.Tensor]]) -> None:
        """Go on after a finished chunk, with keys and values computed again.

        Every clean chunk's keys and values come from the call that once made them, so they are the
        same bits on the same machine: one step of the model per chunk that can still be seen.

        Args:
            last: the finished chunk.
            saved: gives what `latents_dict` returned when a chunk was finished, for chunks up to
                `last`; the config and the task must be those of the saving engine.
        """
        self.latents, self.cache, self.cache_start, self._cached_chunks = {}, None, 0, 0
        config, first, state = self.config, self.num_prefix_chunks, saved(last)
        start = int(state["position"][1])
        alone = config.prefix_chunks_visible() == config.visible_chunks(config.num_steps) == 1
        if alone and start >= first:
            self.cache_start = start
        else:  # chunks see chunks before them, so none can be left out
            start = first
            if first:
                self._encode_prefix()
        for chunk in range(start, last):
            self.latents = self._latents_of(saved(chunk))
            call = next(
                plan_calls(
                    config,
                    num_chunks=self.task.num_chunks,
                    num_prefix_chunks=first,
                    first_stage=chunk - first + config.window_size,
                )
            )
            inputs = self._inputs(call)
            # What the chunks in flight see has no effect on the clean one, and may not be there.
            ranges = tuple((max(low, self.cache_start), high) for low, high in inputs.ranges)
            _, kept = self._predict(call, dataclasses.replace(inputs, ranges=ranges))
            assert kept is not None
            self._remember(kept)
            self._forget(call.keep_from)
        self.latents, self.stage = self._latents_of(state), int(state["position"][0])
        self._within_stage = False

    def _latents_of(self, state: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        return {
            int(name.split(".")[1]): x.to(self.device)
            for name, x in state.items()
            if name.startswith("latent.")
        }
