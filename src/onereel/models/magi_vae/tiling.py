"""Cutting videos and latents into tiles, and blending the tiles' results.

Two ways. `TileConfig` is ours: every tile fits the patch grid, no tile is needless, no temporal
tile of one latent frame is left over, and blending weights add up to one everywhere.
`OfficialTiles` repeats the official geometry exactly, needless tiles and raw neighbours included.

Blending tile b with its predecessor a over e positions: b[i] = a[-e + i] * (1 - i/e) + b[i] * i/e.

Source: SandAI-org/MAGI-1 @6ff822e, inference/infra/parallelism/tile_parallel.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from onereel.core.errors import ConfigError, ShapeError

Factors = tuple[int, int, int]
Span = tuple[int, int]
_WHOLE = 100_000  # the official stand-in for "one tile covers the picture"
_AXES = ("length", "height", "width")


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisTiles:
    """Tiles along one axis.

    Args:
        tile: tile size, in units of what is cut.
        stride: distance of tile starts, in units of what is cut.
        blend: positions blended with the predecessor, in units of the result.
        keep: positions kept of a tile that has a successor, in units of the result.
        min_tail: a last tile shorter than this is merged into its predecessor.
        official: count tiles as the official code does and crop the last one too.
    """

    tile: int
    stride: int
    blend: int
    keep: int
    min_tail: int = 0
    official: bool = False

    def spans(self, size: int) -> list[Span]:
        """Cut an axis.

        Args:
            size: length of the axis.

        Returns:
            Start and end of every tile.
        """
        if self.official:
            count = math.ceil(size / self.stride)
        else:
            count = 1 + max(0, math.ceil((size - self.tile) / self.stride))
        spans = [(k * self.stride, min(size, k * self.stride + self.tile)) for k in range(count)]
        if len(spans) > 1 and spans[-1][1] - spans[-1][0] < self.min_tail:
            spans[-2:] = [(spans[-2][0], size)]
        return spans

    def crop(self, tile: torch.Tensor, dim: int, *, last: bool) -> torch.Tensor:
        """Keep the part of a tile that its successor does not replace.

        Args:
            tile: a blended result.
            dim: the axis.
            last: whether no successor exists.

        Returns:
            A view.
        """
        if last and not self.official:
            return tile
        return tile.narrow(dim, 0, min(self.keep, tile.shape[dim]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TilePlan:
    """Tiles along time, rows and columns.

    Args:
        axes: time, rows, columns.
        chained: blend with the already blended neighbour instead of the raw one.
        image_tiles: treat a tile of one latent frame as a picture and return its first frame only.
    """

    axes: tuple[AxisTiles, AxisTiles, AxisTiles]
    chained: bool = True
    image_tiles: bool = False

    def spans(self, x: torch.Tensor) -> tuple[list[Span], list[Span], list[Span]]:
        """Cut a tensor [B, C, T, H, W] along its last three axes."""
        t, h, w = (axis.spans(n) for axis, n in zip(self.axes, x.shape[2:], strict=True))
        return t, h, w

    def counts(self, x: torch.Tensor) -> Factors:
        """Count the tiles of a tensor [B, C, T, H, W] along its last three axes."""
        t, h, w = (len(spans) for spans in self.spans(x))
        return t, h, w

    def cut(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield tiles, time slowest and columns fastest.

        Args:
            x: [B, C, T, H, W].

        Yields:
            Views.
        """
        times, rows, columns = self.spans(x)
        for t0, t1 in times:
            for h0, h1 in rows:
                for w0, w1 in columns:
                    yield x[:, :, t0:t1, h0:h1, w0:w1]

    def assemble(
        self, tiles: Iterable[torch.Tensor], counts: Factors, *, squared: bool = False
    ) -> torch.Tensor:
        """Blend tiles and join them.

        Args:
            tiles: results [B, C, T, H, W] in the order of `cut`.
            counts: tiles along time, rows and columns.
            squared: square the weights, as variances of weighted sums need.

        Returns:
            The joined result.
        """
        source = iter(tiles)
        slabs: list[torch.Tensor] = []
        before: dict[tuple[int, int], torch.Tensor] = {}  # tiles of the slab one step earlier
        for t in range(counts[0]):
            slab: dict[tuple[int, int], torch.Tensor] = {}
            rows = []
            for i in range(counts[1]):
                pieces = []
                for j in range(counts[2]):
                    raw = next(source)
                    near = (before.get((i, j)), slab.get((i - 1, j)), slab.get((i, j - 1)))
                    tile = self._blend_near(raw, near, squared)
                    slab[i, j] = tile if self.chained else raw
                    pieces.append(self._crop(tile, (t, i, j), counts))
                rows.append(torch.cat(pieces, dim=4))
            slabs.append(torch.cat(rows, dim=3))
            before = slab if self.axes[0].blend else {}
        return torch.cat(slabs, dim=2)

    def _blend_near(
        self, tile: torch.Tensor, near: tuple[torch.Tensor | None, ...], squared: bool
    ) -> torch.Tensor:
        """Blend with the earlier, the upper and the left neighbour, in this order."""
        for dim, (axis, other) in enumerate(zip(self.axes, near, strict=True), start=2):
            if other is not None:
                tile = blend(other, tile, dim=dim, extent=axis.blend, squared=squared)
        return tile

    def _crop(self, tile: torch.Tensor, index: Factors, counts: Factors) -> torch.Tensor:
        for k, axis in enumerate(self.axes):
            tile = axis.crop(tile, k + 2, last=index[k] == counts[k] - 1)
        return tile


