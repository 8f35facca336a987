"""Multiaddrs in and out: strict for what a person wrote, sparing with what a peer sent.

A multiaddr that this grid uses is `/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>`, with `/p2p/<peer id>` behind it where
the peer is named (https://github.com/multiformats/multiaddr). A peer that is reached through a relay has a *circuit
address*: the relay's, with its name, and `/p2p-circuit` behind it. Anything else, a relay of a relay above all, is
dropped when a peer sent it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from multiaddr import Multiaddr

from p2pgrid.errors import InvalidRecord, UsageError
from p2pgrid.proto.keys import parse_peer_id

MAX_ADDRESSES_PER_PEER: Final = 8
MAX_ADDRESS_BYTES: Final = 160
MAX_ADDRESS_CHARS: Final = 256
"""As text, which is longer: an offer holds no longer ones."""
_MAX_TEXT_CHARS: Final = 512
"""A DNS name has at most 253, a peer id 52."""
_MAX_ADDRESSES_EXAMINED: Final = 32
_MAX_ADDRESSES_PARSED: Final = 12
"""Of those that begin like an address of ours: multiaddr takes a tenth of a millisecond for each."""
_HOSTS: Final = ("ip4", "ip6", "dns", "dns4", "dns6")
_HOST_BYTES: Final = {b"\x04": 4, b"\x29": 16}
_DNS: Final = (b"\x35", b"\x36", b"\x37")
_TCP: Final = b"\x06"
_P2P: Final = b"\xa5\x03"
_CIRCUIT: Final = b"\xa2\x02"
"""Codes of the multiformats table, as they stand in an address."""
_NAME_BYTES: Final = 41
"""Of a `/p2p/` part with an Ed25519 peer id: code, length, 38 bytes of the id."""
_CIRCUIT_END: Final = ("tcp", "p2p", "p2p-circuit")
_EXAMPLE: Final = "/ip4/192.0.2.7/tcp/4001"


def parse_listen_address(text: str) -> Multiaddr:
    """`/ip4|ip6/<address>/tcp/<port>`, port 0 for any free one. Raises UsageError."""
    address = _parse(text, f"Write it like {_EXAMPLE}, with port 0 for any free port.")
    if _shape(address) not in (("ip4", "tcp"), ("ip6", "tcp")):
        raise UsageError(f"{text!r} is no address to listen on.", hint=f"Write it like {_EXAMPLE}.")
    return address


def parse_announce_address(text: str) -> Multiaddr:
    """An address to tell others, by IP or by DNS name. A `/p2p/` part is allowed and ignored. Raises UsageError."""
    address = _parse(text, f"Write it like {_EXAMPLE} or /dns4/example.org/tcp/4001.")
    bare = without_peer_id(address)
    if not _is_dialable(bare):
        raise UsageError(f"{text!r} is no address that others could dial.", hint=f"Write it like {_EXAMPLE}.")
    return bare


def parse_peer_multiaddr(text: str) -> tuple[str, Multiaddr]:
    """`<address>/p2p/<peer id>` as (peer id, address without it). Raises UsageError."""
    hint = f"Write it like {_EXAMPLE}/p2p/12D3KooW..."
    address = _parse(text, hint)
    if _shape(address)[-1:] != ("p2p",) or not _is_dialable(without_peer_id(address)):
        raise UsageError(f"{text!r} does not say both where a peer is and who it is.", hint=hint)
    peer_id = str(address.value_for_protocol("p2p"))
    try:
        parse_peer_id(peer_id)
    except InvalidRecord as error:
        raise UsageError(f"{text!r} names no usable peer: {error}", hint=hint) from error
    return peer_id, without_peer_id(address)


def usable_addresses(
    untrusted: Iterable[bytes | str],
    peer_id: str,
    limit: int = MAX_ADDRESSES_PER_PEER,
    *,
    circuits: bool = False,
) -> list[Multiaddr]:
    """The first `limit` addresses worth dialling for `peer_id`, each once, without their last `/p2p/` part.

    `circuits`: whether to take circuit addresses too. Dropped: what is too long, malformed, of another shape, names
    another peer, or leads nowhere (port 0, multicast, the unspecified address, the peer as its own relay). At most 32
    are looked at, and 12 of a shape that fits are parsed.
    """
    found: dict[str, Multiaddr] = {}
    fitting = dict.fromkeys(raw for raw in islice(untrusted, _MAX_ADDRESSES_EXAMINED) if _may_be_ours(raw, circuits))
    for raw in islice(fitting, _MAX_ADDRESSES_PARSED):
        if len(found) >= limit:
            break
        try:
            address = Multiaddr(raw)
            bare = without_peer_id(address)
            if bare is not address and str(address) != full_multiaddr(bare, peer_id):
                continue
            circuit = split_circuit(bare) if circuits else None
            if _is_dialable(bare) if circuit is None else circuit.relay != peer_id:
                found.setdefault(str(bare), bare)
        except Exception:  # noqa: BLE001, S112 (multiaddr's parsers raise anything; a peer's bad address is no event)
            continue
    return list(found.values())


def fitting_addresses(untrusted: Iterable[bytes], *, circuits: bool = False) -> tuple[bytes, ...]:
    """The first few binary addresses that begin like one worth dialling, each once. Cheap: none is parsed."""
    examined = islice(untrusted, _MAX_ADDRESSES_EXAMINED)
    fitting = dict.fromkeys(raw for raw in examined if _may_be_ours(raw, circuits))
    return tuple(islice(fitting, MAX_ADDRESSES_PER_PEER))


def host_of(address: bytes) -> str:
    """The IP address or DNS name at the beginning of a binary address; empty if there is none."""
    size = _HOST_BYTES.get(address[:1])
    if size is not None and len(address) > size:
        return str(ipaddress.ip_address(address[1 : 1 + size]))
    if address[:1] in _DNS and len(address) > 1:
        return address[2 : 2 + address[1]].decode("ascii", "replace")
    return ""


def leads_over_relay(address: bytes) -> bool:
    """True for a binary address `<host>/tcp/<port>/p2p/<relay>/p2p-circuit`, with or without a name behind it."""
    size = _HOST_BYTES.get(address[:1], address[1] + 1 if address[:1] in _DNS and len(address) > 1 else 0)
    behind = address[1 + size + 3 :]
    return behind[:2] == _P2P and behind[_NAME_BYTES : _NAME_BYTES + 2] == _CIRCUIT


@dataclass(frozen=True, slots=True)
class Circuit:
    """The first part of a circuit address: whom to ask for the way to a peer, and where."""

    relay: str
    """The relay's peer id."""
    at: Multiaddr
    """Where the relay is dialled, without its name."""

    @property
    def address(self) -> Multiaddr:
        """`<at>/p2p/<relay>/p2p-circuit`."""
        return Multiaddr(f"{full_multiaddr(self.at, self.relay)}/p2p-circuit")


