"""`onereel generate`: the flags, the official argument names, and what is said."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onereel import __version__
from onereel.apps.cli.keys import steering_keys
from onereel.apps.cli.progress import QuietListener, format_seconds, make_listener
from onereel.apps.cli.reading import (
    Asked,
    Keep,
    check_repeat,
    read_changes,
    read_wishes,
    translate,
)
from onereel.core.errors import ConfigError
from onereel.pipelines.families import NAMES, check_family, family_of
from onereel.pipelines.wishes import RunWishes, check_wishes
from onereel.runtime.source import MAGIC141

if TYPE_CHECKING:
    from onereel.pipelines.prepare import RunPlan
    from onereel.pipelines.run import RunResult

MODES = {"t2v": "text to video", "i2v": "image to video", "v2v": "video to video"}
app = typer.Typer(add_completion=False, rich_markup_mode=None)
_Text = Annotated[str | None, typer.Option(hidden=True)]


@app.command()
def generate(
    prompt_: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What the video shows.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Picture to start with.")] = None,
    video: Annotated[str | None, typer.Option(help="Video to continue.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|DIR|CONFIG.json", help="Checkpoint.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the new video.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="The same in frames.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 16.")
    ] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per chunk.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; drawn if left out.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Timeline: one `start_s: prompt` per line.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What shall not be seen.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Strength towards the text.")] = None,
    prev_scale: Annotated[
        float | None, typer.Option(help="Strength towards earlier chunks.")
    ] = None,
    hq: Annotated[bool | None, typer.Option("--hq/--no-hq", help="Ask for high quality.")] = None,
    duration: Annotated[
        bool | None,
        typer.Option("--duration/--no-duration", help="Tell the model how much follows."),
    ] = None,
    style: Annotated[str | None, typer.Option(metavar="3d|anime", help="Look.")] = None,
    first_frames: Annotated[
        str | None, typer.Option(metavar="static|dynamic", help="Kind of beginning.")
    ] = None,
    special_tokens: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table of special tokens.")
    ] = None,
    image_source: Annotated[
        str | None,
        typer.Option(
            metavar="self|FOLDER", help="The first picture: made by the model, or searched."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="DIR", help="CLIP model that searches FOLDER.")
    ] = None,
    keep_image: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Keep the first picture.")
    ] = None,
    from_image: Annotated[
        str | None, typer.Option(metavar="FILE", help="--image by another name: a kept picture.")
    ] = None,
    continuation: Annotated[
        str | None,
        typer.Option(metavar="picture|latent", help="What later segments begin with."),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="A video per line of input: PROMPT [| IMAGE].")
    ] = False,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="Adapter; repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    offload: Annotated[
        bool | None, typer.Option("--offload/--no-offload", help="Keep idle networks off the GPU.")
    ] = None,
    low_memory: Annotated[
        bool | None, typer.Option("--low-memory", help="Networks, and blocks on a GPU, in turn.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="int8, int4, fp8 or int8-dynamic weights: less memory."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="fit|crop|pad", help="Inputs of another shape.")
    ] = None,
    prefix_frames: Annotated[
        int | None, typer.Option(help="Frames of --video that are continued.")
    ] = None,
    prefix_from: Annotated[
        str | None, typer.Option(metavar="start|end", help="The end they are taken from.")
    ] = None,
    keep_prefix: Annotated[
        bool | None,
        typer.Option("--keep-prefix/--no-keep-prefix", help="Put them in front of the output."),
    ] = None,
    official_compat: Annotated[
        bool | None,
        typer.Option(
            "--official-compat/--no-official-compat", help="Lengths and roundings as officially."
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="OUT.mp4", help="Repeat the run that made a video.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder that keeps the run [beside the output: OUT.run]."),
    ] = None,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Keep nothing but the video; no resuming.")
    ] = False,
    latents_only: Annotated[
        bool, typer.Option("--latents-only", help="Decode later: `onereel decode OUT.run`.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.mp4", help="File to write.")
    ] = None,
    prompt: _Text = None,
    mode: _Text = None,
    config_file: Annotated[str | None, typer.Option("--config_file", hidden=True)] = None,
    image_path: Annotated[str | None, typer.Option("--image_path", hidden=True)] = None,
    prefix_video_path: Annotated[
        str | None, typer.Option("--prefix_video_path", hidden=True)
    ] = None,
    output_path: Annotated[str | None, typer.Option("--output_path", hidden=True)] = None,
) -> None:
    """Make a video from text, an image or a video, chunk by chunk.

    The checkpoint decides which family of models it is. --image-source, --clip, --keep-image,
    --from-image, --continuation, --interactive and --low-memory are of Magic 1-For-1; --video,
    --prev-scale, --hq, --duration, --style, --first-frames, --special-tokens, --policy and
    --prefix-* of MAGI-1.

    The file plays while it grows, and Ctrl-C keeps what is finished; `onereel resume OUT.run` goes
    on. The official names
    --config_file, --mode, --image_path, --prefix_video_path and --output_path work as well.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    show = {name: flags.pop(name) for name in ("plan", "quiet", "as_json")}
    extra = {name: flags.pop(name, None) for name in ("interactive", "keep_image")}
    keep = Keep(
        folder=flags.pop("run", None),
        off=flags.pop("no_run"),
        latents_only=flags.pop("latents_only"),
    )
    listener = make_listener(quiet=show["quiet"])
    listener.say(f"onereel {__version__}: checking what is asked for")
    flags = translate(flags)
    output, like = flags.pop("output", None), flags.pop("like", None)
    mode = flags.pop("mode", None)
    if show["as_json"] and output == "-":
        raise ConfigError("--json and -o -", hint="both write to standard output; choose one")
    with warnings_told(listener), stoppable(listener):
        asked = Asked(
            changes=read_changes(flags), output=output, like=like, mode=mode, keep=keep, **extra
        )
        if asked.interactive:
            _interact(asked, show=show, listener=listener)
        else:
            _go(asked, show=show, listener=listener)


