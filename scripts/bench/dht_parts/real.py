"""A network of real libp2p hosts in a few processes on loopback: join, announce, look up, with some hosts killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import mean, median
from typing import Any, Final

from path_parts.process import BenchError, _in_child, cpu_ns, memory_bytes, say
from path_parts.toolbox import ROOT

from .growth import quantile

PROCESSES: Final = 4
KEYS: Final = 4
PROVIDERS: Final = 6
CLIENTS: Final = 16
LOOKUPS: Final = 60
IDLE_S: Final = 10.0


class Node:
    """One process of hosts, told what to do over its standard input."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "dht_parts.real_node"]
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, preexec_fn=_in_child)
        self.pid = int(self._answer()["pid"])
        self.addresses: list[str] = []
        self.is_up = True

    def tell(self, do: str, **more: Any) -> dict[str, Any]:
        """Have it do something; its answer. Raises BenchError if it ended."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._popen.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.is_up = False
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> None:
        """Safe to call twice."""
        self.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise BenchError("a process of hosts ended; what it said is above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure_real(hosts: int, seed: int = 1) -> dict[str, Any]:
    """`hosts` of them, in four processes, and a process of clients."""
    rng = random.Random(seed)
    with _nodes(PROCESSES) as nodes, _nodes(1) as (clients,), ThreadPoolExecutor(PROCESSES) as pool:
        empty = [memory_bytes(node.pid) for node in nodes]
        each = -(-hosts // PROCESSES)
        for node in nodes:
            node.addresses = node.tell("open", count=each)["addresses"]
        seeds = [nodes[0].addresses[0], nodes[1].addresses[0]]
        say(f"  .. {each * PROCESSES} hosts join")
        before = _cpu(nodes)
        joined = list(pool.map(lambda node: node.tell("join", seeds=seeds), nodes))
        join_cpu = _cpu(nodes) - before
        clients.tell("join", seeds=seeds)
        for node in nodes:
            node.tell("refresh")
        say("  .. announce and look up")
        announced, providers = _announce(nodes, rng)
        calm = _look_ups(nodes, clients, providers, rng)
        time.sleep(1)
        before = _cpu(nodes)
        time.sleep(IDLE_S)
        idle = _cpu(nodes) - before
        state = [node.tell("state") for node in nodes]
        memory = sum(memory_bytes(node.pid) - base for node, base in zip(nodes, empty, strict=True))
        say("  .. a fourth of the hosts is killed")
        nodes[-1].kill()
        gone = set(map(_peer_id, nodes[-1].addresses))
        left = {key: found - gone for key, found in providers.items()}
        killed = _look_ups(nodes[:-1], clients, left, rng, also=gone)
        return {
            "hosts": each * PROCESSES,
            "join_p50_s": median([took for one in joined for took in one["took_s"]]),
            "join_p95_s": quantile([took for one in joined for took in one["took_s"]], 0.95),
            "join_cpu_ms": join_cpu * 1000 / (each * PROCESSES),
            "join_requests": sum(one["requests"] for one in joined) / (each * PROCESSES),
            "announce_p50_s": median([one["took_s"] for one in announced]),
            "announce_held": mean(one["held"] for one in announced),
            "calm": calm,
            "killed": killed,
            "table": mean(size for one in state for size in one["tables"]),
            "idle_cpu_share": idle / IDLE_S / (each * PROCESSES),
            "memory_mb": memory / 1e6 / (each * PROCESSES),
        }


@contextmanager
def _nodes(count: int) -> Iterator[list[Node]]:
    with ExitStack() as stack:
        nodes = []
        for _ in range(count):
            nodes.append(Node())
            stack.callback(nodes[-1].stop)
        yield nodes


def _announce(nodes: Sequence[Node], rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, set[str]]]:
    announced, providers = [], {}
    for number in range(KEYS):
        key, chosen = f"model/{number}", set()
        for _ in range(PROVIDERS):
            node = rng.choice(nodes)
            host = rng.randrange(len(node.addresses))
            announced.append(node.tell("announce", host=host, key=key))
            chosen.add(_peer_id(node.addresses[host]))
        providers[key] = chosen
    return announced, providers


def _look_ups(
    nodes: Sequence[Node],
    clients: Node,
    providers: dict[str, set[str]],
    rng: random.Random,
    *,
    also: Set[str] = frozenset(),
) -> dict[str, float]:
    """By hosts that have long been there, and by clients that join for it. `also` may be found, but need not."""
    warm, cold = [], []
    pids = [*(node.pid for node in nodes), clients.pid]
    before = cpu_ns(pids)
    for _ in range(LOOKUPS):
        node, key = rng.choice(nodes), rng.choice(list(providers))
        host = rng.randrange(len(node.addresses))
        warm.append((node.tell("find", host=host, key=key), providers[key] - {_peer_id(node.addresses[host])}))
    warm_cpu = (cpu_ns(pids) - before) / 1e6 / LOOKUPS
    before = cpu_ns(pids)
    for _ in range(CLIENTS):
        key = rng.choice(list(providers))
        cold.append((clients.tell("find", host=-1, key=key), providers[key]))
    cold_cpu = (cpu_ns(pids) - before) / 1e6 / CLIENTS
    found = [wanted <= set(one["found"]) <= wanted | also for one, wanted in [*warm, *cold]]
    return {
        "found": mean(found),
        "warm_p50_s": median([one["took_s"] for one, _ in warm]),
        "warm_p95_s": quantile([one["took_s"] for one, _ in warm], 0.95),
        "warm_requests": mean(one["requests"] for one, _ in warm),
        "warm_cpu_ms": warm_cpu,
        "cold_p50_s": median([one["took_s"] for one, _ in cold]),
        "cold_p95_s": quantile([one["took_s"] for one, _ in cold], 0.95),
        "cold_requests": mean(one["requests"] for one, _ in cold),
        "cold_cpu_ms": cold_cpu,
    }


def _cpu(nodes: Sequence[Node]) -> float:
    return cpu_ns([node.pid for node in nodes]) / 1e9


def _peer_id(address: str) -> str:
    return address.rpartition("/p2p/")[2]
