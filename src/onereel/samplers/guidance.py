"""Three-way guidance of base weights, and the single pass of distilled weights.

v = (1 - w_prev) v(x) + (w_prev - w_text) v(x | earlier chunks) + w_text v(x | earlier, text)

Source: MAGI-1 report (arXiv 2505.13211) section 2.4.3; SandAI-org/MAGI-1 @6ff822e,
inference/pipeline/video_generate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from onereel.core.errors import ShapeError
from onereel.samplers.plan import ChunkCall

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class VelocityOutput(Protocol):
    """What a velocity model returns."""

    sample: torch.Tensor
    key_values: KeyValues | None


class VelocityModel(Protocol):
    """A network that predicts the velocity of a run of chunks; see Magi1Transformer3DModel."""

    def __call__(  # noqa: PLR0913 - mirrors the model's forward
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        *,
        kv_range: Sequence[tuple[int, int]] | None,
        slice_point: int,
        caption_dropout: torch.Tensor | bool,
        step_size: float | None,
        past_key_values: KeyValues | None,
        keep_chunks: int,
    ) -> VelocityOutput:
        """Return velocity [B, C, T, H, W] and kept keys and values."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceRuntime:
    """How guidance is computed; none of it changes the result beyond float rounding.

    Args:
        skip_zero_weights: leave out passes whose weight is zero.
        batch_passes: run the text pass and the null pass as one batch.
    """

    skip_zero_weights: bool = True
    batch_passes: bool = True


@dataclass(frozen=True, slots=True)
class CallInputs:
    """Tensors of one step.

    Args:
        latent: [1, C, T, H, W] of the call: the clean chunk, if any, then those in flight.
        times: flow time per chunk of the call, [1, R].
        ranges: visible chunks per chunk of the call.
        cond: text tokens [S, K] per chunk of the call (null for the clean one).
        null: null caption tokens [S0, K].
        past: keys and values of earlier clean chunks, or None.
    """

    latent: torch.Tensor
    times: torch.Tensor
    ranges: tuple[tuple[int, int], ...]
    cond: tuple[torch.Tensor, ...]
    null: torch.Tensor
    past: KeyValues | None


