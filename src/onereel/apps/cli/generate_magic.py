"""`onereel generate` with a Magic 1-For-1 checkpoint: plan, run, or a video per line of input."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from onereel.apps.cli.keys import steering_keys
from onereel.apps.cli.progress import QuietListener
from onereel.apps.cli.reading import Asked, check_repeat, read_wishes
from onereel.core.errors import ConfigError, OneReelError
from onereel.pipelines.wishes import RunWishes
from onereel.runtime.source import MAGIC141

if TYPE_CHECKING:
    from onereel.pipelines.magic_parts import MagicParts
    from onereel.pipelines.magic_prepare import MagicPlan
    from onereel.pipelines.record import Repeat

ENDS = ("", "exit", "quit")
SEPARATOR = " | "


def make(
    asked: Asked,
    wishes: RunWishes,
    *,
    repeat: Repeat | None,
    show: Mapping[str, bool],
    listener: QuietListener,
) -> None:
    """Check, then plan or run.

    Args:
        asked: what the command was asked for.
        wishes: the same with what is repeated.
        repeat: the run to repeat, or None.
        show: whether to plan, to be quiet, and to print JSON.
        listener: is told how it goes.
    """
    # Imported late: these bring torch, and the first line is on the screen by now.
    from onereel.pipelines.magic_prepare import prepare_magic
    from onereel.pipelines.magic_run import MagicRun
    from onereel.runs.run import Run

    plan = prepare_magic(wishes, asked.output, keep_image=asked.keep_image, given=asked.changes)
    if repeat is not None:
        check_repeat(repeat, plan, changes=asked.changes)
    if show["plan"]:
        print_plan(plan, as_json=show["as_json"])
        return
    listener.say(summary(plan))
    expected = None if repeat is None else repeat.expected_hash(asked.changes)
    from onereel.apps.cli.generate import report

    folder = asked.keep.choose(plan.output)
    if folder is None:
        result = MagicRun(plan, listener).run(expected_hash=expected)
    else:
        latents_only = asked.keep.latents_only
        kept = Run.of_plan(
            plan, folder, latents_only=latents_only, listener=listener, expected_hash=expected
        )
        with steering_keys(folder, listener):
            result = kept.finish()
    report(result, listener, as_json=show["as_json"])


def interact(
    asked: Asked, stream: TextIO, *, show: Mapping[str, bool], listener: QuietListener
) -> None:
    """Make a video per line of input; the model is loaded once.

    A line is a prompt, or a prompt and a picture: `a red disc bounces | disc.png`. An empty line,
    `exit` or the end of the input ends the loop; an error ends only its own line. A given seed
    holds for every video; else each draws one.

    Args:
        asked: what the command was asked for; the output's name gets a number.
        stream: where lines come from.
        show: whether to be quiet, and to print JSON.
        listener: is told how it goes.

    Raises:
        ConfigError: a flag has no meaning here.
    """
    for name, value in (
        ("the prompt", asked.changes.get("prompt")),
        ("--prompts", asked.changes.get("prompts")),
        ("--image", asked.changes.get("image")),
        ("--like", asked.like),
        ("--plan", show["plan"] or None),
        ("--keep-image", asked.keep_image),
        ("--run", asked.keep.folder),
        ("--latents-only", asked.keep.latents_only or None),
        ("-o -", "-" if asked.output == "-" else None),
    ):
        if value is not None:
            hint = f"every line of input is a prompt, or PROMPT{SEPARATOR}IMAGE"
            raise ConfigError(f"{name} and --interactive", hint=hint)
    from onereel.pipelines.magic_prepare import prepare_magic

    def plan_of(changes: dict[str, Any], output: str) -> MagicPlan:
        wishes, _ = read_wishes({**asked.changes, **changes}, None)
        if "image" in changes:
            wishes = dataclasses.replace(wishes, image_source=None, clip=None)
        return prepare_magic(wishes, output, given=asked.changes)

    session = Session(listener, as_json=show["as_json"])
    read_lines(stream, session, plan_of=plan_of, output=asked.output or "onereel.mp4")


class Session:
    """Videos one after the other from the same networks.

    Args:
        listener: is told how it goes.
        as_json: print one JSON object per video, not the path alone.
    """

    def __init__(self, listener: QuietListener, *, as_json: bool) -> None:
        self.listener, self.as_json = listener, as_json
        self._parts: MagicParts | None = None
        self._hash: str | None = None

    def make(self, plan: MagicPlan) -> None:
        """Make a video and say where it is.

        Args:
            plan: with the same model, device and adapters as those before.
        """
        from onereel.apps.cli.generate import report
        from onereel.pipelines.magic_run import MagicRun, parts_of

        self.listener.say(summary(plan))
        self._parts = self._parts or parts_of(plan)
        run = MagicRun(plan, self.listener, parts=self._parts, model_hash=self._hash)
        result = run.run()
        self._hash = run.model_hash
        report(result, self.listener, as_json=self.as_json)


def read_lines(
    stream: TextIO,
    session: Session,
    *,
    plan_of: Callable[[dict[str, Any], str], MagicPlan],
    output: str,
) -> None:
    """Make a video per line, until a line is empty or `exit`, or there is none.

    Args:
        stream: where lines come from.
        session: makes the videos.
        plan_of: plans one from the wishes `prompt` and maybe `image`, and its file.
        output: whose name gets a number; files that are there stay.
    """
    from onereel.apps.cli.main import print_error

    base, number = Path(output), 0
    while True:
        if stream.isatty():
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = stream.readline().strip()
        if line.lower() in ENDS:
            return
        number += 1
        while (path := base.with_name(f"{base.stem}-{number}{base.suffix}")).exists():
            number += 1
        prompt, _, image = line.rpartition(SEPARATOR) if SEPARATOR in line else (line, "", "")
        changes = {"prompt": prompt.strip()} | ({"image": image.strip()} if image.strip() else {})
        try:
            session.make(plan_of(changes, str(path)))
        except OneReelError as error:
            session.listener.close()
            print_error(error)


def summary(plan: MagicPlan) -> str:
    """Say in one line what will be made.

    Args:
        plan: the run.

    Returns:
        The line.
    """
    video, settings = plan.request, plan.settings
    mode = "text to video" if settings.image is None else "image to video"
    return (
        f"{mode}: {video.num_frames} frames, {video.width}x{video.height} at {video.fps} fps "
        f"({video.num_frames / video.fps:.2f} s), {len(plan.segments)} segments of "
        f"{video.config.num_steps} steps, seed {video.seed}, to {plan.output}"
    )


def print_plan(plan: MagicPlan, *, as_json: bool) -> None:
    """Print what would be done, and what it would take.

    Args:
        plan: the run.
        as_json: print one JSON object.
    """
    from onereel.pipelines.record import command_of, sampling_record

    found = plan.estimate()
    values: dict[str, Any] = {
        "family": MAGIC141,
        "mode": "t2v" if plan.settings.image is None else "i2v",
        "model": plan.source.name,
        "output": plan.output,
        "seed": plan.request.seed,
        "num_frames": plan.request.num_frames,
        "num_segments": len(plan.segments),
        "num_steps": plan.num_steps,
        "segments": [
            {"start_s": segment.first_frame() / plan.request.fps, "prompt": text}
            for segment, text in zip(plan.segments, plan.texts, strict=True)
        ],
        "sampling": sampling_record(plan),
        "estimate": found.to_dict(),
        "command": command_of(plan.settings, plan.output),
    }
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    print(summary(plan))
    print(f"model {plan.source.name}, {found.dtype} on {found.device}")
    print(f"{found.num_calls} calls of the network, {found.flops / 1e12:.3g} TFLOP")
    needed = found.needed_bytes(plan.place.turns)
    free = "unknown" if found.available is None else f"{found.available / 1e9:.2f} GB"
    print(f"memory about {needed / 1e9:.2f} GB, free {free}")
    print(values["command"])
