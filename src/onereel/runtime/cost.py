"""What model calls cost, from shapes alone: floating-point operations and bytes of intermediates.

Legend: L tokens of a call (all rows and chunks), D width, Q query width, KV key width, F MLP width,
S text tokens of a chunk, K text width; e bytes per number of the model's dtype. A multiply and an
add count as two operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onereel.models.text.special_tokens import NULL_VISIBLE
from onereel.samplers.plan import ChunkCall, ChunkSampleConfig, plan_calls

_FP32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """The shape of one model call.

    Args:
        rows: batch rows.
        chunks: chunks per row.
        visible: chunks of keys seen, summed over the chunks of a row.
        text: text tokens per chunk.
        past: cached chunks that are passed in.
        keep: leading chunks whose keys are kept.
    """

    rows: int
    chunks: int
    visible: int
    text: int
    past: int = 0
    keep: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the plan.

    Args:
        forwards: the model calls it makes.
        passes: guidance passes among them; a batch of two counts as two.
        cached: clean chunks that are in the cache during the step.
    """

    forwards: tuple[Forward, ...]
    passes: int
    cached: int


def call_forwards(
    call: ChunkCall, config: ChunkSampleConfig, *, text: int, cached: int
) -> tuple[tuple[Forward, ...], int]:
    """List the model calls of one step, as the sampler makes them with passes skipped and batched.

    Args:
        call: the step.
        config: the sampling settings.
        text: visible text tokens of a prompt.
        cached: clean chunks in the cache.

    Returns:
        The calls, and the number of guidance passes.
    """
    lead = int(call.clean_chunk is not None)
    ranges = (*call.ranges, *(() if call.clean_range is None else (call.clean_range,)))
    visible = sum(end - start for start, end in ranges)
    chunks = len(call.chunks) + lead
    past = cached if call.slice_point else 0
    both = max(text, NULL_VISIBLE)
    if config.distilled:
        extra = int(call.near_clean)
        shape = Forward(rows=1, chunks=chunks + extra, visible=visible + extra,
                        text=both if lead else text, past=past, keep=lead)  # fmt: skip
        return (shape,), 1
    need_text = any(text_scale != 0 for _, text_scale in call.weights)
    alone = sum(prev != 1 for prev, _ in call.weights)
    rows = 2 if need_text else 1
    main = Forward(rows=rows, chunks=chunks, visible=visible,
                   text=both if need_text else NULL_VISIBLE, past=past, keep=lead)  # fmt: skip
    if not alone:
        return (main,), rows
    lone = Forward(rows=alone, chunks=1, visible=1, text=NULL_VISIBLE)
    return (main, lone), rows + 1


def plan_steps(
    config: ChunkSampleConfig, *, num_chunks: int, num_prefix_chunks: int, text: int
) -> Iterator[Step]:
    """Walk through the plan of a video, counting what is in the cache.

    Args:
        config: the sampling settings.
        num_chunks: chunks of the video, prefix included.
        num_prefix_chunks: chunks given whole.
        text: visible text tokens of a prompt.

    Yields:
        One step after the other; encoding given chunks counts as a step each.
    """
    ranges, most = config.noise2clean_kvrange, config.prefix_chunks_visible()
    first, cached = _first_prefix_chunk(config, num_prefix_chunks), 0
    for chunk in range(first, num_prefix_chunks):
        shape = Forward(rows=1, chunks=1, visible=min(most, chunk + 1), text=NULL_VISIBLE,
                        past=cached, keep=1)  # fmt: skip
        cached += 1
        yield Step(forwards=(shape,), passes=1, cached=cached)
        drop = max(chunk + 2 - max(most, *ranges) - first, 0) if ranges else 0
        first, cached = first + drop, cached - drop
    calls = plan_calls(config, num_chunks=num_chunks, num_prefix_chunks=num_prefix_chunks)
    for call in calls:
        forwards, passes = call_forwards(call, config, text=text, cached=cached)
        cached += int(call.clean_chunk is not None)
        yield Step(forwards=forwards, passes=passes, cached=cached)
        drop = min(max(call.keep_from - first, 0), cached)
        first, cached = first + drop, cached - drop


def _first_prefix_chunk(config: ChunkSampleConfig, num_prefix_chunks: int) -> int:
    """Find the first given chunk that is encoded; earlier ones are never looked at."""
    ranges = config.noise2clean_kvrange
    if config.prefix_chunks_visible() == 1 and ranges:
        return max(0, num_prefix_chunks + 1 - max(ranges))
    return 0


