"""Timelines: which prompt holds from which second on (`--prompts FILE`).

Two spellings. Lines, with `#` comments and mm:ss allowed:

    0: a red disc rests on blue
    2.5: the disc begins to bounce
    1:04: the disc turns green

JSON: `{"0": "...", "1:04": "..."}`, `[[0, "..."], [64, "..."]]` or
`[{"start_s": 0, "prompt": "..."}, ...]`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onereel.core.config import check_keys
from onereel.core.errors import ConfigError

_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")
_LINE = re.compile(rf"(?P<time>{_TIME.pattern})\s*:(?P<prompt>.*)", re.DOTALL)
_HINT: Final = "write '2.5: a red disc bounces', or '1:04: ...' for minutes and seconds"


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One prompt and when it begins.

    Args:
        start_s: seconds from the start of the generated video.
        prompt: what is shown from then on.
    """

    start_s: float
    prompt: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Prompts in order of time; the first one starts at 0.

    Args:
        entries: the prompts, sorted.
    """

    entries: tuple[TimelineEntry, ...]

    @classmethod
    def single(cls, prompt: str) -> Timeline:
        """Make a timeline of one prompt.

        Args:
            prompt: holds for the whole video.

        Returns:
            The timeline.
        """
        return cls((TimelineEntry(0.0, prompt),))

    def prompt_at(self, seconds: float) -> str:
        """Return the prompt that holds at a time.

        Args:
            seconds: from the start, at least 0.

        Returns:
            The prompt.
        """
        return self.entries[self._index_at(seconds)].prompt

    def prompts_per_chunk(self, num_chunks: int, seconds_per_chunk: float) -> list[str]:
        """Give each generated chunk one prompt: the one that holds in the chunk's middle.

        A prompt that no chunk shows, being shorter than a chunk or past the end, is warned of.

        Args:
            num_chunks: how many chunks are generated.
            seconds_per_chunk: their length.

        Returns:
            One prompt per chunk.

        Raises:
            ConfigError: a number is not positive.
        """
        if num_chunks < 1:
            raise ConfigError("num_chunks", expected="at least 1", got=num_chunks)
        if not seconds_per_chunk > 0:
            raise ConfigError("seconds_per_chunk", expected="more than 0", got=seconds_per_chunk)
        used = [self._index_at((chunk + 0.5) * seconds_per_chunk) for chunk in range(num_chunks)]
        unused = [e for i, e in enumerate(self.entries) if i not in set(used)]
        if unused:
            begins = ", ".join(f"{entry.start_s:g} s" for entry in unused)
            warnings.warn(
                f"timeline: the prompts from {begins} are never shown; the video has {num_chunks} "
                f"chunks of {seconds_per_chunk:g} s, each with one prompt. hint: make the video "
                "longer, or put prompts at least a chunk apart",
                stacklevel=2,
            )
        return [self.entries[index].prompt for index in used]

    def as_text(self) -> str:
        """Write the timeline as lines that `parse_timeline` reads back.

        Returns:
            One line per prompt.
        """
        return "\n".join(f"{entry.start_s:.10g}: {entry.prompt}" for entry in self.entries)

    def _index_at(self, seconds: float) -> int:
        return max(i for i, e in enumerate(self.entries) if i == 0 or e.start_s <= seconds)


def read_timeline(path: str | Path) -> Timeline:
    """Read a timeline file.

    Args:
        path: a UTF-8 text file, lines or JSON.

    Returns:
        The timeline.

    Raises:
        ConfigError: the file cannot be read, or a line is wrong; the message names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"timeline {path}", got=error.strerror or "an unreadable file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"timeline {path}", expected="UTF-8 text", got="other bytes") from error
    return parse_timeline(text, source=f"timeline {path}")


def parse_timeline(
    text_or_json: str | Sequence[Any] | Mapping[str, Any], *, source: str = "timeline"
) -> Timeline:
    """Parse a timeline from text, or from JSON already loaded.

    Args:
        text_or_json: lines, JSON text, a list or a mapping; see the top of this file.
        source: what error messages call it, such as the file's name.

    Returns:
        The timeline.

    Raises:
        ConfigError: an entry is wrong; the message names its line or its number.
    """
    if isinstance(text_or_json, str):
        if text_or_json.lstrip()[:1] in ("[", "{"):
            found = _json_entries(_load_json(text_or_json, source), source)
        else:
            found = _line_entries(text_or_json, source)
    else:
        found = _json_entries(text_or_json, source)
    _check_order(found, source)
    return Timeline(tuple(entry for _, entry in found))