def stack_text(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad rows of visible tokens to one length.

    Args:
        rows: tensors [S_i, K].

    Returns:
        Tokens [len(rows), S, K], and the mask [len(rows), S], or None where all are visible.

    Raises:
        ShapeError: a row has no token; attention over nothing has no value.
    """
    lengths = [row.shape[0] for row in rows]
    if not min(lengths):
        raise ShapeError(
            "text", expected="at least one token per chunk", got=0, hint="use the null caption"
        )
    longest = max(lengths)
    text = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    if min(lengths) == longest:
        return text, None
    positions = torch.arange(longest, device=text.device)
    return text, positions[None] < torch.tensor(lengths, device=text.device)[:, None]


def run_pass(
    model: VelocityModel,
    call: ChunkCall,
    *,
    inputs: CallInputs,
    texts: Sequence[Sequence[torch.Tensor]],
    dropped: Sequence[bool],
) -> tuple[torch.Tensor, KeyValues | None]:
    """Run the model on the window once per text, as one batch.

    Args:
        model: the network.
        call: the step.
        inputs: its tensors.
        texts: per batch row the text rows of the chunks.
        dropped: per batch row whether the caption is the null one.

    Returns:
        Velocity [rows, C, T, H, W], and the keys and values of the clean chunk per row.
    """
    rows = len(texts)
    text, mask = stack_text([row for chunk_texts in texts for row in chunk_texts])
    chunks = len(texts[0])
    output = model(
        inputs.latent.expand(rows, -1, -1, -1, -1),
        inputs.times.expand(rows, -1),
        text.unflatten(0, (rows, chunks)),
        None if mask is None else mask.unflatten(0, (rows, chunks)),
        kv_range=inputs.ranges,
        slice_point=call.slice_point,
        caption_dropout=torch.tensor(dropped, device=text.device),
        step_size=call.step_size,
        past_key_values=inputs.past,
        keep_chunks=int(call.clean_chunk is not None),
    )
    return output.sample, output.key_values


def guided_velocity(
    model: VelocityModel, call: ChunkCall, *, inputs: CallInputs, runtime: GuidanceRuntime
) -> tuple[torch.Tensor, KeyValues | None]:
    """Predict with three-way guidance.

    Args:
        model: base weights.
        call: the step.
        inputs: its tensors.
        runtime: how to compute it.

    Returns:
        Velocity [1, C, T, H, W] of the chunks in flight, and the clean chunk's keys and values
        (those of the null pass).
    """
    lead = int(call.clean_chunk is not None)
    null_rows = [inputs.null] * len(inputs.cond)
    skip = runtime.skip_zero_weights
    need_text = not skip or any(text != 0 for _, text in call.weights)
    need_prev = lead > 0 or not need_text or any(prev != text for prev, text in call.weights)
    need_prev = need_prev or not skip
    alone = [i for i, (prev, _) in enumerate(call.weights) if not skip or prev != 1]
    if need_text and need_prev and runtime.batch_passes:
        both, kept = run_pass(
            model, call, inputs=inputs, texts=[inputs.cond, null_rows], dropped=[False, True]
        )
        with_text, with_prev = both[:1], both[1:]
        kept = kept and tuple((k[1:], v[1:]) for k, v in kept)
    else:
        kept = None
        if need_prev:
            with_prev, kept = run_pass(
                model, call, inputs=inputs, texts=[null_rows], dropped=[True]
            )
        if need_text:
            with_text, _ = run_pass(
                model, call, inputs=inputs, texts=[inputs.cond], dropped=[False]
            )
        with_prev = with_prev if need_prev else with_text
        with_text = with_text if need_text else with_prev
    width = inputs.latent.shape[2] // len(inputs.cond)
    with_text, with_prev = with_text[:, :, lead * width :], with_prev[:, :, lead * width :]
    w_prev, w_text = (
        torch.tensor(w, device=with_prev.device).repeat_interleave(width)[:, None, None]
        for w in zip(*call.weights, strict=True)
    )
    velocity = (w_prev - w_text) * with_prev
    if need_text:
        velocity = velocity + w_text * with_text
    if alone:
        lone = _lone_velocity(model, inputs, [lead + i for i in alone], width)
        for slot, row in zip(alone, lone, strict=True):
            part = slice(slot * width, (slot + 1) * width)
            velocity[:, :, part] += (1 - w_prev[part]) * row
    return velocity, kept


def _lone_velocity(
    model: VelocityModel, inputs: CallInputs, slots: Sequence[int], width: int
) -> torch.Tensor:
    """Predict chunks each for itself: no history, no text, positions from zero."""
    latent = torch.cat([inputs.latent[:, :, s * width : (s + 1) * width] for s in slots])
    output = model(
        latent,
        inputs.times[0, list(slots)][:, None],
        inputs.null.expand(len(slots), 1, -1, -1),
        None,
        kv_range=((0, 1),),
        slice_point=0,
        # A tensor like in the other passes, which spares a compiled model one more graph.
        caption_dropout=torch.ones(len(slots), dtype=torch.bool, device=latent.device),
        step_size=None,
        past_key_values=None,
        keep_chunks=0,
    )
    return output.sample


def distilled_velocity(
    model: VelocityModel, call: ChunkCall, *, inputs: CallInputs, near_clean_scale: float
) -> tuple[torch.Tensor, KeyValues | None]:
    """Predict with distilled weights: one pass, and near the end a mix with history left out.

    Args:
        model: distilled weights.
        call: the step.
        inputs: its tensors.
        near_clean_scale: weight of the prediction with history.

    Returns:
        Velocity [1, C, T, H, W] of the chunks in flight, and the clean chunk's keys and values.
    """
    lead = int(call.clean_chunk is not None)
    width = inputs.latent.shape[2] // len(inputs.cond)
    if call.near_clean:
        oldest = slice(lead * width, (lead + 1) * width)
        after = call.chunks[-1] + 1
        inputs = CallInputs(
            torch.cat((inputs.latent, inputs.latent[:, :, oldest]), dim=2),
            torch.cat((inputs.times, inputs.times[:, lead : lead + 1]), dim=1),
            (*inputs.ranges, (after, after + 1)),
            (*inputs.cond, inputs.cond[lead]),
            inputs.null,
            inputs.past,
        )
    velocity, kept = run_pass(model, call, inputs=inputs, texts=[inputs.cond], dropped=[False])
    velocity = velocity[:, :, lead * width :]
    if call.near_clean:
        lone = velocity[:, :, -width:]
        velocity = velocity[:, :, :-width].clone()
        mixed = near_clean_scale * velocity[:, :, :width] + (1 - near_clean_scale) * lone
        velocity[:, :, :width] = mixed
    return velocity, kept
