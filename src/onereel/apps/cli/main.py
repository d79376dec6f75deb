"""`onereel`: finds the subcommand, imports only that, and turns errors into exit codes.

Exit codes: 0 done, 1 a check failed or an unexpected error, 2 usage, 3 bad input or checkpoint,
4 out of resources or something missing, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError, OneReelError, OutOfMemory

# name: (module:attribute, the line in `onereel --help`), in the order of the help.
COMMANDS = {
    "generate": ("onereel.apps.cli.generate:app", "Make a video from text, an image or a video."),
    "magic141": ("onereel.apps.cli.magic141:app", "Make the videos of an official Magic141 YAML."),
    "resume": ("onereel.apps.cli.runs:resume", "Go on with a render that was broken off."),
    "runs": ("onereel.apps.cli.runs:app", "List, show, verify and clean the folders of renders."),
    "undo": ("onereel.apps.cli.edit:undo", "Take back what follows a second of a kept render."),
    "redo": ("onereel.apps.cli.edit:redo", "Do it again from a second on, otherwise."),
    "steer": ("onereel.apps.cli.edit:steer", "Change a render while it runs; pause or stop it."),
    "extend": ("onereel.apps.cli.edit:extend", "Make a kept render longer."),
    "branch": ("onereel.apps.cli.edit:branch", "Fork a kept render into a second one."),
    "decode": ("onereel.apps.cli.runs:decode", "Make the video from the latents of a render."),
    "plan": ("onereel.apps.cli.plan:app", "Say what a run will take, before anything is loaded."),
    "models": ("onereel.apps.cli.models:app", "List, inspect, verify and convert checkpoints."),
    "evaluate": ("onereel.apps.cli.evaluate:app", "Measure a model or videos, and report."),
    "parity": ("onereel.apps.cli.parity:app", "Compare with recorded results of official code."),
    "doctor": ("onereel.apps.cli.doctor:app", "Say what this machine has and what is missing."),
    "train": ("onereel.apps.cli.train:app", "Train a model with a recipe."),
}


class LazyGroup(TyperGroup):
    """A command group that imports a subcommand when it is run, not when it is listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the subcommands.

        Args:
            ctx: the parser's context.

        Returns:
            Their names, in the order of the help.
        """
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a subcommand.

        Args:
            ctx: the parser's context.
            cmd_name: its name.

        Returns:
            The parser's command, or None when there is none of that name.
        """
        if cmd_name not in COMMANDS:
            return None
        home, text = COMMANDS[cmd_name]
        module, _, attribute = home.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
            found.command()(function)
        command = typer.main.get_command(found)
        command.name, command.help = cmd_name, command.help or text
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the subcommand in the arguments.

        Args:
            ctx: the parser's context.
            args: what follows the options of `onereel` itself.

        Returns:
            The subcommand's name, its command and the arguments left for it.

        Raises:
            ConfigError: there is no such subcommand.
        """
        if args[0] not in COMMANDS:
            near = nearest_name(args[0], COMMANDS)
            hint = f"did you mean '{near}'?" if near else f"commands: {', '.join(COMMANDS)}"
            raise ConfigError(f"unknown command '{args[0]}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of subcommands without importing any.

        Args:
            ctx: the parser's context.
            formatter: takes the text.
        """
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from onereel import __version__

        typer.echo(f"onereel {__version__}")
        raise typer.Exit


@app.callback()
def _onereel(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Stream video of any length from text, an image or a video, chunk by chunk."""


def print_error(error: BaseException) -> None:
    """Print an error and, on a line of its own, how to mend it, to stderr.

    Args:
        error: what went wrong.
    """
    hint = getattr(error, "hint", None)
    text = str(error) if hint is None else str(error).removesuffix(f". hint: {hint}")
    print(f"error: {text}", file=sys.stderr)
    if hint is not None:
        print(f"hint: {hint}", file=sys.stderr)


def _out_of_resources(error: BaseException) -> OneReelError | None:
    """Recognise exhausted memory or disk in an error that is not ours.

    Args:
        error: what was raised.

    Returns:
        Our error for it, or None when it is something else.
    """
    # torch is looked up, not imported: what never imported it cannot have raised its errors.
    torch = sys.modules.get("torch")
    gpu_errors: tuple[type[BaseException], ...] = (torch.OutOfMemoryError,) if torch else ()
    if isinstance(error, (MemoryError, *gpu_errors)):
        hint = "a smaller picture needs less; `onereel plan` says how much"
        return OutOfMemory(f"out of memory: {error}".removesuffix(": "), hint=hint)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutOfMemory(f"disk full: {error}", hint="free some space or write elsewhere (-o)")
    return None


def _report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    print(
        "error: this should not have happened\n"
        "hint: please report it with the lines above and the output of `onereel doctor`",
        file=sys.stderr,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code. An unexpected exception is not caught; it ends the process with its
        traceback and a request to report it.
    """
    sys.excepthook = _report_crash
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="onereel")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except OneReelError as error:
        print_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError, OSError) as error:
        known = _out_of_resources(error)
        if known is None:
            raise
        print_error(known)
        return known.exit_code
    return 0