def split_circuit(address: Multiaddr) -> Circuit | None:
    """The parts of `<host>/tcp/<port>/p2p/<relay>/p2p-circuit`; None for any other address, and one nobody can dial."""
    shape = _shape(address)
    if shape[1:] != _CIRCUIT_END or shape[0] not in _HOSTS:
        return None
    at, _, relay = str(address).removesuffix("/p2p-circuit").rpartition("/p2p/")
    try:
        parse_peer_id(relay)
    except InvalidRecord:
        return None
    bare = Multiaddr(at)
    return Circuit(relay, bare) if _is_dialable(bare) else None


def is_circuit(address: Multiaddr) -> bool:
    """True for an address that leads through a relay, whether or not it is one of the shape used here."""
    return "p2p-circuit" in _shape(address)


def full_multiaddr(address: Multiaddr, peer_id: str) -> str:
    """`address` with `/p2p/<peer id>` behind it."""
    return f"{without_peer_id(address)}/p2p/{peer_id}"


def without_peer_id(address: Multiaddr) -> Multiaddr:
    """`address` without a last `/p2p/...` part."""
    if _shape(address)[-1:] != ("p2p",):
        return address
    return Multiaddr(str(address).rsplit("/p2p/", 1)[0] or "/")


def announced(bound: Sequence[Multiaddr]) -> list[Multiaddr]:
    """What to tell others for the addresses bound: wildcards become this machine's own addresses."""
    out: dict[str, Multiaddr] = {}
    for address in bound:
        family, _ = _shape(address)[:2]
        host, port = str(address.value_for_protocol(family)), address.value_for_protocol("tcp")
        hosts = _own_hosts(family) if ipaddress.ip_address(host).is_unspecified else [host]
        for each in hosts:
            text = f"/{family}/{each}/tcp/{port}"
            out.setdefault(text, Multiaddr(text))
    return list(out.values())


