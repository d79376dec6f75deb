"""MAGI-1's special tokens, and the caption of every chunk made from prompts and tokens.

Shapes: S visible text tokens, L tokens of the padded layout (800), K caption channels (4096),
O prefix chunks, M generated chunks, N = O + M. Cross-attention has no positions, so a row of only
the visible tokens gives the same picture as the official padded row with its mask.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onereel.core.config import nearest_name
from onereel.core.errors import CheckpointError, ConfigError, ShapeError

NULL_VISIBLE: Final = 50  # the null caption shows its first 50 rows, whatever they hold
MAX_DURATION: Final = 8  # "this many chunks are left"; longer rests share the last token

# Rows of the array `other_tokens`.
OTHER_ROWS: Final[dict[str, int]] = {
    "TRANS": 0,
    "HQ": 1,
    "STATIC_FIRST_FRAMES": 2,
    "DYNAMIC_FIRST_FRAMES": 3,
    "BORDERNESS": 4,
    **{f"DURATION_{count}": 6 + count for count in range(1, MAX_DURATION + 1)},
    "THREE_D_MODEL": 15,
    "TWO_D_ANIME": 16,
}
# In the order in which they are put in front of the text, so the last one ends up first.
_NEGATIVE: Final = ("CAPTION", "LOGO", "TRANS", "BORDERNESS")
_POSITIVE: Final = (
    "static_first_frames",
    "dynamic_first_frames",
    "borderness",
    "hq",
    "three_d_model",
    "two_d_anime",
    "duration",
)
_ARRAYS: Final = ("caption_token", "logo_token", "other_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConditioningFlags:
    """Which special tokens to show the model; the official sample videos use hq and duration.

    Args:
        hq: ask for high quality.
        duration: tell each chunk how many chunks are left.
        static_first_frames: ask for a still beginning.
        dynamic_first_frames: ask for a moving beginning.
        borderness: the token of videos with borders.
        three_d_model: ask for a rendered look.
        two_d_anime: ask for a drawn look.
        negative: put the tokens of unwanted things (captions, logos, transitions, borders) in
            front of the null caption.
    """

    hq: bool = False
    duration: bool = False
    static_first_frames: bool = False
    dynamic_first_frames: bool = False
    borderness: bool = False
    three_d_model: bool = False
    two_d_anime: bool = False
    negative: bool = False

    @property
    def needs_tokens(self) -> bool:
        """Say whether any flag is set."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SpecialTokens:
    """The token table: ready-made text embeddings, float32, rounded through float16.

    Args:
        caption_token: [1, K].
        logo_token: [1, K].
        other_tokens: [rows, K], at least 17 rows.
    """

    caption_token: Tensor
    logo_token: Tensor
    other_tokens: Tensor

    @classmethod
    def from_tensors(
        cls, arrays: Mapping[str, Tensor], *, source: str = "special tokens"
    ) -> SpecialTokens:
        """Check the arrays, round them as the model was trained with, and build the table.

        Args:
            arrays: `caption_token` [1, K], `logo_token` [1, K] and `other_tokens` [rows, K], at
                least 17 rows, of any float type.
            source: what error messages call them, such as the file's name.

        Returns:
            The table.

        Raises:
            CheckpointError: a name or a shape does not fit, or a value is not finite in float16.

        Source: spec magi1-dit 6.1.
        """
        if sorted(arrays) != sorted(_ARRAYS):
            names = ", ".join(sorted(arrays))
            raise CheckpointError(source, expected=f"arrays {', '.join(_ARRAYS)}", got=names)
        other = arrays["other_tokens"]
        width = other.shape[-1] if other.ndim else 0
        rounded = {}
        for name in _ARRAYS:
            _check_array(name, arrays[name], width=width, source=source)
            rounded[name] = arrays[name].to(torch.float16).float()
            if not bool(torch.isfinite(rounded[name]).all()):
                raise CheckpointError(
                    f"{source}: '{name}'", expected="finite float16 values", got="inf or nan"
                )
        return cls(**rounded)

    @classmethod
    def load(cls, path: str | Path) -> SpecialTokens:
        """Read a table from the official `.npz` or from `.safetensors`.

        Args:
            path: the file.

        Returns:
            The table.

        Raises:
            CheckpointError: the file is missing, damaged, of another kind or of wrong shapes.
        """
        path = Path(path)
        if path.suffix == ".npz":
            return cls.load_npz(path)
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"special tokens {path}", expected="a .npz or .safetensors file", got=path.suffix
            )
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path) from error
        return cls.from_tensors(arrays, source=f"special tokens {path}")

    @classmethod
    def load_npz(cls, path: str | Path) -> SpecialTokens:
        """Read the official `special_tokens.npz`.

        Args:
            path: the file.

        Returns:
            The table.

        Raises:
            CheckpointError: the file is missing, damaged or of wrong shapes.
        """
        path = Path(path)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise _unreadable(path) from error
        return cls.from_tensors(arrays, source=f"special tokens {path}")

    def save(self, path: str | Path) -> None:
        """Write the table as `.safetensors`.

        Args:
            path: the file to write.
        """
        save_file({name: getattr(self, name).contiguous() for name in _ARRAYS}, path)

    @property
    def width(self) -> int:
        """Return K, the number of caption channels."""
        return int(self.other_tokens.shape[-1])

    def row(self, name: str) -> Tensor:
        """Return one token.

        Args:
            name: CAPTION, LOGO, or a name of `OTHER_ROWS`.

        Returns:
            The token, [1, K] float32.

        Raises:
            ConfigError: there is no such token.
        """
        if name == "CAPTION":
            return self.caption_token
        if name == "LOGO":
            return self.logo_token
        if name not in OTHER_ROWS:
            near = nearest_name(name, OTHER_ROWS) or ", ".join(OTHER_ROWS)
            raise ConfigError(f"special token '{name}'", hint=f"did you mean '{near}'?")
        index = OTHER_ROWS[name]
        return self.other_tokens[index : index + 1]

    def duration(self, chunks_left: int) -> Tensor:
        """Return the token saying how many chunks are left.

        Args:
            chunks_left: 1 for the last chunk, 2 for the one before; from 8 on always the same.

        Returns:
            The token, [1, K] float32.
        """
        return self.row(f"DURATION_{min(chunks_left, MAX_DURATION)}")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ChunkCaptions:
    """The text each chunk sees, as visible tokens only.

    Args:
        cond: one [S, K] per absolute chunk; prefix chunks have S = 0, for they are never asked.
        null: [S, K], the text of the unconditional pass, the same for all chunks.
    """

    cond: tuple[Tensor, ...]
    null: Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PaddedLayout:
    """The layout of the official code: row 0 conditional, row 1 null.

    Args:
        rows: [2, N, L, K].
        mask: [2, N, L], 1 where visible.
    """

    rows: Tensor
    mask: Tensor


