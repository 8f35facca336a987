"""`/p2pgrid/reach/1`: dial a peer back for it, and have others dial us back (docs/spec/reachability.md).

The asking side writes a length (4 bytes, big endian) and its request; the other dials, writes a length and its answer,
and ends the stream.
"""

from __future__ import annotations

import functools
import logging
import re
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from p2pgrid.clock import unix_ms
from p2pgrid.errors import InvalidRecord, ProtocolViolation, Refused, Unreachable
from p2pgrid.net.host import close_stream, open_stream, reset_stream
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.listening import caller_of
from p2pgrid.net.offer_exchange import close_if_idle, read_exactly
from p2pgrid.net.reach_dial import dial_back, remote_of
from p2pgrid.net.reach_rules import Allowance, Dial, ProbeLimits, chosen, dial_of
from p2pgrid.net.reach_wire import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Ip,
    Outcome,
    ReachAnswer,
    ReachRequest,
    Target,
    ip_of,
    parse_seen,
    parse_target,
)
from p2pgrid.net.shielding import shielded_for
from p2pgrid.proto.keys import PublicKey, parse_peer_id
from p2pgrid.proto.wire.base import parse_frame

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 5.0
RESOLVE_TIMEOUT_S: Final = 2.0
_NOT_SUPPORTED: Final = "not supported"
_FAMILIES: Final = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
_SPOKEN: Final = re.compile(r"/p2pgrid/(offer|card|log|session|reach)/([1-9][0-9]{0,3})")
_MAX_PROTOCOLS: Final = 256
_in_thread: Final[Any] = trio.to_thread.run_sync
"""As it is; the type stubs that mypy finds are of an older trio."""


class ReachServer:
    """Answers those who ask to be dialled back. It outlives the host: what it has counted holds over a restart."""

    def __init__(self, *, limits: ProbeLimits | None = None, now_ms: Callable[[], int] = unix_ms) -> None:
        self._limits = limits or ProbeLimits()
        self._allowance = Allowance(self._limits)
        self._now_ms = now_ms
        self._open = 0
        self._resolving = trio.CapacityLimiter(4)
        """Threads of its own: names that never resolve must not take those of others."""

    def serve(self, host: BasicHost) -> None:
        """Have `host` answer."""
        host.set_stream_handler(PROTOCOL, functools.partial(self._handle, host.get_network()))

    async def _handle(self, swarm: Any, stream: Any) -> None:
        if self._open >= self._limits.at_once:
            await stream.reset()
            return
        self._open += 1
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                request = parse_frame(await _read_message(stream, "the asker"), ReachRequest)
            answer = await self._answer(swarm, stream.muxed_conn, request)
            with trio.fail_after(REQUEST_TIMEOUT_S):
                await _write_message(stream, answer.to_bytes())
                await close_stream(stream)
        except (IOException, MuxedStreamError, ProtocolViolation, Unreachable, trio.TooSlowError) as error:
            logger.debug("a request to dial back came to nothing: %r", error)
            await reset_stream(stream)
        except trio.Cancelled:
            await reset_stream(stream)
            raise
        finally:
            self._open -= 1

    async def _answer(self, swarm: Any, connection: Any, request: ReachRequest) -> ReachAnswer:
        asker = str(connection.peer_id)
        try:
            expected = parse_peer_id(asker)
        except InvalidRecord as error:
            raise ProtocolViolation(f"{asker} asks, whose key is not admissible.") from error
        remote = remote_of(connection)
        if remote is None:
            outcomes = (Outcome.NOT_TRIED,) * len(request.addresses)
            return ReachAnswer(seen="", now_ms=self._now_ms(), outcomes=outcomes)
        ip, host, port = remote
        seen = f"/ip{ip.version}/{ip}/tcp/{port}"
        if request.addresses and not self._allowance.take(asker, caller_of(str(ip)), time.monotonic()):
            return ReachAnswer(seen=seen, now_ms=self._now_ms(), is_declined=True)
        dials = await self._dials_of(request, ip)
        found = await self._dial_all(swarm, expected, host, chosen(dials, self._limits.dials))
        outcomes = tuple(Outcome.NOT_TRIED if one is None else found.get(one, Outcome.NOT_TRIED) for one in dials)
        return ReachAnswer(seen=seen, now_ms=self._now_ms(), outcomes=outcomes)

    async def _dials_of(self, request: ReachRequest, seen: Ip) -> list[Dial | None]:
        """For each address how it may be dialled, if it may."""
        targets = [parse_target(text) for text in request.addresses]
        names = {t for t in targets if t is not None and t.ip is None}
        resolved: dict[Target, Collection[Ip]] = {}

        async def look_up(name: Target) -> None:
            resolved[name] = await self._resolve(name)

        async with trio.open_nursery() as nursery:
            for name in sorted(names, key=lambda one: one.address)[: self._limits.dials]:
                nursery.start_soon(look_up, name)
        return [dial_of(target, seen, resolved.get(target, ())) if target is not None else None for target in targets]

    async def _resolve(self, target: Target) -> Collection[Ip]:
        """What a name stands for; nothing if that is not known in time."""
        look_up = functools.partial(
            socket.getaddrinfo, target.host, None, family=_FAMILIES[target.kind], type=socket.SOCK_STREAM
        )
        found: list[Any] = []
        with trio.move_on_after(RESOLVE_TIMEOUT_S):
            try:
                found = await _in_thread(look_up, abandon_on_cancel=True, limiter=self._resolving)
            except (OSError, UnicodeError) as error:
                logger.debug("%s does not resolve: %s", target.host, error)
        return {ip for one in found if (ip := ip_of(one[4][0])) is not None}

    async def _dial_all(self, swarm: Any, expected: PublicKey, host: str, dials: list[Dial]) -> dict[Dial, Outcome]:
        found: dict[Dial, Outcome] = {}

        async def one(dial: Dial) -> None:
            road, port = dial
            found[dial] = await dial_back(swarm, expected, host, port, road, timeout_s=self._limits.dial_timeout_s)

        async with trio.open_nursery() as nursery:
            for dial in dials:
                nursery.start_soon(one, dial)
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer's answer, checked, and what was learnt beside it."""

    peer_id: str
    ip: Ip | None
    """Where that peer is, as we are connected to it; None through a relay."""
    seen: Ip | None
    """Where that peer sees us."""
    answer: ReachAnswer
    clock_ms: int
    """How far that peer's clock is ahead of ours."""
    newer: tuple[str, ...] = ()
    """Protocols of p2pgrid that the peer speaks in a version which we do not know."""


