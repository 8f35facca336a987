"""How a link uses its road: one write a turn of the loop, and no bulk for a road that takes none."""

from __future__ import annotations

import asyncio

from p2pgrid.proto.link_events import Message
from tests.net.memory_road import BULK, CONTROL, Listener, ready_connection, turn_of_the_loop


async def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    connection, road = await ready_connection()
    streams = [connection.open_stream(Listener()) for _ in range(10)]
    for n in range(100):
        streams[n % 10].send(CONTROL, bytes([n]))
    assert road.writes == []
    await turn_of_the_loop()
    assert len(road.writes) == 1
    messages = [e for e in road.peer.receive(road.writes[0], 0) if type(e) is Message]
    assert [m.payload[0] for m in messages] == list(range(100))
    await connection.aclose()


async def test_a_paused_road_gets_nothing_until_it_resumes() -> None:
    connection, road = await ready_connection()
    handler = Listener()
    stream = connection.open_stream(handler)
    await turn_of_the_loop()
    road.writes.clear()
    connection.pause_writing()
    assert stream.writable_bytes == 0
    draining = asyncio.create_task(stream.drain(1000))
    stream.send(CONTROL, b"waits")
    await turn_of_the_loop()
    assert (road.writes, handler.calls, draining.done()) == ([], [], False)
    connection.resume_writing()
    assert handler.calls == ["writable"]
    await draining
    assert stream.writable_bytes > 0
    assert b"waits" in b"".join(road.writes)
    await connection.aclose()
    assert handler.calls == ["writable", "link_lost"]


async def test_a_peer_that_reads_nothing_ends_the_link_not_its_sender() -> None:
    connection, _ = await ready_connection()
    handler = Listener()
    stream = connection.open_stream(handler)
    connection.pause_writing()
    for _ in range(200):
        stream.send(CONTROL, bytes(60_000))  # 12 MB: no exception here, where a handler would get it
    reason = await connection.closed
    assert reason is not None
    assert "reads too slowly" in reason.message
    assert handler.calls == ["link_lost"]


async def test_credit_that_is_not_granted_yet_writes_nothing() -> None:
    connection, road = await ready_connection()
    stream = connection.open_stream(Listener())
    await turn_of_the_loop()
    list(road.peer.receive(b"".join(road.writes), 0))
    road.peer.send(stream.id, BULK, bytes(1000))
    connection.data_received(road.peer.data_to_send())
    stream.consume(1000)
    assert not connection._writer.is_scheduled
    await connection.aclose()
