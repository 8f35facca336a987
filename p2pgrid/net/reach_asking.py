"""On the trio side: have several peers dial us back, and make one verdict of it. `Network.reachability` is its face."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio
from libp2p.host.basic_host import BasicHost

from p2pgrid.clock import unix_ms
from p2pgrid.errors import P2pgridError, Refused
from p2pgrid.net.kad_query import Contact
from p2pgrid.net.reach_dial import remote_of
from p2pgrid.net.reach_exchange import Asked, ask_reach
from p2pgrid.net.reach_rules import is_local, prefix_of
from p2pgrid.net.reach_wire import Ip, ReachRequest, ip_of
from p2pgrid.net.reachability import PeerView, Reachability, addresses_to_ask, judge

logger = logging.getLogger(__name__)

ANSWERS: Final = 3
"""How many peers' answers make a verdict."""
MAX_ASKED: Final = 12
ASK_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


def in_turn(candidates: Sequence[tuple[T, Ip | None]], rng: random.Random) -> list[T]:
    """In what order to ask: those on the internet before those of the local network, and no IP prefix twice before
    every other one had its turn. Within that, by chance."""
    shuffled = rng.sample(list(candidates), len(candidates))
    met: dict[str, int] = {}

    def rank(candidate: tuple[T, Ip | None]) -> tuple[bool, int]:
        ip = candidate[1]
        prefix = prefix_of(ip) if ip is not None else ""
        met[prefix] = met.get(prefix, -1) + 1
        return ip is None or is_local(ip), met[prefix]

    ranked = [(rank(candidate), candidate[0]) for candidate in shuffled]
    return [name for _, name in sorted(ranked, key=lambda one: one[0])]


async def reachability(
    host: BasicHost,
    servers: Sequence[Contact],
    announced: Sequence[str],
    *,
    timeout_s: float,
    now_ms: Callable[[], int] = unix_ms,
    rng: random.Random | None = None,
) -> Reachability:
    """Have up to three of `servers` dial the addresses back, and judge.

    After `timeout_s`, the verdict by what was heard by then.
    """
    asked = addresses_to_ask(announced)
    request = ReachRequest(addresses=tuple(asked))
    ordered = in_turn([(one, _ip_of(host, one)) for one in servers], rng or random.SystemRandom())
    waiting = iter(ordered[:MAX_ASKED])
    heard: list[Asked] = []
    n_asked = silent = under_way = 0
    freed = trio.Event()

    async def ask(one: Contact) -> None:
        nonlocal silent, under_way, freed
        try:
            heard.append(await ask_reach(host, one, request, ASK_TIMEOUT_S, now_ms))
        except Refused as refusal:
            silent += refusal.code == "no-reach"
            logger.debug("%s", refusal)
        except P2pgridError as error:
            logger.debug("%s", error)
        finally:
            under_way -= 1
            freed.set()

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            while len(heard) < ANSWERS:
                while under_way + len(heard) < ANSWERS and (one := next(waiting, None)) is not None:
                    n_asked += 1
                    under_way += 1
                    nursery.start_soon(ask, one)
                if not under_way:
                    break
                await freed.wait()
                freed = trio.Event()
    views = [
        PeerView(ip=a.ip, seen=a.seen, outcomes=a.answer.outcomes, clock_ms=a.clock_ms, newer=a.newer) for a in heard
    ]
    return judge(asked, announced, views, n_asked=n_asked, silent=silent, now_ms=now_ms())


def _ip_of(host: BasicHost, contact: Contact) -> Ip | None:
    """Where a peer is: by the connection to it, else by its first address that is an IP address."""
    for connection in host.get_network().get_connections(contact.peer_id):
        remote = remote_of(connection.muxed_conn)
        if remote is not None:
            return remote[0]
    for address in contact.addresses:
        text = str(address).split("/")
        if len(text) > 2 and text[1] in ("ip4", "ip6"):
            return ip_of(text[2])
    return None
