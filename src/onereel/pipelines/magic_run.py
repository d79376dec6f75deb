"""One run of Magic 1-For-1 from plan to file: picture, texts, segments, frames."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from onereel.core.device import pin_threads
from onereel.core.errors import CheckpointError
from onereel.core.seeds import derive_seed
from onereel.media import VideoWriter
from onereel.media.scale import Pixels
from onereel.models.magic_dit.model import MagicCondition
from onereel.models.magic_vae.model import to_uint8
from onereel.pipelines.listeners import RunListener, RunProgress
from onereel.pipelines.magic_parts import MagicParts
from onereel.pipelines.magic_prepare import SELF, MagicPlan, clip_folder
from onereel.pipelines.magic_record import make_magic_record
from onereel.pipelines.magic_sampling import (
    MagicRequest,
    MagicSegment,
    SegmentKeeper,
    fit_picture,
    sample_picture,
    stream_segments,
)
from onereel.pipelines.picture_index import PictureIndex
from onereel.pipelines.picture_sources import FolderPicture, SourcePicture
from onereel.pipelines.run import RunResult, noting
from onereel.runtime.magic_source import hash_files


class RunKeeper(SegmentKeeper, Protocol):
    """Keeps a whole run."""

    def begin(self, record: Mapping[str, Any], picture: SourcePicture) -> None:
        """Take the run's record and its first picture before the first segment."""
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

    def run(self, *, expected_hash: str | None = None) -> RunResult:
        """Make the video and write it as it comes.

        Args:
            expected_hash: of the weights, when only they will do.

        Returns:
            What was made.

        Raises:
            CheckpointError: the weights do not fit, or are not those expected.
            OutOfMemory: memory ran out, or the disk; what is on disk plays.
            MediaError: the output cannot be written any longer; what is on disk plays.
            KeyboardInterrupt: with a note that says how much is safe; the file is finished.
        """
        pin_threads()
        self._hash(expected_hash)
        with torch.no_grad():
            picture = self.picture or self.make_picture()
            record = make_magic_record(self.plan, picture, model_hash=str(self.model_hash))
            if self.record is not None:  # what is gone on with was made from other files
                record = {**self.record, "versions": record["versions"]}
            if self.keeper is not None:
                self.keeper.begin(record, picture)
            result = self._write(self._request(picture), dict(record))
            if self.keeper is not None:
                self.keeper.end(result.num_frames)
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
        condition = texts.encode_text(self.plan.texts[0])
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
            self.plan.texts[0], height=video.height, width=video.width, seed=video.seed
        )

    def _request(self, picture: SourcePicture) -> MagicRequest:
        """Let the texts and the picture be read."""
        plan, video = self.plan, self.plan.request
        config = video.config
        self.listener.say("reading the prompt and the picture")
        texts = self.parts.texts
        tokens = texts.encode_image(picture.pixels)
        read: dict[str, MagicCondition] = {
            text: texts.encode_prompt(text, tokens)[0] for text in dict.fromkeys(plan.texts)
        }
        negative = texts.encode_prompt(config.negative_prompt, tokens)[0] if config.guided else None
        del texts
        if self._once:
            self.parts.release_texts()
        frame = fit_picture(picture.pixels, config, size=(video.height, video.width))
        return MagicRequest(
            picture=frame.to(plan.place.device),
            conditions=tuple(read[text] for text in plan.texts),
            negative=negative,
            config=config,
            seed=video.seed,
            official_compat=plan.settings.official_compat,
        )

    def _write(self, request: MagicRequest, record: dict[str, Any]) -> RunResult:
        """Sample, decode and write; frames beyond the wanted ones are dropped."""
        plan, video = self.plan, self.plan.request
        clock = MagicClock(plan, self.listener)
        clock.tell()
        self.listener.preview(_thumbnail(request.picture))
        writer = VideoWriter(
            plan.output, width=video.width, height=video.height, fps=video.fps, metadata=record
        )
        assert writer.metadata is not None
        record = writer.metadata  # entries added until the end reach the finished file
        with noting(writer), writer:
            try:
                for part in self._parts_of(request, clock):
                    clock.segment = part.index
                    left = video.num_frames - writer.frames_written
                    frames = part.frames[:left].permute(0, 2, 3, 1) / 2 + 0.5  # [F, H, W, 3]
                    compat = plan.settings.official_compat
                    writer.write(to_uint8(frames, official_compat=compat).cpu().numpy())
                    clock.written(writer.seconds_written)
            finally:  # before the writer finishes the file, whatever ended the loop
                record["frames_written"] = writer.frames_written
            complete = writer.frames_written == video.num_frames
            record.update(complete=complete, elapsed_s=round(clock.elapsed_s, 3))
        return RunResult(
            path=plan.output,
            seed=video.seed,
            num_frames=writer.frames_written,
            seconds=writer.frames_written / video.fps,
            elapsed_s=clock.elapsed_s,
            record=record,
        )

    def _parts_of(self, request: MagicRequest, clock: MagicClock) -> Iterator[MagicSegment]:
        def on_step(sigma: float, latents: torch.Tensor) -> None:
            del sigma, latents
            clock.step_done()

        return stream_segments(
            self.parts.transformer,
            self.parts.vae,
            request=request,
            on_step=on_step,
            keeper=None if self.keeper is None else _Counting(self.keeper, clock),
        )


class _Counting:
    """Tells the clock of segments that need not be computed."""

    def __init__(self, keeper: SegmentKeeper, clock: MagicClock) -> None:
        self.keeper, self.clock, self.save = keeper, clock, keeper.save

    def load(self, index: int) -> torch.Tensor | None:
        latent = self.keeper.load(index)
        if latent is not None:
            self.clock.skip_segment()
        return latent


class MagicClock:
    """Measures the work of a run; all steps count alike.

    Args:
        plan: the run.
        listener: is told how far it is.
    """

    def __init__(self, plan: MagicPlan, listener: RunListener) -> None:
        self.plan, self.listener = plan, listener
        self.num_segments, self.num_steps = len(plan.segments), plan.num_steps
        self.step, self.segment, self.seconds_done = 0, 0, 0.0
        self.start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.start

    def step_done(self) -> None:
        """Count a step."""
        self.step += 1
        per_segment = self.plan.request.config.num_steps
        self.segment = (self.step - 1) // per_segment
        self.tell()

    def skip_segment(self) -> None:
        """Count the steps of a segment that need not be computed."""
        self.step += self.plan.request.config.num_steps

    def written(self, seconds: float) -> None:
        """Count what is on disk.

        Args:
            seconds: of video.
        """
        self.seconds_done = seconds
        self.tell()

    def tell(self) -> None:
        """Tell the listener how far the run is."""
        video, elapsed = self.plan.request, self.elapsed_s
        total = video.num_frames / video.fps
        # Half of the work is sampling, half decoding, roughly.
        share = (self.step / self.num_steps + self.seconds_done / total) / 2
        self.listener.progress(
            RunProgress(
                chunk=self.segment + 1,
                num_chunks=self.num_segments,
                step=self.step,
                num_steps=self.num_steps,
                share=min(share, 1.0),
                seconds_done=self.seconds_done,
                seconds_total=total,
                elapsed_s=elapsed,
                speed=elapsed / max(share * total, 1e-6),
            )
        )


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
