"""proto.sse: where one event ends, however the bytes were fed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.sse import FREE_EVENTS, MIN_MEAN_EVENT_BYTES, EventSplitter, event_data

STREAM = b'data: {"a":1}\n\n: a comment\n\ndata: x\r\ndata: y\r\n\r\n\ndata: {"b":"\\n\\n"}\n\ndata: [DONE]\n\n'


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(places: list[int]) -> None:
    assert split(cut(STREAM, places)) == split([STREAM])


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"data: b", b"\r"]), max_size=30), st.lists(st.integers(0, 99)))
def test_any_line_ends_in_any_pieces(tokens: list[bytes], places: list[int]) -> None:
    stream = b"".join(tokens)
    splitter = EventSplitter()
    events = [event for piece in cut(stream, places) for event in splitter.feed(piece)]
    assert events == split([stream])
    assert b"".join(events) == stream[: len(stream) - splitter.pending_bytes]
    assert all(event.endswith((b"\n\n", b"\n\r\n")) for event in events)


def test_events_carry_their_ends() -> None:
    assert split([b"data: a\n\ndata: b\r\n\r\nrest"]) == [b"data: a\n\n", b"data: b\r\n\r\n"]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: x\ndata: y\n\n", b"x\ny"),
        (b"event: e\nid: 1\ndata: x\n\n", b"x"),
        (b": ping\n\n", b""),
        (b"\n\n", b""),
        (b"data\n\n", b""),
        (b"datax: y\n\n", b""),
        (b"\ndata: x\n\n", b"x"),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes) -> None:
    assert event_data(event) == data


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_past_the_cap_is_a_violation(size: int) -> None:
    splitter = EventSplitter(max_event_bytes=100)
    assert splitter.feed(b"x" * 98 + b"\n\n")
    with pytest.raises(ProtocolViolation, match="100 bytes"):
        for _ in range(1000):
            splitter.feed(b"x" * size)


def test_a_whole_event_past_the_cap_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        EventSplitter(max_event_bytes=100).feed(b"x" * 99 + b"\n\n")


def test_small_events_are_taken_while_they_are_few() -> None:
    events = [b": ping\n\n", b"data: " + b"x" * 120 + b"\n\n"] * 5000
    assert split(events) == events
    assert split([b"".join(events)]) == events


@pytest.mark.parametrize("event", [b"\n\n", b"\n\r\n", b":\n\n", b"data: {}\n\n"])
@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_events_that_are_small_and_many_are_a_violation_at_one_place(event: bytes, size: int) -> None:
    stream, splitter, events = event * 3000, EventSplitter(), 0
    with pytest.raises(ProtocolViolation, match="events of less than 64 bytes"):
        for start in range(0, len(stream), size):
            events += len(splitter.feed(stream[start : start + size]))
    most = FREE_EVENTS * MIN_MEAN_EVENT_BYTES // (MIN_MEAN_EVENT_BYTES - len(event))
    assert events <= most
    assert size > 1 or events == most


EVENTS = [
    b"data: x\n\n",
    b"data: {}\n\n",
    b"data: \n\n",
    b": c\n\n",
    b"data: a\ndata: b\n\n",
    b"data: y\r\n\r\n",
    b"data: ",
    b"\n",
]


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_what_is_taken_whole_is_what_would_have_been_split(pieces: list[bytes]) -> None:
    splitter, taken = EventSplitter(), []
    for piece in pieces:
        if splitter.takes(piece):
            assert event_data(piece) == piece[6:-2] != b""
            taken.append(piece)
        else:
            taken += splitter.feed(piece)
    assert taken == split(pieces)


def test_taking_is_counted_against_small_events_as_well() -> None:
    splitter, event = EventSplitter(), b"data: x\n\n"
    n_taken = sum(splitter.takes(event) for _ in range(2 * FREE_EVENTS))
    assert n_taken == FREE_EVENTS * MIN_MEAN_EVENT_BYTES // (MIN_MEAN_EVENT_BYTES - len(event))
    with pytest.raises(ProtocolViolation, match="events of less than"):
        splitter.feed(event)


def test_an_event_past_the_cap_is_not_taken() -> None:
    splitter = EventSplitter(max_event_bytes=20)
    assert splitter.takes(b"data: " + b"x" * 12 + b"\n\n") and not splitter.takes(b"data: " + b"x" * 13 + b"\n\n")
