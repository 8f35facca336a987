"""The ports that the node listens at: free, held by the node itself, or somebody else's."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from p2pgrid.config import Config, parse_host_port
from p2pgrid.doctor.check import Check, fault, ok, skipped
from p2pgrid.doctor.folder import Role
from p2pgrid.errors import P2pgridError
from p2pgrid.net.reach_wire import Outcome, RoadName, parse_target
from p2pgrid.sockets import listening_socket

Whose = Callable[[str, int, RoadName], Awaitable[Outcome]]
"""Whether this node's own key is proven at a host and port."""


@dataclass(frozen=True, slots=True)
class Port:
    """Somewhere that the node listens."""

    what: str
    host: str
    port: int
    setting: str
    """Where it is set."""
    road: RoadName | None = None
    """None for HTTP, which proves no key."""

    @property
    def name(self) -> str:
        """For the table: `port 4801`."""
        return f"port {self.port}" if self.port else "port"

    @property
    def address(self) -> str:
        """host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ports_of(config: Config, role: Role) -> list[Port]:
    """By the configuration. What is no address was told of with the configuration, and is left out."""
    provider = config.provider
    if role is Role.CLIENT:
        return _http("gateway", config.client.listen, "listen under [client]")
    if role is Role.BOOTSTRAP:
        return _libp2p(config.bootstrap.libp2p_listen, "libp2p-listen under [bootstrap]")
    direct = [
        Port(one.what, one.host, one.port, one.setting, RoadName.DIRECT)
        for one in _http("direct road", provider.listen, "listen under [provider]")
    ]
    pages = _http("pages", provider.pages, "pages under [provider]")
    return [*direct, *_libp2p(provider.libp2p_listen, "libp2p-listen under [provider]"), *pages]


def ports_open(listening: Iterable[str]) -> list[Port]:
    """Of a running node, by what it says itself."""
    targets = [parse_target(text) for text in listening]
    names = {RoadName.DIRECT: "direct road", RoadName.LIBP2P: "libp2p"}
    return [Port(names[t.road], t.host, t.port, "", t.road) for t in targets if t is not None and t.ip is not None]


def _http(what: str, address: str, setting: str) -> list[Port]:
    try:
        return [Port(what, *parse_host_port(address), setting)] if address else []
    except P2pgridError:
        return []


def _libp2p(listen: Iterable[str], setting: str) -> list[Port]:
    found = []
    for text in listen:
        parts = text.split("/")
        if len(parts) == 5 and parts[3] == "tcp" and parts[4].isdecimal():
            found.append(Port("libp2p", parts[2], int(parts[4]), setting, RoadName.LIBP2P))
    return found


def try_listening(port: Port) -> OSError | None:
    """Why it cannot be listened at; None if it can. The port is free again when this returns."""
    try:
        found = socket.getaddrinfo(port.host, port.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _type, _proto, _name, address in dict.fromkeys(found):
            listening_socket(family, address).close()
    except OSError as error:
        return error
    return None


async def check_port(port: Port, whose: Whose | None, running: str = "") -> Check:
    """Free, or held by whom? `running`: the node that runs on the data folder, in words, if one does.

    `whose` proves who holds a road's port; without it, and for HTTP, a node that runs is believed to.
    """
    name, what = port.name, f"{port.what}, {port.address}"
    error = try_listening(port)
    if error is None and running and not port.setting:
        return fault(name, f"{what}: the node that runs does not listen there any more.", "Restart the node.")
    if error is None:
        return ok(name, f"{what}: {'any free port' if port.port == 0 else 'free'}.")
    if error.errno != errno.EADDRINUSE:
        return _cannot_listen(port, error)
    if port.road is not None and whose is not None:
        outcome = await whose(_dialled(port.host), port.port, port.road)
        if outcome is Outcome.REACHED:
            return ok(name, f"{what}: held by this node{f' ({running})' if running else ''}.")
        if outcome is Outcome.NOT_TRIED:
            return skipped(name, f"{what}: in use; who holds it could not be asked.")
    elif running:
        return ok(name, f"{what}: in use, it seems by this node ({running}).")
    change = f"change {port.setting or 'the address'} in config.toml"
    return fault(
        name,
        f"{what}: in use by another program.",
        f"See which: ss -ltnp 'sport = :{port.port}'. Stop it, or {change}.",
    )


_FIXES: Final = {
    errno.EACCES: "Ports below 1024 need privileges: choose one above, with {}.",
    errno.EPERM: "This user may not listen there: choose another port, with {}.",
    errno.EADDRNOTAVAIL: "The address is not one of this machine's: listen on 0.0.0.0 or ::, with {}.",
}


def _cannot_listen(port: Port, error: OSError) -> Check:
    fix = _FIXES.get(error.errno or 0, "Choose another address, with {}.").format(f"{port.setting} in config.toml")
    return fault(port.name, f"{port.what}, {port.address}: {error.strerror or error}.", fix)


def _dialled(host: str) -> str:
    """Where to dial what listens at `host`."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return "127.0.0.1"
    if ip.is_unspecified:
        return "127.0.0.1" if ip.version == 4 else "::1"
    return host
