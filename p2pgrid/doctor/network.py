"""The network as a stranger meets it: who introduces, whether this node is found, reached, and on time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.config import Config, NetworkEntry, parse_host_port
from p2pgrid.doctor.check import Check, fault, ok, skipped, warning
from p2pgrid.doctor.folder import Role
from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net import lookup_keys
from p2pgrid.net.direct import listen
from p2pgrid.net.network import Network
from p2pgrid.net.peer_address import BootstrapState
from p2pgrid.net.reach_text import BOOTSTRAP_SETTINGS, PROVIDER_SETTINGS, advice, listens_at, verdict_text
from p2pgrid.net.reach_wire import RoadName
from p2pgrid.net.reachability import Reach, Reachability
from p2pgrid.net.stream import Stream, StreamHandler
from p2pgrid.networks.entries import knows_keys, own_networks
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.keys import SecretKey
from p2pgrid.provider.addresses import direct_multiaddr, offered_addresses

logger = logging.getLogger(__name__)

CLOCK_WARNING_MS: Final = 10_000
BOOTSTRAP_TIMEOUT_S: Final = 4.0
LOOK_UP_TIMEOUT_S: Final = 5.0
REACH_TIMEOUT_S: Final = 8.0
_TIME_FIX: Final = "Set the clock by NTP: timedatectl set-ntp true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether strangers reach the node, however that was learnt."""

    reach: Reach
    text: str
    advice: tuple[str, ...]
    roads: dict[str, str]
    """How far each road that the node has is reached from."""
    outside: int
    """Peers outside of the local network that answered."""
    clock_ms: int | None
    answered: int
    asked: int
    silent: int
    newer: tuple[str, ...]


def verdict_of(found: Reachability, lines: Sequence[str]) -> Verdict:
    """From what was asked here."""
    return Verdict(
        reach=found.reach,
        text=verdict_text(found),
        advice=tuple(lines),
        roads=found.roads(),
        outside=found.answered_outside,
        clock_ms=found.clock_ms,
        answered=found.answered,
        asked=found.asked,
        silent=found.silent,
        newer=found.newer,
    )


def verdict_of_node(shown: dict[str, Any]) -> Verdict:
    """From what the running node says (`reachability` in `/health`)."""
    return Verdict(
        reach=Reach(shown["reach"]),
        text=shown["text"],
        advice=tuple(shown["advice"]),
        roads=shown["roads"],
        outside=shown["peers_outside"],
        clock_ms=shown["clock_ms"],
        answered=shown["peers_answered"],
        asked=shown["peers_asked"],
        silent=shown["peers_silent"],
        newer=tuple(shown["newer"]),
    )


def judge_reach(verdict: Verdict | None, *, is_relayed: bool = False) -> Check:
    """`is_relayed`: the node offers an address at a relay, so clients reach it all the same."""
    name = "reachability"
    if verdict is None or verdict.reach is Reach.UNKNOWN:
        return skipped(name, "no other peer of the network could be asked to dial this node back.")
    text = f"{verdict.text}."
    if set(verdict.roads.values()) == {Reach.OUTSIDE.value}:
        return ok(name, text)
    fix = "\n".join(verdict.advice)
    # Without libp2p clients do not find the node, whatever they could buy from it.
    if verdict.reach is Reach.OUTSIDE and verdict.roads.get(RoadName.LIBP2P, Reach.OUTSIDE) == Reach.OUTSIDE:
        return warning(name, text, fix or "See which road is not reached, and open its port.")
    if verdict.reach is Reach.LOCAL and not verdict.outside:
        return warning(
            name,
            text,
            "On a grid of this network alone, nothing. Else join through a bootstrap peer on the internet: --bootstrap",
        )
    if is_relayed:
        return warning(name, f"{text} Clients reach it through a relay, which is slower.", fix or "Open its ports.")
    return fault(name, text, fix or "Open the node's ports in the firewall: `p2pgrid serve` prints them.")


def judge_clock(verdicts: Sequence[Verdict | None]) -> Check:
    """By whoever answered."""
    name = "clock"
    known = next((one for one in verdicts if one is not None and one.clock_ms is not None), None)
    if known is None or known.clock_ms is None:
        return skipped(name, "no peer has said what time it is.")
    apart_s, peers = abs(known.clock_ms) / 1000, "one peer" if known.answered == 1 else f"{known.answered} peers"
    if apart_s * 1000 <= CLOCK_WARNING_MS:
        return ok(name, f"within {max(apart_s, 0.1):.1f} s of {peers}.")
    text = f"this clock is {apart_s:.0f} s {'behind' if known.clock_ms > 0 else 'ahead of'} that of {peers}"
    if apart_s * 1000 > CLOCK_TOLERANCE_MS:
        return fault(name, f"{text}; peers deal with nobody who is over {CLOCK_TOLERANCE_MS // 1000} s off.", _TIME_FIX)
    return warning(name, f"{text}.", _TIME_FIX)


