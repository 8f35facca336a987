"""Whether look-ups find the honest providers of a key while others lie.

`python -m dht_parts.attack SCENARIO.json` runs one scenario in a process of its own, and prints one JSON object.

A trial is one look-up by an honest peer for a key that `PROVIDERS` honest peers have announced, in the time that a
client gives it. It succeeds if every one of those providers is among the 50 that it comes back with: those are asked
for their offers.
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

from p2pgrid.proto.kademlia.lookup import Limits

from .growth import quantile
from .hostile import ALIKE, Liars, surround
from .population import Peer, Population
from .wire import Wire

PROVIDERS: Final = 5
TIME_LIMIT_S: Final = 8.0
"""What a client gives a look-up (`client/offers.py`)."""
PATIENT_S: Final = 60.0


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


def _trial(wire: Wire, asker: Peer, key: bytes, wanted: set[bytes], *, is_patient: bool) -> dict[str, float]:
    """Look up once in a client's time and, where somebody sits at the key, once in all the time that it takes."""
    hasty = wire.find_providers(asker, key, time_limit_s=TIME_LIMIT_S)
    patient = wire.find_providers(asker, key, time_limit_s=PATIENT_S) if is_patient else hasty
    return {
        "found": float(hasty.providers >= wanted),
        "part": len(hasty.providers & wanted) / len(wanted),
        "patient": float(patient.providers >= wanted),
        "asks": patient.asks,
        "named_s": max(patient.named_at_s.get(peer, PATIENT_S) for peer in wanted),
        "took_s": hasty.took_s,
        "replicas": patient.replicas,
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
            trials.append(_trial(network.wire, asker, key, wanted, is_patient=bool(scenario.sybils)))
    return {
        "scenario": dataclasses.asdict(scenario),
        "trials": len(trials),
        **{name: mean(one[name] for one in trials) for name in ("found", "part", "patient", "replicas")},
        "asks_p50": quantile([one["asks"] for one in trials], 0.5),
        "asks_max": max(one["asks"] for one in trials),
        "named_p50_s": quantile([one["named_s"] for one in trials], 0.5),
        "named_p99_s": quantile([one["named_s"] for one in trials], 0.99),
        "took_p50_s": quantile([one["took_s"] for one in trials], 0.5),
        "kept_least": min(kept),
        "cpu_s": time.process_time() - began,
    }


if __name__ == "__main__":
    print(json.dumps(attack(Scenario(**json.loads(sys.argv[1])))))