_Found = list[tuple[str, TimelineEntry]]  # each entry with the place that messages name


def _line_entries(text: str, source: str) -> _Found:
    found = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line, where = raw.strip(), f"{source}: line {number}"
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(where, expected="'start_s: prompt'", got=repr(line[:60]), hint=_HINT)
        time, prompt = match["time"], match["prompt"]
        if re.match(r"\d", prompt):
            raise ConfigError(
                where,
                expected="a space or a prompt after the colon",
                got=repr(line[:60]),
                hint=f"write '{time}: {prompt.strip()[:20]}', or a second colon after mm:ss",
            )
        found.append((where, _entry(time, prompt, where)))
    return found


def _load_json(text: str, source: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        double = next((key for key in keys if keys.count(key) > 1), None)
        if double is not None:
            raise ConfigError(f"{source}: '{double}' is given twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{source}: line {error.lineno}, column {error.colno}",
            expected="JSON",
            got=error.msg,
            hint="a file beginning with '[' or '{' is read as JSON",
        ) from error
    except RecursionError as error:
        raise ConfigError(source, expected="a flat list", got="deeply nested JSON") from error


def _json_entries(data: Any, source: str) -> _Found:
    if isinstance(data, Mapping):
        pairs = [(f"{source}: '{start}'", start, prompt) for start, prompt in data.items()]
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        pairs = [_json_pair(item, f"{source}: entry {n}") for n, item in enumerate(data, start=1)]
    else:
        raise ConfigError(source, expected="a list or a mapping", got=type(data).__name__)
    return [(where, _entry(start, prompt, where)) for where, start, prompt in pairs]


def _json_pair(item: Any, where: str) -> tuple[str, Any, Any]:
    if isinstance(item, Mapping):
        check_keys(item, ("start_s", "prompt"), where=where)
        return where, item.get("start_s"), item.get("prompt")
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) == 2:
        return where, item[0], item[1]
    raise ConfigError(
        where,
        expected='[seconds, "prompt"]',
        got=repr(item)[:60],
        hint='or {"start_s": seconds, "prompt": "..."}',
    )


def _entry(start: Any, prompt: Any, where: str) -> TimelineEntry:
    """Check one start and one prompt."""
    seconds = _seconds(start, where)
    if not isinstance(prompt, str):
        raise ConfigError(where, expected="a prompt in quotes", got=repr(prompt)[:60])
    if not prompt.strip():
        raise ConfigError(
            where, expected="a prompt", got="nothing", hint="say what is shown, or drop the entry"
        )
    return TimelineEntry(seconds, prompt.strip())


def _seconds(start: Any, where: str) -> float:
    """Read a time: seconds as a number, or text such as '2.5', '1:04' or '1:00:04'."""
    wanted = "seconds as a number of at least 0, or mm:ss"
    if isinstance(start, str):
        match = _TIME.fullmatch(start.strip())
        if match is None:
            raise ConfigError(where, expected=wanted, got=repr(start), hint=_HINT)
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        crowded = seconds >= 60 and match[2] is not None or minutes >= 60 and match[1] is not None
        if crowded:
            raise ConfigError(
                where, expected="minutes and seconds below 60 in mm:ss", got=repr(start)
            )
        start = 3600 * hours + 60 * minutes + seconds
    number = isinstance(start, int | float) and not isinstance(start, bool)
    if not number or not math.isfinite(start) or start < 0:
        raise ConfigError(where, expected=wanted, got=repr(start), hint=_HINT)
    return float(start)


def _check_order(found: _Found, source: str) -> None:
    if not found:
        raise ConfigError(source, expected="at least one 'start_s: prompt'", got="none", hint=_HINT)
    where, first = found[0]
    if first.start_s != 0:
        raise ConfigError(
            where,
            expected="the first prompt at 0",
            got=f"{first.start_s:g}",
            hint="begin with '0: ...', for the video needs a prompt from its start",
        )
    for (_, before), (where, entry) in zip(found, found[1:], strict=False):
        if entry.start_s <= before.start_s:
            raise ConfigError(
                where,
                expected=f"a start after {before.start_s:g} s",
                got=f"{entry.start_s:g} s",
                hint="sort the prompts by time, one per time",
            )
