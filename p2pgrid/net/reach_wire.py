"""What is said on `/p2pgrid/reach/1`: who asks to be dialled back, and what came of it (docs/spec/reachability.md).

Nothing here does I/O. Everything that a peer sent is read by `parse_frame` or `parse_target`, and refused unless it is
of the form that the specification gives.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta

from p2pgrid.proto.fields import TimeMs
from p2pgrid.proto.wire.base import Frame

PROTOCOL: Final = "/p2pgrid/reach/1"
MAX_ADDRESSES: Final = 8
"""In one request."""
MAX_ADDRESS_CHARS: Final = 300
"""A DNS name has 253."""
MAX_MESSAGE_BYTES: Final = 4096

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*", re.IGNORECASE)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


class Outcome(IntEnum):
    """What came of one address."""

    REACHED = 0
    """A fresh connection was made, and whoever is there proved to be the asker."""
    REFUSED = 1
    """The connection was refused, or the network said that nobody is there."""
    TIMED_OUT = 2
    """Nobody answered in time: nothing at all, or the other side fell silent in the handshake."""
    WRONG_PEER = 3
    """Something answered there, and did not prove to be the asker."""
    NOT_TRIED = 4
    """The address is not where the asker is seen, is one too many, or cannot be dialled from here."""

    @property
    def words(self) -> str:
        """For people: `timed out`."""
        return self.name.lower().replace("_", " ")


class RoadName(StrEnum):
    """Which of the two roads an address is of."""

    DIRECT = "direct"
    LIBP2P = "libp2p"


class ReachRequest(Frame, frozen=True, kw_only=True):
    """Dial these addresses, all of which should be where you see me."""

    addresses: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS_CHARS)], ...], Meta(max_length=MAX_ADDRESSES)
    ]
    """Multiaddrs; `0.0.0.0` and `::` stand for the IP address at which the asker is seen."""


class ReachAnswer(Frame, frozen=True, kw_only=True):
    """What came of it."""

    seen: Annotated[str, Meta(max_length=MAX_ADDRESS_CHARS)]
    """`/ip4|ip6/<address>/tcp/<port>` of the asker's connection; empty where that lies on a relay's."""
    now_ms: TimeMs
    """The answering peer's clock, as the answer leaves."""
    is_declined: bool = False
    """True where nothing was tried, because the asker, its IP address, or all together have asked enough for now."""
    outcomes: Annotated[tuple[Outcome, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """One for each address of the request, in its order; none where it was declined."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address that may be asked for."""

    kind: Literal["ip4", "ip6", "dns", "dns4", "dns6"]
    host: str
    """As it was written; an IP address in its shortest form."""
    port: int
    road: RoadName

    @property
    def ip(self) -> Ip | None:
        """The IP address; None for a name."""
        return None if self.kind.startswith("dns") else ipaddress.ip_address(self.host)

    @property
    def is_wildcard(self) -> bool:
        """True if it stands for the IP address at which the asker is seen."""
        return self.ip is not None and self.ip.is_unspecified

    @property
    def address(self) -> str:
        """The multiaddr."""
        return multiaddr(self.kind, self.host, self.port, self.road)

    def at(self, ip: Ip) -> Target:
        """The same port and road at `ip`."""
        return Target("ip4" if ip.version == 4 else "ip6", str(ip), self.port, self.road)


def multiaddr(kind: str, host: str, port: int, road: RoadName) -> str:
    """`/ip4/192.0.2.7/tcp/4801/tls` for the direct road; without `/tls` for the libp2p road."""
    return f"/{kind}/{host}/tcp/{port}{'/tls' if road is RoadName.DIRECT else ''}"


def parse_target(text: str) -> Target | None:
    """`/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>`, with `/tls` behind it for the direct road; None for all else.

    Also None for an IP address that is not written in its shortest form, and for one that no host has.
    """
    if len(text) > MAX_ADDRESS_CHARS:
        return None
    road = RoadName.LIBP2P
    if text.endswith("/tls"):
        text, road = text[: -len("/tls")], RoadName.DIRECT
    match text.split("/"):
        case ["", ("ip4" | "ip6" | "dns" | "dns4" | "dns6") as kind, host, "tcp", port]:
            pass
        case _:
            return None
    if not _PORT.fullmatch(port) or int(port) > 65_535:
        return None
    if kind.startswith("dns"):
        return Target(kind, host, int(port), road) if _NAME.fullmatch(host) else None
    ip = _plain_ip(host)
    if ip is None or ip.version != int(kind[2:]) or ip.is_multicast or str(ip) == "255.255.255.255":
        return None
    return Target(kind, host, int(port), road)


def parse_seen(text: str) -> tuple[Ip, int] | None:
    """`/ip4|ip6/<address>/tcp/<port>` as IP address and port; None for all else."""
    target = parse_target(text)
    if target is None or target.road is not RoadName.LIBP2P or target.ip is None or target.is_wildcard:
        return None
    return target.ip, target.port


def _plain_ip(text: str) -> Ip | None:
    """An IP address in its shortest form, without a zone, and no IPv4 address in IPv6's clothes."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if str(ip) != text or "%" in text or (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None):
        return None
    return ip


def ip_of(host: str) -> Ip | None:
    """The IP address of a socket's peer: without a zone, and IPv4 where it is IPv4 in IPv6's clothes."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
