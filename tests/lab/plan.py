"""A network on paper: parts of the internet, routers that translate addresses, and hosts. `network.py` builds it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeVar

_MAX_NAME: Final = 15
"""Names are those of devices too."""


class Nat(Enum):
    """How a router chooses the port under which a connection from inside is seen outside. The value is nft's."""

    PRESERVING = "masquerade"
    """The port that the host uses, where it is free: what hole punching counts on."""
    SYMMETRIC = "masquerade random,fully-random"
    """Another one for every connection: nobody can tell it beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the internet. Segments are routed to one another, until they are cut apart."""

    name: str
    network: str

    @property
    def gateway(self) -> str:
        """The internet's own address in it."""
        return first_address(self.network)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """What stands between a household's hosts and the internet. It drops whatever was not asked for from inside."""

    name: str
    segment: str
    address: str
    """Its public address, the only one that others see."""
    lan: str = "192.168.1.0/24"
    nat: Nat = Nat.PRESERVING
    forwards: tuple[tuple[int, str], ...] = ()
    """Public TCP ports that are passed on: (port, name of a host inside), to the same port there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine, in a segment (with a public address) or behind a router."""

    name: str
    at: str
    """The segment or the router."""
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole network."""

    segments: tuple[Segment, ...]
    routers: tuple[Router, ...] = ()
    hosts: tuple[Host, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for what could not be built."""
        names = [segment.name for segment in self.segments] + self.names
        for name in names:
            if len(name) > _MAX_NAME or names.count(name) > 1:
                raise ValueError(f"{name!r}: a name is its own, and has at most {_MAX_NAME} characters")
        for place, address in [(r.segment, r.address) for r in self.routers] + [(h.at, h.address) for h in self.hosts]:
            if ipaddress.ip_address(address) not in ipaddress.ip_network(self.network_of(place)):
                raise ValueError(f"{address} is no address of {place}, {self.network_of(place)}")

    @property
    def names(self) -> list[str]:
        """Of all routers and hosts."""
        return [router.name for router in self.routers] + [host.name for host in self.hosts]

    def host(self, name: str) -> Host:
        """The host of that name."""
        return _named(self.hosts, name)

    def router(self, name: str) -> Router:
        """The router of that name."""
        return _named(self.routers, name)

    def network_of(self, place: str) -> str:
        """The addresses of a segment, or behind a router."""
        for segment in self.segments:
            if segment.name == place:
                return segment.network
        return self.router(place).lan

    def only(self, *hosts: str) -> Plan:
        """These hosts alone, with the routers they are behind."""
        kept = tuple(self.host(name) for name in hosts)
        used = {host.at for host in kept}
        return replace(self, hosts=kept, routers=tuple(one for one in self.routers if one.name in used))

    def with_router(self, name: str, **changes: object) -> Plan:
        """With other properties of a router."""
        changed = replace(self.router(name), **changes)  # type: ignore[arg-type]
        return replace(self, routers=tuple(changed if one.name == name else one for one in self.routers))


def first_address(network: str) -> str:
    """A network's first address, which the router or the internet itself has there."""
    return str(next(ipaddress.ip_network(network).hosts()))


T = TypeVar("T", Host, Router)


def _named(all_of_them: Iterable[T], name: str) -> T:
    found = [one for one in all_of_them if one.name == name]
    if not found:
        raise ValueError(f"{name!r} is not in the plan")
    return found[0]


STANDARD: Final = Plan(
    segments=(
        # Prefixes that the IANA keeps for special services (AMT and AS112). Those for documentation would be no global
        # addresses to Python, and our code tells private places from public ones.
        Segment(name="east", network="192.52.193.0/24"),
        Segment(name="west", network="192.175.48.0/24"),
    ),
    routers=(
        Router(name="vilnius-nat", segment="east", address="192.52.193.41"),
        Router(name="torino-nat", segment="west", address="192.175.48.42"),
        Router(name="home-nat", segment="east", address="192.52.193.51"),
        Router(name="flat-nat", segment="west", address="192.175.48.52"),
    ),
    hosts=(
        Host(name="hub", at="east", address="192.52.193.10"),
        Host(name="hub-west", at="west", address="192.175.48.10"),
        Host(name="shop", at="east", address="192.52.193.30"),
        Host(name="shop-west", at="west", address="192.175.48.30"),
        # The same private address four times, as it is in households: whoever dials it meets somebody else, or himself.
        Host(name="vilnius", at="vilnius-nat", address="192.168.1.10"),
        Host(name="torino", at="torino-nat", address="192.168.1.10"),
        Host(name="home", at="home-nat", address="192.168.1.10"),
        Host(name="flat", at="flat-nat", address="192.168.1.10"),
    ),
)
"""Two parts of the internet, each with a public host for bootstrap (and relay), a public operator, an operator and a
client behind address translation."""
