"""Who may have how many streams of which protocol at once. Every handler of the host stands behind such a door.

A stream that finds no seat is reset; its caller takes that for a peer that is busy. How often streams may be opened is
bounded for all protocols together (`yamux_frames.Throttle`), for some by themselves (`PACED`), and how often one that
is open is answered, by `pace`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from libp2p.host.ping import ID as PING
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH

from p2pgrid.net.limits import Allowance, Rates, Seats
from p2pgrid.net.listening import caller_of

Handler = Callable[[Any], Awaitable[None]]

ALLOWANCES: Final = {
    IDENTIFY: Allowance(total=128, per_address=64, per_peer=2),
    IDENTIFY_PUSH: Allowance(total=64, per_address=32, per_peer=1),
    PING: Allowance(total=256, per_address=64, per_peer=2),
    "/p2pgrid/offer/1": Allowance(total=256, per_address=64, per_peer=8),
    "/p2pgrid/card/1": Allowance(total=256, per_address=64, per_peer=8),
    "/p2pgrid/capacity/1": Allowance(total=256, per_address=64, per_peer=8),
    "/p2pgrid/withdraw/1": Allowance(total=64, per_address=16, per_peer=1),
    "/p2pgrid/member/1": Allowance(total=256, per_address=64, per_peer=2),
    "/p2pgrid/log/1": Allowance(total=64, per_address=32, per_peer=16),
    "/http/1.1": Allowance(total=128, per_address=32, per_peer=16),
}
"""Streams at once, by protocol id."""
PACED: Final = {"/p2pgrid/log/1": (200.0, 20.0)}
"""Protocols whose every stream reads or writes the disk: how many streams of an address at once, and a second."""
KAD_SUFFIX: Final = "/kad/1.0.0"
KAD_ALLOWANCE: Final = Allowance(total=256, per_address=64, per_peer=8)
OTHERS: Final = Allowance(total=1024, per_address=256, per_peer=64)
"""For protocols that keep caps of their own: links, relayed circuits."""


def allowance_of(protocol: str) -> Allowance:
    """What a protocol's callers may hold."""
    if protocol.endswith(KAD_SUFFIX):
        return KAD_ALLOWANCE
    return ALLOWANCES.get(protocol, OTHERS)


def caller_of_connection(remote: tuple[str, int] | None, peer_id: Any) -> str:
    """What a connection is counted by: its address, or its peer where none is known (behind a relay)."""
    return caller_of(remote[0]) if remote else str(peer_id)


class Doors:
    """The doors of one host."""

    def __init__(self, answers: Rates) -> None:
        """`answers`: on streams that carry many requests, for one address."""
        self.seats: dict[str, Seats] = {}
        """By protocol id."""
        self._answers = answers

    def guard(self, protocol: str, handler: Handler) -> Handler:
        """The handler, for those who find a seat."""
        seats = self.seats[protocol] = Seats(allowance_of(protocol))
        paced = Rates(*PACED[protocol]) if protocol in PACED else None

        async def guarded(stream: Any) -> None:
            peer = str(stream.muxed_conn.peer_id)
            address = caller_of_connection(stream.muxed_conn.get_remote_address(), peer)
            if not seats.take(address, peer):
                await stream.reset()
                return
            try:
                if paced is not None and (pause_s := paced.spend(address, trio.current_time())):
                    await trio.sleep(pause_s)
                await handler(stream)
            finally:
                seats.leave(address, peer)

        return guarded

    async def pace(self, stream: Any) -> None:
        """Wait until one more answer on the stream is due. Other streams of its address wait with it."""
        connection = stream.muxed_conn
        caller = caller_of_connection(connection.get_remote_address(), connection.peer_id)
        pause_s = self._answers.spend(caller, trio.current_time())
        if pause_s:
            await trio.sleep(pause_s)
