"""How a connection ends."""

from __future__ import annotations

import asyncio

from tests.net.memory_road import Listener, ready_connection


async def test_closing_says_goaway_and_tells_the_handlers_once() -> None:
    connection, road = await ready_connection()
    handler = Listener()
    connection.open_stream(handler)
    await asyncio.gather(connection.aclose("done"), connection.aclose())
    connection.abort()
    assert await connection.closed is None
    assert handler.calls == ["link_lost"]
    assert b"done" in road.writes[-1]