def judge_bootstrap(
    states: Sequence[BootstrapState], role: Role, known: int = 0, *, network: str | None = None
) -> list[Check]:
    """Who introduces to a network? `known`: peers of it that the running node knows, however it met them.

    `network`: its name, where the node is in several.
    """
    name = "bootstrap" if network is None else f"bootstrap {network}"
    if not states and known:
        return [
            warning(
                name,
                f"no bootstrap peer is known; {known} peers have found this node by themselves.",
                "Give one, so that the node finds the network again after a restart: --bootstrap",
            )
        ]
    if not states:
        if role is Role.BOOTSTRAP:
            return [ok(name, "no other introducing peer is known: this one is where the network begins.")]
        return [
            fault(
                name,
                "no bootstrap peer is known, so this node finds nobody.",
                "Give one with --bootstrap /ip4/.../tcp/.../p2p/12D3KooW..., or set bootstrap-peers in config.toml.",
            )
        ]
    down = [one for one in states if one.fault]
    if not down:
        return [ok(name, "the one that is known answers." if len(states) == 1 else f"all {len(states)} answer.")]
    said = "; ".join(f"{one.addresses[0] if one.addresses else ''}/p2p/{one.peer_id}: {one.fault}" for one in down[:4])
    text = f"{len(down)} of {len(states)} do not introduce: {said}."
    fix = "See that this machine is online and may dial out; else take them off the list, or give others: --bootstrap"
    if len(down) == len(states) and role is not Role.BOOTSTRAP:
        return [fault(name, text, fix)]
    return [warning(name, text, fix)]


def judge_table(size: int, role: Role, has_bootstrap: bool) -> Check:
    """Whom do we know who answers look-ups?"""
    name = "routing table"
    if size:
        return ok(name, f"{size} peer{'s' if size > 1 else ''} met that answer{'' if size > 1 else 's'} look-ups.")
    if not has_bootstrap:
        return skipped(name, "there is nobody to join through.")
    if role is Role.BOOTSTRAP:
        return ok(name, "nobody else is there yet.")
    return fault(name, "no peer answers look-ups.", "See the bootstrap peers above; without one nobody is found.")


def judge_found(is_found: bool | None) -> Check:
    """Does a stranger who looks for providers find this one? None: that could not be looked up."""
    name = "look-up"
    if is_found is None:
        return skipped(name, "nobody could be asked who sells.")
    if is_found:
        return ok(name, "a stranger who looks for providers finds this node.")
    return warning(
        name,
        "a stranger who looks for providers does not find this node.",
        "If it has just started, try again in a minute; else see its log for what it advertises.",
    )


@asynccontextmanager
async def stranger(networks: Sequence[NetworkEntry], own: SecretKey | None, runs: bool) -> AsyncIterator[Network]:
    """A place in the networks, which nobody can dial. Raises P2pgridError.

    Under a key for this once; under the node's own, if one of them knows its members by their keys and it does not run.
    """
    key = own if own is not None and not runs and any(map(knows_keys, networks)) else None
    key = key or SecretKey(secrets.token_bytes(32))
    async with Network(key, own_networks(networks, key.public_key)) as network:
        yield network


async def is_found(network: Network, peer_id: str) -> bool | None:
    """Whether a look-up of all providers finds the peer; None if nobody could be asked."""
    try:
        found = await network.find_providers(lookup_keys.PROVIDER, limit=10_000, timeout_s=LOOK_UP_TIMEOUT_S)
    except P2pgridError as error:
        logger.debug("%s", error)
        return None
    return any(one.peer_id == peer_id for one in found)


async def probe_as_node(key: SecretKey, config: Config, role: Role, networks: Sequence[NetworkEntry]) -> Verdict:
    """Where no node runs: listen at its ports for a moment, and have peers dial them. Raises P2pgridError."""
    provider, direct, bound = config.provider, tuple[str, ...](), list[str]()
    is_provider = role is Role.PROVIDER
    async with AsyncExitStack() as stack:
        if is_provider and provider.listen:
            listener = await listen(*parse_host_port(provider.listen), key, on_stream=_nobody_yet)
            stack.push_async_callback(listener.aclose, drain_s=0)
            direct = offered_addresses(listener.addresses, provider.announce)
            bound += [direct_multiaddr(*one) for one in listener.addresses]
        network = Network(
            key,
            own_networks(networks, key.public_key),
            listen=provider.libp2p_listen if is_provider else config.bootstrap.libp2p_listen,
            announce=provider.libp2p_announce if is_provider else (),
        )
        await stack.enter_async_context(network)
        found = await network.reachability(direct, timeout_s=REACH_TIMEOUT_S)
        settings = PROVIDER_SETTINGS if is_provider else BOOTSTRAP_SETTINGS
        return verdict_of(found, advice(found, listens_at([*bound, *network.listening]), settings=settings))


async def ask_the_time(network: Network) -> Verdict:
    """What peers say that answer at all: of their clocks, and of what they speak. Raises P2pgridError."""
    return verdict_of(await network.reachability(timeout_s=REACH_TIMEOUT_S), ())


def _nobody_yet(_: Stream) -> StreamHandler:
    raise Refused("withdrawn", "this node is being looked at, and does not sell now.")