def blend(
    before: torch.Tensor, tile: torch.Tensor, *, dim: int, extent: int, squared: bool = False
) -> torch.Tensor:
    """Fade from the end of one tile into the start of the next.

    Args:
        before: the predecessor.
        tile: the tile; it is not changed.
        dim: the axis.
        extent: positions to fade over; shorter tiles fade over what they have.
        squared: square the weights.

    Returns:
        The faded tile.
    """
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return tile
    fade = torch.arange(extent, device=tile.device, dtype=torch.float32) / extent
    fade = fade.to(tile.dtype).view([-1 if d == dim else 1 for d in range(tile.ndim)])
    old, new = (1 - fade, fade) if not squared else ((1 - fade).square(), fade.square())
    head = before.narrow(dim, before.shape[dim] - extent, extent) * old
    head = head + tile.narrow(dim, 0, extent) * new
    rest = tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat((head, rest), dim=dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class TileConfig:
    """Our tiles.

    Args:
        height: rows of a tile, in pixels.
        width: columns of a tile, in pixels.
        length: frames of a tile; a setting of the VAE, not of the frame rate.
        stride_height: distance of tiles, in pixels.
        stride_width: distance of tiles, in pixels.
        stride_length: distance of tiles, in frames.
    """

    height: int = 256
    width: int = 256
    length: int = 12
    stride_height: int = 192
    stride_width: int = 192
    stride_length: int = 12

    @property
    def tile(self) -> Factors:
        """Tile size along time, rows, columns, in frames and pixels."""
        return self.length, self.height, self.width

    @property
    def stride(self) -> Factors:
        """Tile distance along time, rows, columns, in frames and pixels."""
        return self.stride_length, self.stride_height, self.stride_width

    def check(self, factors: Factors) -> None:
        """Refuse tiles that do not fit the patch grid.

        Args:
            factors: frames, rows and columns per latent element.

        Raises:
            ShapeError: a size or stride is not a positive multiple of its factor, or a stride is
                longer than its tile.
        """
        for name, tile, stride, factor in zip(_AXES, self.tile, self.stride, factors, strict=True):
            for label, value in ((f"tile {name}", tile), (f"tile stride_{name}", stride)):
                if value < factor or value % factor:
                    near = max(factor, round(value / factor) * factor)
                    raise ShapeError(
                        label,
                        expected=f"a positive multiple of {factor}",
                        got=value,
                        hint=f"use {near}",
                    )
            if stride > tile:
                raise ShapeError(
                    f"tile stride_{name}", expected=f"at most the tile's {tile}", got=stride
                )

    def exceeded_by(self, size: Factors) -> bool:
        """Tell whether a video of this size [F, H, W] needs more than one tile."""
        return any(n > tile for n, tile in zip(size, self.tile, strict=True))

    def encode_plan(self, factors: Factors) -> TilePlan:
        """Plan tiles of pixels.

        Args:
            factors: frames, rows and columns per latent element.

        Returns:
            The plan.

        Raises:
            ShapeError: the tiles do not fit the patch grid.
        """
        return self._plan(factors, units=(1, 1, 1), results=factors)

    def decode_plan(self, factors: Factors) -> TilePlan:
        """Plan tiles of latents.

        Args:
            factors: frames, rows and columns per latent element.

        Returns:
            The plan.

        Raises:
            ShapeError: the tiles do not fit the patch grid.
        """
        return self._plan(factors, units=factors, results=(1, 1, 1))

    def _plan(self, factors: Factors, *, units: Factors, results: Factors) -> TilePlan:
        self.check(factors)
        axes = [
            AxisTiles(
                tile=tile // unit,
                stride=stride // unit,
                blend=(tile - stride) // result,
                keep=stride // result,
                # A tile of one latent frame is what the network knows as a picture.
                min_tail=2 * factor // unit if k == 0 else 0,
            )
            for k, (tile, stride, unit, result, factor) in enumerate(
                zip(self.tile, self.stride, units, results, factors, strict=True)
            )
        ]
        return TilePlan(axes=(axes[0], axes[1], axes[2]))


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialTiles:
    """The official tiles, for parity; fields have the official meaning.

    Args:
        height: rows of a tile, in pixels.
        width: columns of a tile, in pixels.
        length: frames of a tile; the official pipeline passes fps // 2.
        spatial_overlap: fraction of a tile that overlaps the next, rows and columns.
        temporal_overlap: the same along time.
        spatial: False makes one tile of the whole picture.
        keep_frames: keep all frames of a decoded tile of one latent frame; officially all but the
            first are lost.
    """

    height: int = 256
    width: int = 256
    length: int = 16
    spatial_overlap: float = 0.25
    temporal_overlap: float = 0.0
    spatial: bool = True
    keep_frames: bool = False

    def __post_init__(self) -> None:
        """Refuse overlaps that leave no stride."""
        for name in ("spatial_overlap", "temporal_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(name, expected="0 <= overlap < 1", got=getattr(self, name))

    def encode_plan(self, factors: Factors) -> TilePlan:
        """Plan tiles of pixels; neighbours are blended ones.

        Args:
            factors: frames, rows and columns per latent element.

        Returns:
            The plan.

        Raises:
            ShapeError: a tile is smaller than a patch.
        """
        return self._plan(factors, decode=False)

    def decode_plan(self, factors: Factors) -> TilePlan:
        """Plan tiles of latents; neighbours are raw ones.

        Args:
            factors: frames, rows and columns per latent element.

        Returns:
            The plan.

        Raises:
            ShapeError: a tile is smaller than a patch.
        """
        return self._plan(factors, decode=True)

    def _plan(self, factors: Factors, *, decode: bool) -> TilePlan:
        height, width = (self.height, self.width) if self.spatial else (_WHOLE, _WHOLE)
        sizes = (self.length, height, width)
        overlaps = (self.temporal_overlap, self.spatial_overlap, self.spatial_overlap)
        axes = [
            _official_axis(name, size, overlap, factor, decode=decode)
            for name, size, overlap, factor in zip(_AXES, sizes, overlaps, factors, strict=True)
        ]
        return TilePlan(
            axes=(axes[0], axes[1], axes[2]),
            chained=not decode,
            image_tiles=not self.keep_frames,
        )


def _official_axis(name: str, size: int, overlap: float, factor: int, *, decode: bool) -> AxisTiles:
    latent = size // factor
    tile, result = (latent, latent * factor) if decode else (size, latent)
    stride = int(tile * (1 - overlap))
    if latent < 1 or stride < 1:
        raise ShapeError(
            f"tile {name}",
            expected=f"at least {factor}, with an overlap that leaves a stride",
            got=f"{size} with overlap {overlap}",
            hint="official temporal tiles are fps // 2 frames long; use our tiles instead",
        )
    extent = int(result * overlap)
    return AxisTiles(tile=tile, stride=stride, blend=extent, keep=result - extent, official=True)
