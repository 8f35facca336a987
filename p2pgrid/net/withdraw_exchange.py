"""`/p2pgrid/withdraw/1`: tell the peers that hold our provider records that we are gone (docs/spec/discovery.md, 5).

The provider opens a stream and writes the length (4 bytes, big endian) and its signed Withdrawal. The peer forgets its
records and answers with one byte, 1; or it resets the stream. It listens to the provider alone, whose key the handshake
has proven: a withdrawal that somebody else shows may be an old one, of a provider that has come back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost

from p2pgrid.errors import InvalidRecord, P2pgridError
from p2pgrid.net.host import close_stream, open_stream, reset_stream
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.offer_exchange import passing_connection, read_exactly
from p2pgrid.proto.withdrawal import verify_withdrawal

logger = logging.getLogger(__name__)

PROTOCOL: Final = "/p2pgrid/withdraw/1"
MAX_WITHDRAWAL_BYTES: Final = 2048
ANSWER_TIMEOUT_S: Final = 5.0
PARALLEL_TELLS: Final = 16
_TAKEN: Final = b"\x01"


def serve_withdrawals(host: BasicHost, forget: Callable[[str], None]) -> None:
    """Call `forget` with the peer id of every provider that withdraws."""

    async def handle(stream: Any) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S) as deadline:
            peer_id = str(stream.muxed_conn.peer_id)
            try:
                await _take(stream, peer_id)
            except P2pgridError as error:
                logger.debug("a withdrawal of %s was not taken: %s", peer_id, error)
                await reset_stream(stream)
            else:
                forget(peer_id)
                await stream.write(_TAKEN)
                await close_stream(stream)
        if deadline.cancelled_caught:
            await reset_stream(stream)

    host.set_stream_handler(PROTOCOL, handle)


async def tell_withdrawal(host: BasicHost, holders: Sequence[Contact], record: bytes, timeout_s: float) -> int:
    """Tell the peers, several at once; how many have forgotten us within the time. Raises nothing for what one does."""
    limiter, told = trio.CapacityLimiter(PARALLEL_TELLS), 0

    async def one(holder: Contact) -> None:
        nonlocal told
        async with limiter:
            try:
                if await _tell(host, holder, record):
                    told += 1
            except Exception as error:  # noqa: BLE001 (a peer's fault of any kind, and what libp2p makes of it)
                logger.debug("%s was not told of the withdrawal: %r", holder.peer_id, error)

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for holder in holders:
                nursery.start_soon(one, holder)
    return told


async def _take(stream: Any, peer_id: str) -> None:
    length = int.from_bytes(await read_exactly(stream, 4, peer_id))
    if length > MAX_WITHDRAWAL_BYTES:
        raise InvalidRecord("oversize", f"{peer_id} announces {length} bytes; at most {MAX_WITHDRAWAL_BYTES} may come.")
    verify_withdrawal(await read_exactly(stream, length, peer_id), peer_id, int(time.time() * 1000))


async def _tell(host: BasicHost, holder: Contact, record: bytes) -> bool:
    async with passing_connection(host.get_network(), holder):
        with trio.fail_after(ANSWER_TIMEOUT_S):
            stream = await open_stream(host, holder.peer_id, holder.addresses, PROTOCOL)
            try:
                await stream.write(len(record).to_bytes(4) + record)
                is_taken = await read_exactly(stream, 1, str(holder.peer_id)) == _TAKEN
            except BaseException:
                await reset_stream(stream)
                raise
            await close_stream(stream)
            return is_taken
