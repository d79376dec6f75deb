"""What a video will look like, long before it is decoded: a strip to look at and a contact sheet.

A chunk in flight is shown as the clean latent it is heading for: Euler steps are straight, so two
positions tell the velocity.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from onereel.core.errors import OutOfMemory
from onereel.core.files import write_atomically
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.preview import LatentColours
from onereel.pipelines.watch import Frames
from onereel.samplers.engine import FinishedChunk
from onereel.samplers.plan import ChunkCall

STRIP_INTERVAL_S = 0.3
SHEET_INTERVAL_S = 2.0
SHEET_SHARE = 0.01  # of the time, at most, goes into writing the sheet
CHUNKS_PER_ROW = 4
THUMBNAIL = 64  # columns of a picture on the sheet


class Previews:
    """Pictures of a run's latents; nothing where the VAE has no map of colours.

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
        self.colours, self.width, self.show, self.sheet = (
            LatentColours.of(vae), chunk_width, show, sheet,
        )  # fmt: skip
        self._before: dict[int, torch.Tensor] = {}
        self._pictures: dict[int, Frames] = {}
        self._strip_due = 0.0
        self._sheet_due = time.monotonic() + SHEET_INTERVAL_S

    def step_done(self, call: ChunkCall, window: torch.Tensor) -> None:
        """Look at the chunks in flight.

        Args:
            call: the step.
            window: their latents after it, [1, C, T, h, w].
        """
        if self.colours is None:
            return
        now, strip = time.monotonic(), []
        for slot, (chunk, after) in enumerate(
            zip(call.chunks, window.split(self.width, dim=2), strict=True)
        ):
            before = self._before.get(chunk)
            self._before[chunk] = after
            if now < self._strip_due or before is None:
                continue
            t, t_next = call.times[slot], call.next_times[slot]
            clean = after + (after - before) * ((1 - t_next) / (t_next - t))
            self._pictures[chunk] = self.colours(clean).numpy()
            strip.append(self._pictures[chunk])
        if strip:
            self._strip_due = now + STRIP_INTERVAL_S
            self.show(np.concatenate(strip))
            self._write_sheet(now)

    def chunk_done(self, chunk: FinishedChunk) -> None:
        """Take a clean chunk.

        Args:
            chunk: the chunk.
        """
        if self.colours is None:
            return
        self._before.pop(chunk.index, None)
        self._pictures[chunk.index] = self.colours(chunk.latent).numpy()
        self._write_sheet(time.monotonic())

    def close(self) -> None:
        """Write the sheet once more."""
        self._write_sheet(math.inf)

    def _write_sheet(self, now: float) -> None:
        if self.sheet is None or not self._pictures or now < self._sheet_due:
            return
        begin = time.monotonic()
        picture = Image.fromarray(contact_sheet(list(self._pictures.values())))
        data = io.BytesIO()
        picture.save(data, format="jpeg", quality=90, subsampling=0)  # PNG takes ten times as long
        try:
            write_atomically(self.sheet, lambda file: file.write(data.getvalue()))
        except (OSError, OutOfMemory):  # no reason to lose a render
            self.sheet = None
        end = time.monotonic()
        self._sheet_due = end + max(SHEET_INTERVAL_S, (end - begin) / SHEET_SHARE)


def contact_sheet(chunks: list[Frames]) -> Frames:
    """Lay out the pictures of chunks, four chunks to a row.

    Args:
        chunks: uint8 [T, h, w, 3] each, of one size.

    Returns:
        uint8 [H, W, 3].
    """
    pictures = torch.from_numpy(np.concatenate(chunks)).permute(0, 3, 1, 2).float()
    height = max(1, round(pictures.shape[2] * THUMBNAIL / pictures.shape[3]))
    smaller = pictures.shape[3] > THUMBNAIL
    pictures = functional.interpolate(
        pictures, (height, THUMBNAIL), mode="bilinear", antialias=smaller
    )
    columns = min(CHUNKS_PER_ROW, len(chunks)) * len(chunks[0])
    missing = -len(pictures) % columns
    pictures = functional.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing))
    grid = pictures.round().byte().unflatten(0, (-1, columns))  # [rows, columns, 3, h, w]
    return grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).contiguous().numpy()