async def ask_reach(
    host: BasicHost, peer: Contact, request: ReachRequest, timeout_s: float, now_ms: Callable[[], int] = unix_ms
) -> Asked:
    """Have `peer` dial the addresses of `request`. A connection made for it is closed again.

    Raises Unreachable (not there, not in time, or gone half-way), Refused (`no-reach`: it does not speak the protocol;
    `too-often`) or ProtocolViolation.
    """
    network = host.get_network()
    was_connected = bool(network.get_connections(peer.peer_id))
    try:
        with trio.fail_after(timeout_s):
            return await _ask(host, peer, request, now_ms)
    except trio.TooSlowError:
        raise Unreachable(f"{peer.peer_id} did not answer in {timeout_s:g} s.") from None
    except SwarmException as error:
        raise Unreachable(f"{error}.") from error
    except StreamFailure as error:
        if isinstance(error.__cause__, MultiselectClientError) and _NOT_SUPPORTED in str(error.__cause__):
            raise Refused("no-reach", f"{peer.peer_id} dials nobody back: it does not speak {PROTOCOL}.") from error
        raise Unreachable(f"{peer.peer_id} did not take up the request to dial back.") from error
    except (IOException, MuxedStreamError, MuxedConnError) as error:
        raise Unreachable(f"the connection to {peer.peer_id} ended while it dialled back.") from error
    finally:
        if not was_connected:
            with shielded_for(1):
                await close_if_idle(network, peer)


async def _ask(host: BasicHost, peer: Contact, request: ReachRequest, now_ms: Callable[[], int]) -> Asked:
    stream = await open_stream(host, peer.peer_id, peer.addresses, PROTOCOL)
    name = str(peer.peer_id)
    try:
        await _write_message(stream, request.to_bytes())
        answer = parse_frame(await _read_message(stream, name), ReachAnswer)
        clock_ms = answer.now_ms - now_ms()
    except BaseException:
        await reset_stream(stream)
        raise
    remote = remote_of(stream.muxed_conn)
    await close_stream(stream)
    if answer.is_declined:
        raise Refused("too-often", f"{name} dials nobody back for us now: it was asked enough.")
    seen = parse_seen(answer.seen) if answer.seen else None
    if len(answer.outcomes) != len(request.addresses) or (answer.seen and seen is None):
        raise ProtocolViolation(f"{name} gave an answer that does not fit what it was asked.")
    return Asked(
        peer_id=name,
        ip=remote[0] if remote is not None else None,
        seen=seen[0] if seen is not None else None,
        answer=answer,
        clock_ms=clock_ms,
        newer=newer_than_ours(_protocols_of(host, peer)),
    )


def newer_than_ours(protocols: Collection[str]) -> tuple[str, ...]:
    """Of a peer's protocols, ours in a version that we do not speak, where it does not speak our own besides."""
    spoken: dict[str, set[int]] = {}
    for protocol in list(protocols)[:_MAX_PROTOCOLS]:
        if (match := _SPOKEN.fullmatch(protocol)) is not None:
            spoken.setdefault(match[1], set()).add(int(match[2]))
    return tuple(f"/p2pgrid/{name}/{max(numbers)}" for name, numbers in sorted(spoken.items()) if 1 not in numbers)


def _protocols_of(host: BasicHost, peer: Contact) -> Collection[str]:
    """What the peer said that it speaks, if it has said so yet."""
    try:
        return [str(protocol) for protocol in host.get_peerstore().get_protocols(peer.peer_id)]
    except PeerStoreError:
        return ()


async def _write_message(stream: Any, data: bytes) -> None:
    await stream.write(len(data).to_bytes(4) + data)


async def _read_message(stream: Any, peer: str) -> bytes:
    length = int.from_bytes(await read_exactly(stream, 4, peer))
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolViolation(f"{peer} announces {length} bytes; at most {MAX_MESSAGE_BYTES} may come.")
    return await read_exactly(stream, length, peer)