def told_addresses(own: Sequence[Multiaddr], circuits: Sequence[Multiaddr]) -> list[Multiaddr]:
    """What to tell others: one's own addresses, and behind them those through relays.

    Where there are relays, others are elsewhere: loopback addresses are left out then.
    """
    outward = [address for address in own if not circuits or not is_loopback(address)]
    return [*outward, *circuits]


def is_public(address: Multiaddr) -> bool:
    """True for an address that anybody on the internet could dial, as far as it can be seen: by DNS name, too."""
    ip = _ip_of(address)
    return ip is None or ip.is_global


def is_loopback(address: Multiaddr) -> bool:
    """True for an address that leads to the machine itself."""
    ip = _ip_of(address)
    return ip is not None and ip.is_loopback


def _ip_of(address: Multiaddr) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    family = _shape(address)[0]
    return ipaddress.ip_address(str(address.value_for_protocol(family))) if family in ("ip4", "ip6") else None


def _own_hosts(family: str) -> list[str]:
    """The address that this machine would use towards the internet, if any, and loopback. Nothing is sent."""
    ip6 = family == "ip6"
    hosts = []
    with socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if ip6 else "192.0.2.1", 9))  # documentation prefixes (RFC 3849, RFC 5737)
            hosts.append(str(probe.getsockname()[0]))
        except OSError:
            pass  # no route: a machine without a network still talks to itself
    return [*hosts, "::1" if ip6 else "127.0.0.1"]


def _may_be_ours(raw: bytes | str, circuits: bool) -> bool:
    """False for what is too long or surely not `<host>/tcp/<port>`, with or without a peer behind it."""
    if isinstance(raw, str):
        if len(raw) > MAX_ADDRESS_CHARS:
            return False
        parts = raw.split("/", 10)
        lengths = (5, 7, 8, 10) if circuits and "p2p-circuit" in parts else (5, 7)
        return len(parts) in lengths and parts[0] == "" and parts[1] in _HOSTS and parts[3] == "tcp"
    if len(raw) > MAX_ADDRESS_BYTES:
        return False
    if raw[:1] in _HOST_BYTES:
        end = 1 + _HOST_BYTES[raw[:1]]
    elif raw[:1] in _DNS and len(raw) > 1:
        end = 2 + raw[1]  # a name so long that its length takes two bytes makes an address that is too long
    else:
        return False
    if raw[end : end + 1] != _TCP:
        return False
    behind = raw[end + 3 :]
    if circuits and behind[_NAME_BYTES : _NAME_BYTES + 2] == _CIRCUIT:
        behind = behind[_NAME_BYTES + 2 :]
    return behind[:2] in (b"", _P2P)


def _parse(text: str, hint: str) -> Multiaddr:
    if len(text) > _MAX_TEXT_CHARS:
        raise UsageError(f"{text[:80]!r}... has {len(text)} characters: too long for an address.", hint=hint)
    try:
        return Multiaddr(text)
    except Exception as error:
        raise UsageError(f"{text!r} is no multiaddr.", hint=hint) from error


def _shape(address: Multiaddr) -> tuple[str, ...]:
    return tuple(protocol.name for protocol in address.protocols())


def _is_dialable(address: Multiaddr) -> bool:
    shape = _shape(address)
    if len(shape) != 2 or shape[0] not in _HOSTS or shape[1] != "tcp":
        return False
    host = str(address.value_for_protocol(shape[0]))
    if int(address.value_for_protocol("tcp")) == 0:
        return False
    if shape[0] in ("ip4", "ip6"):
        ip = ipaddress.ip_address(host)
        return not (ip.is_unspecified or ip.is_multicast)
    return 0 < len(host) <= 253
