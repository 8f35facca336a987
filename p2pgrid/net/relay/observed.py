"""What a peer sees as the other end of a connection of ours: identify's `observed_addr` (libp2p specs, identify)."""

from __future__ import annotations

from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2pgrid.errors import Unreachable
from p2pgrid.net.addresses import usable_addresses
from p2pgrid.net.host import open_stream_on, reset_stream
from p2pgrid.net.punch_plan import Place

ANSWER_S: Final = 5.0
_MAX_BYTES: Final = 64 * 1024


async def observed_address(host: BasicHost, connection: Any) -> Place:
    """IP address and port. Raises Unreachable where the peer does not say."""
    peer_id = connection.muxed_conn.peer_id
    try:
        with trio.fail_after(ANSWER_S):
            stream = await open_stream_on(host, connection, IDENTIFY)
            try:
                said = Identify()
                said.ParseFromString(await read_varint_prefixed_bytes_limited(stream, _MAX_BYTES))
            finally:
                await reset_stream(stream)
    except (trio.TooSlowError, DecodeError, ParseError, StreamFailure) as error:
        raise Unreachable(f"{peer_id} does not say how it sees us: {error!r}.") from None
    except (IOException, MuxedStreamError, MuxedConnError) as error:
        raise Unreachable(f"{peer_id} is gone: {error!r}.") from None
    for address in usable_addresses([said.observed_addr], str(peer_id)):
        family = address.protocols()[0].name
        if family in ("ip4", "ip6"):
            return str(address.value_for_protocol(family)), int(address.value_for_protocol("tcp"))
    raise Unreachable(f"{peer_id} does not say how it sees us.")
