"""`/p2pgrid/log/1`: ask a peer about its log, or to witness a checkpoint (docs/spec/log.md, section 5).

The asking side writes a length (4 bytes, big endian) and its request; the other writes a length and its answer, and
ends the stream. What the bytes mean (`proto.wire.log.LogCall`, `LogReply`) is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import P2pgridError, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.host import close_stream, open_stream, reset_stream
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.offer_exchange import passing_connection, read_exactly

logger = logging.getLogger(__name__)

PROTOCOL: Final = "/p2pgrid/log/1"
MAX_MESSAGE_BYTES: Final = 64 * 1024
ANSWER_TIMEOUT_S: Final = 15.0
_NOT_SUPPORTED: Final = "not supported"


Answer = Callable[[bytes, str], Awaitable[bytes]]
"""From a request and the asker's peer id, which its handshake has proven, to what it is answered."""


def serve_log(host: BasicHost, answer: Answer) -> None:
    """Answer every asker with what `answer` returns for its request."""

    async def handle(stream: Any) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S) as deadline:
            try:
                asker = str(stream.muxed_conn.peer_id)
                reply = await answer(await _read_message(stream, "the asker"), asker)
                await stream.write(len(reply).to_bytes(4) + reply)
                await close_stream(stream)
            except (IOException, MuxedStreamError, P2pgridError) as error:
                logger.debug("a question about the log came to nothing: %r", error)
                await reset_stream(stream)
        if deadline.cancelled_caught:
            await reset_stream(stream)

    host.set_stream_handler(PROTOCOL, handle)


async def ask_log(host: BasicHost, peer: Contact, request: bytes, timeout_s: float) -> bytes:
    """The answer of `peer` to a request of at most 64 KiB. A connection made for it is closed again.

    Raises Unreachable (not there, not in time, or gone half-way), Refused (`no-log`) or ProtocolViolation.
    """
    try:
        async with passing_connection(host.get_network(), peer):
            with trio.fail_after(timeout_s):
                return await _ask(host, peer, request)
    except trio.TooSlowError:
        raise Unreachable(f"{peer.peer_id} did not answer about its log in {timeout_s:g} s.") from None
    except SwarmException as error:
        raise Unreachable(f"{error}.") from error
    except StreamFailure as error:
        if isinstance(error.__cause__, MultiselectClientError) and _NOT_SUPPORTED in str(error.__cause__):
            raise Refused("no-log", f"{peer.peer_id} keeps no log: it does not speak {PROTOCOL}.") from error
        raise Unreachable(f"{peer.peer_id} did not take up the request for its log.") from error
    except (IOException, MuxedStreamError, MuxedConnError) as error:
        raise Unreachable(f"the connection to {peer.peer_id} ended while it was asked for its log.") from error


async def _ask(host: BasicHost, peer: Contact, request: bytes) -> bytes:
    stream = await open_stream(host, peer.peer_id, peer.addresses, PROTOCOL)
    try:
        await stream.write(len(request).to_bytes(4) + request)
        reply = await _read_message(stream, str(peer.peer_id))
    except BaseException:
        await reset_stream(stream)
        raise
    await close_stream(stream)
    return reply


async def _read_message(stream: Any, peer: str) -> bytes:
    length = int.from_bytes(await read_exactly(stream, 4, peer))
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolViolation(f"{peer} announces {length} bytes; at most {MAX_MESSAGE_BYTES} may come.")
    return await read_exactly(stream, length, peer)
