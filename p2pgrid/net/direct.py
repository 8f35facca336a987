"""The direct road: a link over TCP and TLS 1.3 (docs/spec/link.md, section 5).

The dialler checks the listener's certificate before it sends a byte of its own behind the TLS handshake, so whoever
else answers at that address learns nothing but that somebody called. The listener learns the dialler's key
from the link's own handshake, and asks for no client certificate.
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import functools
import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from p2pgrid.errors import LocalError, ProtocolViolation, RemoteError, Unreachable
from p2pgrid.net import tls
from p2pgrid.net.connection import Admit, LinkConnection
from p2pgrid.net.limits import Seats
from p2pgrid.net.link_membership import CalledMembership, calling
from p2pgrid.net.link_writer import WRITE_STALL_S
from p2pgrid.net.listening import ListenLimits, caller_of, close_links
from p2pgrid.net.own_networks import OwnNetworks
from p2pgrid.net.road import Road
from p2pgrid.net.road_move import LinksByName, new_dialler
from p2pgrid.net.stream import OnStream
from p2pgrid.proto.frame import NONCE_BYTES
from p2pgrid.proto.keys import PublicKey, SecretKey
from p2pgrid.proto.link import Link
from p2pgrid.proto.link_events import LinkLimits
from p2pgrid.sockets import listening_socket

log = logging.getLogger(__name__)

_TLS_SHUTDOWN_S: Final = 1.0
_ACCEPT_PAUSE_S: Final = 1.0
_CALLER_LEFT: Final = {errno.ECONNABORTED, errno.EPROTO}


async def dial(
    host: str,
    port: int,
    provider: PublicKey,
    secret_key: SecretKey,
    *,
    timeout_s: float = 10.0,
    limits: LinkLimits | None = None,
    on_stream: OnStream | None = None,
    write_stall_s: float = WRITE_STALL_S,
    continues: LinkConnection | None = None,
    networks: OwnNetworks | None = None,
) -> LinkConnection:
    """A link to `provider` at `host`:`port`, ready for streams. `networks`: those we are in, where any is closed.

    With `continues`, a link to the provider that there is already goes on over the new road, and is returned.

    Raises Unreachable if nobody, or another peer, answers there within `timeout_s`, or the link is lost as it moves;
    Refused if the provider turns us away; ProtocolViolation if the provider, proven, breaks the link's rules.
    """
    loop = asyncio.get_running_loop()

    async def connect(make: MakeConnection) -> LinkConnection:
        # An empty server name: no name of the host goes over the wire in clear, and none is checked.
        _transport, connection = await loop.create_connection(
            make,
            host,
            port,
            ssl=_dialler_context(),
            server_hostname="",
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
        )
        return connection

    return await _dial(
        connect,
        _format_address(host, port),
        provider,
        secret_key,
        timeout_s=timeout_s,
        limits=limits,
        on_stream=on_stream,
        write_stall_s=write_stall_s,
        continues=continues,
        networks=networks,
    )


async def dial_over(
    tcp: socket.socket,
    provider: PublicKey,
    secret_key: SecretKey,
    *,
    road: Road,
    timeout_s: float = 10.0,
    continues: LinkConnection | None = None,
    networks: OwnNetworks | None = None,
) -> LinkConnection:
    """As `dial`, over a TCP connection that there is already; it is closed where that fails."""
    loop = asyncio.get_running_loop()
    address = _format_address(*tcp.getpeername()[:2])

    async def connect(make: MakeConnection) -> LinkConnection:
        _transport, connection = await loop.create_connection(
            make,
            sock=tcp,
            ssl=_dialler_context(),
            server_hostname="",
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
        )
        return connection

    try:
        return await _dial(
            connect,
            address,
            provider,
            secret_key,
            timeout_s=timeout_s,
            road=road,
            continues=continues,
            networks=networks,
        )
    except BaseException:
        tcp.close()
        raise


MakeConnection = Callable[[], LinkConnection]


async def _dial(
    connect: Callable[[MakeConnection], Awaitable[LinkConnection]],
    address: str,
    provider: PublicKey,
    secret_key: SecretKey,
    *,
    timeout_s: float,
    limits: LinkLimits | None = None,
    on_stream: OnStream | None = None,
    write_stall_s: float = WRITE_STALL_S,
    road: Road = Road.DIRECT,
    continues: LinkConnection | None = None,
    networks: OwnNetworks | None = None,
) -> LinkConnection:
    def make() -> LinkConnection:
        membership = calling(networks, secret_key, provider, continues)
        return LinkConnection(
            new_dialler(secret_key, provider, continues, limits, membership),
            name=f"{provider} at {address}",
            on_stream=on_stream,
            verify_road=functools.partial(_verify_listener, provider, address),
            write_stall_s=write_stall_s,
            road=road,
            membership=membership,
        )

    connection: LinkConnection | None = None
    is_made = False
    try:
        async with asyncio.timeout(timeout_s):
            connection = await connect(make)
            await asyncio.shield(connection.ready)
        is_made = True
    except TimeoutError:
        raise Unreachable(f"{address} did not answer within {timeout_s:g} s.") from None
    except OSError as error:
        raise Unreachable(f"{address} cannot be reached: {error.strerror or error}.") from error
    finally:
        if connection is not None and not is_made:
            connection.abort()  # also where the caller was cancelled in the moment that the link became ready
    if continues is None:
        return connection
    await continues.move_to(connection)
    return continues


async def listen(
    host: str,
    port: int,
    secret_key: SecretKey,
    *,
    on_stream: OnStream,
    admit: Admit | None = None,
    limits: ListenLimits | None = None,
    movable: LinksByName | None = None,
    membership: CalledMembership | None = None,
) -> DirectListener:
    """Take links at `host`:`port` (0: any free port). LocalError where the address cannot be had.

    `movable`: the links of this node that may go on over another road, those of its other listeners too. `membership`:
    who may call, for a node that is in closed networks.
    """
    listener = DirectListener(
        secret_key, on_stream=on_stream, admit=admit, limits=limits, movable=movable, membership=membership
    )
    try:
        await listener._start(host, port)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    return listener


class DirectListener:
    """An open port that takes links: `listen` makes it. Without a port it takes the connections that it is given."""

    def __init__(
        self,
        secret_key: SecretKey,
        *,
        on_stream: OnStream,
        admit: Admit | None = None,
        limits: ListenLimits | None = None,
        movable: LinksByName | None = None,
        membership: CalledMembership | None = None,
    ) -> None:
        self._own_key = secret_key.public_key
        self._tls = tls.listener_context(secret_key)
        self._on_stream = on_stream
        self._admit = admit
        self._limits = limits or ListenLimits()
        self._movable = movable if movable is not None else LinksByName()
        self._membership = membership
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._seats = Seats(self._limits.allowance())
        self._connects = self._limits.connects()
        self._spend_of = self._limits.shares()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: set[LinkConnection] = set()
        """The links whose TLS handshake is done."""
        self.refused_connections = 0
        """Callers turned away because of the caps, and the rate."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: host and port."""
        return [server.getsockname()[:2] for server in self._sockets]

    async def aclose(self, *, drain_s: float = 10.0, message: str = "the provider is shutting down") -> None:
        """Take no more links or streams, give open streams `drain_s` to finish, then close everything."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._close_sockets()
        await close_links(self.connections, drain_s, message)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _type, _proto, _name, address in dict.fromkeys(found):
                self._sockets.append(listening_socket(family, address))
        except OSError:
            self._close_sockets()
            raise
        for server in self._sockets:
            task = loop.create_task(
                self._accept(server), name=f"accept on {_format_address(*server.getsockname()[:2])}"
            )
            self._accepting.append(task)

    async def _accept(self, server: socket.socket) -> None:
        """Take TCP connections, one by one. The caps hold before any cryptography is done for one."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                tcp, address = await loop.sock_accept(server)
            except OSError as error:
                if error.errno in _CALLER_LEFT:
                    continue
                log.error("no connection can be accepted: %s; trying again in %g s", error, _ACCEPT_PAUSE_S)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            caller = caller_of(address[0])
            if not self._connects.take(caller, loop.time()) or not self._seats.take(caller):
                self.refused_connections += 1
                log.info(
                    "a connection from %s was refused: %d are open from there", caller, self._seats.held_by(caller)
                )
                tcp.close()
                continue
            task = self.take(tcp, _format_address(address[0], address[1]))
            task.add_done_callback(functools.partial(self._left, caller))

    def take(self, tcp: socket.socket, name: str, road: Road = Road.DIRECT) -> asyncio.Task[None]:
        """Serve a connection that was accepted, here or by another process, or punched; the task ends with it."""
        task = asyncio.get_running_loop().create_task(self._serve(tcp, name, road), name=f"link from {name}")
        self._tasks.add(task)
        task.add_done_callback(self._gone)
        return task

    def _left(self, caller: str, _: asyncio.Task[None]) -> None:
        self._seats.leave(caller)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s ended with an error", task.get_name(), exc_info=error)

    async def _serve(self, tcp: socket.socket, name: str, road: Road) -> None:
        """One link, from its TLS handshake to its end."""
        loop, limits, caller = asyncio.get_running_loop(), self._limits, _caller_at(tcp)
        link = Link.listener(
            self._own_key, secrets.token_bytes(NONCE_BYTES), limits=limits.link, now_ms=int(loop.time() * 1000)
        )
        connection = LinkConnection(
            link,
            name=name,
            on_stream=self._on_stream,
            admit=self._admit,
            verify_road=_verify_alpn,
            write_stall_s=limits.write_stall_s,
            road=road,
            movable=self._movable,
            membership=self._membership,
            spend=self._spend_of(caller),
            caller=caller,
        )
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                tcp,
                ssl=self._tls,
                ssl_handshake_timeout=limits.link.handshake_ms / 1000,
                ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
            )
        except OSError as error:  # ssl.SSLError, TimeoutError and ConnectionError are OSErrors
            log.info("no TLS with %s: %s", name, str(error) or type(error).__name__)
            return
        self.connections.add(connection)
        try:
            reason = await asyncio.shield(connection.closed)
            if isinstance(reason, ProtocolViolation):
                log.warning("%s broke the link's rules: %s", connection.name, reason)
        finally:
            self.connections.discard(connection)
            connection.abort()

    def _close_sockets(self) -> None:
        for server in self._sockets:
            server.close()
        self._sockets.clear()