def build_captions(
    prompt_features: Sequence[Tensor],
    null_embedding: Tensor,
    *,
    num_prefix_chunks: int,
    flags: ConditioningFlags,
    tokens: SpecialTokens | None,
    max_length: int,
    negative_features: Tensor | None = None,
) -> ChunkCaptions:
    """Make the caption of every chunk.

    Args:
        prompt_features: one [S, K] per generated chunk, visible tokens only; a chunk without
            tokens gets the null caption.
        null_embedding: the model's learned null caption, [L, K].
        num_prefix_chunks: how many whole clean chunks come first.
        flags: which special tokens to add.
        tokens: the token table; None is fine when no flag is set.
        max_length: rows longer than this are cut at the end.
        negative_features: [S, K] of a negative prompt, which replaces the null caption.

    Returns:
        The captions, in the type and on the device of the prompts.

    Raises:
        ConfigError: a flag is set without a token table, or there is no chunk.
        ShapeError: the widths differ.

    Source: spec magi1-dit 6.2, 6.3, 6.5; the negative prompt is ours.
    """
    _check_inputs(prompt_features, null_embedding, flags, tokens)
    if negative_features is not None:
        _check_width("negative features", negative_features, null_embedding)
    like = prompt_features[0]
    null = _null_caption(null_embedding.to(like), flags, tokens, max_length, negative_features)
    if not any(len(features) for features in prompt_features):
        return ChunkCaptions((null,) * (num_prefix_chunks + len(prompt_features)), null)
    cond = [like.new_zeros(0, like.shape[-1])] * num_prefix_chunks
    for index, features in enumerate(prompt_features):
        special = _positive_tokens(flags, tokens, len(prompt_features) - index)
        cond.append(_in_front(special, features, max_length) if len(features) else null)
    return ChunkCaptions(tuple(cond), null)


