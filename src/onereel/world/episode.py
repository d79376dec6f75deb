"""What the simulator hands to the renderer: states, camera, events, and how they are saved."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onereel.core.errors import MediaError

Array = npt.NDArray[np.float32]
Event = tuple[int, str, int, int]

STATE_FIELDS = ("x", "y", "vx", "vy", "r", "angle", "shape", "colour", "visible")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """A simulated scene. Positions in pixels, y down, pixel i covers [i, i + 1).

    state [T, N, 9] holds `STATE_FIELDS` in world coordinates; shape and colour are indices into
    `SHAPES` and `COLOURS`, visible is the share of the object that can be seen. camera [T, 3] is
    (cx, cy, zoom): screen x = (x - cx - W/2) * zoom + W/2. opacity [T, N] and rgb [T, N, 3] are
    what the renderer needs beyond the state. events are (frame, kind, i, j), j = -1 for none.
    The world repeats horizontally every `period` pixels, so a panning camera never runs dry.
    """

    state: Array
    camera: Array
    opacity: Array
    rgb: Array
    events: tuple[Event, ...]
    height: int
    width: int
    fps: int
    background: int
    floor_y: float | None
    slab: tuple[float, float] | None
    period: float

    @property
    def num_frames(self) -> int:
        """Count the frames.

        Returns:
            T of the state.
        """
        return len(self.state)

    def save(self, path: str | Path) -> None:
        """Write the episode as one `.npz` without pickles.

        Args:
            path: the file to write.
        """
        arrays = ("state", "camera", "opacity", "rgb")
        meta = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in (*arrays, "events")
        }
        kinds = [kind for _, kind, _, _ in self.events]
        numbers = [(frame, i, j) for frame, _, i, j in self.events]
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                state=self.state,
                camera=self.camera,
                opacity=self.opacity,
                rgb=self.rgb,
                event_kinds=np.array(kinds, dtype="U16"),
                events=np.array(numbers, dtype=np.int32).reshape(-1, 3),
                meta=np.array(json.dumps(meta)),
            )

    @classmethod
    def load(cls, path: str | Path) -> Episode:
        """Read what `save` wrote.

        Args:
            path: the `.npz` file.

        Returns:
            The episode.

        Raises:
            MediaError: the file is not such an archive.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                events = tuple(
                    (int(frame), str(kind), int(i), int(j))
                    for kind, (frame, i, j) in zip(data["event_kinds"], data["events"], strict=True)
                )
                arrays = {k: data[k] for k in ("state", "camera", "opacity", "rgb")}
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise MediaError(str(path), expected="an episode .npz", got=error) from error
        if meta["slab"] is not None:
            meta["slab"] = tuple(meta["slab"])
        return cls(events=events, **arrays, **meta)