@functools.cache
def _dialler_context() -> ssl.SSLContext:
    return tls.dialler_context()


def _verify_alpn(transport: asyncio.Transport) -> None:
    spoken = transport.get_extra_info("ssl_object").selected_alpn_protocol()
    if spoken != tls.ALPN:
        raise Unreachable(f"the other side offers ALPN {spoken!r}; {tls.ALPN!r} was expected.")


def _verify_listener(provider: PublicKey, address: str, transport: asyncio.Transport) -> None:
    """Unreachable, not ProtocolViolation, for all faults: whoever is there, it was not proven to be the provider."""
    der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        found = tls.verify_certificate(der, datetime.datetime.now(datetime.UTC))
        _verify_alpn(transport)
    except RemoteError as error:
        raise Unreachable(f"{address} is no p2pgrid peer: {error.message}", hint=error.hint) from error
    if found != provider:
        raise Unreachable(
            f"at {address} is another peer: {found} answered, {provider} was expected.",
            hint="Look up the provider's present addresses.",
        )


def _caller_at(tcp: socket.socket) -> str:
    """What the caller is counted by; empty where it has left."""
    try:
        return caller_of(tcp.getpeername()[0])
    except OSError:
        return ""


def _format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(host: str, port: int, error: OSError) -> LocalError:
    """Why links cannot be taken there, and what to do."""
    hints = {
        errno.EADDRINUSE: "Stop the program that uses it, or choose another port.",
        errno.EACCES: "Ports below 1024 need privileges: choose another port.",
        errno.EADDRNOTAVAIL: "The address is not one of this machine's: listen on 0.0.0.0 or ::.",
    }
    return LocalError(
        f"cannot listen on {_format_address(host, port)}: {error.strerror or error}.",
        hint=hints.get(error.errno or 0, "Choose another address."),
    )
