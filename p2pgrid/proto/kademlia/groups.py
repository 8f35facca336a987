"""IP prefixes: an attacker has many keys and few networks, so peers are also counted by where they are.

The prefix is a /24 of IPv4 and a /48 of IPv6: what one customer of a provider easily gets. Loopback, private and other
addresses that are not public do not count, so that a grid on one machine, or in one building, is not held up.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final

MAX_GROUPS: Final = 3
_PREFIX_BITS: Final = {4: 24, 6: 48}


@functools.lru_cache(4096)
def group_of(host: str) -> str:
    """The prefix of an IP address, the last two labels of a DNS name; empty for an address that is not public."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return ".".join(host.lower().rstrip(".").rsplit(".", 2)[-2:])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    ip = mapped or ip
    if not ip.is_global:
        return ""
    return str(ipaddress.ip_network((ip, _PREFIX_BITS[ip.version]), strict=False))


def is_public(host: str) -> bool:
    """True for an IP address of the internet, and for a DNS name."""
    return group_of(host) != ""


def groups_of(hosts: Iterable[str]) -> tuple[str, ...]:
    """The first three prefixes of these hosts, each once."""
    return tuple(dict.fromkeys(group for group in map(group_of, hosts) if group))[:MAX_GROUPS]
