"""Negotiation of protocols behind a gate: to a peer that may not use one, it is not there (multistream-select).

| fault | here |
|---|---|
| whoever connects may negotiate every protocol, and list them (`ls`) | those that the gate lets this peer use |
| identify tells every peer of every protocol | of those that strangers may use |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from libp2p.protocol_muxer.multiselect import Multiselect

if TYPE_CHECKING:
    from p2pgrid.net.members.gate import Gate


class GatedMultiselect(Multiselect):  # type: ignore[misc]
    """In a host's place for its negotiator."""

    def __init__(self, handlers: dict[Any, Any], gate: Gate) -> None:
        super().__init__(handlers)
        self._gate = gate

    async def negotiate(self, communicator: Any, negotiate_timeout: int = 30) -> tuple[Any, Any]:
        """As the base's, with what this connection's peer may use."""
        connection = communicator.read_writer.muxed_conn
        allowed = Multiselect()
        allowed.handlers = _Allowed(self.handlers, self._gate, connection)
        chosen: tuple[Any, Any] = await allowed.negotiate(communicator, negotiate_timeout)
        return chosen

    def get_protocols(self) -> tuple[Any, ...]:
        """What identify tells, to whomever."""
        return tuple(one for one in self.handlers if one is not None and self._gate.is_told(str(one)))


class _Allowed(Mapping[Any, Any]):
    """The handlers that the peer may use at this very moment."""

    def __init__(self, handlers: Mapping[Any, Any], gate: Gate, connection: Any) -> None:
        self._handlers = handlers
        self._gate = gate
        self._connection = connection

    def __getitem__(self, protocol: Any) -> Any:
        if protocol is None or not self._gate.may(self._connection, str(protocol)):
            raise KeyError(protocol)
        return self._handlers[protocol]

    def __iter__(self) -> Iterator[Any]:
        return (one for one in self._handlers if one is not None and self._gate.may(self._connection, str(one)))

    def __len__(self) -> int:
        return sum(1 for _ in self)
