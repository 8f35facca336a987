"""A circuit as seen from its ends: a stream to the relay, used like the socket of a connection.

Noise and yamux of an ordinary connection run over it, and then the connection is one like any other: marked as
relayed, with a circuit address as the place where it leads.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import trio
from libp2p.abc import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError, IOException
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.net.addresses import Circuit
from p2pgrid.net.session_stream import SessionStream
from p2pgrid.net.shielding import shielded_for

logger = logging.getLogger(__name__)

WINDOW_BYTES: Final = 512 * 1024
"""What may come ahead of what was read."""
LINGER_S: Final = 2.0
"""How long the other end may take to end a circuit that we have ended, before it is cut."""
_RESET_S: Final = 1.0
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)


class CircuitStream(ReadWriteCloser):  # type: ignore[misc]
    """One end of a circuit. One task reads and one writes at a time, as Noise and yamux do."""

    def __init__(self, session: SessionStream) -> None:
        """`watch` has to run before anything is read."""
        self._session = session
        self._inbox = bytearray()
        self._taken_bytes = 0
        """Read, and not yet granted anew."""
        self._arrived = trio.Event()
        self._is_over = False
        """Nothing more will come."""
        self._is_closed = False
        self._scope = trio.CancelScope()

    async def watch(self) -> None:
        """Hear what comes, until the circuit is over or closed. Never raises, save on cancellation."""
        is_done = False
        try:
            with self._scope:
                await self._session.open(self._heard, WINDOW_BYTES)
                await self._session.wait_end()
                is_done = True
        except _BROKEN as error:
            logger.debug("a circuit broke: %r", error)
        finally:
            self._is_over = True
            self._arrived.set()
            if is_done and self._is_closed:
                self._session.close()
            else:
                with shielded_for(_RESET_S):
                    await self._session.reset()

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, or all that is there; `b""` at the end."""
        while not self._inbox:
            if self._is_over:
                return b""
            await self._arrived.wait()
            self._arrived = trio.Event()
        data = bytes(memoryview(self._inbox)[:n])
        del self._inbox[: len(data)]
        self._taken_bytes += len(data)
        if self._taken_bytes >= WINDOW_BYTES // 2 and not self._is_over:
            taken, self._taken_bytes = self._taken_bytes, 0
            await self._session.grant(taken)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises ConnectionClosedError."""
        try:
            await self._session.write(data)
        except _BROKEN as error:
            raise ConnectionClosedError(f"the circuit broke: {error}", transport="circuit") from error

    async def close(self) -> None:
        """Send nothing more; what the other end sends is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        self._scope.deadline = trio.current_time() + LINGER_S
        await self._session.finish()

    def get_remote_address(self) -> tuple[str, int] | None:
        """None: where the other end is, nobody has proven."""
        return None

    def _heard(self, data: bytes) -> None:
        if self._is_closed:
            return  # nothing is granted for it, and the circuit is cut soon
        self._inbox += data
        self._arrived.set()


def circuit_connection(swarm: Any, stream: Any, circuit: Circuit, *, is_initiator: bool) -> RawConnection:
    """The stream, on which a relay has said OK, as a connection that Noise has yet to secure."""
    end = CircuitStream(SessionStream(stream))
    swarm.manager.run_task(end.watch)
    return RawConnection(end, is_initiator, ConnectionType.RELAYED, [circuit.address])
