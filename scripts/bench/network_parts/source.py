"""A peer that only a relay leads to, and that sends as much as it is asked for: `python -m network_parts.source RELAY`.

On a stream of `/http/1.1`, taken for a plain one: a number (8 bytes, big endian), and that many bytes come.
`js/source.mjs` is the same in js-libp2p.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from typing import Final

import uvloop

from p2pgrid.net.http_streams import HttpStreams
from p2pgrid.net.network import Network
from p2pgrid.net.relay.use import parse_relay_use
from p2pgrid.proto.keys import SecretKey

PIECE: Final = bytes(32 * 1024)


class Source(asyncio.Protocol):
    """Sends as fast as it is taken."""

    def __init__(self) -> None:
        self._asked, self._left, self._is_paused = b"", 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        if len(self._asked) >= 8:
            self._left, self._asked = int.from_bytes(self._asked[:8]), self._asked[8:]
            self._send()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._send()

    def _send(self) -> None:
        while self._left and not self._is_paused:
            piece = PIECE[: self._left]
            self._left -= len(piece)
            self._transport.write(piece)


async def run(relay: str) -> None:
    """Until it is killed."""
    async with Network(
        SecretKey(secrets.token_bytes(32)),
        "bench",
        listen=["/ip4/127.0.0.1/tcp/0"],
        relay=parse_relay_use([relay]),
        http=HttpStreams(Source),
    ) as network:
        await network.wait_reserved(20)
        [address] = [one for one in network.addresses if "/p2p-circuit/" in one]
        print(json.dumps({"peer": network.peer_id, "address": address}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(sys.argv[1]))
