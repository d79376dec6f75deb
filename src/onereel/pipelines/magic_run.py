"""One run of Magic 1-For-1 from plan to file: picture, texts, segments, frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from onereel.core.allocator import keep_freed_memory
from onereel.core.device import pin_threads
from onereel.core.errors import CheckpointError
from onereel.core.seeds import derive_seed
from onereel.media.scale import Pixels
from onereel.models.magic_dit.model import MagicCondition
from onereel.models.magic_vae.model import to_uint8
from onereel.pipelines.listeners import RunListener
from onereel.pipelines.magic_parts import MagicParts
from onereel.pipelines.magic_prepare import SELF, MagicPlan, clip_folder
from onereel.pipelines.magic_previews import SegmentPreviews
from onereel.pipelines.magic_record import make_magic_record
from onereel.pipelines.magic_sampling import (
    MagicRequest,
    MagicSegment,
    SegmentKeeper,
    fit_picture,
    sample_picture,
    stream_segments,
)
from onereel.pipelines.magic_writing import MagicClock, result_of, write_segments
from onereel.pipelines.picture_index import PictureIndex
from onereel.pipelines.picture_sources import FolderPicture, SourcePicture
from onereel.pipelines.run import RunResult, drain
from onereel.pipelines.stream import VideoChunk
from onereel.runtime.magic_source import hash_files


class RunKeeper(SegmentKeeper, Protocol):
    """Keeps a whole run."""

    @property
    def path(self) -> Path:
        """Where it is kept."""
        ...

    @property
    def latents_only(self) -> bool:
        """Whether nothing is decoded."""
        ...

    @property
    def preview(self) -> Path:
        """Where a contact sheet of the latents shall lie."""
        ...

    def begin_with(
        self, picture: SourcePicture, *, record: Mapping[str, Any], vae_hash: str
    ) -> None:
        """Take the first picture, the run's record and the VAE's hash before the first segment."""
        ...

    def steered(self, next_segment: int) -> Sequence[tuple[int, str]]:
        """Return prompts that came while the video is made.

        Args:
            next_segment: the first one that has not begun.

        Returns:
            Segment from which on each holds, and its text.

        Raises:
            KeyboardInterrupt: the run shall stop here.
        """
        ...

    def end(self, num_frames: int) -> None:
        """Be told that the video is complete."""
        ...


class MagicRun:
    """Makes the video of one plan.

    Args:
        plan: from `prepare_magic`.
        listener: is told how it goes.
        parts: the networks, when they are used again; None loads them, and lets go what reads
            texts when it is not needed any longer.
        model_hash: of the weights, when it is known.
        keeper: keeps the run; segments that it holds are not computed.
        picture: the first one, where it is there already.
        record: of the same run, when it is gone on with.
    """

    def __init__(
        self,
        plan: MagicPlan,
        listener: RunListener,
        *,
        parts: MagicParts | None = None,
        model_hash: str | None = None,
        keeper: RunKeeper | None = None,
        picture: SourcePicture | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.listener, self.keeper = plan, listener, keeper
        self.picture, self.record = picture, record
        self.parts = parts or parts_of(plan)
        self._once = parts is None
        self.model_hash = model_hash
        self._steered: dict[str, Any] = {}  # entries of the record that changed meanwhile

    def run(self, *, expected_hash: str | None = None) -> RunResult:
        """Make the video and write it as it comes; see `stream`.

        Args:
            expected_hash: of the weights, when only they will do.

        Returns:
            What was made.
        """
        return drain(self.stream(expected_hash=expected_hash))

    @torch.no_grad()
    def stream(self, *, expected_hash: str | None = None) -> Generator[VideoChunk, None, RunResult]:
        """Make the video and write it as it comes.

        Args:
            expected_hash: of the weights, when only they will do.

        Yields:
            What is on disk, in order; a segment may come in several pieces.

        Returns:
            What was made.

        Raises:
            CheckpointError: the weights do not fit, or are not those expected.
            OutOfMemory: memory ran out, or the disk; what is on disk plays.
            MediaError: the output cannot be written any longer; what is on disk plays.
            KeyboardInterrupt: with a note that says how much is safe; the file is finished.
        """
        pin_threads()
        if self.plan.place.turns == "stay":  # else memory is what counts
            keep_freed_memory(self.plan.place.device)
        self._hash(expected_hash)
        picture, keeper = self.picture or self.make_picture(), self.keeper
        record = make_magic_record(self.plan, picture, model_hash=str(self.model_hash))
        if self.record is not None:  # what is gone on with was made from other files
            record = {**self.record, "versions": record["versions"]}
        if keeper is not None:
            vae_hash = hash_files(self.plan.files, parts=("vae",))
            keeper.begin_with(picture, record=record, vae_hash=vae_hash)
        request = self._request(picture)
        clock = MagicClock(self.plan.request, self.listener)
        clock.tell()
        self.listener.preview(_thumbnail(request.picture))
        if keeper is not None and keeper.latents_only:
            return self._keep_latents(request, keeper, clock=clock, record=record)
        result = yield from write_segments(
            self._parts_of(request, clock, decoded=True),
            video=self.plan.request,
            output=self.plan.output,
            record=record,
            changes=self._steered,
            clock=clock,
            official_compat=self.plan.settings.official_compat,
        )
        if keeper is not None:
            keeper.end(result.num_frames)
        return result

    def _hash(self, expected: str | None) -> None:
        plan = self.plan
        if self.model_hash is None:
            self.listener.say(f"loading model {plan.source.name} on {plan.place.device}")
            self.model_hash = hash_files(plan.files)
        if expected not in (None, self.model_hash):
            raise CheckpointError(
                f"the weights of model '{plan.source.name}' have changed since the video was made",
                expected=f"hash {str(expected)[:12]}", got=self.model_hash[:12],
                hint="bring the old weights back, or give --model to use others",
            )  # fmt: skip

    @torch.no_grad()
    def make_picture(self) -> SourcePicture:
        """Make, find or take the first picture, and keep it where that is asked for.

        Returns:
            The picture.
        """
        plan, settings = self.plan, self.plan.settings
        if plan.pixels is not None:
            picture = SourcePicture(plan.pixels, str(settings.image))
        elif settings.image_source in (None, SELF):
            self.listener.say("making the first picture")
            picture = self._own_picture()
        else:
            self.listener.say(f"searching {settings.image_source} for the first picture")
            picture = self._found_picture(str(settings.image_source))
        self.listener.say(f"first picture: {picture.origin}")
        video, (rows, columns) = plan.request, picture.pixels.shape[:2]
        if rows < video.height or columns < video.width:
            self.listener.say(f"it has {columns}x{rows} pixels, and is enlarged")
        if plan.keep_image is not None:
            PIL.Image.fromarray(picture.pixels).save(plan.keep_image)
            self.listener.say(f"kept in {plan.keep_image}; --from-image starts with it")
        self.picture = picture
        return picture

    def _own_picture(self) -> SourcePicture:
        video, texts = self.plan.request, self.parts.texts
        config = video.config
        condition = texts.encode_text(self.plan.first_text)
        negative = texts.encode_text(config.negative_prompt) if config.guided else None
        del texts  # in low memory, it goes now
        seed = derive_seed(video.seed, "picture")
        pixels = sample_picture(
            self.parts.transformer,
            self.parts.vae,
            condition=condition,
            negative=negative,
            config=config,
            size=(video.height, video.width),
            seed=seed,
            device=self.plan.place.device,
        )
        return SourcePicture(pixels, f"{self.plan.source.name} at one frame, seed {seed}")

    def _found_picture(self, folder: str) -> SourcePicture:
        from transformers import CLIPModel, CLIPProcessor

        place = clip_folder(self.plan.settings, self.plan.files)
        try:
            model = CLIPModel.from_pretrained(place, local_files_only=True)
            processor = CLIPProcessor.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{place}: no CLIP model ({str(error).splitlines()[0]})",
                hint="download it again",
            ) from error
        index = PictureIndex(folder, model, processor=processor)
        video = self.plan.request
        return FolderPicture(index)(
            self.plan.first_text, height=video.height, width=video.width, seed=video.seed
        )

    def _request(self, picture: SourcePicture) -> MagicRequest:
        """Let the texts and the picture be read."""
        plan, video = self.plan, self.plan.request
        config = video.config
        self.listener.say("reading the prompt and the picture")
        texts = dict.fromkeys((*plan.texts, *((config.negative_prompt,) if config.guided else ())))
        read = dict(zip(texts, self._read(picture, list(texts)), strict=True))
        frame = fit_picture(picture.pixels, config, size=(video.height, video.width))
        return MagicRequest(
            picture=frame.to(plan.place.device),
            conditions=[read[text] for text in plan.texts],
            negative=read[config.negative_prompt] if config.guided else None,
            config=config,
            seed=video.seed,
            later_seeds=plan.settings.edited("seed"),
            official_compat=plan.settings.official_compat,
        )

    def _read(self, picture: SourcePicture, wanted: Sequence[str]) -> list[MagicCondition]:
        """Let texts be read beside the first picture."""
        texts = self.parts.texts
        tokens = texts.encode_image(picture.pixels)
        found = [texts.encode_prompt(text, tokens)[0] for text in wanted]
        del texts
        if self._once:
            self.parts.release_texts()
        return found

    def _keep_latents(
        self,
        request: MagicRequest,
        keeper: RunKeeper,
        *,
        clock: MagicClock,
        record: dict[str, Any],
    ) -> RunResult:
        """Sample and keep; nothing is decoded."""
        video, frames = self.plan.request, 0
        segments = self.plan.segments
        try:
            for part in self._parts_of(request, clock, decoded=False):
                frames = min(4 * segments[part.index].stop - 3, video.num_frames)
                clock.written(frames / video.fps)
        except KeyboardInterrupt as stop:
            stop.add_note(f"the latents of {frames / video.fps:.2f} s are safe in {keeper.path}")
            raise
        return result_of(
            video,
            str(keeper.path),
            num_frames=frames,
            clock=clock,
            record={**record, **self._steered},
        )

    def _parts_of(
        self, request: MagicRequest, clock: MagicClock, *, decoded: bool
    ) -> Iterator[MagicSegment]:
        vae, keeper = self.parts.vae, self.keeper
        previews = SegmentPreviews(
            vae,
            request.config,
            show=self.listener.preview,
            sheet=None if keeper is None else keeper.preview,
        )

        def on_step(sigma: float, latents: torch.Tensor) -> None:
            del sigma
            clock.step_done()
            step = (clock.step - 1) % request.config.num_steps
            previews.step_done(clock.segment, step=step, latents=latents)

        parts = stream_segments(
            self.parts.transformer,
            vae,
            request=request,
            on_step=on_step,
            keeper=None if keeper is None else _Steered(self, keeper, request, clock),
            decoded=decoded,
        )
        return previews.watch(parts)

    def steer(self, request: MagicRequest, *, segment: int, text: str) -> None:
        """Show something else from a segment on that has not begun.

        Args:
            request: whose conditions change.
            segment: the first one.
            text: the prompt.
        """
        assert self.picture is not None and isinstance(request.conditions, list)
        left = len(request.conditions) - segment
        request.conditions[segment:] = self._read(self.picture, [text]) * left
        settings = self.plan.settings.with_prompt_from(segment, text)
        self.plan = replace(
            self.plan, settings=settings, texts=(*self.plan.texts[:segment], *[text] * left)
        )
        self._steered |= {"settings": settings.to_settings(), "segments": list(self.plan.texts)}


class _Steered:
    """Follows what is asked for between segments, and counts those that need not be computed."""

    def __init__(
        self, run: MagicRun, keeper: RunKeeper, request: MagicRequest, clock: MagicClock
    ) -> None:
        self.run, self.keeper, self.request, self.clock = run, keeper, request, clock
        self.save = keeper.save

    def load(self, index: int) -> torch.Tensor | None:
        latent = self.keeper.load(index)
        if latent is not None:
            self.clock.skip_segment()
            return latent
        for segment, text in self.keeper.steered(index):
            self.run.steer(self.request, segment=segment, text=text)
        return None


def _thumbnail(picture: torch.Tensor) -> Pixels:
    """Make the first picture [1, 3, H, W] small, for the terminal: uint8 [1, h, w, 3]."""
    levels = to_uint8(picture[0].permute(1, 2, 0) / 2 + 0.5)
    image = PIL.Image.fromarray(levels.cpu().numpy())
    image.thumbnail((64, 64))
    return np.asarray(image, np.uint8)[None]


def parts_of(plan: MagicPlan) -> MagicParts:
    """Stand ready to load a plan's networks.

    Args:
        plan: the run.

    Returns:
        The networks, nothing loaded yet.
    """
    return MagicParts(plan.files, plan.place, loras=plan.settings.loras)
