"""What a look-up costs in networks of 1,000 to 100,000 simulated peers that come and go.

`python -m dht_parts.growth PEERS SEED LOOKUPS` is one size in a process of its own, and prints one JSON object.

The peers are settled first: everybody's table is filled with whom it would have met. Then a share of them leaves
without a word, and as many newcomers join, by real look-ups; nobody has had time to notice. `LEFT` is the share of a
table that is gone where peers stay for two hours on average and a table's nodes were heard of 450 s ago on average (a
round of maintenance asks those not heard for 600 s, every 300 s). What is measured then is real look-ups.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any, Final

from p2pgrid.proto.kademlia.member import MAINTENANCE_INTERVAL_S

from .population import Peer, Population
from .wire import Outcome, Wire

LEFT: Final = 0.06
MOST_JOINING: Final = 1_000
KEYS: Final = 20
PROVIDERS: Final = 5
CLIENTS: Final = 0.2
"""Of the look-ups, by clients that have just joined and know nobody."""
MAINTAINED: Final = 30
MEASURED: Final = 30
"""Peers whose state is weighed."""
ROUNDS: Final = 6
"""Of maintenance, after which every bucket has been looked into once."""


def measure(size: int, seed: int, lookups: int) -> dict[str, Any]:
    """One size."""
    rng, began = random.Random(seed), time.process_time()
    population = Population(rng)
    peers = population.add(size)
    population.settle()
    wire = Wire(population)
    leaving = set(rng.sample(range(size), int(size * LEFT)))
    for index in leaving:
        peers[index].is_alive = False
    alive = [peer for index, peer in enumerate(peers) if index not in leaving]
    joins = [_join(wire, newcomer, alive) for newcomer in population.add(min(MOST_JOINING, int(size * LEFT)))]
    keys = {b"\x12\x20" + rng.randbytes(32): rng.sample(alive, PROVIDERS) for _ in range(KEYS)}
    announced = [wire.announce(peer, key) for key, providers in keys.items() for peer in providers]
    warm = [_look_up(wire, rng.choice(alive), *rng.choice(list(keys.items()))) for _ in range(lookups)]
    cold = [_cold(wire, alive, *rng.choice(list(keys.items()))) for _ in range(int(lookups * CLIENTS))]
    kept_up: list[Outcome] = []
    maintained = rng.sample(alive, MAINTAINED)
    for _ in range(ROUNDS):
        wire.clock_s += MAINTENANCE_INTERVAL_S
        kept_up += [wire.maintain(peer) for peer in maintained]
    return {
        "peers": size,
        "warm": _summary(warm),
        "cold": _summary(cold),
        "join": _summary([(one, True) for one in joins]),
        "announce_messages": mean(outcome.messages for outcome, _ in announced),
        "announce_kept": mean(kept for _, kept in announced),
        "maintenance_messages_per_s": mean(one.messages for one in kept_up) / MAINTENANCE_INTERVAL_S,
        "table_nodes": mean(len(population.settled(peer).table) for peer in rng.sample(alive, MEASURED)),
        "state_bytes": mean(deep_size(population.settled(peer)) for peer in rng.sample(alive, MEASURED)),
        "cpu_s": time.process_time() - began,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def deep_size(thing: object) -> int:
    """Bytes of an object and all that it alone or with others holds: a peer's state as if it were alone."""
    seen: set[int] = set()
    waiting: list[object] = [thing]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one
        for kind in type(one).__mro__:
            names = getattr(kind, "__slots__", ())
            waiting += [getattr(one, name) for name in names if hasattr(one, name)]
        waiting += vars(one).values() if hasattr(one, "__dict__") else ()
    return total


def _join(wire: Wire, newcomer: Peer, alive: Sequence[Peer]) -> Outcome:
    return wire.join(newcomer, wire.population.rng.sample(list(alive), 2))


def _look_up(
    wire: Wire, asker: Peer, key: bytes, providers: Sequence[Peer], *, is_server: bool = True
) -> tuple[Outcome, bool]:
    outcome = wire.find_providers(asker, key, is_server=is_server)
    return outcome, outcome.providers >= {one.node.peer for one in providers} - {asker.node.peer}


def _cold(wire: Wire, alive: Sequence[Peer], key: bytes, providers: Sequence[Peer]) -> tuple[Outcome, bool]:
    (client,) = wire.population.add(1)
    joined = wire.join(client, wire.population.rng.sample(list(alive), 2), is_server=False)
    outcome, is_found = _look_up(wire, client, key, providers, is_server=False)
    outcome.asks += joined.asks
    outcome.messages += joined.messages
    outcome.took_s += joined.took_s
    outcome.named_at_s = {peer: at_s + joined.took_s for peer, at_s in outcome.named_at_s.items()}
    return outcome, is_found


def _summary(found: Sequence[tuple[Outcome, bool]]) -> dict[str, float]:
    outcomes = [outcome for outcome, _ in found]
    named = [max(outcome.named_at_s.values(), default=0.0) for outcome in outcomes]
    return {
        "found": mean(is_found for _, is_found in found),
        "hops_mean": mean(one.hops for one in outcomes),
        "hops_max": max(one.hops for one in outcomes),
        "messages_mean": mean(one.messages for one in outcomes),
        "messages_p99": quantile([one.messages for one in outcomes], 0.99),
        "silent_mean": mean(one.silent for one in outcomes),
        "took_p50_s": quantile([one.took_s for one in outcomes], 0.5),
        "took_p95_s": quantile([one.took_s for one in outcomes], 0.95),
        "named_p50_s": quantile(named, 0.5),
        "named_p95_s": quantile(named, 0.95),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
