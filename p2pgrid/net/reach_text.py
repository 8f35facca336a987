"""What a verdict on reachability means, and what to do about it, in plain words."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from p2pgrid.net.reach_wire import RoadName, parse_target
from p2pgrid.net.reachability import Reach, Reachability

_ROADS: Final = {RoadName.DIRECT: "direct road", RoadName.LIBP2P: "libp2p"}
PROVIDER_SETTINGS: Final = {
    RoadName.DIRECT: "--announce {}, or announce in config.toml",
    RoadName.LIBP2P: "--libp2p-announce {}, or libp2p-announce in config.toml",
}
"""How an operator says where others reach the node; {} stands for the address."""
BOOTSTRAP_SETTINGS: Final = {RoadName.LIBP2P: "--announce {}"}
"""The same of `p2pgrid bootstrap`."""


@dataclass(frozen=True, slots=True)
class ListensAt:
    """A port that this node has open."""

    road: RoadName
    host: str
    """The IP address listened on, which may be the unspecified one."""
    port: int


def listens_at(multiaddrs: Iterable[str]) -> list[ListensAt]:
    """The ports in bound multiaddrs, with /tls for the direct road; what is none is left out."""
    targets = [parse_target(text) for text in multiaddrs]
    return [ListensAt(t.road, t.host, t.port) for t in targets if t is not None and t.ip is not None]


def verdict_text(reachability: Reachability) -> str:
    """One sentence, without its full stop."""
    r = reachability
    if r.reach is Reach.OUTSIDE and r.of_road(RoadName.LIBP2P) not in (Reach.OUTSIDE, None):
        text = "strangers can reach this node's direct road, but not libp2p, over which they would find it"
    elif r.reach is Reach.OUTSIDE:
        text = "strangers can reach this node"
    elif any(r.unannounced(road) for road in RoadName):
        text = "strangers can reach this node, but not at the addresses that they are told"
    elif r.reach is Reach.LOCAL and not r.answered_outside:
        text = "this node is reachable from its local network; nobody outside of it could be asked"
    elif r.reach is Reach.LOCAL:
        text = "strangers cannot reach this node; peers on its local network can"
    elif r.reach is Reach.NOT and not r.answered_outside:
        text = "not even peers on its local network can reach this node"
    elif r.reach is Reach.NOT:
        text = "strangers cannot reach this node"
    else:
        return "nobody could be asked whether strangers can reach this node"
    parts = [f"{_ROADS[road]}: {_road_text(r, road)}" for road in RoadName if r.of_road(road) is not None]
    peers = "one peer" if r.answered == 1 else f"{r.answered} peers"
    return f"{text} ({'; '.join([*parts, f'{peers} answered'])})"


def _road_text(r: Reachability, road: RoadName) -> str:
    reach = r.of_road(road)
    rows = [a for a in r.addresses if a.road is road]
    disputed = ", peers disagree" if any(a.is_disputed for a in rows if a.is_announced) else ""
    if reach is Reach.OUTSIDE:
        return f"reached{disputed}"
    if r.unannounced(road) is not None:
        return f"reached at another address{disputed}"
    if reach is Reach.LOCAL:
        return f"reached from here{disputed}"
    return f"{_fault(r, road) or 'not tried'}{disputed}"


def _fault(r: Reachability, road: RoadName) -> str:
    """How most attempts on a road failed: `refused`, `timed out`, `wrong peer`; nothing where none did."""
    count: Counter[str] = Counter()
    for one in r.addresses:
        if one.road is road:
            count.update({word: n for word, n in one.outcomes.items() if word not in ("reached", "not tried")})
    return count.most_common(1)[0][0] if count else ""


def advice(
    reachability: Reachability,
    listening: Iterable[ListensAt],
    *,
    settings: Mapping[RoadName, str] | None = None,
    is_own_ip: Callable[[str], bool] | None = None,
) -> list[str]:
    """What to do so that strangers reach the node, a line for each road on which they do not; nothing if they do.

    Nothing either where nobody outside of the local network could be asked: no fault is known then.
    """
    r, settings, is_own = reachability, settings or PROVIDER_SETTINGS, is_own_ip or has_ip
    if not r.answered_outside:
        return []
    lines = []
    for one in listening:
        if r.of_road(one.road) is Reach.OUTSIDE:
            continue
        setting, found = settings[one.road], r.unannounced(one.road)
        if found is None:
            lines.append(_opening(r, one, setting, is_own))
            continue
        address = _announced_text(one.road, found)
        lines.append(
            f"{_ROADS[one.road]}: strangers reach it at {address}, which others are not told: "
            f"{setting.format(address)}."
        )
    return lines


def _opening(r: Reachability, one: ListensAt, setting: str, is_own: Callable[[str], bool]) -> str:
    """What to open, and where."""
    version = ipaddress.ip_address(one.host).version
    seen = next((ip for ip in r.seen if ipaddress.ip_address(ip).version == version), None)
    local = _local_address(one.host)
    text = f"{_ROADS[one.road]}: let TCP port {one.port} in to {local} in this machine's firewall (and your provider's)"
    if seen is not None and not is_own(seen):
        public = f"/ip{version}/{seen}/tcp/{one.port}{'/tls' if one.road is RoadName.DIRECT else ''}"
        text += (
            f"; others see this machine at {seen}, which is not its own address: have the router forward TCP port "
            f"{one.port} to {local}, and tell others: {setting.format(_announced_text(one.road, public))}"
        )
    why = {
        "refused": "What tried was refused: a firewall rejects it, or nothing listens there.",
        "timed out": "What tried heard nothing: a firewall drops it.",
        "wrong peer": "Something else answers there: check where the port is forwarded to.",
    }.get(_fault(r, one.road), "")
    return f"{text}. {why}".rstrip()


def _announced_text(road: RoadName, address: str) -> str:
    """As a person writes it in the setting: host:port for the direct road, a multiaddr for libp2p."""
    target = parse_target(address)
    if target is None or road is RoadName.LIBP2P:
        return address
    return f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"


def _local_address(host: str) -> str:
    """The address listened on; for the unspecified one, what this machine would use towards the internet."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    family, target = (socket.AF_INET, "192.0.2.1") if address.version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))  # a documentation prefix (RFC 5737, RFC 3849); nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "this machine"


def has_ip(ip: str) -> bool:
    """True if this machine has that address. Nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
