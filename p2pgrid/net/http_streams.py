"""HTTP/1.1 over libp2p: a stream of `/http/1.1` carries one request and its answer (docs/spec/http.md).

Whatever speaks HTTP on an `asyncio.Transport` speaks it here: a stream is laid under it as a road (`stream_road.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost

from p2pgrid.net.session_stream import SessionStream
from p2pgrid.net.stream_road import StreamRoad

PROTOCOL: Final = "/http/1.1"
WINDOW_BYTES: Final = 64 * 1024
"""A request without a body is far smaller."""
LIFETIME_S: Final = 300.0
"""What a request and its answer may take together."""


class HttpStreams:
    """Answers streams of a libp2p host. Made on the loop; `serve` belongs to the trio thread, whichever run of it."""

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], lifetime_s: float = LIFETIME_S) -> None:
        """`make_protocol`: called on the loop for every stream, whose transport knows the proven `peer_id`."""
        self._loop = asyncio.get_running_loop()
        self._make_protocol = make_protocol
        self._lifetime_s = lifetime_s

    def serve_on(self, host: BasicHost) -> None:
        """Have the host hand every stream of `/http/1.1` over."""
        host.set_stream_handler(PROTOCOL, self.serve)

    async def serve(self, stream: Any) -> None:
        """On the trio side: one request and its answer. The host's handler."""
        session = SessionStream(stream)
        road = StreamRoad(self._loop, WINDOW_BYTES)
        road.lay_on(session, {"peer_id": session.peer_id, "peername": session.peer_address})
        self._loop.call_soon_threadsafe(self._start, road)
        with trio.move_on_after(self._lifetime_s):
            await road.run()

    def _start(self, road: StreamRoad) -> None:
        road.start(self._make_protocol())
