"""The simulated network of scripts/bench/dht in small: look-ups find who is there whoever lies, and cost like log n."""

from __future__ import annotations

import math
import random
import re
import shlex

import pytest
from dht_parts.__main__ import PAGE, chosen, parse
from dht_parts.attack import Scenario, attack
from dht_parts.growth import measure
from dht_parts.hostile import ALIKE, NOBODY, ONE_ANOTHER
from dht_parts.population import Population
from dht_parts.report import BEGIN, END, missed
from dht_parts.wire import Wire
from path_parts.process import BenchError

KEY = b"\x12\x20" + bytes(32)


@pytest.mark.parametrize("lie", [ALIKE, ONE_ANOTHER, NOBODY])
def test_a_fifth_that_lies_hides_no_provider(lie: str) -> None:
    result = attack(Scenario(1_000, 0.2, lie, keys=2, trials=15))
    assert result["found"] == 1
    assert result["named_p99_s"] < 5
    assert result["first_p95_s"] < 5 and result["all_p95_s"] < 8, "long before the look-up is over"
    assert result["asks_max"] <= 320


def test_a_thousand_sybils_around_a_key_hide_no_provider() -> None:
    """Beside a fifth that lies: each in an IP prefix of its own, come into a network that was there."""
    result = attack(Scenario(1_000, 0.2, sybils=1_000, keys=1, trials=8))
    assert result["patient"] == 1
    assert result["found"] >= 0.8


def test_without_the_region_they_do() -> None:
    """The measure is worth its requests, and the simulation can tell."""
    scenario = Scenario(1_000, 0.2, sybils=300, is_late=False, keys=1, trials=8, rules="no region")
    assert attack(scenario)["found"] < 0.5


def test_what_lying_costs_is_bounded() -> None:
    """Half of the network lies: look-ups end, and none asks more than its replicas allow."""
    result = attack(Scenario(300, 0.5, keys=1, trials=10))
    assert result["asks_max"] <= 8 * 160
    assert result["took_p50_s"] <= 60


def test_a_seed_makes_a_run() -> None:
    one, again, other = (attack(Scenario(200, 0.2, keys=1, trials=3, seed=seed)) for seed in (1, 1, 2))
    del one["cpu_s"], again["cpu_s"]
    assert one == again
    assert other["named_p50_s"] != one["named_p50_s"]


def test_the_cost_grows_with_log_n() -> None:
    small, large = measure(200, 1, 30), measure(1_600, 1, 30)
    assert small["warm"]["found"] == large["warm"]["found"] == 1
    assert small["cold"]["found"] == large["cold"]["found"] == 1
    for one in (small, large):
        assert one["warm"]["hops_max"] <= math.log2(one["peers"])
        assert one["table_nodes"] <= 20 * (math.log2(one["peers"]) - 2)
        assert one["state_bytes"] < 150_000
    assert large["warm"]["messages_mean"] < 2 * small["warm"]["messages_mean"], "for eight times as many peers"


def test_what_was_announced_to_a_network_cut_in_two_is_found_by_all_once_it_is_one_again() -> None:
    """Through a seed: the halves had forgotten one another."""
    rng = random.Random(1)
    population = Population(rng)
    wire = Wire(population)
    seed, *peers = population.add(60)
    halves = [seed, *peers[:30]], peers[30:]
    for half in halves:
        for number, peer in enumerate(half[1:], 1):
            wire.join(peer, half[:number][:1])
    provider, asker = halves[1][5], halves[0][7]
    wire.announce(provider, KEY)
    assert wire.find_providers(asker, KEY).providers == set()
    for peer in halves[1]:
        wire.join(peer, [seed])
    assert wire.find_providers(asker, KEY).providers == {provider.node.peer}


def test_the_page_has_commands_that_are_commands_and_a_place_for_the_tables() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    commands = re.findall(r"^ *scripts/bench/dht\b(.*?)(?: #.*)?$", page, re.MULTILINE)
    assert commands
    for command in commands:
        assert chosen(parse(shlex.split(command)).only)
    with pytest.raises(BenchError):
        chosen("real,weather")


def test_what_is_missed_is_said() -> None:
    scenario = {"peers": 10, "share": 0.2, "sybils": 0, "rules": "all", "lie": "alike", "is_late": True}
    assert missed({"attack": [{"scenario": scenario, "found": 0.99}]}) == []
    assert missed({"attack": [{"scenario": scenario, "found": 0.98}]}) != []
    assert missed({"attack": [{"scenario": {**scenario, "share": 0.4}, "found": 0.5}]}) == [], "nobody promises that"
    assert missed({"real": {"calm": {"found": 1}, "killed": {"found": 0.9}}}) != []
