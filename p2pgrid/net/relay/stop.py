"""The end of a circuit at the peer that is reached: what comes from its relays, and from no others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.addresses import Circuit
from p2pgrid.net.host import reset_stream
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.circuit_stream import circuit_connection
from p2pgrid.net.relay.kind import is_relayed
from p2pgrid.net.relay.messages import STOP
from p2pgrid.net.relay.status import Status

logger = logging.getLogger(__name__)

MAX_CIRCUITS: Final = 128
MAX_CIRCUITS_PER_CALLER: Final = 4
"""By the caller's name, which Noise proves afterwards: a relay that says another gets its circuit cut."""
ANSWER_S: Final = 10.0
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)

CircuitOf = Callable[[ID], Circuit | None]
"""The circuit by which we are reached through a relay; None for one where we hold no reservation."""


class CircuitListener:
    """Takes circuits on one host. Made in the trio thread; it answers from then on."""

    def __init__(self, host: BasicHost, circuit_of: CircuitOf) -> None:
        self._host = host
        self._circuit_of = circuit_of
        self._open = 0
        self._open_by_caller: Counter[ID] = Counter()
        host.set_stream_handler(STOP, self._answer)

    async def _answer(self, stream: Any) -> None:
        """One circuit, from its beginning to its end. The handler of STOP."""
        relay: ID = stream.muxed_conn.peer_id
        circuit = None if is_relayed(stream.muxed_conn) else self._circuit_of(relay)
        try:
            with trio.fail_after(ANSWER_S):
                request = await messages.read_stop(stream)
                if circuit is None:
                    await self._refuse(stream, Status.PERMISSION_DENIED)
                elif request.type != request.CONNECT:
                    await self._refuse(stream, Status.UNEXPECTED_MESSAGE)
            if circuit is None or request.type != request.CONNECT:
                return
            await self._take(stream, circuit, messages.peer_in(request))
        except (ProtocolViolation, SwarmException, trio.TooSlowError, *_BROKEN) as error:
            logger.debug("a circuit through %s came to nothing: %r", relay, error)
            await reset_stream(stream)

    async def _take(self, stream: Any, circuit: Circuit, caller: ID) -> None:
        swarm = self._host.get_network()
        if self._open >= MAX_CIRCUITS or self._open_by_caller[caller] >= MAX_CIRCUITS_PER_CALLER:
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self._open += 1
        self._open_by_caller[caller] += 1
        try:
            with trio.fail_after(ANSWER_S):
                await messages.write(stream, messages.stop_status(Status.OK))
            raw = circuit_connection(swarm, stream, circuit, is_initiator=False)
            muxed = await swarm.upgrade_inbound_raw_conn(raw, circuit.address)
            try:
                if muxed.peer_id == caller:
                    await muxed.event_closed.wait()
                else:
                    logger.info("the relay %s said that %s calls; it was another peer", circuit.relay, caller)
            finally:
                await muxed.close()
        finally:
            self._open -= 1
            self._open_by_caller[caller] -= 1
            if not self._open_by_caller[caller]:
                del self._open_by_caller[caller]

    async def _refuse(self, stream: Any, status: Status) -> None:
        await messages.write(stream, messages.stop_status(status))
        await stream.close()
