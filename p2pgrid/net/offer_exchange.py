"""Ask a peer for its current offer, its cards, or what is free (docs/spec/discovery.md).

The asking side opens a stream of `/p2pgrid/offer/1`, `/p2pgrid/card/1` or `/p2pgrid/capacity/1` and reads. The
provider writes the length (4 bytes, big endian) and the bytes of its signed offer record, of its chain of cards, or of
what it has free, and ends the stream; length 0 says that it has none. What the bytes mean is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import LocalError, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.host import close_stream, open_stream, reset_stream
from p2pgrid.net.kad_query import Contact

logger = logging.getLogger(__name__)

PROTOCOL: Final = "/p2pgrid/offer/1"
MAX_OFFER_BYTES: Final = 64 * 1024
ANSWER_TIMEOUT_S: Final = 10.0
_NOT_SUPPORTED: Final = "not supported"


@dataclass(frozen=True, slots=True)
class Document:
    """What is asked for, and by which protocol."""

    protocol: str
    name: str
    refusal: str
    """The code for a peer that has none."""


OFFER: Final = Document(PROTOCOL, "offer", "no-offer")
CARDS: Final = Document("/p2pgrid/card/1", "card", "no-card")
CAPACITY: Final = Document("/p2pgrid/capacity/1", "capacity", "no-capacity")


def serve_offers(host: BasicHost, current_offer: Callable[[], Awaitable[bytes | None]]) -> None:
    """Answer every asker with what `current_offer` returns then; None says that nothing is offered."""
    serve_document(host, OFFER, current_offer)


def serve_document(host: BasicHost, document: Document, current: Callable[[], Awaitable[bytes | None]]) -> None:
    """Answer every asker with what `current` returns then; None says that there is none."""

    async def answer(stream: Any) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S) as deadline:
            data = await current() or b""
            if len(data) > MAX_OFFER_BYTES:
                raise LocalError(f"our own {document.name} has {len(data)} bytes; at most {MAX_OFFER_BYTES} are sent.")
            try:
                await stream.write(len(data).to_bytes(4) + data)
                await close_stream(stream)
            except IOException as error:
                logger.debug("an asker went away: %r", error)
                await stream.reset()
        if deadline.cancelled_caught:
            await reset_stream(stream)

    host.set_stream_handler(document.protocol, answer)


async def fetch_offer(host: BasicHost, peer: Contact, timeout_s: float) -> bytes:
    """The raw offer record of `peer`. See `fetch_document`."""
    return await fetch_document(host, OFFER, peer, timeout_s)


async def fetch_document(host: BasicHost, document: Document, peer: Contact, timeout_s: float) -> bytes:
    """The raw document of `peer`, at most 64 KiB. A connection made for it is closed again.

    Raises Unreachable (not there, not in time, or gone half-way), Refused (`no-offer`, `no-card`) or
    ProtocolViolation.
    """
    name = document.name
    try:
        async with passing_connection(host.get_network(), peer):
            with trio.fail_after(timeout_s):
                return await _fetch(host, document, peer)
    except trio.TooSlowError:
        raise Unreachable(f"{peer.peer_id} did not give its {name} in {timeout_s:g} s.") from None
    except SwarmException as error:
        raise Unreachable(f"{error}.") from error
    except StreamFailure as error:
        if isinstance(error.__cause__, MultiselectClientError) and _NOT_SUPPORTED in str(error.__cause__):
            raise Refused(
                document.refusal, f"{peer.peer_id} has no {name}: it does not speak {document.protocol}."
            ) from error
        raise Unreachable(f"{peer.peer_id} did not take up the request for its {name}.") from error
    except (IOException, MuxedStreamError, MuxedConnError) as error:
        raise Unreachable(f"the connection to {peer.peer_id} ended while it gave its {name}.") from error


async def _fetch(host: BasicHost, document: Document, peer: Contact) -> bytes:
    stream = await open_stream(host, peer.peer_id, peer.addresses, document.protocol)
    try:
        data = await _read(stream, document, str(peer.peer_id))
    except BaseException:
        await reset_stream(stream)
        raise
    await close_stream(stream)
    return data


async def _read(stream: Any, document: Document, peer_id: str) -> bytes:
    length = int.from_bytes(await read_exactly(stream, 4, peer_id))
    if length == 0:
        raise Refused(
            document.refusal, f"{peer_id} has no {document.name} now.", hint="Ask again later, or ask another provider."
        )
    if length > MAX_OFFER_BYTES:
        raise ProtocolViolation(
            f"{peer_id} announces {length} bytes of its {document.name}; at most {MAX_OFFER_BYTES} may come."
        )
    return await read_exactly(stream, length, peer_id)


async def read_exactly(stream: Any, size: int, peer_id: str) -> bytes:
    """So many bytes. Raises ProtocolViolation where the stream ends before, Unreachable where its connection does."""
    data = bytearray()
    while len(data) < size:
        try:
            data += await stream.read(size - len(data))
        except StreamEOF:
            if stream.muxed_conn.event_shutting_down.is_set():
                # A connection that is closed looks like the end of each of its streams.
                raise Unreachable(f"the connection to {peer_id} was closed in the middle of its answer.") from None
            raise ProtocolViolation(f"{peer_id} ended its answer after {len(data)} of {size} bytes.") from None
    return bytes(data)


@asynccontextmanager
async def passing_connection(network: Any, peer: Contact) -> AsyncIterator[None]:
    """Within it a connection to the peer is wanted; one made for it is closed once nobody asks the peer any more.

    Whoever asked does not wait for that: libp2p 0.8.1 takes 0.2 s to close a connection.
    """
    if not network.is_connected(peer.peer_id):
        network.passing.add(peer.peer_id)
    try:
        with network.wanting(peer.peer_id):
            yield
    finally:
        if peer.peer_id in network.passing and not network.is_wanted(peer.peer_id):
            network.passing.discard(peer.peer_id)
            for connection in _idle(network, peer):
                network.part(connection)


async def close_if_idle(network: Any, peer: Contact) -> None:
    """Close the connections to a peer that carry nothing but libp2p's own streams, and are about to carry nothing."""
    for connection in _idle(network, peer):
        await connection.close()


def _idle(network: Any, peer: Contact) -> list[Any]:
    if network.is_wanted(peer.peer_id):
        return []
    return [connection for connection in network.get_connections(peer.peer_id) if is_idle(connection)]


def is_idle(connection: Any) -> bool:
    """True where it carries nothing but what libp2p does by itself, and streams that are not yet named."""
    return all(stream.get_protocol() in (None, IDENTIFY, IDENTIFY_PUSH, PING) for stream in connection.get_streams())