def _interact(asked: Asked, *, show: Mapping[str, bool], listener: QuietListener) -> None:
    family = family_of(asked.changes.get("model"))
    if family != MAGIC141:
        raise ConfigError(
            f"--interactive of a {NAMES[family]} checkpoint", expected="a Magic 1-For-1 checkpoint",
            hint="give --model; MAGI-1 makes one video per `onereel generate`",
        )  # fmt: skip
    from onereel.apps.cli.generate_magic import interact

    interact(asked, sys.stdin, show=show, listener=listener)


def _go(asked: Asked, *, show: Mapping[str, bool], listener: QuietListener) -> None:
    """Check, then plan or run."""
    changes, output, keep = asked.changes, asked.output, asked.keep
    wishes, repeat = read_wishes(changes, asked.like)
    if asked.mode is not None and asked.mode != wishes.mode:
        _refuse_mode(asked.mode, wishes)
    check_wishes(wishes)
    family = family_of(wishes.model)
    check_family(wishes, changes, family=family)
    if family == MAGIC141:
        from onereel.apps.cli.generate_magic import make

        make(asked, wishes, repeat=repeat, show=show, listener=listener)
        return
    if asked.keep_image is not None:
        raise ConfigError("--keep-image of a MAGI-1 checkpoint", hint="it makes no first picture")
    from onereel.pipelines.files import check_files

    check_files(wishes, output)
    # Imported late: these bring torch, and the first line is on the screen by now.
    from onereel.pipelines.prepare import prepare
    from onereel.pipelines.run import run
    from onereel.runs.run import Run

    plan = prepare(wishes, output)
    if repeat is not None:
        check_repeat(repeat, plan, changes=changes)
    if show["plan"]:
        _print_plan(plan, as_json=show["as_json"])
        return
    listener.say(_summary(plan))
    expected = None if repeat is None else repeat.expected_hash(changes)
    folder = keep.choose(plan.output)
    if folder is None:
        result = run(plan, listener, expected_hash=expected)
    else:
        kept = Run.of_plan(
            plan, folder, latents_only=keep.latents_only, listener=listener, expected_hash=expected
        )
        with steering_keys(folder, listener):
            result = kept.finish()
    report(result, listener, as_json=show["as_json"])


