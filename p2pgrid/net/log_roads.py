"""Asking for a peer's log over each road: link, libp2p, HTTP. All raise RemoteError; Refused where there is nothing.

What comes is capped and timed out here, and believed by nobody before it is verified (`p2pgrid.log.remote`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from p2pgrid.errors import ProtocolViolation, Refused, Unreachable
from p2pgrid.net.connection import LinkConnection
from p2pgrid.net.peer_address import PeerAddress
from p2pgrid.net.stream_reader import StreamReader
from p2pgrid.printable import printable
from p2pgrid.proto.frame import MAX_PAYLOAD_BYTES, ResetCode
from p2pgrid.proto.wire.base import Refusal, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.log import LogCall, LogReply
from p2pgrid.proto.witness import WitnessAnswer

ANSWER_TIMEOUT_S: Final = 15.0
MAX_ANSWER_BYTES: Final = MAX_PAYLOAD_BYTES

Get = Callable[[str], Awaitable[bytes]]


class LogNetwork(Protocol):
    """What is asked over libp2p: `p2pgrid.net.network.Network` is one."""

    async def ask_log(self, peer: PeerAddress, request: bytes, *, timeout_s: float = 15.0) -> bytes:
        """The peer's answer. Raises RemoteError."""
        ...


def over_link(link: LinkConnection) -> Get:
    """The provider's log at the other end of a link."""

    async def get(path: str) -> bytes:
        return await ask_link(link, Kind.LOG_REQUEST, path.encode(), Kind.LOG_RESPONSE)

    return get


async def add_checkpoint_over_link(link: LinkConnection, body: bytes) -> WitnessAnswer:
    """Ask the provider at the other end to witness a checkpoint."""
    reply = parse_frame(await ask_link(link, Kind.WITNESS_REQUEST, body, Kind.WITNESS_RESPONSE), LogReply)
    return WitnessAnswer(reply.status, reply.body)


async def send_cosignature(link: LinkConnection, note: bytes) -> None:
    """Hand the provider its own checkpoint with our cosignature; returns once it is on record there."""
    if await ask_link(link, Kind.COSIGNATURE, note, Kind.COSIGNATURE_TAKEN):
        raise ProtocolViolation(f"{link.name} acknowledged a cosignature with bytes.")


def over_libp2p(network: LogNetwork, peer: PeerAddress, timeout_s: float = ANSWER_TIMEOUT_S) -> Get:
    """The log of a peer, asked over libp2p."""

    async def get(path: str) -> bytes:
        reply = await _call(network, peer, LogCall(path=path), timeout_s)
        if reply.status != 200:
            raise _refused(reply.status, reply.body)
        return reply.body

    return get


async def add_checkpoint_over_libp2p(
    network: LogNetwork, peer: PeerAddress, body: bytes, timeout_s: float = ANSWER_TIMEOUT_S
) -> WitnessAnswer:
    """Ask a peer to witness a checkpoint."""
    reply = await _call(network, peer, LogCall(path="add-checkpoint", body=body), timeout_s)
    return WitnessAnswer(reply.status, reply.body)


def over_http(prefix: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Get:
    """The log below a URL, such as `http://192.0.2.7:4880/log`."""

    async def get(path: str) -> bytes:
        import aiohttp  # not with the module: a node that asks nobody over HTTP would keep its 20 MB for nothing

        timeout = aiohttp.ClientTimeout(total=timeout_s)
        url = f"{prefix.rstrip('/')}/{path}"
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                data = await response.content.read(MAX_ANSWER_BYTES + 1)
                while len(data) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES + 1)):
                    data += more
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{url} cannot be read: {error or 'it took too long'}.") from None
        if response.status != 200:
            raise _refused(response.status, data[:300])
        if len(data) > MAX_ANSWER_BYTES:
            raise ProtocolViolation(f"{url} has more than {MAX_ANSWER_BYTES} bytes.")
        return data

    return get


async def ask_link(link: LinkConnection, kind: Kind, payload: bytes, answer: Kind) -> bytes:
    """One message on a stream of its own, and the one that answers it; a REFUSAL is raised as Refused."""
    reader = StreamReader(max_bytes=2 * MAX_PAYLOAD_BYTES)
    stream = link.open_stream(reader)
    try:
        stream.send(kind, payload)
        stream.end()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            received = await reader.receive()
    except TimeoutError:
        stream.reset(ResetCode.CANCELLED)
        raise Unreachable(f"{link.name} sent no {answer.name} within {ANSWER_TIMEOUT_S:g} s.") from None
    except BaseException:
        stream.reset(ResetCode.CANCELLED)
        raise
    if received is None:
        raise Unreachable(f"{link.name} ended the exchange; {answer.name} was expected.")
    if received.kind == Kind.REFUSAL:
        refusal = parse_frame(received.payload, Refusal)
        raise Refused(refusal.code, printable(refusal.message))
    if received.kind != answer:
        stream.reset(ResetCode.CANCELLED)
        raise ProtocolViolation(f"{link.name} sent message kind {received.kind}; {answer.name} was expected.")
    return received.payload


async def _call(network: LogNetwork, peer: PeerAddress, call: LogCall, timeout_s: float) -> LogReply:
    return parse_frame(await network.ask_log(peer, call.to_bytes(), timeout_s=timeout_s), LogReply)


def _refused(status: int, body: bytes) -> Refused:
    code = {404: "not-there", 410: "erased", 403: "not-a-party", 503: "busy"}.get(status, f"http-{status}")
    return Refused(code, printable(body.decode(errors="replace")[:300].strip()) or f"the answer was {status}.")
