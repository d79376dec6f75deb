"""What is shown while a video is made."""

from __future__ import annotations

import pytest

from onereel.apps.cli import progress
from onereel.apps.cli.progress import (
    PlainListener,
    QuietListener,
    TerminalListener,
    describe_progress,
    format_seconds,
    make_listener,
)
from onereel.pipelines.listeners import RunProgress


def state(share: float = 0.25) -> RunProgress:
    return RunProgress(
        chunk=2,
        num_chunks=4,
        step=30,
        num_steps=112,
        share=share,
        seconds_done=1.0,
        seconds_total=4.0,
        elapsed_s=50.0,
        speed=50.0,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_line_says_chunk_step_video_speed_and_time_left() -> None:
    assert describe_progress(state()) == (
        "chunk 2/4  step 30/112  video 1.0/4.0 s  50 s per s of video  2:30 left"
    )
    assert state(share=1.0).eta_s == 0


def test_plain_lines_come_at_most_every_two_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    listener = PlainListener()
    for now in (0.0, 0.5, 1.9, 2.0, 3.9, 4.1):  # noqa: B007 - the clock reads it
        listener.progress(state())
    assert capsys.readouterr().err.count("chunk 2/4") == 3


def test_a_bar_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    listener = TerminalListener()
    listener.say("checking [this]")
    listener.progress(state())
    listener.say("a line [above] the bar")
    listener.close()
    listener.close()
    err = capsys.readouterr().err
    assert "checking [this]" in err and "a line [above] the bar" in err
    assert "chunk 2/4" in err.replace("\n", " ")


def test_the_display_fits_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_listener(quiet=True)) is QuietListener
    assert type(make_listener(quiet=False)) is PlainListener
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert type(make_listener(quiet=False)) is TerminalListener


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    listener = QuietListener()
    listener.say("text")
    listener.progress(state())
    listener.close()
    assert capsys.readouterr() == ("", "")
