"""Dialling through a relay: CONNECT there, then an ordinary connection over what it joined."""

from __future__ import annotations

from typing import Any

from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.addresses import Circuit
from p2pgrid.net.host import open_stream_on, reset_stream
from p2pgrid.net.offer_exchange import is_idle
from p2pgrid.net.relay import messages
from p2pgrid.net.relay.circuit_stream import circuit_connection
from p2pgrid.net.relay.messages import HOP
from p2pgrid.net.relay.status import Status, status_name
from p2pgrid.net.shielding import shielded_for


class CircuitDialler:
    """Dials for one host."""

    def __init__(self, host: BasicHost) -> None:
        self._host = host

    async def dial(self, peer_id: ID, circuit: Circuit) -> Any:
        """A connection to `peer_id` over the circuit. The caller sets the time.

        Raises SwarmException where the relay cannot be reached, does not relay, refuses, or leads to somebody else;
        and what a broken connection raises.
        """
        swarm, relay = self._host.get_network(), ID.from_base58(circuit.relay)
        was_connected = bool(swarm.get_connections(relay))
        connection = await swarm.connect_to(relay, [circuit.at], direct_only=True)
        try:
            return await self._dial(peer_id, relay, circuit, connection)
        except BaseException:
            if not was_connected and is_idle(connection):
                with shielded_for(1):
                    await connection.close()
            raise

    async def _dial(self, peer_id: ID, relay: ID, circuit: Circuit, connection: Any) -> Any:
        swarm = self._host.get_network()
        try:
            stream = await open_stream_on(self._host, connection, HOP)
        except StreamFailure as failure:
            raise SwarmException(f"the relay {relay} does not relay: {failure}") from None
        try:
            await messages.write(stream, messages.connect_request(peer_id))
            status = messages.status_in(await messages.read_hop(stream))
            if status != Status.OK:
                raise SwarmException(f"the relay {relay} refuses: {status_name(status)}")
            raw = circuit_connection(swarm, stream, circuit, is_initiator=True)
        except ProtocolViolation as violation:
            await reset_stream(stream)
            raise SwarmException(f"the relay {relay} does not keep to the protocol: {violation.message}") from None
        except BaseException:
            await reset_stream(stream)
            raise
        try:
            return await swarm.upgrade_outbound_raw_conn(raw, peer_id)
        except BaseException:
            await reset_stream(stream)
            raise