def stack_captions(
    captions: Sequence[Tensor], *, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad captions of different lengths with zeros to one tensor.

    Args:
        captions: R tensors [S, K].
        length: pad to this many tokens; None pads to the longest.

    Returns:
        The rows [R, S, K] and the mask [R, S] bool, True where visible.

    Raises:
        ShapeError: a caption is longer than `length`.
    """
    longest = max(len(caption) for caption in captions)
    length = longest if length is None else length
    if longest > length:
        raise ShapeError("captions", expected=f"at most {length} tokens", got=longest)
    first = captions[0]
    rows = first.new_zeros(len(captions), length, first.shape[-1])
    for row, caption in zip(rows, captions, strict=True):
        row[: len(caption)] = caption
    lengths = torch.tensor([len(caption) for caption in captions], device=first.device)
    mask = torch.arange(length, device=first.device) < lengths[:, None]  # [R, S]
    return rows, mask


def padded_layout(
    caption: Tensor,
    mask_length: int,
    *,
    null_embedding: Tensor,
    num_chunks: int,
    num_prefix_chunks: int,
    flags: ConditioningFlags,
    tokens: SpecialTokens | None,
) -> PaddedLayout:
    """Lay out one prompt as the official code does, hidden rows included (for parity checks).

    Args:
        caption: [L, K], padding rows as the text encoder left them.
        mask_length: how many rows of it are visible.
        null_embedding: [L, K].
        num_chunks: N, prefix chunks included.
        num_prefix_chunks: O.
        flags: which special tokens to add.
        tokens: the token table; None is fine when no flag is set.

    Returns:
        The rows and masks.

    Raises:
        ConfigError: a flag is set without a token table.
        ShapeError: the widths differ.

    Source: spec magi1-dit 6.2 to 6.4.
    """
    _check_inputs([caption], null_embedding, flags, tokens)
    length, device = len(caption), caption.device
    null_embedding = null_embedding.to(caption)
    null = _in_front(_negative_tokens(flags, tokens), null_embedding, length)
    null_rows = null.expand(num_chunks, -1, -1)
    visible = [NULL_VISIBLE] * num_chunks
    rows, shown = null_rows, visible
    if mask_length:
        generated = num_chunks - num_prefix_chunks
        special = [_positive_tokens(flags, tokens, left) for left in range(generated, 0, -1)]
        cond = [null_embedding] * num_prefix_chunks
        cond += [_in_front(front, caption, length) for front in special]
        rows = torch.stack(cond)
        shown = [0] * num_prefix_chunks
        shown += [min(mask_length + len(front), length) for front in special]
    lengths = torch.tensor([shown, visible], device=device)
    mask = torch.arange(length, device=device) < lengths[..., None]  # [2, N, L]
    return PaddedLayout(torch.stack([rows, null_rows]), mask.float())


def _positive_tokens(
    flags: ConditioningFlags, tokens: SpecialTokens | None, chunks_left: int
) -> list[Tensor]:
    """List the tokens before a chunk's text, in the order of prepending."""
    if tokens is None:
        return []
    return [
        tokens.duration(chunks_left) if name == "duration" else tokens.row(name.upper())
        for name in _POSITIVE
        if getattr(flags, name)
    ]


def _negative_tokens(flags: ConditioningFlags, tokens: SpecialTokens | None) -> list[Tensor]:
    """List the tokens before the null text, in the order of prepending."""
    if tokens is None or not flags.negative:
        return []
    return [tokens.row(name) for name in _NEGATIVE]


def _in_front(special: Sequence[Tensor], text: Tensor, max_length: int) -> Tensor:
    """Put tokens before the text one after the other, then cut at the end."""
    rows = [token.to(text) for token in reversed(special)]
    return torch.cat([*rows, text])[:max_length]


def _null_caption(
    null_embedding: Tensor,
    flags: ConditioningFlags,
    tokens: SpecialTokens | None,
    max_length: int,
    negative_features: Tensor | None,
) -> Tensor:
    """Return the visible rows of the null text, or of the negative prompt."""
    special = _negative_tokens(flags, tokens)
    if negative_features is not None and len(negative_features):
        return _in_front(special, negative_features.to(null_embedding), max_length)
    # The official mask stays 50 long: tokens in front push null rows out of sight.
    return _in_front(special, null_embedding, max_length)[:NULL_VISIBLE]


def _check_inputs(
    features: Sequence[Tensor],
    null_embedding: Tensor,
    flags: ConditioningFlags,
    tokens: SpecialTokens | None,
) -> None:
    if not features:
        raise ConfigError("prompt features", expected="one tensor per generated chunk", got=0)
    if tokens is None and flags.needs_tokens:
        raise ConfigError(
            "conditioning flags",
            expected="a table of special tokens",
            hint="load special_tokens.npz of the official repository, or switch the flags off",
        )
    for index, rows in enumerate(features):
        _check_width(f"features of chunk {index}", rows, null_embedding)
    if tokens is not None:
        _check_width("special tokens", tokens.other_tokens, null_embedding)


def _check_width(name: str, rows: Tensor, null_embedding: Tensor) -> None:
    width = null_embedding.shape[-1]
    if rows.ndim != 2 or rows.shape[-1] != width:
        raise ShapeError(name, expected=f"[tokens, {width}]", got=tuple(rows.shape))


def _check_array(name: str, array: Tensor, *, width: int, source: str) -> None:
    least = max(OTHER_ROWS.values()) + 1
    fits = array.ndim == 2 and array.shape[1] == width and array.is_floating_point()
    fits = fits and (array.shape[0] >= least if name == "other_tokens" else array.shape[0] == 1)
    if not fits:
        rows = f"at least {least}" if name == "other_tokens" else "1"
        raise CheckpointError(
            f"{source}: '{name}'",
            expected=f"floats of {rows} x {width}",
            got=f"{array.dtype} {tuple(array.shape)}",
        )


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"special tokens {path}",
        expected="a readable table of MAGI-1's special tokens",
        got="no such file" if not path.exists() else "a damaged or different file",
        hint="take example/assets/special_tokens.npz of the official MAGI-1 repository",
    )
