"""The relay: it gives reservations, and joins two streams to a circuit (libp2p's circuit relay v2).

It learns who talks to whom, when and how much. What they say is Noise between the two.

A reservation is its peer's for as long as it lasts and the connection lives on which it was asked for. Neither that
nor a circuit is given to who comes over a circuit itself: there is no relay of a relay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.addresses import is_circuit
from p2pgrid.net.host import close_stream, open_stream_on, reset_stream
from p2pgrid.net.listening import caller_of
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.book import RelayBook
from p2pgrid.net.relay.kind import is_relayed
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.messages import HOP, STOP
from p2pgrid.net.relay.pace import Bucket
from p2pgrid.net.relay.pump import Pump
from p2pgrid.net.relay.status import RelayRefusal, Status
from p2pgrid.net.relay.voucher import seal_voucher
from p2pgrid.net.session_stream import SessionStream

logger = logging.getLogger(__name__)

_TAG: Final = "reservation"
_MAX_TOLD: Final = 4
"""Addresses of the relay in the answer to RESERVE."""
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)

Allow = Callable[[ID], bool]
"""Whether a peer may use the relay at all, for its own sake or another's."""


class Relay:
    """A relay on one host. Made in the trio thread; it answers from then on."""

    def __init__(self, host: BasicHost, limits: RelayLimits, allow: Allow = lambda _: True) -> None:
        self._host = host
        self._limits = limits
        self._allow = allow
        self._book = RelayBook(limits)
        self._whole = Bucket(limits.bytes_per_s, trio.current_time())
        self._connections: dict[ID, Any] = {}
        """Of the reserved peers: the connection on which each asked last."""
        self.carried_bytes = 0
        """Over all circuits that have ended."""
        host.set_stream_handler(HOP, self._answer)

    @property
    def n_reservations(self) -> int:
        """Reservations, as of the last request. From any thread."""
        return len(self._connections)

    @property
    def n_circuits(self) -> int:
        """Circuits that are open, or being made. From any thread."""
        return self._book.n_circuits

    async def _answer(self, stream: Any) -> None:
        """One request. The handler of HOP."""
        caller: ID = stream.muxed_conn.peer_id
        try:
            try:
                with trio.fail_after(self._limits.answer_s):
                    request = await messages.read_hop(stream)
                if is_relayed(stream.muxed_conn) or not self._allow(caller):
                    raise RelayRefusal(Status.PERMISSION_DENIED, "it came over a circuit, or may not use this relay")
                if request.type == request.RESERVE:
                    await self._reserve(stream, caller)
                elif request.type == request.CONNECT:
                    await self._connect(stream, caller, messages.peer_in(request))
                else:
                    raise RelayRefusal(Status.UNEXPECTED_MESSAGE, f"a message of type {request.type}")
            except ProtocolViolation as violation:
                raise RelayRefusal(Status.MALFORMED_MESSAGE, violation.message) from None
        except RelayRefusal as refusal:
            logger.debug("%s is refused (%s): %s", caller, refusal.status.name, refusal)
            await _say_last(stream, messages.hop_status(refusal.status), self._limits.answer_s)
        except (trio.TooSlowError, *_BROKEN) as error:
            logger.debug("%s went away: %r", caller, error)
            await reset_stream(stream)

    # -- reservations ------------------------------------------------------------------------------------------------

    async def _reserve(self, stream: Any, peer: ID) -> None:
        self._sweep()
        self._book.reserve(str(peer), _ip_of(stream.muxed_conn), trio.current_time())
        self._connections[peer] = stream.muxed_conn
        self._host.get_network().protect(peer, _TAG)
        ends_unix_s = int(time.time()) + self._limits.reservation_s
        voucher = seal_voucher(self._host.get_private_key(), self._host.get_id(), peer, ends_unix_s)
        logger.info("%s has a reservation; %d are held", peer, len(self._connections))
        answer = messages.reservation_given(ends_unix_s, self._own_addresses(), voucher, self._limits)
        await _say_last(stream, answer, self._limits.answer_s)

    def _own_addresses(self) -> list[bytes]:
        told: list[Multiaddr] = [address for address in self._host.get_addrs() if not is_circuit(address)]
        return [address.to_bytes() for address in told[:_MAX_TOLD]]

    def _sweep(self) -> None:
        """Let go of what is over: time, or the connection."""
        now_s = trio.current_time()
        for peer, connection in list(self._connections.items()):
            if connection.event_shutting_down.is_set() or not self._book.holds(str(peer), now_s):
                self._book.release(str(peer))
                del self._connections[peer]
                self._host.get_network().unprotect(peer, _TAG)

    # -- circuits ----------------------------------------------------------------------------------------------------

    async def _connect(self, stream: Any, caller: ID, to: ID) -> None:
        self._sweep()
        with self._book.circuit(_ip_of(stream.muxed_conn), str(to), trio.current_time()):
            far = await self._open_far_end(caller, to)
            try:
                await messages.write(stream, messages.hop_status(Status.OK, self._limits))
            except BaseException:
                await reset_stream(far)
                raise
            pump = Pump(SessionStream(stream), SessionStream(far), self._limits, self._whole)
            try:
                why = await pump.run()
                logger.debug("the circuit of %s to %s ended: %s; %d bytes", caller, to, why, pump.carried_bytes)
            finally:
                self.carried_bytes += pump.carried_bytes

    async def _open_far_end(self, caller: ID, to: ID) -> Any:
        """A stream to the reserved peer, which has agreed to the circuit. Raises RelayRefusal where it has not."""
        connection = self._swarm_connection(to)
        if connection is None:
            raise RelayRefusal(Status.CONNECTION_FAILED, "its connection is gone")
        stream = None
        try:
            with trio.fail_after(self._limits.answer_s):
                stream = await open_stream_on(self._host, connection, STOP)
                await messages.write(stream, messages.stop_request(caller, self._limits))
                status = messages.status_in(await messages.read_stop(stream))
            if status != Status.OK:
                raise ProtocolViolation(f"it answered {status}")
        except (ProtocolViolation, StreamFailure, trio.TooSlowError, *_BROKEN) as error:
            if stream is not None:
                await reset_stream(stream)
            raise RelayRefusal(Status.CONNECTION_FAILED, f"{to} did not take the circuit: {error!r}") from None
        except BaseException:
            if stream is not None:
                await reset_stream(stream)
            raise
        return stream

    def _swarm_connection(self, peer: ID) -> Any:
        """The connection on which the peer reserved, as the swarm has it."""
        reserved_on = self._connections.get(peer)
        for connection in self._host.get_network().get_connections(peer):
            if connection.muxed_conn is reserved_on:
                return connection
        return None


def _ip_of(connection: Any) -> str:
    remote = connection.get_remote_address()
    return caller_of(remote[0]) if remote else ""


async def _say_last(stream: Any, message: Any, timeout_s: float) -> None:
    """Send a message and end the stream; never raises, save on cancellation."""
    try:
        with trio.fail_after(timeout_s):
            await messages.write(stream, message)
            await close_stream(stream)
    except (trio.TooSlowError, *_BROKEN) as error:
        logger.debug("%s did not take an answer: %r", stream.muxed_conn.peer_id, error)
        await reset_stream(stream)
