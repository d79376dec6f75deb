"""Timelines: both spellings, chunk assignment, and errors that name the line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from onereel.core.errors import ConfigError
from onereel.pipelines.timeline import Timeline, parse_timeline, read_timeline

LINES = """\
# a story
0: a red disc rests

  2.5 : the disc bounces: high   # not a comment
1:04:the disc turns green
1:00:00.5: the end
"""
STARTS = [0.0, 2.5, 64.0, 3600.5]


def starts(timeline: Timeline) -> list[float]:
    return [entry.start_s for entry in timeline.entries]


def test_lines() -> None:
    timeline = parse_timeline(LINES)
    assert starts(timeline) == STARTS
    assert [entry.prompt for entry in timeline.entries] == [
        "a red disc rests",
        "the disc bounces: high   # not a comment",
        "the disc turns green",
        "the end",
    ]
    assert parse_timeline(timeline.as_text()) == timeline


@pytest.mark.parametrize(
    "data",
    [
        {"0": "a", "2.5": "b", "1:04": "c"},
        [[0, "a"], [2.5, "b"], ["1:04", "c"]],
        [
            {"start_s": 0, "prompt": "a"},
            {"start_s": 2.5, "prompt": " b "},
            {"prompt": "c", "start_s": 64},
        ],
    ],
)
def test_json_in_all_spellings(data: Any) -> None:
    wanted = parse_timeline("0: a\n2.5: b\n64: c")
    assert parse_timeline(data) == wanted
    assert parse_timeline("\n " + json.dumps(data)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: a\n5: b\n3: c", r"line 3.*after 5 s.*got 3 s.*hint: sort"),
        ("0: a\n\n0: b", r"line 3.*after 0 s"),
        ("# x\n1: a", r"line 2.*first prompt at 0.*got 1.*hint"),
        ("0: a\n4:", r"line 2.*expected a prompt"),
        ("0: a\n4:   ", r"line 2.*expected a prompt"),
        ("0: a\n-4: b", r"line 2.*expected 'start_s: prompt'.*hint"),
        ("0: a\nfour: b", r"line 2.*'four: b'.*hint"),
        ("a red disc", r"line 1"),
        ("0: a\n4s: b", r"line 2"),
        ("0: a\nnan: b", r"line 2"),
        ("0: a\n1:75: b", r"line 2.*below 60"),
        ("0: a\n1:60:00: b", r"line 2.*below 60"),
        ("0: a\n0:30 dogs run", r"line 2.*'0: 30 dogs run'"),
        ("", r"at least one"),
        ("# only this\n", r"at least one"),
        ('{"0": "a",}', r"line 1, column \d+"),
        ('[\n[0, "a"],\n[1 "b"]\n]', r"line 3"),
        ('{"0": "a", "0": "b"}', r"'0' is given twice"),
        ('{"0": "a", "x": "b"}', r"'x'.*expected seconds"),
        ('[[0, "a"], [-1, "b"]]', r"entry 2.*got -1"),
        ('[[0, "a"], [NaN, "b"]]', r"entry 2.*got nan"),
        ('[[0, "a"], [true, "b"]]', r"entry 2.*got True"),
        ('[[0, "a"], [1, 7]]', r"entry 2.*in quotes"),
        ('[[0, "a"], [1, " "]]', r"entry 2.*a prompt"),
        ('["a", "b"]', r"entry 1.*seconds"),
        ('[{"start": 0, "prompt": "a"}]', r"entry 1.*did you mean 'start_s'"),
        ('[{"prompt": "a"}]', r"entry 1.*got None"),
        ("[]", r"at least one"),
        ("[" * 100_000, r"nested|JSON"),
    ],
)
def test_errors_name_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        parse_timeline(text)
    assert str(caught.value).startswith("timeline")


def test_other_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="list or a mapping"):
        parse_timeline(5)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text(LINES.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert starts(read_timeline(path)) == STARTS
    path.write_text("0: a\n0: b", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"story\.txt: line 2"):
        read_timeline(path)
    path.write_bytes(b"0: caf\xe9")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_timeline(path)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ConfigError, match="timeline"):
            read_timeline(missing)


def test_a_chunk_takes_the_prompt_of_its_middle() -> None:
    timeline = parse_timeline("0: a\n1.4: b\n3.6: c")
    assert timeline.prompts_per_chunk(5, 1.0) == ["a", "b", "b", "b", "c"]
    assert timeline.prompts_per_chunk(3, 2.0) == ["a", "b", "c"]
    assert (timeline.prompt_at(0), timeline.prompt_at(1.4), timeline.prompt_at(99)) == (
        "a",
        "b",
        "c",
    )


def test_borders_are_exact_for_odd_frame_rates() -> None:
    lines = "\n".join(f"{chunk * 0.8:.10g}: p{chunk}" for chunk in range(200))
    prompts = parse_timeline(lines).prompts_per_chunk(200, 24 / 30)
    assert prompts == [f"p{chunk}" for chunk in range(200)]


def test_prompts_never_shown_are_warned_of() -> None:
    timeline = parse_timeline("0: a\n1.1: b\n1.2: c\n9: d")
    with pytest.warns(UserWarning, match=r"from 1\.1 s, 9 s are never shown") as caught:
        assert timeline.prompts_per_chunk(3, 1.0) == ["a", "c", "c"]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Timeline.single("a").prompts_per_chunk(2, 1.0) == ["a", "a"]


@pytest.mark.parametrize(("chunks", "seconds"), [(0, 1.0), (2, 0.0), (2, float("nan"))])
def test_sizes_must_be_positive(chunks: int, seconds: float) -> None:
    with pytest.raises(ConfigError):
        Timeline.single("a").prompts_per_chunk(chunks, seconds)
