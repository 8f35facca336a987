"""Dial an address as a stranger would: a fresh connection, the handshake that proves who is there, and the end.

Neither an open connection to that peer nor the swarm's own book of connections has a part in it, so a port that is
closed is found closed. Nothing that is sent depends on what the asker said, save where it goes.
"""

from __future__ import annotations

import datetime
import errno
import functools
import socket
import ssl
from typing import Any, Final

import trio
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from p2pgrid.errors import ProtocolViolation
from p2pgrid.net import tls
from p2pgrid.net.reach_wire import Ip, Outcome, RoadName, ip_of
from p2pgrid.net.shielding import shielded_for
from p2pgrid.net.tcp import BufferedTcpStream
from p2pgrid.proto.keys import PublicKey

_NOT_OURS_TO_TELL: Final = {
    errno.ENETUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EINVAL,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
}
"""This machine's own faults: they say nothing of the peer."""


async def dial_back(swarm: Any, peer: PublicKey, host: str, port: int, road: RoadName, *, timeout_s: float) -> Outcome:
    """Whether `peer` is reached at the IP address `host` (a zone may follow it), over a connection made for this."""
    with trio.move_on_after(timeout_s):
        try:
            tcp = await _connect(host, port)
        except OSError as error:
            return _outcome_of(error)
        try:
            is_there = await (_proves_tls(tcp, peer) if road is RoadName.DIRECT else _proves_noise(swarm, tcp, peer))
        finally:
            with shielded_for(1):
                await trio.aclose_forcefully(tcp)
        return Outcome.REACHED if is_there else Outcome.WRONG_PEER
    return Outcome.TIMED_OUT


async def _connect(host: str, port: int) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


def _outcome_of(error: OSError) -> Outcome:
    if error.errno in _NOT_OURS_TO_TELL or isinstance(error, socket.gaierror):
        return Outcome.NOT_TRIED
    return Outcome.TIMED_OUT if error.errno == errno.ETIMEDOUT else Outcome.REFUSED


async def _proves_tls(tcp: trio.SocketStream, peer: PublicKey) -> bool:
    """True if TLS proves the peer, as the direct road asks for it (docs/spec/link.md, rule 14)."""
    secured = trio.SSLStream(tcp, _context(), server_hostname=None, https_compatible=True)
    try:
        await secured.do_handshake()
        if secured.selected_alpn_protocol() != tls.ALPN:
            return False
        der: Any = secured.getpeercert(binary_form=True)
        found = tls.verify_certificate(der, datetime.datetime.now(datetime.UTC))
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, ProtocolViolation):
        return False
    return found == peer


async def _proves_noise(swarm: Any, tcp: trio.SocketStream, peer: PublicKey) -> bool:
    """True if Noise proves the peer, as every libp2p connection begins."""
    raw = RawConnection(BufferedTcpStream(tcp), True)
    try:
        await swarm.upgrader.upgrade_security(raw, True, ID.from_base58(peer.peer_id))
    except Exception:  # noqa: BLE001 (whoever is there can make the handshake raise anything; all of it means no)
        return False
    return True


@functools.cache
def _context() -> ssl.SSLContext:
    return tls.dialler_context()


def remote_of(muxed_connection: Any) -> tuple[Ip, str, int] | None:
    """IP address, host as the socket has it, and port at the other end of a libp2p connection.

    None where the connection does not lie on a TCP connection of its own: through a relay, the address is the relay's.
    """
    inner = muxed_connection
    for name in ("secured_conn", "conn", "read_writer", "read_write_closer"):  # yamux, session, Noise, its messages
        inner = getattr(inner, name, None)
    tcp = inner.stream if isinstance(inner, RawConnection) else None
    address = tcp.get_remote_address() if isinstance(tcp, BufferedTcpStream) else None
    if address is None or (ip := ip_of(address[0])) is None:
        return None
    return ip, address[0] if "%" in address[0] else str(ip), address[1]
