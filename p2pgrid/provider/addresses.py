"""Where clients reach the node, as the offer says it.

`/ip4/<address>/tcp/<port>/tls` and its kin on the direct road, `/ip4/<address>/tcp/<port>/p2p/<peer id>` over libp2p,
and `<a relay's address and name>/p2p-circuit/p2p/<peer id>` through a relay.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from p2pgrid.config import parse_host_port
from p2pgrid.errors import UsageError

MAX_OFFERED: Final = 8
"""Of either road: an offer holds 16."""
_LOOPBACK: Final = ("/ip4/127.", "/ip6/::1/")
_CIRCUIT: Final = "/p2p-circuit/"


def offered_addresses(bound: Sequence[tuple[str, int]], announce: Sequence[str]) -> tuple[str, ...]:
    """What the offer names: what the operator announces, else the addresses listened on.

    An unspecified address (0.0.0.0, ::) stands for the one this machine would use towards the internet; without one,
    for loopback. Raises UsageError for an announced address that nobody could dial.
    """
    if announce:
        return tuple(dict.fromkeys(_announced(text) for text in announce))
    return tuple(dict.fromkeys(direct_multiaddr(_outward(host), port) for host, port in bound))


def offered_libp2p_addresses(announced: Sequence[str]) -> tuple[str, ...]:
    """What the offer names of the libp2p host's addresses: all but loopback, or that where there is nothing else.

    At most `MAX_OFFERED`, the ways through relays among them.
    """
    outward = tuple(text for text in announced if not text.startswith(_LOOPBACK) or _CIRCUIT in text)
    offered = outward or tuple(announced)
    circuits = [text for text in offered if _CIRCUIT in text][:MAX_OFFERED]
    others = [text for text in offered if _CIRCUIT not in text]
    return (*others[: MAX_OFFERED - len(circuits)], *circuits)


def direct_multiaddr(host: str, port: int) -> str:
    """The multiaddr of the direct road at an IP address or a DNS name."""
    try:
        family = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        family = "dns"
    return f"/{family}/{host}/tcp/{port}/tls"


def _announced(text: str) -> str:
    host, port = parse_host_port(text)
    if port == 0 or host in ("0.0.0.0", "::") or "/" in host:  # noqa: S104 - compared, not listened on
        raise UsageError(f"nobody can dial {text!r}.", hint="Announce a host and port under which others reach you.")
    return direct_multiaddr(host, port)


def _outward(host: str) -> str:
    """The address itself, or for an unspecified one, this machine's own. Nothing is sent to find it."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    family, target, loopback = (
        (socket.AF_INET, "192.0.2.1", "127.0.0.1") if address.version == 4 else (socket.AF_INET6, "2001:db8::1", "::1")
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))  # a documentation prefix (RFC 5737, RFC 3849)
            return str(probe.getsockname()[0])
        except OSError:
            return loopback
