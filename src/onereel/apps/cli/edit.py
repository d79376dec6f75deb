"""`onereel undo`, `redo`, `extend`, `branch`: changes to a render that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onereel.apps.cli.runs import resume

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, such as OUT.run.")]
_Prompt = Annotated[str | None, typer.Option(help="What is shown from there on.")]
_Seed = Annotated[int | None, typer.Option(help="Of the noise from there on.")]
_Hold = Annotated[bool, typer.Option("--hold", help="Note it only; `onereel resume` does it.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr.")]


def undo(
    folder: _Folder,
    to: Annotated[float, typer.Option(metavar="SECONDS", help="Keep the video up to here.")],
) -> None:
    """Take back what follows a second of a kept render; whole chunks are taken back.

    The video file changes when `onereel resume DIR` makes the rest again, or `onereel redo`,
    `extend` or `branch` something else.
    """
    from onereel.runs.run import Run

    kept = Run(folder).undo(to)
    typer.echo(f"{folder}: {kept:g} s are kept", err=True)


def redo(
    folder: _Folder,
    *,
    start: Annotated[
        float, typer.Option("--from", metavar="SECONDS", help="Second from which on it is redone.")
    ],
    prompt: _Prompt = None,
    seed: _Seed = None,
    hold: _Hold = False,
    quiet: _Quiet = False,
) -> None:
    """Make a kept render again from a second on, with another prompt or seed.

    What lies before stays as it is, to the bit. Whole chunks are made again.
    """
    from onereel.runs.run import Run

    kept = Run(folder).redo(start, prompt=prompt, seed=seed)
    _go_on(folder, f"{kept:g} s are kept", hold=hold, quiet=quiet)


def extend(
    folder: _Folder,
    *,
    seconds: Annotated[float, typer.Option(help="How much longer.")],
    prompt: Annotated[str | None, typer.Option(help="What the new part shows.")] = None,
    hold: _Hold = False,
    quiet: _Quiet = False,
) -> None:
    """Make a kept render longer; what there is stays as it is, to the bit."""
    from onereel.runs.run import Run

    length = Run(folder).extend(seconds, prompt=prompt)
    _go_on(folder, f"{length:g} s in all", hold=hold, quiet=quiet)


def branch(
    folder: _Folder,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the second run.")],
    *,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT.mp4", help="Its video [NEW.mp4].")
    ] = None,
    at: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Where they part [where it ends].")
    ] = None,
    prompt: _Prompt = None,
    seed: _Seed = None,
    hold: _Hold = False,
    quiet: _Quiet = False,
) -> None:
    """Fork a kept render into a second one; files that both share are linked, not copied."""
    from onereel.runs.run import Run

    output = output or str(new.with_suffix(".mp4"))
    shared = Run(folder).branch(new, output=output, seconds=at, prompt=prompt, seed=seed)
    text = f"{shared.state.seconds_kept:g} s are shared with {folder}"
    _go_on(new, text, hold=hold, quiet=quiet)


def steer(
    folder: _Folder,
    prompt: Annotated[str | None, typer.Argument(help="What is shown from now on.")] = None,
    *,
    at: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Not before this second.")
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Wait after the next chunk.")] = False,
    go_on: Annotated[bool, typer.Option("--continue", help="End a pause.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End after the next chunk.")] = False,
) -> None:
    """Change a render while it runs.

    The prompt holds from the first chunk on that has not begun. `onereel resume DIR` goes on with a
    render that was stopped.
    """
    from onereel.core.errors import ConfigError
    from onereel.runs.run import Run

    asked = [name for name, on in (("pause", pause), ("continue", go_on), ("stop", stop)) if on]
    if len(asked) + (prompt is not None) != 1:
        raise ConfigError("steer", expected="a prompt, --pause, --continue or --stop, one of them")
    if prompt is not None:
        Run(folder).steer(prompt, seconds=at)
    else:
        Run(folder).control(asked[0])
    typer.echo(f"{folder}: asked; it is looked at after every chunk", err=True)


def _go_on(folder: Path, text: str, *, hold: bool, quiet: bool) -> None:
    if not quiet:
        typer.echo(f"{folder}: {text}", err=True)
    if not hold:
        resume(folder, quiet=quiet)
