"""Where two peers meet to punch a hole, and what of it may be tried. No I/O, and no libp2p."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

MAX_PLACES: Final = 4

Place = tuple[str, int]
"""IP address and port."""


class PunchPlan(msgspec.Struct, frozen=True):
    """What both sides do at the same moment: open connections between these ports."""

    local: Place
    """Bind there: the port whose mapping the other side was told."""
    remote: tuple[Place, ...]
    """Connect there."""


def own_places(local: Place, observed: Place) -> list[Place]:
    """Where the other side may reach us: as a relay sees us, by our own port there (most NATs keep ports), and locally.

    The last is for a peer behind the same NAT, and for one without any.
    """
    return list(dict.fromkeys([observed, (observed[0], local[1]), local]))


def punchable(told: Iterable[Place], local: Place, observed: Place) -> tuple[Place, ...]:
    """Those of a peer's places that are tried, at most four, each once.

    A place in a private network is tried by a peer that has an address there itself or shares its NAT: nobody is led
    to connect to what is inside somebody else's network.
    """
    told = list(dict.fromkeys(told))
    ours = ipaddress.ip_address(observed[0])
    # Who shares our NAT is seen by the relay under our own address.
    is_near = any(_ip(place) == ours for place in told) or not ours.is_global
    own = ipaddress.ip_address(local[0])
    found = []
    for place in told:
        ip = _ip(place)
        if ip is None or ip.version != own.version or not 0 < place[1] < 65536 or place == local:
            continue
        if ip.is_unspecified or ip.is_multicast or ip.is_link_local or ip.is_loopback is not own.is_loopback:
            continue
        if ip.is_global or is_near:
            found.append(place)
    return tuple(found[:MAX_PLACES])


def _ip(place: Place) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(place[0])
    except ValueError:
        return None
