"""What a peer that is asked to dial back allows itself (docs/spec/reachability.md, section 3). No I/O here.

It must not become a tool: it dials the asker's own IP address and no other, little, and seldom.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from p2pgrid.net.reach_wire import Ip, RoadName, Target

_LOCAL: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",  # RFC 1918
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",  # RFC 6598: behind a carrier's translation
            "127.0.0.0/8",
            "169.254.0.0/16",  # RFC 3927
            "::1/128",
            "fc00::/7",  # RFC 4193
            "fe80::/10",
        ),
    )
)


def is_local(ip: Ip) -> bool:
    """True for an address that means something on the local network or machine alone."""
    return any(ip in network for network in _LOCAL if network.version == ip.version)


def prefix_of(ip: Ip) -> str:
    """What peers are told apart by: an IPv4 address's /16, an IPv6 address's /32."""
    return str(ipaddress.ip_network((ip, 16 if ip.version == 4 else 32), strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLimits:
    """How much is dialled back for others."""

    per_peer: int = 6
    per_ip: int = 20
    """An IPv6 address counts by its /64."""
    in_all: int = 300
    window_s: float = 600.0
    """The time within which these three hold."""
    at_once: int = 8
    """Requests under way."""
    dials: int = 4
    """Of one request."""
    dial_timeout_s: float = 4.0
    """For one dial, its handshake included."""


class Allowance:
    """Counts probes within a window of time, by peer and by IP address, and in all."""

    def __init__(self, limits: ProbeLimits) -> None:
        self._limits = limits
        self._taken: deque[tuple[float, str, str]] = deque()
        self._by_peer: Counter[str] = Counter()
        self._by_ip: Counter[str] = Counter()

    def take(self, peer: str, ip: str, now_s: float) -> bool:
        """True if another may be done now for this peer at this IP address; it is counted then."""
        limits = self._limits
        while self._taken and self._taken[0][0] <= now_s - limits.window_s:
            _, old_peer, old_ip = self._taken.popleft()
            _uncount(self._by_peer, old_peer)
            _uncount(self._by_ip, old_ip)
        if (
            len(self._taken) >= limits.in_all
            or self._by_peer[peer] >= limits.per_peer
            or self._by_ip[ip] >= limits.per_ip
        ):
            return False
        self._taken.append((now_s, peer, ip))
        self._by_peer[peer] += 1
        self._by_ip[ip] += 1
        return True


def _uncount(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


Dial = tuple[RoadName, int]
"""What is left to decide of an address that may be dialled: the IP address is the asker's own."""


def dial_of(target: Target, seen: Ip, resolved: Collection[Ip]) -> Dial | None:
    """How to dial an asker that is seen at `seen`, or None for an address that is not its own.

    `resolved`: what the target's name stands for, as this side found it.
    """
    if target.ip is None:
        is_own = seen in resolved
    else:
        is_own = target.ip == seen or (target.is_wildcard and target.ip.version == seen.version)
    return (target.road, target.port) if is_own else None


def chosen(dials: Sequence[Dial | None], most: int) -> list[Dial]:
    """The first `most` different ones."""
    return list(dict.fromkeys(one for one in dials if one is not None))[:most]