def report(result: RunResult, listener: QuietListener, *, as_json: bool) -> None:
    """Say what was made.

    Args:
        result: of the run.
        listener: is told how long it took.
        as_json: print all of it, not the path alone.
    """
    listener.close()
    record = result.record
    new_s = (record["num_frames"] - record["given_frames"]) / record["fps"]
    speed = result.elapsed_s / max(new_s, 1e-6)
    listener.say(
        f"done: {result.seconds:.2f} s of video in {format_seconds(result.elapsed_s)}, "
        f"{speed:.3g} s per s of video"
    )
    if Path(result.path).is_dir():
        listener.say(f"latents only: `onereel decode {result.path}` makes the video")
    if as_json:
        values = dataclasses.asdict(result)
        print(json.dumps({**values, "speed": speed}, ensure_ascii=False))
    elif result.path != "-":
        print(result.path)


def _refuse_mode(mode: str, wishes: RunWishes) -> None:
    if mode not in MODES:
        raise ConfigError("--mode", expected=", ".join(MODES), got=mode)
    needs = {"t2v": "no --image and no --video", "i2v": "--image FILE", "v2v": "--video FILE"}
    given = {"t2v": "neither --image nor --video", "i2v": "--image", "v2v": "--video"}
    raise ConfigError(f"--mode {mode}", expected=needs[mode], got=given[wishes.mode],
                      hint="--mode may be left out")  # fmt: skip


def _summary(plan: RunPlan) -> str:
    request, config = plan.request, plan.request.config
    kept = f" after {plan.given_frames} given ones" if plan.given_frames else ""
    return (
        f"{MODES[plan.settings.mode]}: {plan.new_frames} frames{kept}, "
        f"{request.width}x{request.height} at {request.fps} fps "
        f"({request.num_frames / request.fps:.2f} s), {plan.num_chunks} chunks of "
        f"{config.num_steps} steps, seed {request.seed}, to {plan.output}"
    )


def _print_plan(plan: RunPlan, *, as_json: bool) -> None:
    """Print what would be done, and what it would take."""
    from onereel.pipelines.record import command_of, sampling_record

    found = plan.estimate()
    values = {
        "mode": plan.settings.mode,
        "model": plan.source.name,
        "output": plan.output,
        "seed": plan.request.seed,
        "num_frames": plan.request.num_frames,
        "given_frames": plan.given_frames,
        "num_chunks": plan.num_chunks,
        "num_steps": plan.num_steps,
        "prompts": list(plan.texts),
        "sampling": sampling_record(plan),
        "estimate": found.to_dict(),
        "command": command_of(plan.settings, plan.output),
    }
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return
    print(_summary(plan))
    print(f"model {plan.source.name}, {found.dtype} on {found.device}")
    print(f"{plan.num_steps} model steps, {found.num_calls} calls of the network")
    free = "unknown" if found.available is None else f"{found.available / 1e9:.2f} GB"
    print(f"memory about {found.resident_bytes / 1e9:.2f} GB, free {free}")
    print(f"time about {format_seconds(found.seconds)}")
    print(values["command"])


@contextlib.contextmanager
def warnings_told(listener: QuietListener) -> Iterator[None]:
    """Show warnings as lines of talk."""

    def tell(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        del category, args, kwargs
        listener.say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield


@contextlib.contextmanager
def stoppable(listener: QuietListener) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run with what is finished; exit code 130."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        del number, frame
        if stopped:  # impatience must not spoil the file that is being finished
            return
        stopped = True
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        listener.close()
        notes = getattr(interrupt, "__notes__", ["nothing was written"])
        print(f"interrupted: {'; '.join(notes)}", file=sys.stderr)
        raise typer.Exit(130) from interrupt
    finally:
        listener.close()
        for number, handler in earlier.items():
            signal.signal(number, handler)
