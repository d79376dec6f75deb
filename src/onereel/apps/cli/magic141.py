"""`onereel magic141`: the official flags and YAML, with the meaning that they were to have."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onereel.apps.cli.generate import stoppable, warnings_told
from onereel.apps.cli.progress import make_listener
from onereel.core.errors import ConfigError
from onereel.pipelines.wishes import RunWishes

if TYPE_CHECKING:
    from onereel.pipelines.magic_prepare import MagicPlan

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
LEVELS = ("int8", "int4")
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def magic141(
    config: Annotated[str, typer.Option("--config", "-c", metavar="FILE.yaml", help="Config.")],
    quantization: Annotated[
        str | None, typer.Option("--quantization", "-q", metavar="BOOL", help="Fewer bits.")
    ] = None,
    quantization_level: Annotated[
        str | None,
        typer.Option("--quantization_level", "-l", metavar="int8|int4", help="How few [int8]."),
    ] = None,
    low_memory: Annotated[
        str | None, typer.Option("--low_memory", "-m", metavar="BOOL", help="Networks in turn.")
    ] = None,
    cli: Annotated[
        bool, typer.Option("--cli", help="A video per line of input: PROMPT [| IMAGE].")
    ] = False,
    value: Annotated[str | None, typer.Argument(metavar="[BOOL]", help="Of --cli [true].")] = None,
) -> None:
    """Make the videos that an official Magic 1-For-1 YAML lists.

    Flags and file mean here what they were to mean: `--quantization false` is off, `-l int4` is
    followed, `--low_memory true` works, `--cli` asks until `exit`.
    `-q` is quantization, as officially, not --quiet. For everything else there is `onereel
    generate`, which calls the same code.
    """
    switches = {
        "quantization": parse_bool("--quantization", quantization),
        "quantization_level": quantization_level,
        "low_memory": parse_bool("--low_memory", low_memory),
    }
    if value is not None and not cli:
        raise ConfigError(f"'{value}'", expected="flags with their values", hint="leave it out")
    is_asking = cli and parse_bool("--cli", value) is not False
    listener = make_listener(quiet=False)
    listener.say(f"reading {config}")
    with warnings_told(listener), stoppable(listener):
        _run(config, {k: v for k, v in switches.items() if v is not None}, is_asking, listener)


def parse_bool(name: str, text: str | None) -> bool | None:
    """Read a switch as people mean it.

    Args:
        name: of the flag.
        text: such as `true`, `False`, `1` or `no`; None when it was not given.

    Returns:
        On or off, or None.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ConfigError(name, expected="true or false", got=text)
    return text.lower() in _TRUE


def _run(config: str, switches: dict[str, Any], is_asking: bool, listener: Any) -> None:
    # Imported late: these bring torch, and the first line is on the screen by now.
    from onereel.apps.cli.generate_magic import Session, read_lines
    from onereel.pipelines.magic_prepare import prepare_magic
    from onereel.pipelines.magic_yaml import read_official_yaml

    official = read_official_yaml(config)
    for note in official.notes:
        listener.say(note)
    changes = _changes({**official.switches, **switches})
    session = Session(listener, as_json=False)

    def plan_of(wishes: RunWishes, output: str) -> MagicPlan:
        return prepare_magic(dataclasses.replace(wishes, **changes), output, files=official.files)

    official.output_dir.mkdir(parents=True, exist_ok=True)
    if is_asking:
        read_lines(
            sys.stdin,
            session,
            plan_of=lambda asked, output: plan_of(
                dataclasses.replace(official.wishes(), seed=official.seed, **asked), output
            ),
            output=str(official.output_dir / "cli.mp4"),
        )
        return
    if not official.videos:
        raise ConfigError(
            f"{config}: test_data.image_paths_and_scales", expected="at least one entry",
            got="none", hint="list [image, latent_frames, mask_scale, prompt], or give --cli true",
        )  # fmt: skip
    # All are checked before the first is made.
    plans = [
        plan_of(wishes, _free(official.output_dir / f"{name}.mp4"))
        for wishes, name in official.jobs()
    ]
    for plan in plans:
        session.make(plan)


def _changes(switches: dict[str, Any]) -> dict[str, Any]:
    """Turn the official switches into wishes."""
    level = switches.get("quantization_level") or LEVELS[0]
    if level not in LEVELS:
        raise ConfigError("--quantization_level", expected=" or ".join(LEVELS), got=level)
    for name in ("quantization", "low_memory"):
        if not isinstance(switches.get(name, False), bool):
            got = repr(switches[name])
            raise ConfigError(f"inference.{name}", expected="true or false", got=got)
    return {
        "quantize": level if switches.get("quantization") else None,
        "low_memory": bool(switches.get("low_memory")),
    }


def _free(path: Path) -> str:
    """Choose a name that no earlier video has."""
    number, free = 2, path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return str(free)