class TransformerCost:
    """Costs of the transformer's calls at one canvas.

    Args:
        config: complete config of the transformer.
        chunk_frames: latent frames per chunk.
        latent_size: latent rows and columns.
        itemsize: bytes per number of the model's dtype.
        restored: numbers of the largest matrix that is stored rounded, and whole while it is used.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        chunk_frames: int,
        latent_size: tuple[int, int],
        itemsize: int,
        restored: int = 0,
    ) -> None:
        self.config, self.itemsize, self.restored = config, itemsize, restored
        self.layers = int(config["num_layers"])
        self.heads = int(config["num_attention_heads"])
        self.width = self.heads * int(config["attention_head_dim"])
        self.key_width = int(config["num_kv_heads"]) * int(config["attention_head_dim"])
        self.ffn = int(config["ffn_dim"])
        self.condition = int(self.width * config["cond_hidden_ratio"])
        t, h, w = config["patch_size"]
        self.patch = t * h * w
        self.tokens = chunk_frames // t * (latent_size[0] // h) * (latent_size[1] // w)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one chunk's keys and values in all layers."""
        return self.layers * self.tokens * 2 * self.key_width * self.itemsize

    def numbers(self, call: Forward) -> int:
        """Count the numbers in one tensor of tokens, summed over the layers.

        Args:
            call: its shape.

        Returns:
            Numbers.
        """
        return self.layers * call.rows * call.chunks * self.tokens * self.width

    def flops(self, call: Forward) -> int:
        """Count the operations of one call.

        Args:
            call: its shape.

        Returns:
            Operations.
        """
        width, keys, text = self.width, self.key_width, self.config["cross_attention_dim"]
        chunks = call.rows * call.chunks
        rows, words = chunks * self.tokens, chunks * call.text
        linear = rows * width * (2 * width + 2 * keys)  # q, k, v, and the query of the text
        linear += words * width * 2 * keys
        linear += rows * 2 * width * width
        linear += rows * width * self.ffn * (3 if self.config["gated_linear_unit"] else 2)
        linear += chunks * self.condition * 2 * width
        seen = call.rows * call.visible * self.tokens
        attention = 2 * width * (seen * self.tokens + rows * call.text)
        channels = self.config["in_channels"] + self.config["out_channels"]
        ends = rows * width * self.patch * channels
        ends += words * text * width + chunks * text * self.condition
        ends += chunks * (self.config["freq_dim"] + self.condition) * self.condition
        return int(2 * (self.layers * (linear + attention) + ends))

    def activation_bytes(self, call: Forward, *, fused_attention: bool = True) -> int:
        """Estimate the peak of intermediates of one call, weights and cache not counted.

        Args:
            call: its shape.
            fused_attention: False where cross-attention with a mask writes its scores out.

        Returns:
            Bytes.
        """
        e, chunks = self.itemsize, call.rows * call.chunks
        tokens = chunks * self.tokens
        x = tokens * self.width  # numbers in one tensor of tokens
        key = tokens * self.key_width
        past = call.rows * call.past * self.tokens * self.key_width
        joined = 2 * (past + key) * e if call.past else 0
        attention = 2 * x * e + x * e + 2 * key * e + joined  # x, its norm, q, k, v
        scores = 0 if fused_attention else 2 * _FP32 * tokens * self.heads * call.text
        phases = (
            2 * x * e + x * e + 2 * key * e + 11 * x,  # norm and rotation of q in float32
            attention + 3 * x * e + scores,
            attention + 4 * x * e + _upcast(2 * x, e) + self._projection_bytes() + _FP32 * x,
            # From here on the block's input, the attended tokens and the new ones are all alive.
            2 * x * e + _FP32 * x + x * e + 3 * _FP32 * x + _upcast(x, e),  # gate, norm, residual
            2 * x * e + _FP32 * x + x * e + self._mlp_bytes(tokens),
            x * e + 2 * _FP32 * x,  # last norm
        )
        text = chunks * call.text * self.width * e
        return int(max(phases) + text + self._kept_bytes(call))

    def _projection_bytes(self) -> int:
        """Bytes of the output projection's weight in float32."""
        return _upcast(2 * self.width * self.width, self.itemsize)

    def _mlp_bytes(self, tokens: int) -> int:
        hidden = tokens * self.ffn * self.itemsize
        gated = self.config["gated_linear_unit"]
        weight = self.width * self.ffn * (2 if gated else 1)
        dequantized = weight * (2 * _FP32 + self.itemsize) if self.config["fp8_quant"] else 0
        return hidden * (4 if gated else 2) + dequantized

    def _kept_bytes(self, call: Forward) -> int:
        """Bytes of the keys and values that a call returns."""
        return call.rows * call.keep * self.kv_bytes


def _upcast(numbers: int, itemsize: int) -> int:
    """Bytes of a float32 copy, which is none where the numbers are float32 already."""
    return 0 if itemsize == _FP32 else numbers * _FP32


class VaeCost:
    """Costs of decoding one tile.

    Args:
        config: complete config of the VAE.
        itemsize: bytes per number of the VAE's dtype.
    """

    def __init__(self, config: Mapping[str, Any], *, itemsize: int) -> None:
        self.config, self.itemsize = config, itemsize
        self.width = config["num_attention_heads"] * config["attention_head_dim"]
        t, h, w = config["patch_size"]
        self.volume = t * h * w
        self.channels = 4 if config["use_final_proj"] else self.width // self.volume

    def flops(self, grid: tuple[int, int, int]) -> int:
        """Count the operations of decoding one tile.

        Args:
            grid: latent frames, rows and columns.

        Returns:
            Operations.
        """
        patches = grid[0] * grid[1] * grid[2]
        tokens = patches + int(self.config["with_cls_token"])
        linear = tokens * self.width * (4 * self.width + 2 * self.config["ffn_dim"])
        attention = 2 * tokens * tokens * self.width
        ends = patches * self.width * self.config["z_dim"]
        if self.config["use_final_proj"]:
            ends += patches * self.width * self.channels * self.volume
        colours = self.config["in_channels"]
        ends += patches * self.volume * 27 * self.channels * colours
        return int(2 * (self.config["num_layers"] * (linear + attention) + ends))

    def activation_bytes(self, grid: tuple[int, int, int]) -> int:
        """Estimate the peak of intermediates of decoding one tile.

        Args:
            grid: latent frames, rows and columns.

        Returns:
            Bytes.
        """
        e, patches = self.itemsize, grid[0] * grid[1] * grid[2]
        x = (patches + 1) * self.width
        attention = (2 + 6) * x * e + 3 * _FP32 * x
        mlp = 2 * x * e + 2 * patches * self.config["ffn_dim"] * e
        pixels = patches * self.volume
        # The last convolution copies every neighbourhood of 3 x 3 x 3.
        image = (2 + 27) * pixels * self.channels * e + pixels * self.config["in_channels"] * e
        return int(max(attention, mlp, image))
