"""`/p2pgrid/punch/1`: two peers on a relayed connection agree where and when to open one of their own.

The messages are those of libp2p's DCUtR (its specs, relay/DCUtR.md): CONNECT with the asker's places, CONNECT with the
other's, then SYNC; the asker waits half a round trip, so that both begin at the same moment. What they open is no
libp2p connection but one of the direct road, with the peer that was asked as TLS server: hence a name of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IncompleteReadError, IOException, MessageTooLarge
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pgrid.errors import ProtocolViolation, RemoteError, Unreachable
from p2pgrid.net.addresses import usable_addresses
from p2pgrid.net.host import close_stream, open_stream_on, reset_stream
from p2pgrid.net.punch_plan import Place, PunchPlan, own_places, punchable
from p2pgrid.net.relay.kind import circuit_of, is_relayed
from p2pgrid.net.relay.observed import observed_address
from p2pgrid.net.tcp import local_address

logger = logging.getLogger(__name__)

PUNCH: Final = "/p2pgrid/punch/1"
MAX_MESSAGE_BYTES: Final = 4096
ANSWER_S: Final = 10.0
MAX_AT_ONCE: Final = 16
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError)

Begin = Callable[[PunchPlan, str], None]
"""Called in the trio thread, at the moment to begin, with the plan and the peer id of who asked for it."""


async def agree(host: BasicHost, peer_id: ID) -> PunchPlan:
    """Agree with a peer to which we have a relayed connection. Returns at the moment to begin.

    Raises Unreachable (no such connection, no answer, nowhere to meet) or ProtocolViolation.
    """
    connections = [one for one in host.get_network().get_connections(peer_id) if is_relayed(one) and not one.is_closed]
    if not connections:
        raise Unreachable(f"there is no relayed connection to {peer_id} to punch a hole from.")
    try:
        with trio.fail_after(ANSWER_S):
            local, observed = await _own_place(host, connections[0])
            stream = await open_stream_on(host, connections[0], PUNCH)
            try:
                began_s = trio.current_time()
                await _write(stream, HolePunch.CONNECT, own_places(local, observed))
                told = await _read(stream, HolePunch.CONNECT)
                half_way_s = (trio.current_time() - began_s) / 2
                await _write(stream, HolePunch.SYNC)
            except BaseException:
                await reset_stream(stream)
                raise
            await close_stream(stream)
    except trio.TooSlowError:
        raise Unreachable(f"{peer_id} did not agree on a hole in {ANSWER_S:g} s.") from None
    except StreamFailure as failure:
        raise Unreachable(f"{peer_id} punches no holes: {failure}.") from None
    except _BROKEN as error:
        raise Unreachable(f"{peer_id} broke off: {error!r}.") from None
    plan = _plan(local, observed, told)
    await trio.sleep(half_way_s)
    return plan


class PunchListener:
    """Agrees with whoever asks over a relayed connection. Made in the trio thread; it answers from then on."""

    def __init__(self, host: BasicHost, begin: Begin) -> None:
        self._host = host
        self._begin = begin
        self._asking: set[ID] = set()
        host.set_stream_handler(PUNCH, self._answer)

    async def _answer(self, stream: Any) -> None:
        """One agreement. The handler of PUNCH."""
        asker: ID = stream.muxed_conn.peer_id
        if not is_relayed(stream.muxed_conn) or asker in self._asking or len(self._asking) >= MAX_AT_ONCE:
            await reset_stream(stream)
            return
        self._asking.add(asker)
        try:
            with trio.fail_after(ANSWER_S):
                told = await _read(stream, HolePunch.CONNECT)
                local, observed = await _own_place(self._host, stream)
                plan = _plan(local, observed, told)
                await _write(stream, HolePunch.CONNECT, own_places(local, observed))
                await _read(stream, HolePunch.SYNC)
            self._begin(plan, str(asker))
            await close_stream(stream)
        except (RemoteError, trio.TooSlowError, *_BROKEN) as error:
            logger.debug("no hole is punched with %s: %s", asker, error)
            await reset_stream(stream)
        finally:
            self._asking.discard(asker)


def _plan(local: Place, observed: Place, told: Sequence[Place]) -> PunchPlan:
    remote = punchable(told, local, observed)
    if not remote:
        raise Unreachable(f"the other side named no place that could be tried: {list(told)}.")
    return PunchPlan(local, remote)


async def _own_place(host: BasicHost, relayed: Any) -> tuple[Place, Place]:
    """The port of our connection to the relay, here and as the relay sees it. Raises Unreachable."""
    circuit = circuit_of(relayed.muxed_conn)
    relay = ID.from_base58(circuit.relay) if circuit is not None else None
    for connection in host.get_network().get_connections(relay) if relay is not None else ():
        if not is_relayed(connection) and (local := local_address(connection)) is not None:
            return local, await observed_address(host, connection)
    raise Unreachable("the connection to the relay is gone.")


async def _write(stream: Any, kind: Any, places: Sequence[Place] = ()) -> None:
    message: Any = HolePunch(type=kind)
    for ip, port in places:
        message.ObsAddrs.append(Multiaddr(f"/{'ip6' if ':' in ip else 'ip4'}/{ip}/tcp/{port}").to_bytes())
    await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def _read(stream: Any, expected: Any) -> list[Place]:
    """The places in a message of that kind."""
    message: Any = HolePunch()
    try:
        message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, MAX_MESSAGE_BYTES))
    except (DecodeError, UnicodeDecodeError, ParseError, MessageTooLarge) as error:
        raise ProtocolViolation(f"no message of the punch protocol came: {error}.") from None
    except (StreamEOF, IncompleteReadError):
        raise Unreachable("the other side ended the agreement.") from None
    if message.type != expected:
        raise ProtocolViolation(f"a message of type {message.type} came; {expected} was expected.")
    found = []
    for address in usable_addresses(message.ObsAddrs, ""):
        family = address.protocols()[0].name
        if family in ("ip4", "ip6"):
            found.append((str(address.value_for_protocol(family)), int(address.value_for_protocol("tcp"))))
    return found
