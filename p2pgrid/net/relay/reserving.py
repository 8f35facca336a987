"""Asking a relay for a reservation, and judging what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.net.addresses import Circuit, usable_addresses
from p2pgrid.net.host import close_stream, open_stream_on, reset_stream
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.messages import HOP
from p2pgrid.net.relay.status import Status, status_name
from p2pgrid.net.relay.voucher import check_voucher

ANSWER_S: Final = 10.0
SHORTEST_S: Final = 30
LONGEST_S: Final = 24 * 3600
MAX_CIRCUITS: Final = 2
"""Addresses through one relay: others are told of few."""
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError, StreamFailure)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A relay's promise to take circuits for us, while our connection to it lives."""

    relay: ID
    lasts_s: float
    """From now on, by our own clock and the relay's."""
    circuits: tuple[Circuit, ...]
    """Where we are reached through it, at least one."""


async def reserve(host: BasicHost, connection: Any, now_unix_s: float) -> Reservation:
    """Ask the relay at the other end of a direct connection of the swarm.

    Raises Unreachable (no answer), Refused (`no-reservation`) or ProtocolViolation (an answer that cannot be true).
    """
    relay: ID = connection.muxed_conn.peer_id
    try:
        with trio.fail_after(ANSWER_S):
            stream = await open_stream_on(host, connection, HOP)
            try:
                await messages.write(stream, messages.reserve_request())
                answer = await messages.read_hop(stream)
            except BaseException:
                await reset_stream(stream)
                raise
            await close_stream(stream)
    except (trio.TooSlowError, *_BROKEN) as error:
        raise Unreachable(f"the relay {relay} gave no answer: {error!r}.") from None
    status = messages.status_in(answer)
    if status != Status.OK:
        raise Refused("no-reservation", f"the relay {relay} refuses: {status_name(status)}.")
    return _judged(answer.reservation, connection, host.get_id(), now_unix_s)


def _judged(given: Any, connection: Any, own_id: ID, now_unix_s: float) -> Reservation:
    relay: ID = connection.muxed_conn.peer_id
    ends_unix_s = int(given.expire)
    if given.voucher and check_voucher(given.voucher, relay, own_id) != ends_unix_s:
        raise ProtocolViolation(f"the relay {relay} says another end of the reservation than it signed.")
    lasts_s = ends_unix_s - now_unix_s
    if lasts_s < SHORTEST_S:
        raise ProtocolViolation(
            f"the reservation at the relay {relay} lasts {lasts_s:.0f} s; {SHORTEST_S} s at least were expected.",
            hint="Check this machine's clock (NTP) if all relays look so.",
        )
    circuits = tuple(Circuit(str(relay), at) for at in _where(given.addrs, connection))
    if not circuits:
        raise ProtocolViolation(f"no address of the relay {relay} is known that others could dial.")
    return Reservation(relay, min(lasts_s, LONGEST_S), circuits)


def _where(told: Sequence[bytes], connection: Any) -> list[Multiaddr]:
    """Where others dial the relay: as we did, first, since that is known to work, then as it says itself."""
    peer_id = str(connection.muxed_conn.peer_id)
    dialled = [address.to_bytes() for address in connection.get_transport_addresses()[:1]]
    return usable_addresses([*dialled, *told], peer_id, MAX_CIRCUITS)
