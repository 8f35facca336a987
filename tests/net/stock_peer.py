"""A client on py-libp2p as it comes: dials the multiaddr given, and moves a link's bytes over a stream by itself.

Prints a word for each step that came out right. Run as a process, so that none of our patches is in it.
"""

from __future__ import annotations

import sys
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from p2pgrid.proto.keys import SecretKey, parse_peer_id
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import Ended, Event, LinkLimits, Message, Ready, Writable

PROTOCOL = "/p2pgrid/session/1"
CLIENT = SecretKey(b"s" * 32)
BULK_BYTES = 3 * 1024 * 1024
FRAME_BYTES = 32 * 1024


class Session:
    """A link on a libp2p stream, without a shell."""

    def __init__(self, stream: Any, link: Link) -> None:
        self.stream, self.link = stream, link
        self.events: list[Event] = []

    async def flush(self) -> None:
        if data := self.link.data_to_send():
            await self.stream.write(data)

    async def until(self, wanted: type[Event]) -> Any:
        while True:
            for n, event in enumerate(self.events):
                if type(event) is wanted:
                    return self.events.pop(n)
            self.events += self.link.receive(await self.stream.read(65_536), int(trio.current_time() * 1000))
            await self.flush()


async def main() -> None:
    keys = create_new_key_pair(CLIENT.expose_seed())
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    host = new_host(key_pair=keys, sec_opt={NOISE_ID: noise})
    info = info_from_p2p_addr(Multiaddr(sys.argv[1]))
    with trio.fail_after(40):
        async with host.run(listen_addrs=[]):
            await host.connect(info)
            stream = await host.new_stream(info.peer_id, [PROTOCOL])
            now_ms = int(trio.current_time() * 1000)
            link = Link.dialler(CLIENT, parse_peer_id(str(info.peer_id)), limits=LinkLimits(), now_ms=now_ms)
            await trade(Session(stream, link))
            await stream.close()


async def trade(session: Session) -> None:
    await session.until(Ready)
    print("ready", flush=True)
    number = session.link.open_stream()
    session.link.send(number, 16, b"order")
    await session.flush()
    assert (await session.until(Message)).payload == b"order"
    print("echoed", flush=True)
    sent = received = 0
    while received < BULK_BYTES:
        # The other side sends each frame back, on credit that it gets as we take them.
        while sent < min(BULK_BYTES, received + 4 * FRAME_BYTES) and session.link.credit(number) >= FRAME_BYTES:
            session.link.send(number, 128, bytes(FRAME_BYTES))
            sent += FRAME_BYTES
        await session.flush()
        received += len((await session.until(Message)).payload)
        session.link.consume(number, FRAME_BYTES)
        session.events = [event for event in session.events if type(event) is not Writable]
    print("bulk", flush=True)
    session.link.end(number)
    await session.flush()
    await session.until(Ended)
    print("ended", flush=True)


trio.run(main)
