"""Whether look-ups find the honest providers of a key while others lie.

`python -m dht_parts.attack SCENARIO.json` runs one scenario in a process of its own, and prints one JSON object.

A trial is one look-up by an honest peer for a key that `PROVIDERS` honest peers have announced. It succeeds if every
one of those providers has been asked for its offer within `HASTY_S`: while the look-up goes on a few of those named are
(`asking.py`), at its end the 50 that it comes back with.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final

from p2pgrid.client.offers import SEARCH_TIMEOUT_S
from p2pgrid.proto.kademlia.lookup import Limits

from .asking import Asking
from .growth import quantile
from .hostile import ALIKE, Liars, surround
from .population import Peer, Population
from .wire import Wire

PROVIDERS: Final = 5
HASTY_S: Final = 8.0
PATIENT_S: Final = SEARCH_TIMEOUT_S
"""What a client gives a look-up."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who lies, how, and what is done against it."""

    peers: int
    share: float
    """Of them who lie, at random places."""
    lie: str = ALIKE
    sybils: int = 0
    """More liars, who have placed themselves beside the key's replicas."""
    replicas: int = 1
    """How many of the key's replicas the sybils have surrounded."""
    reach: float = 20.0
    prefixes: int = 0
    """IP prefixes of the sybils; 0 for one each."""
    is_late: bool = True
    """The sybils came into a network that was there; else they were there before all tables filled."""
    rules: str = "all"
    keys: int = 4
    trials: int = 50
    """Look-ups for each key."""
    seed: int = 1


class _Network:
    """A network in which some lie, long settled."""

    def __init__(self, scenario: Scenario, key: bytes, rng: random.Random) -> None:
        population = Population(rng, RULES[scenario.rules])
        peers = population.add(scenario.peers)
        liars = peers[: round(scenario.peers * scenario.share)]
        if scenario.sybils:
            liars += surround(
                population,
                key,
                scenario.sybils,
                replicas=scenario.replicas,
                reach=scenario.reach,
                prefixes=scenario.prefixes,
            )
        hostile = Liars(population, liars, scenario.lie)
        population.settle(sybils_came_late=scenario.is_late)
        self.honest = [peer for peer in peers if not peer.liar]
        self.wire = Wire(population, hostile.answer)


def _trial(wire: Wire, asker: Peer, key: bytes, wanted: set[bytes]) -> dict[str, float]:
    """Look up once."""
    asking = Asking(asker, wire.population, wanted)
    outcome = wire.find_providers(asker, key, time_limit_s=PATIENT_S, on_answer=asking, on_end=asking.end)
    asked = {peer for peer, at_s in asking.asked_s.items() if at_s <= HASTY_S}
    return {
        "found": float(asked >= wanted),
        "part": len(asked & wanted) / len(wanted),
        "patient": float(asking.asked_s.keys() >= wanted),
        "asks": outcome.asks,
        "named_s": max(outcome.named_at_s.get(peer, PATIENT_S) for peer in wanted),
        "first_s": min((asking.answered_s[peer] for peer in wanted if peer in asking.answered_s), default=PATIENT_S),
        "all_s": max(asking.answered_s.get(peer, PATIENT_S) for peer in wanted),
        "took_s": outcome.took_s,
        "replicas": outcome.replicas,
    }


RULES: Final = {
    "all": Limits(),
    "one path": Limits(paths=1),
    "no region": Limits(region=0),
    "no replicas": Limits(replicas=1),
    "Kademlia alone": Limits(paths=1, region=0, replicas=1),
}


def attack(scenario: Scenario) -> dict[str, Any]:
    """Run it."""
    began = time.process_time()
    rng = random.Random(scenario.seed)
    trials: list[dict[str, float]] = []
    kept: list[int] = []
    network: _Network | None = None
    for _ in range(scenario.keys):
        key = b"\x12\x20" + rng.randbytes(32)
        if network is None or scenario.sybils:  # who sits beside a key sits beside that key alone
            network = _Network(scenario, key, rng)
        providers = rng.sample(network.honest, PROVIDERS)
        kept += [network.wire.announce(provider, key)[1] for provider in providers]
        for _ in range(scenario.trials):
            asker = rng.choice(network.honest)
            wanted = {provider.node.peer for provider in providers} - {asker.node.peer}
            trials.append(_trial(network.wire, asker, key, wanted))
    return {
        "scenario": dataclasses.asdict(scenario),
        "trials": len(trials),
        **{name: mean(one[name] for one in trials) for name in ("found", "part", "patient", "replicas")},
        "asks_p50": quantile([one["asks"] for one in trials], 0.5),
        "asks_max": max(one["asks"] for one in trials),
        "named_p50_s": quantile([one["named_s"] for one in trials], 0.5),
        "named_p99_s": quantile([one["named_s"] for one in trials], 0.99),
        **{
            f"{name}_{at}_s": quantile([one[f"{name}_s"] for one in trials], share)
            for name in ("first", "all", "took")
            for at, share in (("p50", 0.5), ("p95", 0.95))
        },
        "kept_least": min(kept),
        "cpu_s": time.process_time() - began,
    }


if __name__ == "__main__":
    print(json.dumps(attack(Scenario(**json.loads(sys.argv[1])))))
