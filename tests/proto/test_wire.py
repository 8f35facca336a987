"""Unsigned frames: canonical or refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ProtocolViolation
from p2pgrid.proto.frame import FIRST_CREDITED_KIND, FIRST_MESSAGE_KIND
from p2pgrid.proto.wire.base import MAX_COMPARED, Frame, Refusal, parse_frame
from p2pgrid.proto.wire.channels import ChannelRequest, Channels, Held, OpenTick, Proposals, Records, Resume, Resumed
from p2pgrid.proto.wire.disputes import DisputesCompared, DisputesHeld, DisputesNews, HeldDispute
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import MAX_BODY_BYTES, Head, OrderOpening

HELD = Held(
    last_order_number=2**53,
    last_receipt_number=0,
    last_receipt=bytes(32),
    open_orders=tuple(OpenTick(order_number=n, tick=2**53) for n in range(1, 1025)),
)
FRAMES: list[Frame] = [
    ChannelRequest(client_nonce=bytes(32), offer=bytes(32), now_ms=0),
    OpenTick(order_number=1, tick=0),
    HELD,
    Resume(channel=bytes(4096), held=HELD),
    Resumed(held=HELD, records=1024),
    Records(records=0, is_all=True),
    Proposals(proposals=1024, is_all=False),
    Channels(channels=(bytes(4096),) * 15),
    OrderOpening(order=bytes(4096), commitment_key=bytes(32), body_bytes=MAX_BODY_BYTES),
    Refusal(code="busy", message="ł" * 512, retry_after_ms=3_600_000),
    Head(status=200, content_type="text/event-stream"),
    HeldDispute(receipt_number=2**53, id=bytes(32)),
    DisputesHeld(
        channel=bytes(32), after=0, until=2**53, held=(HeldDispute(receipt_number=2**53, id=bytes(32)),) * MAX_COMPARED
    ),
    DisputesCompared(until=2**53, lacks=(bytes(32),) * MAX_COMPARED, records=MAX_COMPARED),
    DisputesNews(channel=bytes(32)),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda f: type(f).__name__)
def test_round_trip(frame: Frame) -> None:
    data = frame.to_bytes()
    assert parse_frame(data, type(frame)) == frame
    for at in range(min(len(data), 300)):
        with pytest.raises(ProtocolViolation):
            parse_frame(data[:at], type(frame))
    with pytest.raises(ProtocolViolation):
        parse_frame(data + b"\xc0", type(frame))


@pytest.mark.parametrize(
    ("frame_type", "items"),
    [
        (Head, [99, ""]),
        (Head, [600, ""]),
        (Head, [200, "x" * 129]),
        (Head, [200, "", 1]),
        (Head, [200]),
        (Head, {"status": 200, "content_type": ""}),
        (Refusal, ["x" * 65, "", 0]),
        (Refusal, ["busy", "x" * 513, 0]),
        (Refusal, ["busy", "", 3_600_001]),
        (Refusal, ["busy", ""]),  # the default left out
        (OrderOpening, [bytes(4097), bytes(32), 2]),
        (OrderOpening, [b"", bytes(31), 2]),
        (OrderOpening, [b"", bytes(32), 1]),
        (OrderOpening, [b"", bytes(32), MAX_BODY_BYTES + 1]),
        (Held, [0, 0, bytes(31), []]),
        (Held, [-1, 0, bytes(32), []]),
        (Held, [2**53 + 1, 0, bytes(32), []]),
        (Held, [0, 0, bytes(32), [[1, 1]] * 1025]),
        (Held, [0, 0, bytes(32), [[0, 1]]]),
        (Resume, [bytes(4097), [0, 0, bytes(32), []]]),
        (Resumed, [[0, 0, bytes(32), []], 1025]),
        (Resumed, [[0, 0, bytes(32)], 0]),
        (Records, [-1, True]),
        (Records, [0, 1]),
        (Proposals, [1025, True]),
        (Channels, [[b""] * 16]),
        (ChannelRequest, [bytes(32), bytes(33), 0]),
        (DisputesHeld, [bytes(31), 0, 1, []]),
        (DisputesHeld, [bytes(32), -1, 1, []]),
        (DisputesHeld, [bytes(32), 0, 0, []]),
        (DisputesHeld, [bytes(32), 0, 1, [[0, bytes(32)]]]),
        (DisputesHeld, [bytes(32), 0, 1, [[1, bytes(32)]] * (MAX_COMPARED + 1)]),
        (DisputesCompared, [1, [bytes(31)], 0]),
        (DisputesCompared, [1, [], MAX_COMPARED + 1]),
        (DisputesNews, [b""]),
    ],
)
def test_out_of_range(frame_type: type[Frame], items: Any) -> None:
    with pytest.raises(ProtocolViolation):
        parse_frame(msgspec.msgpack.encode(items), frame_type)


@given(st.sampled_from([type(f) for f in FRAMES]), st.binary(max_size=100))
def test_arbitrary_bytes(frame_type: type[Frame], data: bytes) -> None:
    try:
        frame = parse_frame(data, frame_type)
    except ProtocolViolation:
        return
    assert frame.to_bytes() == data


@pytest.mark.parametrize(
    "data", [b"\x93\xa1\xff\xa0\x00", b"\x93\xa0\xa1\xff\x00", b"\x91" * 50_000, b"\x93\xa0\xa0\xcc\x01"]
)
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_frame(data, Refusal)


def test_kinds_fit_the_link() -> None:
    bulk = {Kind.BODY, Kind.CHUNK, Kind.REQUEST, Kind.PART}
    assert all(FIRST_MESSAGE_KIND <= k < FIRST_CREDITED_KIND for k in Kind if k not in bulk)
    assert all(FIRST_CREDITED_KIND <= k <= 255 for k in bulk)
