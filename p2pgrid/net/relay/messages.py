"""The messages of libp2p's circuit relay v2 (its specs, relay/circuit-v2.md): a varint length, then protobuf.

The classes come from py-libp2p; its package is loaded with the first message (`net/deferred.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IncompleteReadError, MessageTooLarge
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net.relay.limits import RelayLimits
from p2pgrid.net.relay.status import Status

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
"""Spoken to a relay: by who wants to be reached, and by who wants to reach."""
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
"""Spoken by a relay to the reserved peer."""
MAX_MESSAGE_BYTES: Final = 4096
"""As the specs advise."""
_ED25519_ID_PREFIX: Final = bytes.fromhex("002408011220")
_ED25519_ID_BYTES: Final = 38


async def read_hop(stream: Any) -> Any:
    """The next message on a stream of HOP. Raises ProtocolViolation, and what a broken stream raises."""
    return await _read(stream, HopMessage())


async def read_stop(stream: Any) -> Any:
    """The next message on a stream of STOP. Raises as `read_hop`."""
    return await _read(stream, StopMessage())


async def write(stream: Any, message: Any) -> None:
    """Send a message. Raises what a broken stream raises."""
    await stream.write(encode_varint_prefixed(message.SerializeToString()))


def reserve_request() -> Any:
    """RESERVE."""
    return HopMessage(type=HopMessage.RESERVE)


def connect_request(to: ID) -> Any:
    """CONNECT, to a relay: a circuit to that peer."""
    message = HopMessage(type=HopMessage.CONNECT)
    message.peer.id = to.to_bytes()
    return message


def hop_status(status: Status, limits: RelayLimits | None = None) -> Any:
    """STATUS, of a relay. With `limits`, it says what holds for the circuit."""
    message: Any = HopMessage(type=HopMessage.STATUS)
    message.status = int(status)
    if limits is not None:
        _say_limit(message, limits)
    return message


def reservation_given(ends_unix_s: int, addresses: Sequence[bytes], voucher: bytes, limits: RelayLimits) -> Any:
    """STATUS OK that answers RESERVE. `addresses`: where the relay is dialled, its name included."""
    message = hop_status(Status.OK, limits)
    message.reservation.expire = ends_unix_s
    message.reservation.addrs.extend(addresses)
    message.reservation.voucher = voucher
    return message


def stop_request(caller: ID, limits: RelayLimits) -> Any:
    """CONNECT, to a reserved peer: `caller` wants a circuit."""
    message = StopMessage(type=StopMessage.CONNECT)
    message.peer.id = caller.to_bytes()
    _say_limit(message, limits)
    return message


def stop_status(status: Status) -> Any:
    """STATUS, of a reserved peer."""
    message: Any = StopMessage(type=StopMessage.STATUS)
    message.status = int(status)
    return message


def status_in(message: Any) -> int:
    """The status that a message of STATUS carries. Raises ProtocolViolation for a message of another type."""
    if message.type != type(message).STATUS:
        raise ProtocolViolation(f"a message of type {message.type} came where STATUS was expected.")
    return int(message.status)


def peer_in(message: Any) -> ID:
    """The peer that a message of CONNECT names. Raises ProtocolViolation for what is no Ed25519 peer id."""
    raw = message.peer.id
    if len(raw) != _ED25519_ID_BYTES or not raw.startswith(_ED25519_ID_PREFIX):
        raise ProtocolViolation("a circuit is asked for to what is no peer id of an Ed25519 key.")
    return ID(raw)


def _say_limit(message: Any, limits: RelayLimits) -> None:
    """Left out where there is none: that is how the specs say so."""
    if limits.circuit_s:
        message.limit.duration = limits.circuit_s


async def _read(stream: Any, message: Any) -> Any:
    try:
        raw = await read_varint_prefixed_bytes_limited(stream, MAX_MESSAGE_BYTES)
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError, ParseError, MessageTooLarge) as error:
        raise ProtocolViolation(f"no message of the relay protocol came: {error}.") from None
    except (StreamEOF, IncompleteReadError):
        raise ProtocolViolation("the stream ended where a message of the relay protocol was expected.") from None
    return message
