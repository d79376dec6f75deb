"""What a video will look like, long before it is decoded: a strip to look at and a contact sheet.

A chunk in flight is shown as the clean latent it is heading for: Euler steps are straight, so two
positions tell the velocity.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from onereel.core.errors import OutOfMemory
from onereel.core.files import write_atomically
from onereel.media.scale import Pixels as Frames
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.preview import LatentColours
from onereel.samplers.engine import FinishedChunk
from onereel.samplers.plan import ChunkCall

STRIP_INTERVAL_S = 0.3
SHEET_INTERVAL_S = 2.0
SHEET_SHARE = 0.01  # of the time, at most, goes into writing the sheet
COLUMNS = 24  # pictures per row of the sheet: four chunks
MAX_PICTURES = (
    16 * COLUMNS
)  # a minute of chunks; longer videos show every second picture, and so on
THUMBNAIL = 64  # columns of a picture


class PictureTable:
    """Every picture of a video, or every second, fourth and so on: at most `MAX_PICTURES`.

    They lie in one block that is taken once. Arrays of their own, one per chunk, would be strewn
    over the heap, between the large short-lived buffers of decoding; what these leave behind could
    then be neither reused whole nor given back, and memory would grow (docs/log.md).
    """

    def __init__(self) -> None:
        self._block: Frames = np.empty((0, 1, 1, 3), np.uint8)
        self._count, self._stride = 0, 1

    @property
    def pictures(self) -> Frames:
        """The pictures, uint8 [N, h, w, 3]."""
        return self._block[: self._count]

    def add(self, pictures: Frames, first: int) -> None:
        """Copy those pictures of a chunk that belong in the table.

        Args:
            pictures: uint8 [T, h, w, 3], of one size in all calls.
            first: the number of the first one in the video.
        """
        if not len(self._block):
            self._block = np.empty((MAX_PICTURES + len(pictures), *pictures.shape[1:]), np.uint8)
        for picture in self.sparse(pictures, first):
            self._block[self._count] = picture
            self._count += 1
        if self._count > MAX_PICTURES:
            half = self._block[: self._count : 2]
            self._block[: len(half)] = half
            self._count, self._stride = len(half), 2 * self._stride

    def sparse(self, pictures: Frames, first: int) -> list[Frames]:
        """Select the pictures whose number, counted from `first`, is a multiple of the stride.

        Args:
            pictures: uint8 [T, h, w, 3].
            first: the number of the first one in the video.

        Returns:
            Views of them, [h, w, 3] each.
        """
        return [p for number, p in enumerate(pictures, first) if number % self._stride == 0]


class LatentSheet:
    """Pictures of latents, by the number of the first of them; nothing without a map of colours.

    Args:
        colours: the map, or None.
        show: is given the pictures in flight.
        sheet: file of the contact sheet, or None.
    """

    def __init__(
        self,
        colours: LatentColours | None,
        *,
        show: Callable[[Frames], None],
        sheet: Path | None,
    ) -> None:
        self.colours, self.show, self.sheet = colours, show, sheet
        self._in_flight: dict[int, Frames] = {}
        self._clean = PictureTable()
        self._strip_due = 0.0
        self._sheet_due = time.monotonic() + SHEET_INTERVAL_S

    @property
    def is_due(self) -> bool:
        """Whether pictures in flight shall be shown now."""
        return self.colours is not None and time.monotonic() >= self._strip_due

    def fly(self, latents: Mapping[int, torch.Tensor]) -> None:
        """Show what is in flight.

        Args:
            latents: clean as far as they can be told, [1, C, T, h, w], by the number of the first
                latent frame.
        """
        if self.colours is None or not latents:
            return
        now = time.monotonic()
        pictures = {first: self.colours(latent).numpy() for first, latent in latents.items()}
        self._in_flight |= pictures
        self._strip_due = now + STRIP_INTERVAL_S
        self.show(np.concatenate(list(pictures.values())))
        self._write_sheet(now)

    def done(self, first: int, latent: torch.Tensor) -> None:
        """Take clean latents.

        Args:
            first: number of the first latent frame.
            latent: [1, C, T, h, w].
        """
        if self.colours is None:
            return
        self._in_flight.pop(first, None)
        self._clean.add(thumbnails(self.colours(latent).numpy()), first)
        self._write_sheet(time.monotonic())

    def close(self) -> None:
        """Write the sheet once more."""
        self._write_sheet(math.inf)

    def _write_sheet(self, now: float) -> None:
        if self.sheet is None or now < self._sheet_due:
            return
        pictures = list(self._clean.pictures)
        for first, flying in sorted(self._in_flight.items()):
            pictures += self._clean.sparse(thumbnails(flying), first)
        if not pictures:
            return
        begin = time.monotonic()
        picture = Image.fromarray(contact_sheet(pictures))
        data = io.BytesIO()
        picture.save(data, format="jpeg", quality=90, subsampling=0)  # PNG takes ten times as long
        try:
            write_atomically(self.sheet, lambda file: file.write(data.getvalue()))
        except (OSError, OutOfMemory):  # no reason to lose a render
            self.sheet = None
        end = time.monotonic()
        self._sheet_due = end + max(SHEET_INTERVAL_S, (end - begin) / SHEET_SHARE)


class Previews(LatentSheet):
    """Pictures of a run's chunks; nothing where the VAE has no map of colours.

    Args:
        vae: the VAE.
        chunk_width: latent frames of a chunk.
        show: is given the pictures in flight.
        sheet: file of the contact sheet, or None.
    """

    def __init__(
        self,
        vae: AutoencoderKLMagi1,
        chunk_width: int,
        *,
        show: Callable[[Frames], None],
        sheet: Path | None,
    ) -> None:
        super().__init__(LatentColours.of(vae), show=show, sheet=sheet)
        self.width = chunk_width
        self._before: dict[int, torch.Tensor] = {}

    def step_done(self, call: ChunkCall, window: torch.Tensor) -> None:
        """Look at the chunks in flight.

        Args:
            call: the step.
            window: their latents after it, [1, C, T, h, w].
        """
        if self.colours is None:
            return
        due, clean = self.is_due, {}
        for slot, (chunk, after) in enumerate(
            zip(call.chunks, window.split(self.width, dim=2), strict=True)
        ):
            before = self._before.get(chunk)
            self._before[chunk] = after
            if not due or before is None:
                continue
            t, t_next = call.times[slot], call.next_times[slot]
            clean[chunk * self.width] = after + (after - before) * ((1 - t_next) / (t_next - t))
        self.fly(clean)

    def chunk_done(self, chunk: FinishedChunk) -> None:
        """Take a clean chunk.

        Args:
            chunk: the chunk.
        """
        self._before.pop(chunk.index, None)
        self.done(chunk.index * self.width, chunk.latent)


def thumbnails(pictures: Frames) -> Frames:
    """Bring pictures to the sheet's size.

    Args:
        pictures: uint8 [N, h, w, 3].

    Returns:
        uint8 [N, h', w', 3].
    """
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    height = max(1, round(images.shape[2] * THUMBNAIL / images.shape[3]))
    smaller = images.shape[3] > THUMBNAIL
    size = (height, THUMBNAIL)
    images = functional.interpolate(images, size, mode="bilinear", antialias=smaller)
    return images.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def contact_sheet(pictures: Sequence[Frames]) -> Frames:
    """Lay out pictures in rows.

    Args:
        pictures: uint8 [h, w, 3] each, of one size.

    Returns:
        uint8 [H, W, 3]; what is left of the last row is black.
    """
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    sheet = np.zeros((rows, height, columns, width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        sheet[number // columns, :, number % columns] = picture
    return sheet.reshape(rows * height, columns * width, 3)
