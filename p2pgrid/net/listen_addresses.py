"""Where a peer says that it listens: libp2p's identify, asked over the connection that is up.

Our own peers sign their addresses into every message of the DHT. Other implementations do not know that field
(docs/spec/discovery.md, section 2), and tell their addresses in identify alone.
"""

from __future__ import annotations

from typing import Final

import trio
from google.protobuf.message import DecodeError
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.addresses import usable_addresses
from p2pgrid.net.host import close_stream, open_stream, reset_stream

TIMEOUT_S: Final = 6.0
MAX_ANSWER_BYTES: Final = 16 * 1024
"""js-libp2p, with its key, its protocols and a signed record beside the addresses, writes less than one of them."""


async def listen_addresses(host: BasicHost, peer_id: ID) -> tuple[Multiaddr, ...]:
    """The addresses of `peer_id` that are worth dialling, as it says itself; none if it says none.

    Raises what libp2p raises, trio.TooSlowError after `TIMEOUT_S`, ProtocolViolation for what is no identify message.
    """
    with trio.fail_after(TIMEOUT_S):
        stream = await open_stream(host, peer_id, (), IDENTIFY)
        try:
            raw = await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES)
        except BaseException:
            await reset_stream(stream)
            raise
        await close_stream(stream)
    told = Identify()
    try:
        told.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ProtocolViolation(f"{peer_id} sent no identify message: {error}.") from None
    return tuple(usable_addresses(told.listen_addrs, str(peer_id)))
