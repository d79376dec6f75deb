"""The journal of a run, cut and damaged everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from onereel.runs.journal import Journal, decode_events, encode_event

EVENTS = [{"kind": "chunk", "index": 1, "text": "größer\nals \x00"}, {"kind": "end"}, {"kind": "x"}]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for event in EVENTS:
        journal.append(**event)
    again = Journal(journal.path)
    assert again.events == journal.events == EVENTS
    assert again.lost_bytes == 0


def test_cut_at_every_byte_the_whole_events_are_read() -> None:
    lines = [encode_event(event) for event in EVENTS]
    data = b"".join(lines)
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    for length in range(len(data) + 1):
        whole = sum(end <= length for end in ends)
        assert decode_events(data[:length]) == (EVENTS[:whole], sum(map(len, lines[:whole])))


def test_a_flipped_bit_ends_what_is_believed() -> None:
    data = b"".join(map(encode_event, EVENTS))
    first = len(encode_event(EVENTS[0]))
    for place in range(first, first + len(encode_event(EVENTS[1]))):
        damaged = bytearray(data)
        damaged[place] ^= 1
        assert decode_events(bytes(damaged))[0] == EVENTS[:1]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_appending_replaces_a_torn_end(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode_event(EVENTS[0]) + encode_event(EVENTS[1])[:-cut])
    journal = Journal(path)
    assert journal.events == EVENTS[:1] and journal.lost_bytes > 0
    journal.append("again")
    assert Journal(path).events == [EVENTS[0], {"kind": "again"}]
    assert Journal(path).lost_bytes == 0
